// Configs read from and written to Hugging Face's config.json.
#include "dense/io/config.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <map>

#include "dense/io/json.h"
#include "tests/errors.h"
#include "tests/temporary.h"

namespace {

using namespace dense;
namespace fs = std::filesystem;

struct Config {
  int n_layer = 12;
  int64_t seed = 42;
  float eps = 1e-5f;
  double lr = 0.01;
  bool tied = true;
  std::string act = "gelu";
  std::vector<int> widths = {1, 2};
  std::vector<float> factors;
  std::vector<std::string> kinds;
  std::optional<int> n_inner = 7;
  std::optional<float> cap;
  std::optional<std::string> type;
  std::optional<std::vector<int>> ids;
  std::optional<double> rope_factor;
  std::optional<std::string> rope_type;

  void fields(auto&& f) {
    f("n_layer", n_layer, "layers", 1);
    f("seed", seed, "seed");
    f("eps", eps, "epsilon", 0);
    f("lr", lr, "learning rate");
    f("tied", tied, "tied");
    f("act", act, "activation");
    f("widths", widths, "widths", 1);
    f("factors", factors, "factors");
    f("kinds", kinds, "kinds");
    f("n_inner", n_inner, "inner width", 1);
    f("cap", cap, "cap");
    f("type", type, "type");
    f("ids", ids, "ids");
    f("rope_scaling.factor", rope_factor, "factor", 0);
    f("rope_scaling.rope_type", rope_type, "type");
  }
  static constexpr const char* inert[] = {"attn_pdrop", "rope_scaling.low"};
};

struct Read {
  Config config;
  std::string error;  // or "no error"; starts with FILE for the path
  std::vector<std::string> warnings;
};
Read read(const std::string& text) {
  const TemporaryFolder folder;
  const std::string path = folder.write("config.json", text);
  Read result;
  const auto named = [&](std::string line) {
    return line.starts_with(path) ? "FILE" + line.substr(path.size()) : line;
  };
  result.error = named(error_of([&] {
    read_config(path, result.config, [&](const std::string& line) { result.warnings.push_back(named(line)); });
  }));
  return result;
}

TEST(Config, FieldsInTheFileAreSetAndOthersStay) {
  const Read all = read(R"({"n_layer": 3, "seed": -9223372036854775808, "eps": 1e-06, "lr": 2, "tied": false,
    "act": "r\u00e9lu", "widths": [4, 5, 6], "factors": [1, 0.5], "kinds": ["p2c", "c2p"], "n_inner": null, "cap": 50.0,
    "type": "x", "ids": [], "rope_scaling": {"rope_type": "llama3", "factor": 8.0}})");
  EXPECT_EQ(all.error, "no error");
  EXPECT_EQ(all.warnings.size(), 0);
  const Config& c = all.config;
  EXPECT_EQ(c.n_layer, 3);
  EXPECT_EQ(c.seed, INT64_MIN);
  EXPECT_EQ(c.eps, 1e-6f);
  EXPECT_EQ(c.lr, 2);
  EXPECT_FALSE(c.tied);
  EXPECT_EQ(c.act, "r\u00e9lu");
  EXPECT_EQ(c.widths, (std::vector{4, 5, 6}));
  EXPECT_EQ(c.factors, (std::vector{1.f, 0.5f}));
  EXPECT_EQ(c.kinds, (std::vector<std::string>{"p2c", "c2p"}));
  EXPECT_EQ(c.n_inner, std::nullopt);
  EXPECT_EQ(c.cap, 50.f);
  EXPECT_EQ(c.type, "x");
  EXPECT_EQ(c.ids, std::vector<int>{});
  EXPECT_EQ(c.rope_factor, 8);
  EXPECT_EQ(c.rope_type, "llama3");

