// The folders are layers, and includes point down only. The order is the one of the house in the README:
//   dense/scalar < dense/tensor < dense/io < dense/train < dense/dense.h < models < examples < cli, python, bench, tests
// "quoted" includes are files of this repository, written from its root; <angles> are the standard library and others'
// libraries. What is reached from dense/dense.h uses no library but the standard one, so that a page compiles quickly.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

using Tree = std::map<std::string, std::string>;  // path from the root -> text

struct Include {
  bool quoted;
  std::string name;
};

// The includes of a text: lines that are # include "name" or # include <name>, with any spaces before and after the #.
std::vector<Include> includes(const std::string& text) {
  std::vector<Include> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::erase_if(line, [](char c) { return c == ' ' || c == '\t'; });
    const std::string start = "#include";
    if (!line.starts_with(start)) continue;
    bool quoted = line[start.size()] == '"';
    size_t name = start.size() + 1, end = line.find(quoted ? '"' : '>', name);
    if (end != line.npos) found.push_back({quoted, line.substr(name, end - name)});
  }
  return found;
}

bool is_in(const std::string& path, const std::string& place) { return path.starts_with(place); }

// The height of a file's layer; -1 where a file belongs to none.
int layer(const std::string& path) {
  static const std::vector<std::vector<std::string>> layers = {
      {"dense/scalar/"}, {"dense/tensor/"}, {"dense/io/"}, {"dense/train/"},
      {"dense/dense.h"}, {"models/"},       {"examples/"}, {"cli/", "python/", "bench/", "tests/"},
  };
  for (size_t height = 0; height < layers.size(); ++height) {
    for (const std::string& place : layers[height]) {
      if (is_in(path, place)) return int(height);
    }
  }
  return -1;
}

// Why `path` may not include the file `target` of this repository; empty where it may.
std::string objection(const Tree& tree, const std::string& path, const std::string& target) {
  const std::string beside = path.substr(0, path.rfind('/') + 1) + target;
  if (is_in(path, "examples/") && tree.contains(beside)) return "";
  if (!tree.contains(target)) return "no such file";
  if (is_in(path, "models/")) return target == "dense/dense.h" ? "" : "a model page includes dense/dense.h alone";
  if (is_in(path, "examples/")) {
    bool allowed = target == "dense/dense.h" || is_in(target, "models/") || is_in(target, "examples/");
    return allowed ? "" : "an example includes dense/dense.h, models/ and examples/ alone";
  }
  return layer(target) <= layer(path) ? "" : "points up";
}

// Standard headers have plain names; others' have a folder or end in .h.
bool is_standard(const std::string& name) { return name.find_first_of("./") == std::string::npos; }

// All that is wrong with the includes of a tree, one line each.
std::vector<std::string> layout_errors(const Tree& tree) {
  std::vector<std::string> errors;
  for (const auto& [path, text] : tree) {
    if (layer(path) < 0) errors.push_back(path + ": belongs to no layer");
    for (const Include& include : includes(text)) {
      if (!include.quoted) continue;
      std::string why = objection(tree, path, include.name);
      if (!why.empty()) errors.push_back(path + ": \"" + include.name + "\": " + why);
    }
  }

  std::vector<std::string> todo = {"dense/dense.h"};
  std::set<std::string> reached(todo.begin(), todo.end());
  while (!todo.empty()) {
    std::string path = todo.back();
    todo.pop_back();
    auto file = tree.find(path);
    if (file == tree.end()) continue;
    for (const Include& include : includes(file->second)) {
      if (include.quoted) {
        if (reached.insert(include.name).second) todo.push_back(include.name);
      } else if (!is_standard(include.name)) {
        errors.push_back(path + ": <" + include.name +
                         ">: reached from dense/dense.h, but not of the standard library");
      }
    }
  }
  return errors;
}

Tree read_tree(const std::filesystem::path& root) {
  Tree tree;
  for (const char* folder : {"dense", "models", "examples", "cli", "python", "bench", "tests"}) {
    if (!std::filesystem::exists(root / folder)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      std::filesystem::path path = entry.path();
      if (path.extension() != ".h" && path.extension() != ".cpp") continue;
      std::ifstream file(path, std::ios::binary);
      std::ostringstream text;
      text << file.rdbuf();
      tree[path.lexically_relative(root).generic_string()] = text.str();
    }
  }
  return tree;
}

using Errors = std::vector<std::string>;

}  // namespace

TEST(Layout, IncludesOfThisRepositoryPointDownOnly) {
  Tree tree = read_tree(DENSE_SOURCE_DIR);
  ASSERT_TRUE(tree.contains("dense/dense.h"));
  ASSERT_TRUE(tree.contains("tests/layout_test.cpp"));
  EXPECT_EQ(layout_errors(tree), Errors{});
}

