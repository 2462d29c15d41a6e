// dense tokenize: text in, ids out, and back.
#include <fmt/core.h>

#include <charconv>
#include <filesystem>
#include <iostream>
#include <iterator>

#include "cli/commands.h"
#include "cli/flags.h"
#include "dense/io/hub.h"
#include "dense/io/json.h"
#include "dense/io/tokenizer.h"

namespace dense::cli {
namespace {

struct Config {
  bool decode = false, json = false, special = false, skip_special = false;

  void fields(auto&& f) {
    f("decode", decode, "from ids to text");
    f("json", json, "an array of strings in, an array of arrays of ids out; with --decode the other way");
    f("special", special, "with the tokens that the model expects around a text, such as [CLS] and [SEP]");
    f("skip-special", skip_special, "with --decode: without special tokens");
  }
};

const std::string input = "standard input";

// "15496 995"
std::vector<int32_t> ids_of(std::string_view line) {
  std::vector<int32_t> ids;
  for (size_t at = 0; (at = line.find_first_not_of(" \t\r", at)) != line.npos;) {
    const std::string_view word = line.substr(at, line.find_first_of(" \t\r", at) - at);
    int32_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc{} || end != word.data() + word.size())
      fail("expected ids with spaces between them, got \"", shown(word), '"');
    ids.push_back(id);
    at += word.size();
  }
  return ids;
}

std::vector<int32_t> ids_of(const Json& list) {
  std::vector<int32_t> ids;
  if (list.kind != Json::array) fail("expected an array of ids, got ", shown(list));
  for (const Json& item : list.items) {
    const std::string_view text = item.text;
    int32_t id = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
    if (item.kind != Json::number || error != std::errc{} || end != text.data() + text.size())
      fail("expected an array of ids, got ", shown(item), " in it");
    ids.push_back(id);
  }
  return ids;
}

}  // namespace

int tokenize_command(const Call& call) {
  Config config;
  std::string model;
  if (!parse_flags(
          config, call,
          "Turns text on standard input into the ids of its tokens, or ids into text. Each line is a text; its\n"
          "ids come out as one line, with spaces between them. Texts with line breaks: see --json.\n\n"
          "MODEL  a folder with tokenizer.json or vocab.txt, a tokenizer.json, or a name in the local cache",
          call.program + " gpt2/ < lines.txt", {{"MODEL", &model}}))
    return 0;
  const bool decode = config.decode, special = config.special, skip_special = config.skip_special;
  if (special && decode) fail("--special: text becomes ids with it, so it does not go with --decode");
  if (skip_special && !decode) fail("--skip-special: expected --decode, too");
  const Tokenizer tokenizer(std::filesystem::is_regular_file(model) ? std::filesystem::path(model) : find_model(model));

  // Every text or array of ids, whose errors begin with its place.
  const auto with_place = [](const std::string& place, const auto& f) {
    try {
      return f();
    } catch (const Error& error) {
      fail(input, ": ", place, ": ", error.what());
    }
  };
  if (!config.json) {
    int64_t number = 0;
    for (std::string line; std::getline(std::cin, line);) {
      const std::string out = with_place(text("line ", ++number), [&] {
        if (decode) return tokenizer.decode(ids_of(std::string_view(line)), skip_special);
        return fmt::format("{}", fmt::join(tokenizer.encode(line, special), " "));
      });
      fmt::print("{}\n", out);
    }
    return 0;
  }

  const Json given = parse_json(std::string(std::istreambuf_iterator<char>(std::cin), {}), input);
  if (given.kind != Json::array) {
    fail(input, ": expected an array of ", decode ? "arrays of ids" : "strings", ", got ", shown(given));
  }
  std::string out;
  for (size_t i = 0; i < given.items.size(); ++i) {
    const Json& item = given.items[i];
    out += i ? "," : "";
    out += with_place(text("item ", i), [&] {
      if (decode) return json_string(tokenizer.decode(ids_of(item), skip_special));
      if (item.kind != Json::string) fail("expected a string, got ", shown(item));
      return fmt::format("[{}]", fmt::join(tokenizer.encode(item.text, special), ","));
    });
  }
  fmt::print("[{}]\n", out);
  return 0;
}

}  // namespace dense::cli
