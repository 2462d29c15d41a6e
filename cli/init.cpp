// dense init: a folder as Hugging Face has it, with new weights.
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <random>
#include <utility>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "cli/pages.h"
#include "cli/progress.h"

namespace dense::cli {
namespace {

namespace fs = std::filesystem;

struct Config {
  std::string model, dtype = "f32";
  int64_t seed = 0, shard_size = int64_t(most_shard_bytes);
  bool force = false;

  void fields(auto&& f) {
    f("model", model, "the page: gpt2, llama ...; its fields are flags, too");
    f("seed", seed, "of the weights, which depend on nothing else", INT64_MIN);
    f("dtype", dtype, "of the weights: f32, bf16 or f16");
    f("shard_size", shard_size, "bytes of a file of weights, at most; with more there are several", 1);
    f("force", force, "write in place of a model that is there already");
  }
};

// A new folder beside another, removed at the end with what is left in it.
struct Draft {
  const fs::path folder;
  explicit Draft(const fs::path& beside)
      : folder(beside.string() + fmt::format(".dense-{:08x}.tmp", std::random_device{}())) {}
  ~Draft() {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  }
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;
};

struct Stopped {};

// What is in `from` becomes, or goes into, `to`, in place of an earlier model.
void move(const fs::path& from, const fs::path& to) {
  std::error_code error;
  if (!fs::exists(to)) {
    fs::rename(from, to, error);
  } else {
    remove_weights(to);
    for (const fs::directory_entry& entry : fs::directory_iterator(from, error))
      if (!error) fs::rename(entry.path(), to / entry.path().filename(), error);
  }
  if (error) fail(to.string(), ": cannot write: ", error.message());
}

// Tokens that the page has unasked are none in a vocabulary too small for them.
void check_tokens(const Page& page, const std::vector<TokenIds>& before, int vocab_size) {
  size_t i = 0;
  for (const ConfigField& field : page.fields) {
    auto* const tokens = std::get_if<TokenIds*>(&field.value);
    if (!tokens) continue;
    const bool asked = **tokens != before[i++];
    for (int id : (*tokens)->ids) {
      if (id >= 0 && id < vocab_size) continue;
      if (asked) fail("--", field.name, ": expected 0 to vocab_size - 1 = ", vocab_size - 1, ", got ", id);
      (*tokens)->ids.clear();
      break;
    }
  }
}

}  // namespace

int init_command(const Call& call) {
  const auto begin = std::chrono::steady_clock::now();
  const bool help = std::ranges::any_of(call.args, [](const auto& arg) { return arg == "--help" || arg == "-h"; });
  Config config;
  std::string out;
  config.model = value_of("--model", call);  // which page decides which flags there are
  std::vector<Flag> flags = flags_of(config_fields(config));
  Page page;
  if (!config.model.empty()) page = page_of(config.model);
  std::vector<TokenIds> tokens;
  for (const ConfigField& field : page.fields)
    if (auto* const value = std::get_if<TokenIds*>(&field.value)) tokens.push_back(**value);
  for (Flag& flag : flags_of(page.fields)) flags.push_back(std::move(flag));
  if (config.model.empty() && !help) fail("--model: expected one of ", page_names(), ", missing");
  if (!set_flags(flags, call,
                 "Writes a folder as Hugging Face has it, with new weights: config.json, model.safetensors.\n"
                 "With --model the page's own flags are here, too.",
                 call.program + " --model llama --hidden_size 2048 --num_hidden_layers 22 --dtype bf16 my_llama",
                 {{"OUT_DIR", &out}}))
    return 0;
  NewFolder options;
  const auto types = {Dtype::f32, Dtype::bf16, Dtype::f16};
  const auto type = std::ranges::find_if(types, [&](Dtype t) { return config.dtype == name(t); });
  if (type == types.end()) fail("--dtype: expected f32, bf16 or f16, got ", config.dtype);
  options.dtype = *type, options.seed = uint64_t(config.seed), options.shard_bytes = uint64_t(config.shard_size);
  for (const ConfigField& field : page.fields)
    if (auto* const value = std::get_if<int*>(&field.value); value && field.name == "vocab_size")
      check_tokens(page, tokens, **value);

  if (out.empty()) fail("OUT_DIR: expected a folder, got \"\"");
  std::error_code error;
  const fs::path folder = fs::weakly_canonical(fs::absolute(out), error);  // of out/ and ./out, too
  if (error) fail(out, ": cannot write: ", error.message());
  if (fs::exists(folder, error) && !fs::is_directory(folder, error)) fail(out, ": expected a folder");
  if (!config.force && (has_weights(folder) || fs::exists(folder / "config.json", error)))
    fail(out, ": holds a model already; --force writes a new one in its place");

  catch_stop_signals();
  const Draft draft(folder);
  const bool terminal = isatty(STDERR_FILENO);
  options.wrote = [&, tenths = uint64_t(0)](uint64_t bytes, uint64_t of) mutable {
    if (stop_signal()) throw Stopped();
    if (terminal) say("\r{:.2f} of {:.2f} GB\x1b[K", double(bytes) / 1e9, double(of) / 1e9);
    else if (of > 4'000'000'000 && bytes / (of / 10) > std::exchange(tenths, bytes / (of / 10)))
      say("{:.1f} of {:.1f} GB\n", double(bytes) / 1e9, double(of) / 1e9);
  };
  int64_t count = 0;
  try {
    count = write_new(page, draft.folder, options);
  } catch (const Stopped&) {
    if (terminal) say("\r\x1b[K");
    say("stopped: nothing was written\n");
    return 128 + stop_signal();
  }
  move(draft.folder, folder);
  if (terminal) say("\r\x1b[K");
  say("{}: {} parameters of {} in {} after {:.1f} s\n", page.model_type, with_commas(count), config.dtype, out,
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  return 0;
}

}  // namespace dense::cli