  const Config none = read("{}").config;
  EXPECT_EQ(none.n_layer, 12);
  EXPECT_EQ(none.n_inner, 7);
  EXPECT_EQ(none.cap, std::nullopt);
  const Read null = read(R"({"n_layer": null, "act": null, "widths": null, "rope_scaling": null, "n_inner": null})");
  EXPECT_EQ(null.error, "no error");
  EXPECT_EQ(null.config.n_layer, 12);
  EXPECT_EQ(null.config.act, "gelu");
  EXPECT_EQ(null.config.widths, (std::vector{1, 2}));
  EXPECT_EQ(null.config.n_inner, std::nullopt);
  EXPECT_EQ(null.config.rope_factor, std::nullopt);
}

TEST(Config, AListOfTextsMayBeOneText) {
  EXPECT_EQ(read(R"({"kinds": "p2c|c2p"})").config.kinds, (std::vector<std::string>{"p2c", "c2p"}));
  EXPECT_EQ(read(R"({"kinds": " p2c | c2p"})").config.kinds, (std::vector<std::string>{"p2c", "c2p"}));
  EXPECT_EQ(read(R"({"kinds": "p2c"})").config.kinds, std::vector<std::string>{"p2c"});
  EXPECT_EQ(read(R"({"kinds": ["p2c|c2p"]})").config.kinds, std::vector<std::string>{"p2c|c2p"});
}

// 0.1f is not 0.1, but what Python's 0.1 becomes beside a float. Here rounding to double first matters: the decimal is
// above half way between 1 and the next float, the double nearest to it is half way.
TEST(Config, FloatsAreTheRoundedDoublesOfPython) {
  EXPECT_EQ(read(R"({"eps": 0.1})").config.eps, float(0.1));
  EXPECT_EQ(read(R"({"eps": 1.00000005960464477540})").config.eps, float(1.00000005960464477540));
  EXPECT_EQ(read(R"({"eps": 1.00000005960464477540})").config.eps, 1);
}

TEST(Config, WhatDoesNotFitIsRefused) {
  const struct {
    const char *text, *error;
  } cases[] = {
      {R"({"n_layer": "3"})", "n_layer: expected a whole number, got \"3\""},
      {R"({"n_layer": 2.5})", "n_layer: expected a whole number, got 2.5"},
      {R"({"n_layer": 3.0})", "n_layer: expected a whole number, got 3.0"},
      {R"({"n_layer": 1e2})", "n_layer: expected a whole number, got 1e2"},
      {R"({"n_layer": true})", "n_layer: expected a whole number, got true"},
      {R"({"n_layer": [3]})", "n_layer: expected a whole number, got [3]"},
      {R"({"n_layer": {"a": "\u001b"}})", R"(n_layer: expected a whole number, got {"a":"\u001b"})"},
      {R"({"n_layer": 3000000000})", "n_layer: expected a whole number from -2147483648 to 2147483647, got 3000000000"},
      {R"({"n_layer": 0})", "n_layer: expected 1 or more, got 0"},
      {R"({"seed": 9223372036854775808})",
       "seed: expected a whole number from -9223372036854775808 to 9223372036854775807, got 9223372036854775808"},
      {R"({"seed": 99999999999999999999})",
       "seed: expected a whole number from -9223372036854775808 to 9223372036854775807, got 99999999999999999999"},
      {R"({"eps": "1e-5"})", "eps: expected a number, got \"1e-5\""},
      {R"({"eps": 1e39})", "eps: expected a number that a float of 32 bits can hold, got 1e39"},
      {R"({"eps": 0.0})", "eps: expected a number above 0, got 0"},
      {R"({"eps": 1e-50})", "eps: expected a number above 0, got 0"},
      {R"({"lr": false})", "lr: expected a number, got false"},
      {R"({"tied": 1})", "tied: expected true or false, got 1"},
      {R"({"tied": "true"})", "tied: expected true or false, got \"true\""},
      {R"({"act": true})", "act: expected a string, got true"},
      {R"({"widths": 3})", "widths: expected a list, got 3"},
      {R"({"widths": [3, 2.5]})", "widths: expected a list, each item a whole number, got [3,2.5]"},
      {R"({"widths": [3, null]})", "widths: expected a list, each item a whole number, got [3,null]"},
      {R"({"widths": [3, 0]})", "widths: expected 1 or more, got 0"},
      {R"({"kinds": 2})", "kinds: expected a list, got 2"},
      {R"({"n_inner": "7"})", "n_inner: expected a whole number, got \"7\""},
      {R"({"n_inner": -1})", "n_inner: expected 1 or more, got -1"},
      {R"({"rope_scaling": 3})", "rope_scaling: expected an object, got 3"},
      {R"({"rope_scaling": {"factor": "8"}})", "rope_scaling.factor: expected a number, got \"8\""},
      {R"({"n_layer": 1, "n_layer": 2})", "n_layer: given twice"},
      {"[]", "expected an object, got []"},
      {R"({"eps": NaN})",
       "not JSON: parse error at line 1, column 9: syntax error while parsing value - invalid literal"},
      {R"({"lr": 1e999})", "not JSON: number overflow parsing '1e999'"},
      {"{\n\"a\": 1,\n}",
       "not JSON: parse error at line 3, column 1: syntax error while parsing object key - "
       "unexpected '}'; expected string literal"},
      {"",
       "not JSON: parse error at line 1, column 1: syntax error while parsing value - unexpected end of input; "
       "expected '[', '{', or a literal"},
  };
  for (const auto& c : cases) EXPECT_EQ(read(c.text).error, std::string("FILE: ") + c.error) << c.text;
  const TemporaryFolder folder;
  Config config;
  EXPECT_EQ(error_of([&] { read_config(folder / "no", config, nullptr); }),
            folder / "no" + ": cannot open: No such file or directory");
  EXPECT_EQ(error_of([&] { read_config(folder.path(), config, nullptr); }), folder.path().string() + ": is a folder");
}

