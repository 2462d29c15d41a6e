// dense tokens: a text as tokens in files, to be trained on.
#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "dense/io/files.h"
#include "dense/io/hub.h"
#include "dense/train/data.h"

namespace dense::cli {
namespace {

namespace fs = std::filesystem;

struct Config {
  bool marks = true;
  std::string tokenizer = "bytes", documents = "files";
  int64_t seed = 0, shard = 100'000'000;

  void fields(auto&& f) {
    f("tokenizer", tokenizer, "bytes, characters, or a model or file with a tokenizer.json");
    f("documents", documents, "files: each is a document; lines: each line is one; they are shuffled");
    f("marks", marks, "mark where documents begin and end with the tokenizer's own tokens; false: one stream");
    f("seed", seed, "of the order of documents", INT64_MIN);
    f("shard", shard, "tokens of a file, or somewhat more: documents are not cut", 1);
  }
};

}  // namespace

int tokens_command(const Call& call) {
  Config config;
  std::string path, out;
  if (!parse_flags(config, call,
                   "Writes a text, or all texts in a folder, as tokens that `dense train` reads without delay and\n"
                   "without holding them in memory: tokens-00001-of-00004.safetensors, ..., and their tokenizer.json.",
                   call.program + " stories.txt stories --tokenizer gpt2 --documents lines",
                   {{"PATH", &path}, {"OUT", &out}}))
    return 0;
  if (fs::exists(out)) fail(out, ": exists already");
  std::error_code ignored;
  const bool named =
      config.tokenizer == "bytes" || config.tokenizer == "characters" || fs::exists(config.tokenizer, ignored);
  catch_stop_signals();
  const Documents documents({.path = path,
                             .tokenizer = named ? config.tokenizer : find_model(config.tokenizer).string(),
                             .documents = config.documents,
                             .marks = config.marks},
                            {}, uint64_t(config.seed));
  const fs::path to = fs::absolute(out).lexically_normal(), folder = to.has_filename() ? to : to.parent_path();
  const fs::path draft = folder.parent_path() / ("." + folder.filename().string() + ".partial");
  int64_t tokens = 0, texts = 0;
  int shards = 0;
  ReadingProgress reading;
  try {
    fs::remove_all(draft);
    fs::create_directories(draft);
    std::vector<uint32_t> ids;
    std::vector<int64_t> begins;
    const auto write = [&] {
      write_tokens(draft / std::to_string(shards++), ids, begins);
      reading.clear();
      say("{} tokens\n", with_commas(tokens));
      ids.clear(), begins.clear();
    };
    const auto add = [&](std::span<const uint32_t> piece, bool is_first) {
      if (is_first && int64_t(ids.size()) >= config.shard) write();
      if (is_first) begins.push_back(int64_t(ids.size())), ++texts;
      ids.insert(ids.end(), piece.begin(), piece.end());
      tokens += int64_t(piece.size());
    };
    documents.each(add, std::ref(reading));
    if (!ids.empty()) write();
    if (tokens == 0 && !stop_signal()) fail(path, ": expected text, got none");
    for (int i = 0; i < shards; ++i) fs::rename(draft / std::to_string(i), draft / shard_name(i, shards));
    if (!documents.tokenizer().empty()) write_file(draft / "tokenizer.json", documents.tokenizer());
    if (!stop_signal()) fs::rename(draft, folder);
  } catch (...) {
    fs::remove_all(draft, ignored);
    throw;
  }
  if (stop_signal()) {
    fs::remove_all(draft, ignored);
    say("stopped: nothing was written\n");
    return 128 + stop_signal();
  }
  say("{} tokens of {} documents in {} files: {}\n", with_commas(tokens), with_commas(texts), shards, out);
  return 0;
}

}  // namespace dense::cli
