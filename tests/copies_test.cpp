// dense copies: marks are read or refused, never skipped; copies are compared as C++, and written again from sources.
#include <gtest/gtest.h>

#include <chrono>
#include <map>

#include "tests/process.h"

namespace {

class Copies : public InFolder {
 protected:
  const std::string llama =
      "#pragma once\n"
      "namespace llama {\n"
      "inline int norm(int x) { return x; }\n"
      "\n"
      "struct LlamaMLP {\n"
      "  int llama_size = 3;  // of Llama\n"
      "  int run(const char* s) const { return llama_size + LLAMA_MAX + (s == \"llama: llama3\"); }\n"
      "};\n"
      "}  // namespace llama\n";

  void page(const std::string& name, const std::string& text) { write("models/" + name, text); }
  Outcome copies(const Args& args = {}) { return run(Args{"copies"} + args); }
  void expect_equal() {
    const Outcome outcome = copies();
    EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
  }
  void expect_different(const Args& says) {
    const Outcome outcome = copies();
    EXPECT_EQ(outcome.exit_code, 1) << outcome.out << outcome.err;
    for (const std::string& line : says) EXPECT_TRUE(contains(outcome.out, line)) << line << "\n" << outcome.out;
  }
  void expect_error(const std::string& says) { expect_refused({"copies"}, says, "dense copies"); }
  // Beside llama.h, b.h is this text.
  void with_llama(const std::string& text) {
    page("llama.h", llama);
    page("b.h", text);
  }
};

TEST_F(Copies, OfThisRepositoryAreEqualToTheirSources) {
  const auto start = std::chrono::steady_clock::now();
  const Outcome outcome = copies({"--folder", DENSE_SOURCE_DIR "/models"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err << "dense copies fix writes them again";
  EXPECT_TRUE(contains(outcome.out, " copies in ")) << outcome.out;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));  // 20 ms, without sanitizers
}

TEST_F(Copies, DifferencesAreShownAsAUnifiedDiff) {
  with_llama("// copied from llama.h: norm\ninline int norm(int x) { return x + 1; }\n");
  expect_different({"--- models/llama.h: norm\n+++ models/b.h:2\n@@ -3,1 +2,1 @@\n",
                    "-inline int norm(int x) { return x; }\n+inline int norm(int x) { return x + 1; }\n",
                    "1 of 1 copy differs from the source\n"});
}

TEST_F(Copies, ACopyThatIsShorterThanItsSourceIsADifference) {
  with_llama("// copied from llama.h: LlamaMLP\nstruct LlamaMLP {};\n");
  expect_different({"-  int llama_size = 3;  // of Llama\n", "+struct LlamaMLP {};\n"});
}

TEST_F(Copies, EveryLineThatSaysCopiedFromIsAMarkOrAnError) {
  const std::string definition = "\ninline int norm(int x) { return x; }\n";
  const std::string form = "models/b.h:1: expected // copied from FILE: NAME";
  const struct {
    std::string mark, says;
  } cases[] = {
      {"// Copied from llama.h: norm", form},
      {"// this is copied from llama.h", form},
      {"/* copied from llama.h: norm */", form},
      {"// It is   COPIED  From there.", form},
      {"// copied from llama.h", form},
      {"// copied from llama.h norm", form},
      {"// copied from llama.h: norm from there", form},
      {"// copied from llama.h: norm with", form},
      {"// copied from llama.h: ", form},
      {"// copied from llama.h: norm with x", "expected A -> B, letters and digits with _ between them, got \"x\""},
      {"// copied from llama.h: norm with x_ -> y", "expected A -> B, letters and digits with _ between them"},
      {"// copied from llama.h: norm with x -> y,",
       "expected A -> B, letters and digits with _ between them, got \"\""},
      {"// copied from llama.h: norm with x. -> y", "got \"x. -> y\""},
      {"// copied from llama.h: norm with x -> y, x -> z", "rename x: given twice"},
      {"// copied from llama.h: norm with x -> x", "rename x -> x: expected two names, got one"},
      {"// copied from llam.h: norm", "models/b.h:1: llam.h: no such file; did you mean llama.h?"},
      {"// copied from llama.h: nrm",
       "models/b.h:1: llama.h: expected a definition or region nrm, found none; did you mean"},
      {"// copied from llama.h: norm.", "found none"},
      {"// copied from llama.h: norm with y -> z", "rename y -> z: expected y in llama.h: norm, found none"},
      {"// copied from llama.h: norm#2", "norm#2: expected norm#1 to norm#1 (lines 3 of llama.h), got #2"},
      {"// copied from llama.h: norm\n", "models/b.h:1: expected a definition on the next line"},
      {"// copied from llama.h: norm\n// the norm", "models/b.h:1: expected a definition on the next line"},
      {"// copied from llama.h: norm\nint norm(int);", "models/b.h:1: expected a definition on the next line"},
      {"int y;  // copied from llama.h: norm",
       "models/b.h:1: expected \"// copied from llama.h: norm\" on a line of its own"},
      {"// end of copy", "models/b.h:1: expected // copied from before // end of copy, got none"},
      {"// region a", "models/b.h:1: region a: expected // end of region"},
      {"// end of region", "models/b.h:1: expected // region NAME before // end of region, got none"},
  };
  for (const auto& [mark, says] : cases) {
    with_llama(mark + definition);
    expect_error(says);
  }
  with_llama("const char* s = \"copied from\";  // not a comment\n");
  expect_equal();
}

TEST_F(Copies, AllErrorsAreSaidEachInALine) {
  with_llama("// copied from\nint x;\n// copied from llama.h: none\nint y;\n");
  const Outcome outcome = copies();
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(lines(outcome.err).size(), 2u) << outcome.err;
}

TEST_F(Copies, OptingOutTakesAReasonAndADifference) {
  with_llama("// differs from llama.h: norm because it adds one\ninline int norm(int x) { return x + 1; }\n");
  expect_equal();
  EXPECT_TRUE(contains(copies({"list"}).out, "llama.h:3 norm\n  b.h:1 differs because it adds one\n"));
  with_llama("// differs from llama.h: norm\ninline int norm(int x) { return x + 1; }\n");
  expect_error("models/b.h:1: expected // differs from FILE: NAME because REASON");
  with_llama("// differs from llama.h: norm because it adds one\ninline int norm(int x) { return x; }\n");
  expect_error("models/b.h:1: expected a difference from llama.h: norm, found none");
  with_llama("// Which differs from the paper; differs from it.\n// differs from the paper\n");
  expect_equal();
}

TEST_F(Copies, ARenameCoversEachCasingInCodeStringsAndComments) {
  for (const char* arrow : {"Llama -> Mistral", "llama->mistral", "Llama   ->Mistral", "LLAMA -> MISTRAL"}) {
    with_llama(std::string("// copied from llama.h: LlamaMLP with ") + arrow +
               "\n"
               "struct MistralMLP {\n"
               "  int mistral_size = 3;  // of Mistral\n"
               "  int run(const char* s) const { return mistral_size + MISTRAL_MAX + (s == \"mistral: llama3\"); }\n"
               "};\n");
    expect_equal();
  }
  // What is spelled as in the mark becomes what is spelled there.
  with_llama(
      "// copied from llama.h: LlamaMLP with Llama -> GPTNeoX, llama -> gpt_neox\n"
      "struct GPTNeoXMLP {\n"
      "  int gpt_neox_size = 3;  // of GPTNeoX\n"
      "  int run(const char* s) const { return gpt_neox_size + GPT_NEO_X_MAX + (s == \"gpt_neox: llama3\"); }\n"
      "};\n");
  expect_equal();
}

TEST_F(Copies, RenamesAreLiteralAndSimultaneous) {
  page("a.h", "int f(int q, int k, int Q) { return q - k + Q + v(\"q_proj\", \"\\q\", 'q', 1q); }  // q and keys\n");
  page("b.h",
       "// copied from a.h: f with q -> k, k -> q\n"
       "int f(int k, int q, int Q) { return k - q + Q + v(\"k_proj\", \"\\q\", 'k', 1q); }  // k and keys\n");
  expect_equal();
}

TEST_F(Copies, CyclesAndCopiesOfThemselvesAreErrors) {
  page("a.h", "// copied from b.h: f\nint f() { return 1; }\n");
  page("b.h", "// copied from a.h: f\nint f() { return 1; }\n");
  expect_error("models/a.h:1: a cycle: a.h:1, copied from b.h:1, copied from a.h:1");
  fs::remove(folder / "models/b.h");
  page("a.h", "// copied from a.h: f\nint f() { return 1; }\n");
  expect_error("models/a.h:1: a copy of itself");
}

TEST_F(Copies, OverloadsAreAddressedByOrdinalOrQualified) {
  page("a.h",
       "int norm(int);\n"
       "int norm(int x) { return x; }\n"
       "int norm(float x) { return int(x); }\n"
       "struct S {\n"
       "  S(int a) : x_{a}, y_(a) { norm(a); }\n"
       "  ~S() {}\n"
       "  int norm() const { return 3; }\n"
       "  int x_, y_;\n"
       "};\n");
  page("b.h", "// copied from a.h: norm\nint norm(float x) { return int(x); }\n");
  expect_error("models/b.h:1: norm: expected one in a.h, or norm#1 to norm#3, got those of lines 2, 3, 7");
  page("b.h",
       "// copied from a.h: norm#2\nint norm(float x) { return int(x); }\n"
       "// copied from a.h: S\n"
       "struct S {\n"
       "  S(int a) : x_{a}, y_(a) { norm(a); }\n"
       "  ~S() {}\n"
       "  int norm() const { return 3; }\n"
       "  int x_, y_;\n"
       "};\n"
       "struct T {\n"
       "  // copied from a.h: S::norm\n"
       "  int norm() const { return 3; }\n"
       "};\n");
  expect_equal();
  page("b.h", "// copied from a.h: norm#2\nint norm(int x) { return x; }\n");
  expect_different({"-int norm(float x) { return int(x); }"});
}

// Each definition is found whole: a change of its last number is seen, and of what comes after it is not.
TEST_F(Copies, ADefinitionIsReadAsCpp) {
  const std::map<std::string, std::string> definitions = {
      {"f#1",
       "template <class T, int n = (3 > 2)>\n  requires(n > 1)\n"
       "[[nodiscard]] static inline T f(T x) { return x + 7; }"},
      {"f#2", "template <class T>\n  requires requires(T t) { t.x; }\nT f(T x) {\n  return x + 7;\n}"},
      {"f#3", "__attribute__((noinline)) auto f(int x) noexcept(true) -> decltype(x) { return 7; }"},
      {"f#4", "void f() try { g(); } catch (...) { h(7); }"},
      {"g#1", "const char* g() { return \"}\" \"\\\"}\" R\"x(}\")\")x\" + '}' /* } */ + 7; }  // } the end"},
      {"g#2", "int g(int x) {\n#if A\n  if (x) {\n#else\n  if (!x) {\n#endif\n    return 1'000;\n  }\n  return 7;\n}"},
      {"g#3", "int g(float) {\n  // don't }\n  return 7;\n}"},
      {"X", "template <class T>\nstruct alignas(8) X final : Y<T> {\n  int x = 7;\n};"},
      {"E", "enum class E : int { a, b = 7 };"},
      {"C", "template <class T>\nconcept C = requires(T t) { t.x + 7; };"},
      {"operator==", "bool operator==(X, X) { return 7; }"},
      {"operator()", "struct O { int operator()(int x) const { return x + 7; } }"},
      {"table", "constexpr int table[] = {1, 2, 7};"},
      {"Y::run", "int Y::run() { return 7; }"},
      {"twice", "const auto twice = [](auto x) { return [=] { return 2 * x; }() + 7; };"},
      {"K", "#define K(x) {\nusing K = std::array<int, 7>;"},
  };
  for (const auto& [name, text] : definitions) {
    const std::string plain = name.substr(0, name.find('#')), number = name.substr(plain.size());
    if (name == "operator()") continue;  // below
    const std::string directive = text.starts_with("#") ? text.substr(0, text.find('\n') + 1) : "";
    const std::string definition = text.substr(directive.size());
    page("a.h", "namespace a {\nint before{1};\n" + text + "\nint after = 5;\n}\n");
    page("b.h",
         "namespace b {\n" + directive + "// copied from a.h: " + plain + "\n" + definition + "\nint after = 6;\n}\n");
    expect_equal();
    std::string changed = definition;
    changed[changed.rfind('7')] = '8';
    page("b.h",
         "namespace b {\n" + directive + "// copied from a.h: " + plain + "\n" + changed + "\nint after = 6;\n}\n");
    expect_different({"8"});
  }
  page("a.h", definitions.at("operator()") + ";\n");
  page("b.h", "struct P {\n  // copied from a.h: O::operator()\n  int operator()(int x) const { return x + 7; }\n};\n");
  expect_equal();
}

TEST_F(Copies, LambdasInFunctionsHaveNames) {
  page("a.h",
       "int f(int x) {\n  if (x) {\n    return 1;\n  } else if (x > 2) g(X{1});\n  for (;;) {\n"
       "    const auto heads = [&](int n) {  // n\n      return n * x;\n    };\n  }\n}\n");
  page("b.h",
       "int h(int x) {\n  // copied from a.h: heads\n  const auto heads = [&](int n) {  // n\n    return n * x;\n  };\n"
       "  return heads(x);\n}\n");
  expect_equal();
  page("b.h", "int h(int x) {\n  // copied from a.h: f::heads\n  const auto heads = 0;\n  const auto y = 1;\n}\n");
  expect_error("models/b.h:2: expected a definition on the next line");
  page("b.h", "int h(int x) {\n  // copied from a.h: f::heads\n  const auto heads = [] {};\n}\n");
  EXPECT_EQ(copies({"fix"}).exit_code, 0);
  EXPECT_EQ(contents(folder / "models/b.h"),
            "int h(int x) {\n  // copied from a.h: f::heads\n  const auto heads = [&](int n) {  // n\n"
            "    return n * x;\n  };\n}\n");
}

TEST_F(Copies, SpacesAndLineBreaksDoNotCountAndCommentsDo) {
  page("a.h", "int f(int x) {\n  g(x, 1);  // why\n  return x;\n}\n");
  page("b.h", "// copied from a.h: f\nint f(int x) {\n\n    g(x,\n      1);  // why   \r\n  return x; }\n");
  expect_equal();
  page("c.h", "std::vector<std::vector<int>> v = {};\n");
  page("d.h", "// copied from c.h: v\nstd :: vector<std::vector<int> > v={};\n");
  expect_equal();
  page("b.h", "// copied from a.h: f\nint f(int x) {\n  g(x, 1);  // why not\n  return x;\n}\n");
  expect_different({"-  g(x, 1);  // why\n+  g(x, 1);  // why not\n"});
  page("b.h", "// copied from a.h: f\nint f(int x) {\n  g(x, 1);\n  return x;\n}\n");
  expect_different({"+  g(x, 1);\n"});
}

TEST_F(Copies, RegionsAreLinesBetweenMarks) {
  page("a.h",
       "int f(int llama) {\n  // region turns\n  // Twice.\n  llama *= 2;\n  llama += 1;\n"
       "  // end of region\n  return llama;\n}\n");
  page("b.h",
       "int g(int b) {\n  if (b) {\n    // copied from a.h: turns with llama -> b\n"
       "    // Twice.\n    b *= 2;\n    b += 1;\n"
       "    // end of copy\n  }\n  return b;\n}\n");
  expect_equal();
  page("c.h", "// copied from b.h: turns with b -> c\n// end of copy\nint x;\n");  // a copy of the copy, still empty
  expect_different({"+++ models/c.h:2\n"});
  EXPECT_EQ(copies({"fix"}).out, "models/c.h: turns from b.h\n");
  EXPECT_EQ(contents(folder / "models/c.h"),
            "// copied from b.h: turns with b -> c\n// Twice.\nc *= 2;\nc += 1;\n// end of copy\nint x;\n");
  page("d.h",
       "// copied from a.h: f\nint f(int llama) {\n  // Twice.\n  llama *= 2;\n  llama += 1;\n  return llama;\n}\n");
  expect_equal();  // marks inside of a source are no part of it
  page("d.h",
       "// copied from a.h: f\nint f(int llama) {\n  // copied from a.h: turns\n  llama += 1;\n  // end of copy\n}\n");
  expect_error("models/d.h:3: a mark inside of the copy of line 1: expected it in its source");
}

TEST_F(Copies, FixRestoresAChainInOneRun) {
  const std::string f = " {\n  return {};\n}\n";
  page("a.h", "struct Attend { int attend_size = 3; };  // of a\n");  // sources come after their copies in the folder
  page("c.h",
       "// Attends.\n// copied from b.h: BAttend with B -> C\nstruct CAttend {\n  int attend_size = 4;\n};\nint z;\n");
  page("b.h", "// copied from d.h: Attend with Attend -> BAttend, a -> b\nstruct BAttend { int gone; };\nint y;\n");
  page("d.h", "namespace d {\n  // copied from a.h: Attend\n  struct Attend {\n  };\n}\n");
  const Outcome fixed = copies({"fix"});
  EXPECT_EQ(fixed.exit_code, 0) << fixed.err;
  EXPECT_EQ(fixed.out, "models/b.h: Attend from d.h\nmodels/c.h: BAttend from b.h\nmodels/d.h: Attend from a.h\n");
  EXPECT_EQ(contents(folder / "models/d.h"),
            "namespace d {\n  // copied from a.h: Attend\n  struct Attend { int attend_size = 3; };  // of a\n}\n");
  EXPECT_EQ(contents(folder / "models/c.h"),
            "// Attends.\n// copied from b.h: BAttend with B -> C\n"
            "struct CAttend { int b_attend_size = 3; };  // of b\nint z;\n");
  expect_equal();
  EXPECT_EQ(copies({"fix"}).out, "nothing to do\n");
}

TEST_F(Copies, DiffShowsHowMuchOfAPageIsItsOwn) {
  page("llama.h", "// Llama.\nint llama = 1;\nint x = 2;\n\nint y = 3;\n");
  page("qwen2.h", "// Qwen2.\nint qwen2 = 1;\nint x = 2;\n\nint z = 3;\nint w = 4;\n");
  const Outcome outcome = copies({"diff", "llama", "qwen2"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out,
            "--- models/llama.h\n+++ models/qwen2.h\n@@ -2,4 +2,5 @@\n int qwen2 = 1;\n int x = 2;\n \n"
            "-int y = 3;\n+int z = 3;\n+int w = 4;\n"
            "models/llama.h: 1 of 4 lines are its own, 25%\nmodels/qwen2.h: 2 of 5 lines are its own, 40%\n");
  write("my.h", "// My.\n// copied from llama.h: llama\nint my = 1;\nint x = 2;\nint y = 3;\n");
  EXPECT_TRUE(contains(copies({"diff", "llama", "my.h"}).out, "\nmy.h: 0 of 4 lines are its own, 0%\n"));
  expect_refused({"copies", "diff", "llama", "qwen"}, "models/qwen.h: no such page; did you mean qwen2?",
                 "dense copies");
  expect_refused({"copies", "diff", "llama"}, "expected PAGE", "dense copies");
}

TEST_F(Copies, ListShowsSourcesAndTheirCopies) {
  page("a.h", "\nint f() { return a; }\n");
  page("b.h", "// copied from a.h: f with a -> b\nint f() { return b; }\n");
  page("c.h", "// copied from b.h: f\nint f() { return b; }\n");
  EXPECT_EQ(copies({"list"}).out, "a.h:2 f\n  b.h:1 with a -> b\n    c.h:1\n");
}

TEST_F(Copies, RefusesWhatItCannotRead) {
  page("a.h", "int f() {\n  return 1;\n");
  expect_error("models/a.h:1: { is never closed");
  page("a.h", "int x;\n}\n");
  expect_error("models/a.h:2: expected { before }, got none");
  page("a.h", "int x;\n/* never\n");
  expect_error("models/a.h:2: a comment without an end");
  page("a.h", "const char* s = \"abc;\n");
  expect_error("models/a.h:1: expected a closing \", got the end of the line");
  page("a.h", "const char* s = R\"x(abc)\";\n");
  expect_error("models/a.h:1: a raw string without an end");
  expect_refused({"copies", "chek"}, "expected check, fix, diff or list, got chek; did you mean check?",
                 "dense copies");
  expect_refused({"copies", "--folder", "none"}, "--folder: none: no such folder", "dense copies");
}

}  // namespace