struct Plain {  // no list of inert fields
  int n = 1;
  void fields(auto&& f) { f("n", n, "n"); }
};

TEST(Config, UnknownFieldsAreNamedInOneWarning) {
  const std::string inert =
      R"("architectures": ["A"], "_name_or_path": "x", "torch_dtype": "float32", "use_cache": true,
    "transformers_version": "4", "eos_token_id": [1, 2], "model_type": "m", "summary_type": "s",
    "task_specific_params": {"a": {}}, "attn_pdrop": 0.1)";
  EXPECT_EQ(read("{" + inert + "}").warnings.size(), 0);
  EXPECT_EQ(read(R"({"unknown_null": null})").warnings.size(), 0);
  const Read some = read("{\"b\": 1, " + inert +
                         R"(, "n_layer": 3, "a\n": {"c": 1}, "rope_scaling": {"factor": 2, "low": 1, "x": 1}})");
  EXPECT_EQ(some.config.n_layer, 3);
  EXPECT_EQ(some.warnings, std::vector<std::string>{"FILE: ignored, being unknown here: b, a\\n, rope_scaling.x"});

  Plain plain;
  const TemporaryFolder folder;
  std::vector<std::string> warnings;
  read_config(folder.write("c", R"({"n": 2, "attn_pdrop": 0.1})"), plain,
              [&](const std::string& line) { warnings.push_back(line); });
  EXPECT_EQ(plain.n, 2);
  EXPECT_EQ(warnings, std::vector<std::string>{folder / "c" + ": ignored, being unknown here: attn_pdrop"});
}

