// Tokenizers give the ids that Hugging Face's library gives: real vocabularies with expected ids, and for each
// component a small one, with what its rules say. The rules are those of the tokenizers library 0.21; where a test
// follows from one that is easily overlooked, it says so.
#include "dense/io/tokenizer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "dense/io/unicode.h"
#include "tests/errors.h"
#include "tests/temporary.h"

namespace {

using namespace dense;
using nlohmann::json;
namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;
using Strings = std::vector<std::string>;

#ifdef DENSE_SANITIZED
constexpr bool sanitized = true;  // and so ten times slower
#else
constexpr bool sanitized = false;
#endif

Tokenizer from(const json& j) { return Tokenizer::parse(j.dump(), "t"); }

Strings tokens(const Tokenizer& t, const Ids& ids) {
  Strings all;
  for (const int32_t id : ids) all.push_back(t.token_of(id).value_or("(none)"));
  return all;
}

// A tokenizer whose tokens are these words, so that one sees into what words it cuts a text: what is none of them is a
// "?".
json words_of(json parts, const Strings& words) {
  json vocab = {{"?", 0}};
  for (const std::string& word : words) vocab.emplace(word, vocab.size());
  parts["model"] = {{"type", "WordLevel"}, {"unk_token", "?"}, {"vocab", vocab}};
  return parts;
}
void expect_words(const json& parts, const std::string& text, const Strings& words) {
  const Tokenizer t = from(words_of(parts, words));
  EXPECT_EQ(tokens(t, t.encode(text)), words) << parts.dump().substr(0, 300) << "\n" << text;
}
void expect_cut(const json& pre_tokenizer, const std::string& text, const Strings& words) {
  expect_words({{"pre_tokenizer", pre_tokenizer}}, text, words);
}
void expect_normal(const json& normalizer, const std::string& text, const std::string& normal) {
  expect_words({{"normalizer", normalizer}}, text, normal.empty() ? Strings() : Strings{normal});
}

json split(const json& pattern, const std::string& behavior, bool invert = false) {
  return {{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}, {"invert", invert}};
}
json regex(const std::string& pattern) { return {{"Regex", pattern}}; }

// ---- real vocabularies

class RealTokenizers : public testing::TestWithParam<const char*> {
 protected:
  std::string folder = shared_folder() + "/fixtures/tokenizers/" + GetParam();
  void SetUp() override {
    if (!fs::exists(folder)) GTEST_SKIP() << "no fixtures in " << shared_folder();
  }
};

TEST_P(RealTokenizers, GiveTheIdsOfHuggingFace) {
  const Tokenizer t(folder);
  const json vectors = json::parse(contents(folder + "/vectors.json"));
  ASSERT_GT(vectors.size(), 40u);
  for (const json& v : vectors) {
    const Ids ids = v["ids"].get<Ids>();
    EXPECT_EQ(t.encode(v["text"].get<std::string>()), ids) << v["text"];
    if (GetParam() != std::string("bert-bge")) {
      EXPECT_EQ(t.decode(ids), v["text"]);
    }
  }
}

TEST_P(RealTokenizers, TakeALineOfOneLetterInLinearTime) {
  const Tokenizer t(folder);
  for (const char letter : {'a', ' ', '=', '\n'}) {
    const auto begin = std::chrono::steady_clock::now();
    t.encode(std::string(1'000'000, letter));
    // It takes a tenth of a second, and minutes where it is not linear.
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(sanitized ? 30 : 2)) << letter;
  }
}

TEST_P(RealTokenizers, StreamWhatTheyDecode) {
  const Tokenizer t(folder);
  std::mt19937 random(1);
  for (int round = 0; round < 100; ++round) {
    TextStream stream(t);
    std::string text;
    Ids ids(random() % 30);
    for (int32_t& id : ids) {
      id = random() % 2 ? int32_t(random() % 260) : int32_t(random() % uint32_t(t.size()));  // bytes, or any
      const std::string part = stream.push(id);
      EXPECT_EQ(utf8_error(part), part.npos);
      text += part;
    }
    text += stream.finish();
    EXPECT_EQ(text, t.decode(ids));
  }
}

TEST_P(RealTokenizers, StreamWhatFollowsAText) {
  const Tokenizer t(folder);
  std::mt19937 random(2);
  int compared = 0;
  for (int round = 0; round < 300; ++round) {
    Ids ids(1 + random() % 20);
    for (int32_t& id : ids) id = random() % 2 ? int32_t(random() % 260) : int32_t(random() % uint32_t(t.size()));
    const auto before = std::span(ids).first(random() % ids.size());
    const std::string there = t.decode(before), all = t.decode(ids);
    if (!all.starts_with(there)) continue;  // part of a character became one
    TextStream stream(t);
    std::string text;
    stream.follow(before);
    for (const int32_t id : std::span(ids).subspan(before.size())) text += stream.push(id);
    EXPECT_EQ(text + stream.finish(), all.substr(there.size()));
    ++compared;
  }
  EXPECT_GT(compared, 100);
}

INSTANTIATE_TEST_SUITE_P(All, RealTokenizers, testing::Values("gpt-2", "llama-spm", "bert-bge"), [](const auto& p) {
  std::string name = p.param;
  std::erase(name, '-');
  return name;
});

// Any characters, with those that mean something to tokenizers more often.
std::string random_text(std::mt19937& random, size_t most) {
  static const Strings parts = {
      " ", "  ",      "\n",     "\r\n",   "'s",     "'LL",           "a",      "Hello",  "12345",
      "é", "e\u0301", "\u4e2d", "\u2581", "<0x41>", "<|endoftext|>", "[MASK]", "\u00a0", "\u180e",
      "🚀", "\t",      "...",    "##a",    "</s>",   "\u0130",        "\u200d", "_",      "ſ"};
  std::string text;
  for (size_t n = random() % (most + 1); n > 0; --n) {
    char32_t c = random() % 3 ? char32_t(random() % 0x300) : char32_t(random() % 0x110000);
    if (c >= 0xd800 && c < 0xe000) c = U'x';
    if (random() % 2) text += parts[random() % parts.size()];
    else append_char(text, c);
  }
  return text;
}

int rounds(int otherwise) {
  const char* given = std::getenv("DENSE_FUZZ_ROUNDS");
  return given ? std::atoi(given) / 10 : otherwise;
}

