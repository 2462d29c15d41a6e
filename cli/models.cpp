// dense models: which pages there are, what each of them does, how long it is, and where it comes from.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <regex>
#include <sstream>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/pages.h"
#include "cli/progress.h"
#include "dense/io/files.h"
#include "dense/io/json.h"

namespace dense::cli {
namespace {

namespace fs = std::filesystem;

struct Config {
  bool json = false, markdown = false;
  void fields(auto&& f) {
    f("json", json, "a line of JSON for each page");
    f("markdown", markdown, "the table that README.md has");
  }
};

// What a page's text says. The paper is the first one that the comment on top cites: authors, year, and arXiv:number,
// doi:name or a title in quotes.
struct Source {
  std::string file;   // "gpt2.h"
  int lines = 0;      // that are neither blank nor comment
  std::string paper;  // "Vaswani et al. 2017, arXiv:1706.03762"; empty: none
};

Source read_source(const fs::path& path, const std::string& text) {
  static const std::regex cited(
      R"re([A-Z][A-Za-z]*(?: (?:[A-Z&][A-Za-z]*|et al\.))* [0-9]{4}, (?:arXiv:[0-9.]*[0-9]|doi:[^ ;]*[^ ;.]|"[^"]*"))re");
  Source source{path.filename().string(), 0, {}};
  std::string comment, line;
  for (std::istringstream all(text); std::getline(all, line);) {
    const size_t begin = std::min(line.find_first_not_of(" \t\r"), line.size());
    const bool is_comment = line.compare(begin, 2, "//") == 0;
    if (is_comment && source.lines == 0) comment += " " + line.substr(std::min(begin + 3, line.size()));
    if (begin < line.size() && !is_comment) ++source.lines;
  }
  if (std::smatch match; std::regex_search(comment, match, cited)) source.paper = match.str();
  return source;
}

// By model_type. One line on standard error where the folder is not there.
std::map<std::string, Source> read_sources(const fs::path& folder) {
  static const std::regex type(R"re(\bmodel_type = "([^"]*)")re");
  std::map<std::string, Source> sources;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() != ".h") continue;
    const std::string text = read_file(entry.path());
    if (std::smatch match; std::regex_search(text, match, type)) sources[match[1]] = read_source(entry.path(), text);
  }
  if (error) say("{}: {}: lines and papers are left out\n", folder.string(), error.message());
  return sources;
}

std::string kind_of(const Page& page) { return page.decoder ? "encoder-decoder" : page.causal ? "decoder" : "encoder"; }

// What can be done with it, for people.
std::string uses_of(const Page& page) {
  std::string uses = "trains";
  if (page.generates()) uses += ", generates";
  if (page.token_types) uses += ", token types";
  return uses;
}

// A paper as a link, where there is an address.
std::string linked(const std::string& paper) {
  const size_t comma = paper.find(", ");
  if (comma == paper.npos) return paper;
  const std::string name = paper.substr(0, comma), id = paper.substr(comma + 2);
  if (id.starts_with("arXiv:")) return fmt::format("[{}](https://arxiv.org/abs/{})", name, id.substr(6));
  if (id.starts_with("doi:")) return fmt::format("[{}](https://doi.org/{})", name, id.substr(4));
  return paper;
}

std::string or_null(const std::string& text) { return text.empty() ? "null" : json_string(text); }

}  // namespace

int models_command(const Call& call) {
  Config config;
  if (!parse_flags(config, call,
                   "Lists the pages: what each of them does, its lines of code (neither blank nor comment), its paper.",
                   call.program + " --markdown"))
    return 0;
  if (config.json && config.markdown) fail("--markdown: expected one of --json and --markdown");
  std::map<std::string, Source> sources = read_sources(DENSE_SOURCE_DIR "/models");
  if (config.markdown) fmt::print("| page | class | kind | does | lines | paper |\n|---|---|---|---|---|---|\n");
  for (const Page& page : pages()) {
    const Source& source = sources[page.model_type];
    const std::string kind = kind_of(page), lines = source.file.empty() ? "" : std::to_string(source.lines);
    if (config.json)
      fmt::print(
          "{{\"model_type\": {}, \"file\": {}, \"architecture\": {}, \"kind\": {}, \"generates\": {}, "
          "\"token_types\": {}, \"lines\": {}, \"paper\": {}}}\n",
          json_string(page.model_type), or_null(source.file), or_null(page.architecture), json_string(kind),
          page.generates(), bool(page.token_types), lines.empty() ? "null" : lines, or_null(source.paper));
    else if (config.markdown)
      fmt::print("| {} | {} | {} | {} | {} | {} |\n",
                 source.file.empty() ? page.model_type : fmt::format("[{}](models/{})", page.model_type, source.file),
                 page.architecture, kind, uses_of(page), lines, linked(source.paper));
    else if (source.file.empty()) fmt::print("{:<12}{:<16}{}\n", page.model_type, kind, uses_of(page));
    else
      fmt::print("{:<12}{:<16}{:<21}{:>3} lines{}\n", page.model_type, kind, uses_of(page), lines,
                 source.paper.empty() ? "" : "  " + source.paper);
  }
  return 0;
}

}  // namespace dense::cli