TEST(Config, WhatIsWrittenIsRead) {
  const TemporaryFolder folder;
  const std::string path = folder / "config.json";
  Config config;
  config.eps = 0.1f;
  config.lr = 1e4;
  config.act = "\"\n\u00e9";
  config.cap = FLT_MAX;
  write_config(path, config, "mine");
  EXPECT_EQ(contents(path), R"({
  "model_type": "mine",
  "n_layer": 12,
  "seed": 42,
  "eps": 0.1,
  "lr": 10000.0,
  "tied": true,
  "act": "\"\n\u00e9",
  "widths": [
    1,
    2
  ],
  "factors": [],
  "kinds": [],
  "n_inner": 7,
  "cap": 3.4028235e+38,
  "type": null,
  "ids": null
}
)");
  EXPECT_EQ(model_type(folder.path()), "mine");
  Config again;
  again.n_layer = 0, again.act = "", again.n_inner = {};
  read_config(path, again, nullptr);
  EXPECT_EQ(again.n_layer, 12);
  EXPECT_EQ(again.eps, 0.1f);
  EXPECT_EQ(again.act, config.act);
  EXPECT_EQ(again.n_inner, 7);
  EXPECT_EQ(again.cap, FLT_MAX);

  config.rope_factor = 2;
  write_config(path, config, "mine");
  EXPECT_NE(contents(path).find("\"rope_scaling\": {\n    \"factor\": 2.0\n  }"), std::string::npos);
  config.lr = NAN;
  EXPECT_EQ(error_of([&] { write_config(path, config, "mine"); }), path + ": lr: expected a finite number, got nan");
}

TEST(Config, WritingKeepsTheRestOfTheOriginal) {
  const TemporaryFolder folder;
  const std::string original = folder.write("original", R"({"z": [1, {"y": null}], "n_layer": 12, "eps": 0.00001,
    "rope_scaling": {"factor": 1, "low": 2.50}, "lr": 0.5, "n_inner": 3, "huge": 100000000000000000000000})");
  Config config;
  config.n_inner = {};
  config.rope_factor = 4;
  write_config(folder / "c", config, "m", original);
  const std::string written = contents(folder / "c"), start = R"({
  "z": [
    1,
    {
      "y": null
    }
  ],
  "n_layer": 12,
  "eps": 0.00001,
  "rope_scaling": {
    "factor": 4.0,
    "low": 2.50
  },
  "lr": 0.01,
  "n_inner": null,
  "huge": 100000000000000000000000,
  "model_type": "m",
  "seed": 42,
)";
  EXPECT_EQ(written.substr(0, start.size()), start);
  write_config(folder / "c", config, "m", folder / "c");
  EXPECT_EQ(contents(folder / "c"), written);
  folder.write("bad", R"({"rope_scaling": 1})");
  EXPECT_EQ(error_of([&] { write_config(folder / "c", config, "m", folder / "bad"); }),
            folder / "bad" + ": rope_scaling.factor: expected objects around it");
}

struct Tokens {
  TokenIds eos_token_id{{7}};
  void fields(auto&& f) { f("eos_token_id", eos_token_id, "ends"); }
};

TEST(Config, TokensAreNoneOneOrSeveralAndStayAsTheyAreWritten) {
  const TemporaryFolder folder;
  const std::pair<const char*, std::vector<int>> cases[] = {
      {"null", {}}, {"3", {3}}, {"[\n    3\n  ]", {3}}, {"[\n    3,\n    4\n  ]", {3, 4}}};
  for (const auto& [text, ids] : cases) {
    const std::string given = "{\n  \"eos_token_id\": " + std::string(text) + ",\n  \"model_type\": \"m\"\n}\n";
    const std::string path = folder.write("c", given);
    Tokens tokens;
    read_config(path, tokens, nullptr);
    EXPECT_EQ(tokens.eos_token_id.ids, ids) << text;
    write_config(folder / "d", tokens, "m", path);
    EXPECT_EQ(contents(folder / "d"), given);
    write_config(folder / "e", tokens, "m");
    Tokens again;
    read_config(folder / "e", again, nullptr);
    EXPECT_EQ(again.eos_token_id.ids, ids) << text;
  }
  Tokens tokens;
  for (const char* text : {"\"3\"", "1.5", "true", "[3, null]"})
    EXPECT_NE(error_of([&] {
                read_config(folder.write("c", "{\"eos_token_id\": " + std::string(text) + "}"), tokens, nullptr);
              }).find("c: eos_token_id: expected a token or a list of tokens, got "),
              std::string::npos)
        << text;
}