// The 256 characters of byte-level vocabularies, in order of their ids, which here are not those of the bytes.
json byte_level(const json& merges = json::array()) {
  json vocab = json::object();
  for (char32_t c = 0; c < 0x144; ++c) {
    const bool used = (c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xac) || c >= 0xae;
    std::string text;
    append_char(text, c);
    if (used) vocab.emplace(text, vocab.size());
  }
  for (const json& merge : merges) {
    const std::string pair = merge;
    vocab.emplace(pair.substr(0, pair.find(' ')) + pair.substr(pair.find(' ') + 1), vocab.size());
  }
  const json byte = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  return {
      {"pre_tokenizer", byte}, {"decoder", byte}, {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

TEST(Tokenizer, ByteLevelTextComesBackWhateverItIs) {
  std::vector<Tokenizer> all = {from(byte_level({"h e", "l l", "Ġ he", "ll o", "Ã ©"}))};
  const std::string real = shared_folder() + "/fixtures/tokenizers/gpt-2";
  if (fs::exists(real)) all.emplace_back(real);
  std::mt19937 random(2);
  for (int round = 0; round < rounds(3000); ++round) {
    const std::string text = random_text(random, 20);
    for (const Tokenizer& t : all) ASSERT_EQ(t.decode(t.encode(text)), text);
  }
}

TEST(Tokenizer, ThreadsShareATokenizer) {
  const Tokenizer t = from(byte_level({"h e", "l l", "Ġ he", "ll o"}));
  std::string text;
  std::mt19937 random(3);
  for (int i = 0; i < 300; ++i) text += random_text(random, 20);
  const Ids ids = t.encode(text);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) EXPECT_EQ(t.encode(text), ids);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Tokenizer, TextMustBeUtf8) {
  const Tokenizer t = from(byte_level());
  EXPECT_EQ(error_of([&] { t.encode("abc\xff"); }), "encode: expected UTF-8, got byte 0xff at byte 3");
  for (const char* wrong :
       {"\x80", "\xc0\x80", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "aaaaaaaaa\xc3", "\xe2\x82"})
    EXPECT_NE(error_of([&] { t.encode(wrong); }), "no error") << wrong;
  EXPECT_EQ(t.encode(""), Ids());
  EXPECT_EQ(t.encode(std::string_view("\0", 1)).size(), 1u);
}

TEST(Tokenizer, IdsMustHaveTokens) {
  const Tokenizer t = from(words_of({}, {"a", "b"}));
  EXPECT_EQ(t.size(), 3);
  EXPECT_EQ(error_of([&] { t.decode(Ids{1, 3}); }), "decode: expected ids of tokens, from 0 to 2, got 3");
  EXPECT_EQ(error_of([&] { t.decode(Ids{-1}); }), "decode: expected ids of tokens, from 0 to 2, got -1");
  EXPECT_EQ(TextStream(t).push(7), "");  // a model may have more
  EXPECT_EQ(t.id_of("b"), 2);
  EXPECT_EQ(t.id_of("c"), std::nullopt);
  EXPECT_EQ(t.token_of(1), "a");
  EXPECT_EQ(t.token_of(3), std::nullopt);
  EXPECT_EQ(t.decode(Ids{1, 2, 1}), "a b a");  // without a decoder tokens are joined by spaces
}

// ---- normalizers

TEST(Normalizers, UnicodeForms) {
  expect_normal({{"type", "NFC"}}, "cafe\u0301 \u1112\u1161\u11ab", "caf\u00e9 \ud55c");
  expect_normal({{"type", "NFD"}}, "caf\u00e9 \ud55c", "cafe\u0301 \u1112\u1161\u11ab");
  expect_normal({{"type", "NFKC"}}, "\ufb01 \u2460 e\u0301", "fi 1 \u00e9");
  expect_normal({{"type", "NFKD"}}, "\u1ead\u2026", "a\u0323\u0302...");
  expect_normal({{"type", "NFC"}}, "\ufb01 plain", "\ufb01 plain");
  expect_normal({{"type", "NFC"}}, "=\u0338", "\u2260");  // ASCII that is no letter combines, too
  expect_normal({{"type", "NFC"}}, "", "");
}

TEST(Normalizers, LowercaseIsByCharacter) {
  expect_normal({{"type", "Lowercase"}}, "ÀB ΑΣ \u0130", "àb ασ i\u0307");  // no final sigma; İ becomes two
}

TEST(Normalizers, StripAndAccents) {
  expect_normal({{"type", "Strip"}, {"strip_left", true}, {"strip_right", false}}, "\u00a0 é ", "é ");
  expect_normal({{"type", "Strip"}, {"strip_left", false}, {"strip_right", true}}, " é\u3000\n", " é");
  expect_normal({{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}}, " \n ", "");
  expect_normal({{"type", "StripAccents"}}, "e\u0304\u0304o\u0903", "eo");  // every mark, but é is none
  expect_normal({{"type", "StripAccents"}}, "é", "é");
}

TEST(Normalizers, ReplaceAndPrepend) {
  expect_normal({{"type", "Replace"}, {"pattern", {{"String", "''"}}}, {"content", "\""}}, "a ''b'''", "a \"b\"'");
  expect_normal({{"type", "Replace"}, {"pattern", {{"String", "."}}}, {"content", "$0"}}, "a.b", "a$0b");
  expect_normal({{"type", "Replace"}, {"pattern", regex(" {2,}")}, {"content", "\u2581"}}, "a   b c", "a\u2581b c");
  expect_normal({{"type", "Prepend"}, {"prepend", "\u2581"}}, "a", "\u2581a");
  expect_normal({{"type", "Prepend"}, {"prepend", "\u2581"}}, "", "");  // nothing comes before nothing
  expect_normal({{"type", "Sequence"},
                 {"normalizers",
                  {{{"type", "Prepend"}, {"prepend", "_"}},
                   {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "_"}}}}},
                " a b", "__a_b");
  expect_normal(
      {{"type", "Sequence"},
       {"normalizers",
        {{{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}}, {{"type", "Prepend"}, {"prepend", "_"}}}}},
      "  ", "");
}

TEST(Normalizers, Nmt) {
  expect_normal({{"type", "Nmt"}},
                "a\x01\x0b\x7f"
                "b\tc\u200bd\ufeff\u2581",
                "ab c d  ");
}

TEST(Normalizers, Bert) {
  const auto bert = [](bool lowercase, const json& strip_accents) -> json {
    return {{"type", "BertNormalizer"},
            {"clean_text", true},
            {"handle_chinese_chars", true},
            {"lowercase", lowercase},
            {"strip_accents", strip_accents}};
  };
  expect_normal(bert(true, nullptr), "H\u00e9\tL\u00a0\u0001\u200d\ufffdl\u4e2d", "he l l \u4e2d ");
  expect_normal(bert(false, nullptr), "H\u00e9", "H\u00e9");  // null: as lowercase
  expect_normal(bert(false, true), "H\u00e9", "He");
  expect_normal(bert(true, false), "H\u00c9", "h\u00e9");
  expect_normal(bert(true, nullptr), "\u0915\u093e\u0902", "\u0915\u093e");  // marks that take space (Mc) stay
  expect_normal(bert(true, nullptr), "a\ue000\ue001", "a\ue001");            // see is_cleaned_control
  expect_normal({{"type", "BertNormalizer"},
                 {"clean_text", false},
                 {"handle_chinese_chars", false},
                 {"lowercase", false},
                 {"strip_accents", nullptr}},
                "A\t\u4e2d", "A\t\u4e2d");
}

// SentencePiece's map as a tokenizer.json has it: a double-array trie, replacements, base64. Node n has base 256 n + 256.
std::string charsmap(const std::map<std::string, std::string>& map) {
  std::vector<uint32_t> units(256 * 64);
  std::string texts;
  std::vector<std::map<uint8_t, uint32_t>> nodes(1);
  units[0] = 256 << 10;
  for (const auto& [key, value] : map) {
    uint32_t node = 0;
    for (const char& byte : key) {
      if (!nodes[node].contains(uint8_t(byte))) {
        nodes[node][uint8_t(byte)] = uint32_t(nodes.size());
        nodes.emplace_back();
      }
      const uint32_t child = nodes[node][uint8_t(byte)], at = 256 * (node + 1) ^ uint8_t(byte),
                     base = 256 * (child + 1);
      units[at] |= (at ^ base) << 10 | uint8_t(byte);
      if (&byte == &key.back()) units[at] |= 1 << 8, units[base] = 1u << 31 | uint32_t(texts.size());
      node = child;
    }
    texts += value + '\0';
  }
  const uint32_t size = uint32_t(units.size() * 4);
  std::string bytes(reinterpret_cast<const char*>(&size), 4);
  bytes.append(reinterpret_cast<const char*>(units.data()), size);
  bytes += texts;
  const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const auto byte = [&](size_t k) { return i + k < bytes.size() ? uint8_t(bytes[i + k]) : 0u; };
    const uint32_t bits = byte(0) << 16 | byte(1) << 8 | byte(2);
    for (size_t k = 0; k < 4; ++k) out += i + k <= bytes.size() ? digits[bits >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

TEST(Normalizers, PrecompiledMapsGraphemesFirstAndThenCharacters) {
  const auto map = [](const std::map<std::string, std::string>& m) -> json {
    return {{"type", "Precompiled"}, {"precompiled_charsmap", charsmap(m)}};
  };
  expect_normal(map({{"e\u0301", "\u00e9"}, {"\t", " "}, {"\u200b", ""}}), "e\u0301\tx\u200b\u200b", "\u00e9 x");
  // What matches is the shortest beginning of a grapheme, and it stands for all of it.
  expect_normal(map({{"e", "E"}}), "e\u0301e", "EE");
  // Graphemes of six bytes and more are taken by character.
  expect_normal(map({{"e", "E"}}), "e\u0301\u0302\u0303", "E\u0301\u0302\u0303");
  // No beginning of a grapheme matches: by character.
  expect_normal(map({{"\u0301", "'"}}), "e\u0301", "e'");
  expect_normal(map({{"e", "E"}}), "", "");
}

// ---- pre-tokenizers

TEST(PreTokenizers, SplitDoesWithMatchesWhatItsBehaviorSays) {
  const std::string text = "the-final--countdown";  // the example in Hugging Face's documentation
  for (const json& dash : {json({{"String", "-"}}), regex("-")}) {
    expect_cut(split(dash, "Removed"), text, {"the", "final", "countdown"});
    expect_cut(split(dash, "Isolated"), text, {"the", "-", "final", "-", "-", "countdown"});
    expect_cut(split(dash, "MergedWithPrevious"), text, {"the-", "final-", "-", "countdown"});
    expect_cut(split(dash, "MergedWithNext"), text, {"the", "-final", "-", "-countdown"});
    expect_cut(split(dash, "Contiguous"), text, {"the", "-", "final", "--", "countdown"});
  }
  expect_cut(split(regex("\\p{L}+"), "Removed", true), "ab, cd", {"ab", "cd"});
  expect_cut(split(regex("\\p{L}+"), "MergedWithNext", true), "ab, cd.", {"ab", ", cd", "."});
  expect_cut(split(regex("x*"), "Isolated"), "abxc", {"a", "b", "x", "c"});  // empty matches cut, too
  expect_cut(split({{"String", ""}}, "Isolated"), "a\u00e9c", {"a", "\u00e9", "c"});
}

TEST(PreTokenizers, ByteLevel) {
  const auto byte = [](bool add, bool use_regex) -> json {
    return {{"type", "ByteLevel"}, {"add_prefix_space", add}, {"use_regex", use_regex}};
  };
  expect_cut(byte(true, true), "Hello I'm 42, ok?!",
             {"\u0120Hello", "\u0120I", "'m", "\u012042", ",", "\u0120ok", "?!"});
  expect_cut(byte(true, true), " a", {"\u0120a"});
  expect_cut(byte(false, true), "a   b  ", {"a", "\u0120\u0120", "\u0120b", "\u0120\u0120"});
  expect_cut(byte(false, true), "\u00e9\n\nx", {"\u00c3\u00a9", "\u010a", "\u010a", "x"});
  expect_cut(byte(false, true), "I'M we'll", {"I", "'", "M", "\u0120we", "'ll"});  // in lower case only
  expect_cut(byte(false, false), "a b", {"a\u0120b"});
  expect_cut({{"type", "ByteLevel"}}, "a", {"\u0120a"});  // both are on unless they are off
}

TEST(PreTokenizers, LlamaThreesSplitAndByteLevel) {
  const std::string llama3 =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
      R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
  const json both = {
      {"type", "Sequence"},
      {"pretokenizers",
       {split(regex(llama3), "Isolated"), {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  expect_cut(both, "I'LL be #1234 (x)\n\n  y",
             {"I", "'LL", "\u0120be", "\u0120#", "123", "4", "\u0120(", "x", ")\u010a\u010a", "\u0120", "\u0120y"});
  expect_cut(both, "'\u017fa", {"'\u00c5\u00bf", "a"});  // ſ is a small s
}

TEST(PreTokenizers, Metaspace) {
  const auto space = [](json more) -> json {
    more["type"] = "Metaspace", more["replacement"] = "\u2581";
    return more;
  };
  // Hugging Face's own example.
  expect_cut(space({{"add_prefix_space", true}}), "Hey   friend!", {"\u2581Hey", "\u2581", "\u2581", "\u2581friend!"});
  expect_cut(space({}), " a", {"\u2581a"});
  expect_cut(space({}), "\u2581a", {"\u2581a"});
  expect_cut(space({{"prepend_scheme", "never"}}), "a b", {"a", "\u2581b"});
  expect_cut(space({{"add_prefix_space", false}}), "a b", {"a", "\u2581b"});
  expect_cut(space({{"add_prefix_space", true}, {"prepend_scheme", "first"}}), "a b", {"\u2581a", "\u2581b"});
  expect_cut(space({{"split", false}}), "a b", {"\u2581a\u2581b"});
  // first: only the word with which the text begins, and not where an added token or something removed comes before.
  json parts = {{"pre_tokenizer", space({{"prepend_scheme", "first"}})},
                {"added_tokens", {{{"id", 9}, {"content", "<s>"}, {"special", true}, {"normalized", false}}}}};
  expect_words(parts, "a<s>a", {"\u2581a", "<s>", "a"});
  expect_words(parts, "<s>a", {"<s>", "a"});
  parts["pre_tokenizer"]["prepend_scheme"] = "always";
  expect_words(parts, "<s>a", {"<s>", "\u2581a"});
  parts["pre_tokenizer"]["prepend_scheme"] = "first";
  parts["normalizer"] = {{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}};
  expect_words(parts, " a", {"a"});
  expect_words(parts, "a ", {"\u2581a"});
  expect_cut({{"type", "Sequence"}, {"pretokenizers", {{{"type", "WhitespaceSplit"}}, space({})}}}, "a b ",
             {"\u2581a", "\u2581b"});
  expect_cut(
      {{"type", "Sequence"}, {"pretokenizers", {{{"type", "WhitespaceSplit"}}, space({{"prepend_scheme", "first"}})}}},
      "a b", {"\u2581a", "b"});
}

TEST(PreTokenizers, WordsAndSpaces) {
  expect_cut({{"type", "Whitespace"}}, "Hey man! (d'accord_1)", {"Hey", "man", "!", "(", "d", "'", "accord_1", ")"});
  expect_cut({{"type", "Whitespace"}}, "e\u0301\u200db\u2460!?", {"e\u0301\u200db", "\u2460!?"});  // joiners are words
  expect_cut({{"type", "WhitespaceSplit"}}, "Hey,\u3000man,\t \u0085Good?", {"Hey,", "man,", "Good?"});
  for (const char* space : {"\t", "\n", "\v", "\f", "\r", " ", "\u0085", "\u00a0", "\u1680", "\u2000", "\u200a",
                            "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"})
    expect_cut({{"type", "WhitespaceSplit"}}, std::string("a") + space + "b", {"a", "b"});
  expect_cut({{"type", "WhitespaceSplit"}}, "a\u180e\u200bb", {"a\u180e\u200bb"});  // neither is white space
  expect_cut({{"type", "BertPreTokenizer"}}, "Hey, $5 \u00bfno?", {"Hey", ",", "$", "5", "\u00bf", "no", "?"});
  expect_cut({{"type", "Punctuation"}}, "Hey, $5 \u20ac!!", {"Hey", ",", " ", "$", "5 \u20ac", "!", "!"});  // € is none
  expect_cut({{"type", "Punctuation"}, {"behavior", "Contiguous"}}, "a!!b", {"a", "!!", "b"});
  expect_cut({{"type", "Digits"}, {"individual_digits", true}}, "ab12\u00bd", {"ab", "1", "2", "\u00bd"});
  expect_cut({{"type", "Digits"}, {"individual_digits", false}}, "ab12c\u0663", {"ab", "12", "c", "\u0663"});
  expect_cut({{"type", "CharDelimiterSplit"}, {"delimiter", "_"}}, "a__b_", {"a", "b"});
}

TEST(PreTokenizers, RegularExpressionsAreRubys) {
  const auto isolate = [](const std::string& r, const std::string& text, const Strings& words) {
    expect_cut(split(regex(r), "Isolated"), text, words);
  };
  isolate(R"(\s)", "a\u00a0b\u180ec", {"a", "\u00a0", "b\u180ec"});  // PCRE2's own \s has U+180E
  isolate(R"([^\s]+)", "a\u180eb c", {"a\u180eb", " ", "c"});
  isolate(R"([\S]+)", "a\u180eb c", {"a\u180eb", " ", "c"});
  isolate(R"(\p{N}{1,2}+)", "12345a", {"12345", "a"});  // repeats; elsewhere it would take two and never give back
  isolate(R"((ab){2}+)", "ababababab", {"abababab", "ab"});
  isolate(R"(a{,2})", "aaab", {"aa", "a", "b"});
  isolate(R"(\p{Han}+)", "a\u4e2d\u3001b", {"a", "\u4e2d", "\u3001b"});  // the script, not script extensions
  isolate(R"(\p{^L}|\P{^N})", "a1-", {"a", "1", "-"});
  isolate(R"(\h+)", "xaF9 ", {"x", "aF9", " "});
  isolate(R"(\w+)", "a\u0301_\u203f-\u0663", {"a\u0301_\u203f", "-", "\u0663"});
  isolate(R"(\bb)", "a\u0301b b", {"a\u0301b ", "b"});                // a mark belongs to the word
  isolate(R"(^a|b$)", "a\nab\nb", {"a", "\n", "a", "b", "\n", "b"});  // always those of lines
  isolate(R"((?m:a.))", "a\n", {"a\n"});
  isolate(R"(\u0041|[\]\[x])", "A]b", {"A", "]", "b"});
  isolate(R"([[:alpha:]]+)", "ab1", {"ab", "1"});
  const auto refused = [](const std::string& r, const std::string& says) {
    const std::string error = error_of([&] { from(words_of({{"pre_tokenizer", split(regex(r), "Isolated")}}, {})); });
    EXPECT_EQ(error, "t: pre_tokenizer.pattern.Regex: " + says);
  };
  refused("[a[b]]", "a set in a set is not supported in the regular expression [a[b]]");
  refused("[a&&b]", "&& in a set is not supported in the regular expression [a&&b]");
  refused("[\\W]", "\\W in a set is not supported in the regular expression [\\\\W]");
  refused("(a", "missing closing parenthesis in the regular expression (a");
  refused("\\p{Nonsense}", "unknown property after \\P or \\p in the regular expression \\\\p{Nonsense}");
  refused("a\\K", "\\K is not supported in the regular expression a\\\\K");
  refused("[a", "[ without ] is not supported in the regular expression [a");
}

// ---- models

json bpe(const json& vocab, const json& merges, json more = json::object()) {
  more["type"] = "BPE", more["vocab"] = vocab, more["merges"] = merges;
  return {{"model", more}};
}

TEST(BytePairEncoding, MergesInTheOrderOfTheFile) {
  const json vocab = {{"a", 0}, {"b", 1}, {"c", 2}, {"ab", 3}, {"bc", 4}, {"abc", 5}, {"aa", 6}};
  EXPECT_EQ(from(bpe(vocab, {"a b", "b c", "ab c"})).encode("abcbc"), (Ids{5, 4}));
  EXPECT_EQ(from(bpe(vocab, {"b c", "a b", "ab c"})).encode("abcab"), (Ids{0, 4, 3}));
  EXPECT_EQ(from(bpe(vocab, {"a a"})).encode("aaaaa"), (Ids{6, 6, 0}));  // the leftmost first
  const json pairs = json::parse(R"([["b","c"],["a","b"]])");
  EXPECT_EQ(from(bpe(vocab, pairs)).encode("abcab"), (Ids{0, 4, 3}));
  EXPECT_EQ(from(bpe(vocab, {"a b", "b c", "a b"})).encode("abc"), (Ids{0, 4}));  // the later of two equal ones counts
  json no_type = bpe(vocab, {"a b"});
  no_type["model"].erase("type");
  EXPECT_EQ(from(no_type).encode("ab"), (Ids{3}));
}

// The definition, slowly: while any two neighbours can be merged, those of the earliest merge, leftmost first.
Strings merged_slowly(const std::string& word, const std::vector<std::pair<std::string, std::string>>& merges) {
  Strings symbols;
  for (const char c : word) symbols.emplace_back(1, c);
  for (;;) {
    size_t best = merges.size(), place = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = std::find(merges.begin(), merges.end(), std::pair(symbols[i], symbols[i + 1]));
      if (size_t(found - merges.begin()) < best) best = size_t(found - merges.begin()), place = i;
    }
    if (best == merges.size()) return symbols;
    symbols[place] += symbols[place + 1];
    symbols.erase(symbols.begin() + std::ptrdiff_t(place) + 1);
  }
}

TEST(BytePairEncoding, AgreesWithItsDefinitionOnWordsOfAnyLength) {
  std::mt19937 random(4);
  for (int round = 0; round < 300; ++round) {
    Strings all = {"a", "b", "c", "d"};
    std::vector<std::pair<std::string, std::string>> merges;
    json vocab = {{"a", 0}, {"b", 1}, {"c", 2}, {"d", 3}}, file = json::array();
    for (size_t n = random() % 12; n > 0; --n) {
      const std::string left = all[random() % all.size()], right = all[random() % all.size()];
      if (vocab.contains(left + right)) continue;  // so that no two merges have one result
      vocab[left + right] = all.size();
      all.push_back(left + right);
      merges.emplace_back(left, right);
      file.push_back({left, right});
    }
    const Tokenizer t = from(bpe(vocab, file));
    std::string word;
    for (size_t n = random() % 300; n > 0; --n) word += char('a' + random() % 4);
    ASSERT_EQ(tokens(t, t.encode(word)), merged_slowly(word, merges)) << file << word;
  }
}

TEST(BytePairEncoding, UnknownCharacters) {
  const json vocab = {{"<unk>", 0}, {"a", 1}, {"<0xC3>", 2}, {"<0xA9>", 3}};
  EXPECT_EQ(from(bpe(vocab, json::array())).encode("xxa"), (Ids{1}));  // nothing stands for them
  EXPECT_EQ(from(bpe(vocab, json::array(), {{"unk_token", "<unk>"}})).encode("xxax"), (Ids{0, 0, 1, 0}));
  EXPECT_EQ(from(bpe(vocab, json::array(), {{"unk_token", "<unk>"}, {"fuse_unk", true}})).encode("xxax"),
            (Ids{0, 1, 0}));
  const json bytes = {{"unk_token", "<unk>"}, {"fuse_unk", true}, {"byte_fallback", true}};
  EXPECT_EQ(from(bpe(vocab, json::array(), bytes)).encode("\u00e9a"), (Ids{2, 3, 1}));
  // A character without all its bytes is unknown. What waits to be fused comes only before a known character.
  EXPECT_EQ(from(bpe(vocab, json::array(), bytes)).encode("x\u00e9a"), (Ids{2, 3, 0, 1}));
  EXPECT_EQ(error_of([&] {
              from(bpe(vocab, json::array(), {{"unk_token", "<?>"}})).encode("x");
            }),
            "encode: x is unknown, and <?> is not in the vocabulary");
}

TEST(BytePairEncoding, IgnoreMergesTakesWholeWords) {
  const json vocab = {{"a", 0}, {"b", 1}, {"c", 2}, {"abc", 3}, {"bc", 4}};
  EXPECT_EQ(from(bpe(vocab, {"b c"})).encode("abc"), (Ids{0, 4}));
  EXPECT_EQ(from(bpe(vocab, {"b c"}, {{"ignore_merges", true}})).encode("abc"), (Ids{3}));
  EXPECT_EQ(from(bpe(vocab, {"b c"}, {{"ignore_merges", true}})).encode("abca"), (Ids{0, 4, 0}));
}

TEST(BytePairEncoding, PrefixAndSuffix) {
  const json vocab = {{"a", 0}, {"##b", 1}, {"##c", 2}, {"##bc", 3}, {"ab", 4}};
  const json prefix = {{"continuing_subword_prefix", "##"}};
  EXPECT_EQ(from(bpe(vocab, {"##b ##c", "a ##b"}, prefix)).encode("abcb"), (Ids{0, 3, 1}));
  const json words = {{"l", 0}, {"o", 1}, {"w</w>", 2}, {"lo", 3}, {"low</w>", 4}, {"w", 5}};
  const json suffix = {{"end_of_word_suffix", "</w>"}};
  EXPECT_EQ(from(bpe(words, {"l o", "lo w</w>"}, suffix)).encode("low"), (Ids{4}));
  EXPECT_EQ(from(bpe(words, {"l o", "lo w</w>"}, suffix)).encode("lowlow"), (Ids{3, 5, 4}));
}

json unigram(const json& vocab, json more = json::object()) {
  more["type"] = "Unigram", more["vocab"] = vocab;
  return {{"model", more}};
}

TEST(UnigramModel, FindsTheBestWay) {
  const json vocab =
      json::parse(R"([["<unk>",0],["a",0],["b",0],["c",0],["d",0],["cd",1],["ab",2],["abc",5],["abcd",10]])");
  const Tokenizer t = from(unigram(vocab, {{"unk_id", 0}}));
  EXPECT_EQ(tokens(t, t.encode("abcd")), (Strings{"abcd"}));
  EXPECT_EQ(t.encode("abcdacdxx"), (Ids{8, 1, 5, 0}));  // Hugging Face's own example: xx is one unknown token
  EXPECT_EQ(t.encode("x\u4e2da\u4e2d"), (Ids{0, 1, 0}));
  // An unknown character costs ten more than the least token, so that it is avoided.
  const json xy = json::parse(R"([["<unk>",0],["a",-1],["ax",-11.5],["x",-20]])");
  EXPECT_EQ(from(unigram(xy, {{"unk_id", 0}})).encode("ax"), (Ids{2}));
  const json unknown = json::parse(R"([["<unk>",0],["a",-1],["bx",-1.5],["ab",-1]])");
  EXPECT_EQ(from(unigram(unknown, {{"unk_id", 0}})).encode("abx"), (Ids{1, 2}));
  // With -5 as the least score an unknown character is -15.
  const auto best = [](const std::string& text) {
    const json scores = json::parse(R"([["<unk>",0],["ab",-1],["aaab",-1],["a",-5],["bx",-5]])");
    return from(unigram(scores, {{"unk_id", 0}})).encode(text);
  };
  EXPECT_EQ(best("abx"), (Ids{3, 4}));    // -10 and not -16
  EXPECT_EQ(best("aaabx"), (Ids{2, 0}));  // -16 and not -20
  EXPECT_EQ(error_of([&] { from(unigram(vocab)).encode("ax"); }), "encode: x is unknown, and there is no unk_id");
}

TEST(UnigramModel, ByteFallback) {
  const json vocab = json::parse(R"([["<unk>",0],["a",-1],["<0xC3>",-1],["<0xA9>",-1]])");
  const Tokenizer t = from(unigram(vocab, {{"unk_id", 0}, {"byte_fallback", true}}));
  EXPECT_EQ(t.encode("a\u00e9\u00e9"), (Ids{1, 2, 3, 2, 3}));
  EXPECT_EQ(t.encode("\u00e9x"), (Ids{0}));  // unknown as a whole, and x has no byte
}

TEST(WordPieceModel, TakesTheLongestPieces) {
  const json model = {{"type", "WordPiece"},
                      {"vocab", {{"##na", 0}, {"ba", 1}, {"[UNK]", 2}, {"b", 3}, {"\u00e9", 4}, {"##\u00e9", 5}}}};
  const Tokenizer t = from({{"model", model}});
  EXPECT_EQ(t.encode("banana"), (Ids{1, 0, 0}));  // Hugging Face's own examples
  EXPECT_EQ(t.encode("nanana"), (Ids{2}));
  EXPECT_EQ(t.encode("bananan"), (Ids{2}));
  EXPECT_EQ(t.encode("\u00e9\u00e9\u00e9"), (Ids{4, 5, 5}));
  std::string word;
  for (int i = 0; i < 100; ++i) word += "\u00e9";
  EXPECT_EQ(t.encode(word).size(), 100u);
  EXPECT_EQ(t.encode(word + "\u00e9"), (Ids{2}));  // more than 100 characters
  json other = model;
  other["max_input_chars_per_word"] = 3, other["unk_token"] = "b";
  EXPECT_EQ(from({{"model", other}}).encode("bana"), (Ids{3}));
}

// ---- added tokens

json added(const std::string& content, json more = json::object()) {
  more["content"] = content;
  if (!more.contains("id")) more["id"] = 0;
  return more;
}

TEST(AddedTokens, OptionsOfHuggingFacesOwnTests) {
  const json lower = {{"type", "Lowercase"}};
  json parts = {{"normalizer", lower},
                {"added_tokens",
                 {added("my", {{"lstrip", true}, {"rstrip", true}}), added("name"),
                  added("ony", {{"single_word", true}}), added("[CLS]", {{"special", true}, {"normalized", false}}),
                  added("[SEP]", {{"special", true}, {"normalized", false}})}}};
  expect_words(parts, "[CLS] My name is Anthony [SEP]", {"[CLS]", "my", "name", " is anthony ", "[SEP]"});
  parts["added_tokens"] = json::array({added("<mask>", {{"single_word", true}})});
  expect_words(parts, "<mask> My name <mask> A<mask> <mask>ony <mask>",
               {"<mask>", " my name ", "<mask>", " a<mask> <mask>ony ", "<mask>"});
  expect_words(parts, "<mask>, <mask>- \u25cc\u0330<mask>", {"<mask>", ", ", "<mask>", "- \u25cc\u0330<mask>"});
  parts["added_tokens"] = json::array({added("<mask>", {{"single_word", true}, {"lstrip", true}, {"rstrip", true}})});
  expect_words(parts, "Hi <mask> there\t<mask>\t<mask>\u2000", {"hi", "<mask>", "there", "<mask>", "<mask>"});
}

TEST(AddedTokens, TheLeftmostAndThenTheLongest) {
  json parts = {{"added_tokens", {added("ab"), added("abcd"), added("bcde"), added("cd")}}};
  expect_words(parts, "xabcdex", {"x", "abcd", "ex"});
  expect_words(parts, "abcx", {"ab", "cx"});
  expect_words(parts, "abcabcdcd", {"ab", "c", "abcd", "cd"});
  // A token that does not stand alone is passed over as a whole: what begins inside it is not looked for.
  parts["added_tokens"] = {added("abc", {{"single_word", true}}), added("c")};
  expect_words(parts, "abcx c", {"abcx ", "c"});
}

TEST(AddedTokens, RawOnesAreFoundBeforeTheTextIsNormalized) {
  const json parts = {
      {"normalizer", {{"type", "Lowercase"}}},
      {"added_tokens", {added("[A]", {{"normalized", false}}), added("B"), added("[b]", {{"normalized", false}})}}};
  expect_words(parts, "[A][a]B[B]b", {"[A]", "[a]", "B", "[", "B", "]", "B"});
}

TEST(AddedTokens, OfTwoThatLookAlikeTheSpecialOneIsFound) {
  const json parts = {{"normalizer", {{"type", "Lowercase"}}},
                      {"added_tokens", {added("A"), added("a", {{"special", true}})}}};
  expect_words(parts, "A", {"a"});
}

TEST(AddedTokens, HaveTheIdsOfTheModelOrTheNextFreeOnes) {
  json j =
      words_of({{"added_tokens",
                 {added("a", {{"id", 1}, {"special", true}}), added("<x>", {{"id", 3}}), added("<y>", {{"id", 4}})}}},
               {"a", "b"});
  j["post_processor"] = {{"type", "BertProcessing"}, {"sep", {"<x>", 3}}, {"cls", {"a", 1}}};
  const Tokenizer t = from(j);
  EXPECT_EQ(t.size(), 5);
  EXPECT_EQ(t.encode("<x>ab<y>"), (Ids{3, 1, 2, 4}));
  EXPECT_EQ(t.encode("b", true), (Ids{1, 2, 3}));
  EXPECT_EQ(t.decode(Ids{1, 2, 3, 4}), "a b <x> <y>");
  EXPECT_EQ(t.decode(Ids{1, 2, 3, 4}, true), "b <x> <y>");
}

// ---- post-processors

TEST(PostProcessors, PutSpecialTokensAroundAText) {
  const auto framed = [](const json& p) {
    return from(words_of({{"post_processor", p}}, {"x", "[CLS]", "[SEP]"})).encode("x", true);
  };
  const json bert = {{"type", "BertProcessing"}, {"sep", {"[SEP]", 3}}, {"cls", {"[CLS]", 2}}};
  const json roberta = {{"type", "RobertaProcessing"},
                        {"sep", {"[SEP]", 3}},
                        {"cls", {"[CLS]", 2}},
                        {"trim_offsets", true},
                        {"add_prefix_space", true}};
  const auto special = [](const char* id) -> json { return {{"SpecialToken", {{"id", id}, {"type_id", 0}}}}; };
  const json sequence = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const json both = {{"type", "TemplateProcessing"},
                     {"single", {special("s"), sequence, special("e"), special("e")}},
                     {"pair", json::array()},
                     {"special_tokens",
                      {{"s", {{"id", "s"}, {"ids", {2, 3}}, {"tokens", {"[CLS]", "[SEP]"}}}},
                       {"e", {{"id", "e"}, {"ids", {3}}, {"tokens", {"[SEP]"}}}}}}};
  EXPECT_EQ(framed(bert), (Ids{2, 1, 3}));
  EXPECT_EQ(framed(roberta), (Ids{2, 1, 3}));
  EXPECT_EQ(framed(both), (Ids{2, 3, 1, 3, 3}));
  EXPECT_EQ(framed({{"type", "ByteLevel"}}), (Ids{1}));
  EXPECT_EQ(framed({{"type", "Sequence"}, {"processors", {{{"type", "ByteLevel"}}, bert}}}), (Ids{2, 1, 3}));
  EXPECT_EQ(framed(nullptr), (Ids{1}));
}

// ---- decoders

json replace_step(const std::string& what, const std::string& with) {
  return {{"type", "Replace"}, {"pattern", {{"String", what}}}, {"content", with}};
}
json chain(const json& steps) { return {{"type", "Sequence"}, {"decoders", steps}}; }
json strip_step(int start, int stop) { return {{"type", "Strip"}, {"content", " "}, {"start", start}, {"stop", stop}}; }
const json byte_fallback = {{"type", "ByteFallback"}}, fuse = {{"type", "Fuse"}},
           byte_decoder = {{"type", "ByteLevel"}};
const json llama_decoder = chain({replace_step("\u2581", " "), byte_fallback, fuse, strip_step(1, 0)});
json metaspace_decoder(const std::string& scheme) {
  return {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", scheme}};
}
const json word_piece = {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}};
const json bpe_decoder = {{"type", "BPEDecoder"}, {"suffix", "</w>"}};

std::string decoded(const json& decoder, const Strings& words) {
  const Tokenizer t = from(words_of({{"decoder", decoder}}, words));
  Ids ids;
  for (const std::string& word : words) ids.push_back(t.id_of(word).value());
  return t.decode(ids);
}

TEST(Decoders, EachOne) {
  EXPECT_EQ(decoded(llama_decoder, {"\u2581Hey", "\u2581you", "<0xE5>", "<0x8f>", "<0xab>", "!"}), "Hey you\u53eb!");
  EXPECT_EQ(decoded(llama_decoder, {"<0xE5>", "<0x8f>", "a"}), "\ufffd\ufffda");  // one for each byte
  EXPECT_EQ(decoded(llama_decoder, {"<0x41>", "<0xE5>"}), "\ufffd\ufffd");        // all of a run, or none
  EXPECT_EQ(decoded(llama_decoder, {"\u2581\u2581a"}), " a");
  EXPECT_EQ(decoded(byte_decoder, {"Hey", "\u0120you", "\u00c3", "\u00a9", "\u00c3"}), "Hey you\u00e9\ufffd");
  EXPECT_EQ(decoded(byte_decoder, {"a\u0120\u4e2d", "\u0120"}),
            "a\u0120\u4e2d ");  // a token with another character is text
  EXPECT_EQ(decoded(metaspace_decoder("always"), {"\u2581Hey", "\u2581you"}), "Hey you");
  EXPECT_EQ(decoded(metaspace_decoder("always"), {"\u2581\u2581a\u2581", "\u2581b\u2581"}),
            "a b ");  // in the first none stays
  EXPECT_EQ(decoded(metaspace_decoder("never"), {"\u2581Hey"}), " Hey");
  EXPECT_EQ(decoded(word_piece, {"##uelo", "Ara", "##\u00faj", "##o", ".", "do", "not"}), "##uelo Ara\u00fajo. do not");
  EXPECT_EQ(decoded({{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", false}}, {"a", "."}), "a .");
  EXPECT_EQ(decoded(bpe_decoder, {"a", "b</w>", "c</w>"}), "ab c");
  EXPECT_EQ(decoded(fuse, {"a", "b"}), "ab");
  EXPECT_EQ(decoded(strip_step(1, 1), {" a ", "  b", "   "}), "a b ");
  EXPECT_EQ(decoded(replace_step("_", " "), {"hello", "_hello"}), "hello hello");
  EXPECT_EQ(decoded({{"type", "Replace"}, {"pattern", regex("l+")}, {"content", "L"}}, {"hello"}), "heLo");
  for (const json& d : {llama_decoder, byte_decoder, word_piece, bpe_decoder, fuse, json()})
    EXPECT_EQ(decoded(d, {}), "");
}

TEST(Decoders, AStreamIsNeverAheadOfWhatIsCertain) {
  const auto parts = [](const json& decoder, const Strings& words) {
    const Tokenizer t = from(words_of({{"decoder", decoder}}, words));
    TextStream stream(t);
    Strings all;
    for (const std::string& word : words) all.push_back(stream.push(t.id_of(word).value()));
    all.push_back(stream.finish());
    return all;
  };
  EXPECT_EQ(parts(byte_decoder, {"a", "\u00f0\u0141", "\u013c", "\u0122b", "\u00c3"}),
            (Strings{"a", "", "", "\U0001f680b", "", "\ufffd"}));
  EXPECT_EQ(parts(llama_decoder, {"\u2581", "\u2581a", "<0xC3>", "<0xA9>", "b", "<0xC3>"}),
            (Strings{"", " a", "", "", "\u00e9b", "", "\ufffd"}));
  EXPECT_EQ(parts(bpe_decoder, {"a</w>", "b</w>"}), (Strings{"", "a ", "b"}));
  EXPECT_EQ(parts(chain({fuse, strip_step(2, 0)}), {" ", " c ", " c "}), (Strings{"", "c ", " c ", ""}));
  EXPECT_EQ(parts(chain({fuse, strip_step(0, 1)}), {"a ", " ", "b "}), (Strings{"a", " ", " b", ""}));
}

// The same by the definition: each step from all tokens to all tokens.
Strings all_at_once(const json& decoder, Strings t) {
  const std::string type = decoder["type"];
  const auto joined = [](const Strings& parts) {
    std::string all;
    for (const std::string& part : parts) all += part;
    return all;
  };
  const auto replaced = [](std::string text, const std::string& what, const std::string& with) {
    for (size_t at = 0; (at = text.find(what, at)) != text.npos; at += with.size()) text.replace(at, what.size(), with);
    return text;
  };
  if (type == "Sequence") {
    for (const json& step : decoder["decoders"]) t = all_at_once(step, t);
  } else if (type == "Fuse") {
    t = {joined(t)};
  } else if (type == "Replace") {
    for (std::string& x : t) x = replaced(x, decoder["pattern"]["String"], decoder["content"]);
  } else if (type == "Strip") {
    for (std::string& x : t) {
      for (int n = decoder["start"]; n > 0 && x.starts_with(' '); --n) x.erase(0, 1);
      for (int n = decoder["stop"]; n > 0 && x.ends_with(' '); --n) x.pop_back();
    }
  } else if (type == "Metaspace") {
    for (size_t i = 0; i < t.size(); ++i)
      t[i] = replaced(t[i], "\u2581", i == 0 && decoder["prepend_scheme"] != "never" ? "" : " ");
  } else if (type == "BPEDecoder") {
    for (size_t i = 0; i < t.size(); ++i) t[i] = replaced(t[i], "</w>", i + 1 == t.size() ? "" : " ");
  } else if (type == "WordPiece") {
    for (size_t i = 0; i < t.size(); ++i) {
      if (i > 0) t[i] = t[i].starts_with("##") ? t[i].substr(2) : " " + t[i];
      t[i] = replaced(replaced(t[i], " .", "."), " 's", "'s");  // no other rule applies to the tokens below
    }
  } else if (type == "ByteFallback") {
    Strings out;
    std::string bytes;
    const auto flush = [&] {
      if (utf8_error(bytes) == bytes.npos) out.push_back(bytes);
      else out.insert(out.end(), bytes.size(), "\ufffd");
      bytes.clear();
    };
    for (const std::string& x : t) {
      if (x.size() == 6 && x.starts_with("<0x")) {
        bytes += char(std::stoi(x.substr(3, 2), nullptr, 16));
        continue;
      }
      if (!bytes.empty()) flush();
      out.push_back(x);
    }
    if (!bytes.empty()) flush();
    t = out;
  }
  return t;
}

TEST(Decoders, AgreeWithTheirDefinitionInAnyOrder) {
  const Strings words = {"\u2581", "\u2581a", "a\u2581", " ",    "  ", "b",  " c ", "<0xC3>", "<0xA9>",
                         "<0x41>", "##x",     "y</w>",   "</w>", ".",  "'s", "</",  "w>",     "\u00e9"};
  const json steps[] = {fuse,
                        byte_fallback,
                        strip_step(1, 0),
                        strip_step(0, 2),
                        strip_step(2, 1),
                        bpe_decoder,
                        word_piece,
                        metaspace_decoder("always"),
                        metaspace_decoder("never"),
                        replace_step("\u2581", " "),
                        replace_step("</", "<")};
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    json order = json::array();
    for (size_t n = 1 + random() % 4; n > 0; --n) order.push_back(steps[random() % std::size(steps)]);
    const Tokenizer t = from(words_of({{"decoder", chain(order)}}, words));
    Ids ids(random() % 8);
    for (int32_t& id : ids) id = int32_t(1 + random() % words.size());
    std::string expected, streamed;
    for (const std::string& part : all_at_once(chain(order), tokens(t, ids))) expected += part;
    TextStream stream(t);
    for (int again = 0; again < 2; ++again) {  // a stream begins anew
      for (const int32_t id : ids) streamed += stream.push(id);
      streamed += stream.finish();
    }
    ASSERT_EQ(t.decode(ids), expected) << order << testing::PrintToString(tokens(t, ids));
    ASSERT_EQ(streamed, expected + expected);
  }
}

TEST(Decoders, LongStreamsTakeLinearTime) {
  const Tokenizer t = from(words_of({{"decoder", llama_decoder}}, {"\u2581a", "<0x41>", "b"}));
  TextStream stream(t);
  const auto begin = std::chrono::steady_clock::now();
  size_t size = 0;
  for (int i = 0; i < 300'000; ++i) size += stream.push(i % 100'000 < 50'000 ? 2 : 1 + i % 2 * 2).size();
  EXPECT_EQ(size + stream.finish().size(), 150'000u + 75'000 * 2 + 75'000);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

// ---- vocab.txt

TEST(VocabularyFiles, OfBert) {
  const TemporaryFolder folder;
  folder.write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhel\n##lo\nH\u00e9\n,\n");
  const Tokenizer t(folder.path());
  EXPECT_EQ(t.encode("H\u00c9LLO, x[MASK]"), (Ids{5, 6, 8, 1, 4}));
  EXPECT_EQ(t.encode("Hello,", true), (Ids{2, 5, 6, 8, 3}));
  EXPECT_EQ(t.decode(Ids{2, 5, 6, 8, 3}, true), "hello,");
  folder.write("tokenizer_config.json", R"({"do_lower_case": false})");
  EXPECT_EQ(Tokenizer(folder.path()).encode("H\u00e9 hello"), (Ids{7, 5, 6}));
}

TEST(VocabularyFiles, OfEsm) {
  const TemporaryFolder folder;
  folder.write("vocab.txt", "<cls>\n<pad>\n<eos>\n<unk>\nL\nA\nG\n.\n-\n<null_1>\n<mask>");
  const Tokenizer t(folder.path());
  EXPECT_EQ(t.encode("LAG<mask>A", true), (Ids{0, 4, 5, 6, 10, 5, 2}));
  EXPECT_EQ(t.encode("L A\nxyG 1 2"), (Ids{4, 5, 3, 6, 3, 3}));  // what lies between is unknown word by word
  EXPECT_EQ(t.decode(Ids{0, 4, 5, 2}), "<cls> L A <eos>");
  EXPECT_EQ(t.decode(Ids{0, 4, 5, 9, 2}, true), "L A <null_1>");
}

// ---- what is not a tokenizer

TEST(TokenizerErrors, NameTheComponent) {
  const auto refused = [](json change, const std::string& says) {
    json j = words_of({}, {"a"});
    j.merge_patch(change);
    EXPECT_EQ(error_of([&] { from(j); }), says) << change;
  };
  refused({{"normalizer", {{"type", "Fancy"}}}}, "t: normalizer.type: Fancy is no known normalizer");
  refused({{"normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "X\n"}}}}}}},
          "t: normalizer.normalizers[1].type: X\\n is no known normalizer");
  refused({{"normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "AAA"}}}},
          "t: normalizer.precompiled_charsmap: expected base64");
  refused({{"normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "////AA=="}}}},
          "t: normalizer.precompiled_charsmap: expected a trie of 4 to 4 bytes, got 16777215");
  refused({{"pre_tokenizer", {{"type", "UnicodeScripts"}}}},
          "t: pre_tokenizer.type: UnicodeScripts is no known pre-tokenizer");
  refused({{"pre_tokenizer", split({{"String", "a"}}, "Sideways")}},
          "t: pre_tokenizer.behavior: Sideways is no known behavior");
  refused({{"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "ab"}}}},
          "t: pre_tokenizer.replacement: expected one character, got \"ab\"");
  refused({{"pre_tokenizer",
            {{"type", "Metaspace"}, {"replacement", "_"}, {"add_prefix_space", false}, {"prepend_scheme", "first"}}}},
          "t: pre_tokenizer.prepend_scheme: expected never, as add_prefix_space is false, got first");
  refused({{"pre_tokenizer", 3}}, "t: pre_tokenizer: expected an object, got 3");
  refused({{"post_processor", {{"type", "Odd"}}}}, "t: post_processor.type: Odd is no known post-processor");
  refused({{"decoder", {{"type", "CTC"}}}}, "t: decoder.type: CTC is no known decoder");
  refused({{"decoder", {{"type", "Replace"}, {"content", ""}}}}, "t: decoder.pattern: expected an object, got nothing");
  refused({{"model", {{"type", "Magic"}}}}, "t: model.type: expected BPE, Unigram, WordPiece or WordLevel, got Magic");
  refused({{"model", {{"vocab", {{"a", -1}}}}}}, "t: model.vocab: expected an id from 0 to 16777215, got -1");
  refused({{"model", {{"vocab", {{"a", "b"}}}}}}, "t: model.vocab.a: expected an id, got \"b\"");
  refused({{"model", nullptr}}, "t.model: expected an object, got nothing");
  refused({{"model", {{"type", "BPE"}, {"merges", json::array()}, {"dropout", 0.1}}}},
          "t: model.dropout: expected null or 0, since ids would be random, got 0.1");
  refused({{"model", {{"type", "BPE"}, {"merges", {"a b c"}}}}},
          "t: model.merges[0]: expected two tokens with a space between them, got \"a b c\"");
  refused({{"model", {{"type", "BPE"}, {"merges", {"a x"}}}}}, "t: model.merges[0]: token x is not in the vocabulary");
  EXPECT_EQ(from(bpe({{"a", 0}}, json::array(), {{"dropout", 0.0}})).encode("a"), (Ids{0}));
  const TemporaryFolder folder;
  EXPECT_EQ(error_of([&] { Tokenizer t(folder.path()); }),
            folder.path().string() + ": expected tokenizer.json or vocab.txt in it");
  folder.write("vocab.txt", "a\nb\n");
  EXPECT_NE(error_of([&] { Tokenizer t(folder.path()); }).find("expected BERT's [UNK], [CLS] and [SEP]"),
            std::string::npos);
}

TEST(TokenizerErrors, DamagedFilesAreRefusedInOneLine) {
  const json parts[] = {
      byte_level({"h e", "l l"}),
      {{"normalizer",
        {{"type", "Sequence"},
         {"normalizers",
          {{{"type", "NFKC"}},
           {{"type", "Precompiled"}, {"precompiled_charsmap", charsmap({{"e\u0301", "\u00e9"}})}}}}}},
       {"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "always"}}},
       {"decoder", llama_decoder},
       {"model", unigram(json::parse(R"([["<unk>",0],["\u2581a",-1],["b",-2.5]])"), {{"unk_id", 0}})["model"]}},
      words_of({{"normalizer", {{"type", "BertNormalizer"}}},
                {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
                {"decoder", word_piece},
                {"added_tokens", {added("[A]", {{"lstrip", true}, {"special", true}})}}},
               {"hello", "world"})};
  std::mt19937 random(6);
  int read = 0;
  for (int round = 0; round < rounds(3000); ++round) {
    std::string file = parts[round % 3].dump();
    const std::string before = file;
    for (size_t n = 1 + random() % 3; n > 0; --n) {
      const size_t at = random() % file.size(), size = std::min<size_t>(random() % 9, file.size() - at);
      if (random() % 3 == 0) file.erase(at, size);
      else if (random() % 2) file.replace(at, size, before.substr(random() % before.size(), random() % 20));
      else file[at] = char(random());
    }
    const std::string error = error_of([&] {
      const Tokenizer t = Tokenizer::parse(file, "t");
      ++read;
      const Ids ids = t.encode(random_text(random, 10));
      t.decode(ids);
    });
    EXPECT_EQ(error.find('\n'), error.npos) << error;
    EXPECT_LT(error.size(), 500u) << error;
  }
  EXPECT_GT(read, 0);
}

// ---- the program

class Tokenize : public testing::Test {
 protected:
  const TemporaryFolder folder;
  struct Outcome {
    int exit_code;
    std::string out, err;
  };
  Outcome run(const std::vector<std::string>& args, const std::string& input) {
    folder.write("in", input);
    const std::string in = folder / "in", out = folder / "out", err = folder / "err";
    std::vector<std::string> all{"dense", "tokenize"};
    all.insert(all.end(), args.begin(), args.end());
    std::vector<char*> argv;
    for (std::string& arg : all) argv.push_back(arg.data());
    argv.push_back(nullptr);
    const pid_t pid = fork();
    if (pid == 0) {
      alarm(60);
      dup2(open(in.c_str(), O_RDONLY), 0);
      dup2(open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
      dup2(open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
      execv(DENSE_CLI, argv.data());
      _exit(127);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return {WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status), contents(out), contents(err)};
  }
  void expect(const std::vector<std::string>& args, const std::string& input, const std::string& output) {
    const Outcome outcome = run(args, input);
    EXPECT_EQ(outcome.out, output) << testing::PrintToString(args);
    EXPECT_EQ(outcome.err, "");
    EXPECT_EQ(outcome.exit_code, 0);
  }
  void expect_refused(const std::vector<std::string>& args, const std::string& input, const std::string& says) {
    const Outcome outcome = run(args, input);
    EXPECT_EQ(outcome.err, "dense tokenize: " + says + "\n");
    EXPECT_EQ(outcome.exit_code, 2);
  }
  std::string model = folder.write(
      "tokenizer.json",
      words_of({{"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
                {"added_tokens", {added("<s>", {{"special", true}, {"normalized", false}})}},
                {"post_processor", {{"type", "BertProcessing"}, {"cls", {"<s>", 4}}, {"sep", {"<s>", 4}}}}},
               {"a", "b", "\u00e9"})
          .dump());
};

TEST_F(Tokenize, TextsBecomeIdsAndIdsTexts) {
  expect({model}, "a b\n\nb <s>\u00e9", "1 2\n\n2 4 3\n");
  expect({folder.path()}, "a\n", "1\n");
  expect({model, "--special"}, "a b\n", "4 1 2 4\n");
  expect({model, "--json"}, "[\"a b\", \"\", \"b\\n\\u00e9\"]", "[[1,2],[],[2,3]]\n");
  expect({model, "--json", "--special"}, "[\"a\"]", "[[4,1,4]]\n");
  expect({model, "--json"}, "[]", "[]\n");
  expect({model, "--decode"}, "1 2\n\n4 3\n", "a b\n\n<s> \u00e9\n");
  expect({model, "--decode", "--skip-special"}, "4 1\n", "a\n");
  expect({model, "--decode", "--json"}, "[[1,3],[],[4]]", "[\"a \\u00e9\",\"\",\"<s>\"]\n");
  expect({model}, "", "");
}

TEST_F(Tokenize, WhatDoesNotFitIsRefusedInOneLine) {
  expect_refused({}, "", "expected MODEL (see dense tokenize --help)");
  expect_refused({model, "--jsn"}, "", "unknown flag --jsn; did you mean --json? (see dense tokenize --help)");
  expect_refused({model, "x"}, "", "unexpected argument \"x\" (see dense tokenize --help)");
  expect_refused({model, "--special", "--decode"}, "",
                 "--special: text becomes ids with it, so it does not go with --decode");
  expect_refused({model, "--skip-special"}, "", "--skip-special: expected --decode, too");
  expect_refused({model}, "a\nb\xff\n", "standard input: line 2: encode: expected UTF-8, got byte 0xff at byte 1");
  expect_refused({model, "--decode"}, "1 x\n",
                 "standard input: line 1: expected ids with spaces between them, got \"x\"");
  expect_refused({model, "--decode"}, "9\n",
                 "standard input: line 1: decode: expected ids of tokens, from 0 to 4, got 9");
  expect_refused({model, "--json"}, "{}", "standard input: expected an array of strings, got {}");
  expect_refused({model, "--json"}, "[\"a\", 3]", "standard input: item 1: expected a string, got 3");
  expect_refused({model, "--json", "--decode"}, "[[1.5]]",
                 "standard input: item 0: expected an array of ids, got 1.5 in it");
  const Outcome none = run({folder / "none"}, "");
  EXPECT_EQ(none.exit_code, 2);
  const Outcome help = run({"--help"}, "");
  EXPECT_NE(help.out.find("Usage: dense tokenize MODEL"), std::string::npos);
}

}  // namespace