TEST(Layout, ARightTreeHasNoErrors) {
  Tree tree = {
      {"dense/dense.h", "#include \"dense/train/loop.h\"\n#include <vector>\n"},
      {"dense/scalar/tape.h", "#include <span>\n"},
      {"dense/scalar/tape.cpp", "#include \"dense/scalar/tape.h\"\n#include <hwy/highway.h>\n"},
      {"dense/tensor/graph.h", "#include \"dense/scalar/tape.h\"\n"},
      {"dense/io/json.h", "#include \"dense/tensor/graph.h\"\n"},
      {"dense/train/loop.h", "#include \"dense/io/json.h\"\n#include \"dense/train/loop.h\"\n"},
      {"models/gpt2.h", "#include \"dense/dense.h\"\n"},
      {"examples/random.h", "#include <cmath>\n"},
      {"examples/microgpt.h", "#include \"dense/dense.h\"\n#include \"examples/random.h\"\n"},
      {"cli/main.cpp", "#include <CLI/CLI.hpp>\n#include \"examples/microgpt.h\"\n#include \"bench/bench.h\"\n"},
      {"bench/bench.h", "#include \"dense/scalar/tape.h\"\n"},
      {"tests/a_test.cpp", "#include \"models/gpt2.h\"\n// #include \"nowhere.h\"\n"},
  };
  EXPECT_EQ(layout_errors(tree), Errors{});
}

TEST(Layout, EachWrongIncludeIsNamed) {
  const Tree good = {{"dense/dense.h", ""},       {"dense/scalar/tape.h", ""}, {"dense/tensor/graph.h", ""},
                     {"dense/io/json.h", ""},     {"dense/train/loop.h", ""},  {"models/gpt2.h", ""},
                     {"examples/microgpt.h", ""}, {"cli/flags.h", ""}};
  struct Case {
    std::string path, line, error;
  };
  const std::vector<Case> cases = {
      {"dense/scalar/a.h", "#include \"dense/tensor/graph.h\"",
       "dense/scalar/a.h: \"dense/tensor/graph.h\": points up"},
      {"dense/tensor/a.h", "#include \"dense/io/json.h\"", "dense/tensor/a.h: \"dense/io/json.h\": points up"},
      {"dense/io/a.cpp", "#include \"dense/train/loop.h\"", "dense/io/a.cpp: \"dense/train/loop.h\": points up"},
      {"dense/train/a.h", "  #  include \"dense/dense.h\"", "dense/train/a.h: \"dense/dense.h\": points up"},
      {"dense/scalar/a.h", "#include \"tape.h\"", "dense/scalar/a.h: \"tape.h\": no such file"},
      {"dense/a.h", "", "dense/a.h: belongs to no layer"},
      {"models/a.h", "#include \"models/gpt2.h\"",
       "models/a.h: \"models/gpt2.h\": a model page includes dense/dense.h alone"},
      {"models/a.h", "#include \"dense/scalar/tape.h\"",
       "models/a.h: \"dense/scalar/tape.h\": a model page includes dense/dense.h alone"},
      {"examples/a.h", "#include \"dense/scalar/tape.h\"",
       "examples/a.h: \"dense/scalar/tape.h\": an example includes dense/dense.h, models/ and examples/ alone"},
      {"examples/a.h", "#include \"cli/flags.h\"",
       "examples/a.h: \"cli/flags.h\": an example includes dense/dense.h, models/ and examples/ alone"},
  };
  for (const Case& c : cases) {
    Tree tree = good;
    tree[c.path] = "#pragma once\n" + c.line + "\n";
    EXPECT_EQ(layout_errors(tree), Errors{c.error});
  }
}

TEST(Layout, ALibraryReachedFromDenseHIsNamed) {
  Tree tree = {
      {"dense/dense.h", "#include \"dense/io/json.h\"\n"},
      {"dense/io/json.h", "#include \"dense/scalar/tape.h\"\n"},
      {"dense/scalar/tape.h", "#include \"dense/scalar/tape.h\"\n#include <hwy/highway.h>\n#include <utf8proc.h>\n"},
      {"dense/scalar/not_reached.h", "#include <hwy/highway.h>\n"},
  };
  EXPECT_EQ(layout_errors(tree),
            (Errors{"dense/scalar/tape.h: <hwy/highway.h>: reached from dense/dense.h, but not of the standard library",
                    "dense/scalar/tape.h: <utf8proc.h>: reached from dense/dense.h, but not of the standard library"}));
}