struct Rope {
  double rope_theta = 1, partial_rotary_factor = 1;
  std::optional<std::string> type;
  void fields(auto&& f) {
    f("rope_theta", rope_theta, ""), f("partial_rotary_factor", partial_rotary_factor, "");
    f("rope_scaling.rope_type", type, "");
  }
};

TEST(Config, RopeParametersOfNewerFilesAreReadAsOlderOnesSpellThem) {
  const TemporaryFolder folder;
  const std::string path = folder.write(
      "c", R"({"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_type": "llama3"}})");
  Rope rope;
  std::vector<std::string> warnings;
  const Warn warn = [&](const std::string& line) { warnings.push_back(line); };
  read_config(path, rope, warn);
  EXPECT_EQ(rope.rope_theta, 5e5);
  EXPECT_EQ(rope.partial_rotary_factor, 0.5);
  EXPECT_EQ(rope.type, "llama3");
  EXPECT_EQ(warnings.size(), 0);
  write_config(folder / "d", rope, "m", path);
  EXPECT_EQ(contents(folder / "d"), R"({
  "rope_theta": 5e5,
  "partial_rotary_factor": 0.5,
  "rope_scaling": {
    "rope_type": "llama3"
  },
  "model_type": "m"
}
)");
  read_config(folder.write("c", R"({"rope_theta": 2, "rope_scaling": null,
    "rope_parameters": {"rope_theta": 2.0, "rope_type": "linear"}})"),
              rope, warn);
  EXPECT_EQ(rope.rope_theta, 2);
  EXPECT_EQ(rope.type, "linear");
  const std::string both = folder.write("b", R"({"rope_theta": 2, "rope_parameters": {"rope_theta": 3}})");
  EXPECT_EQ(error_of([&] { read_config(both, rope, warn); }),
            both + ": rope_theta: expected 3 as in rope_parameters, got 2");
  rope.rope_theta = 5e5;
  // by kind of layer: nothing that this page could know
  read_config(folder.write("c", R"({"rope_parameters": {"full_attention": {"rope_theta": 2.0}}})"), rope, warn);
  EXPECT_EQ(rope.rope_theta, 5e5);
  EXPECT_EQ(warnings.size(), 1);
}

TEST(Config, ModelTypeIsReadOrMissed) {
  const TemporaryFolder folder;
  const std::string path = folder / "config.json";
  EXPECT_EQ(error_of([&] { model_type(folder.path()); }), path + ": cannot open: No such file or directory");
  folder.write("config.json", "{}");
  EXPECT_EQ(error_of([&] { model_type(folder.path()); }), path + ": model_type: expected a string, got nothing");
  folder.write("config.json", R"({"model_type": 1})");
  EXPECT_EQ(error_of([&] { model_type(folder.path()); }), path + ": model_type: expected a string, got 1");
}

struct Gpt2 {
  int vocab_size = 50257, n_positions = 1024, n_embd = 768, n_layer = 12, n_head = 12;
  std::optional<int> n_inner;
  double layer_norm_epsilon = 1e-5;
  std::string activation_function = "gelu_new";
  void fields(auto&& f) {
    f("vocab_size", vocab_size, ""), f("n_positions", n_positions, ""), f("n_embd", n_embd, "");
    f("n_layer", n_layer, ""), f("n_head", n_head, ""), f("n_inner", n_inner, "");
    f("layer_norm_epsilon", layer_norm_epsilon, ""), f("activation_function", activation_function, "");
  }
  static constexpr const char* inert[] = {"attn_pdrop", "embd_pdrop", "resid_pdrop"};
};

TEST(ConfigFixture, OfHuggingFaceIsReadAndWrittenAsItWas) {
  const std::string hf = shared_folder() + "/fixtures/hf";
  if (!fs::exists(hf)) GTEST_SKIP() << "no " << hf;
  Gpt2 gpt2;
  std::vector<std::string> warnings;
  read_config(hf + "/gpt2/config.json", gpt2, [&](const std::string& line) { warnings.push_back(line); });
  EXPECT_EQ(gpt2.n_embd, 64);
  EXPECT_EQ(gpt2.layer_norm_epsilon, 1e-5);
  EXPECT_EQ(warnings, std::vector<std::string>{hf + "/gpt2/config.json: ignored, being unknown here: "
                                                    "reorder_and_upcast_attn, scale_attn_by_inverse_layer_idx, "
                                                    "scale_attn_weights"});
  EXPECT_EQ(model_type(hf + "/gpt2"), "gpt2");

  const TemporaryFolder folder;
  write_config(folder / "c", gpt2, "gpt2", hf + "/gpt2/config.json");
  EXPECT_EQ(contents(folder / "c"), contents(hf + "/gpt2/config.json"));
  int files = 0;
  for (const auto& entry : fs::directory_iterator(hf)) {  // Python wrote these: the same text comes back
    const fs::path path = entry.path() / "config.json";
    EXPECT_EQ(to_text(parse_json(contents(path), path), 2) + "\n", contents(path)) << path;
    ++files;
  }
  EXPECT_GE(files, 18);
}

// JSON itself

TEST(Json, ScalarsStayAsWritten) {
  for (const char* text : {"null", "true", "0", "-1", "18446744073709551615", "1e-05", "1.50", "\"\"", "[]", "{}",
                           R"([1,{"a":[null,"\u0000\u001b\ud83d\ude00"],"":{}}])"})
    EXPECT_EQ(to_text(parse_json(text, "t")), text);
  const Json value = parse_json(R"({"a": 1, "b": {"a": 2}})", "t");
  EXPECT_EQ(value.find("a")->text, "1");
  EXPECT_EQ(value.find("b")->find("a")->text, "2");
  EXPECT_EQ(value.find("c"), nullptr);
  EXPECT_EQ(value.find("a")->find("a"), nullptr);
}

TEST(Json, ErrorsAreOneShortLine) {
  const auto error = [](const std::string& text) { return error_of([&] { parse_json(text, "t"); }); };
  EXPECT_EQ(error(std::string("[1]\0", 4)), "t: not JSON: byte 3 is 0");
  EXPECT_EQ(error("\xef\xbb\xbf[]"), "t: not JSON: starts with a byte order mark");
  EXPECT_EQ(
      error("\"\\ud800\""),
      "t: not JSON: parse error at line 1, column 8: syntax error while parsing value - invalid string: surrogate "
      "U+D800..U+DBFF must be followed by U+DC00..U+DFFF");
  EXPECT_EQ(error("[\"" + std::string(10'000, 'x') + "\n\xff'; expected me"),
            "t: not JSON: parse error at line 2, column 0: syntax error while parsing value - invalid string: control "
            "character U+000A (LF) must be escaped to \\u000A or \\n");
  for (const std::string& text :
       {"1" + std::string(10'000, '0') + "e999", std::string(10'000, 'x'), "[" + std::string(9, '\0')})
    EXPECT_LT(error(text).size(), 250u);
  EXPECT_EQ(error(std::string(64, '[') + std::string(64, ']')), "no error");
  EXPECT_EQ(error(std::string(65, '[') + std::string(65, ']')), "t: expected JSON nested at most 64 deep, got deeper");
  EXPECT_EQ(error("1 2"),
            "t: not JSON: parse error at line 1, column 3: syntax error while parsing value - unexpected "
            "number literal; expected end of input");
}

}  // namespace
