// dense train: a page, new weights, the bytes of a text.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "cli/builtin_names.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "cli/pages.h"
#include "cli/progress.h"
#include "cli/whole_file.h"
#include "dense/io/files.h"
#include "dense/io/json.h"
#include "dense/tensor/elements.h"

namespace dense::cli {
namespace {

struct Config {
  std::string model_type, data, out, precision = "f32";
  int steps = 200, batch = 8, time = 64, threads = 0;
  bool profile = false;
  int64_t seed = 0;
  double lr = 3e-4, weight_decay = 0.1;

  void fields(auto&& f) {
    f("model_type", model_type, "the page (default: the first)");
    f("data", data, "text file, whose bytes are the tokens (default: built-in names)");
    f("out", out, "folder for config.json and weights, written at the end and on Ctrl-C");
    f("steps", steps, "training steps", 1);
    f("batch", batch, "sequences of a step", 1);
    f("time", time, "tokens of each", 2);
    f("optimizer.lr", lr, "of AdamW at the first step; falls to 0 like a cosine", 0);
    f("optimizer.weight_decay", weight_decay, "of matrices");
    f("precision", precision, "f32, or bf16: products of bf16, everything else f32");
    f("threads", threads, "0: as many as the machine has", 0);
    f("profile", profile, "at the end say how long each kernel took");
    f("seed", seed, "of the first weights and of what is read", INT64_MIN);
  }
};

// A tokenizer.json whose tokens are bytes, each under the letter that GPT-2's files have for it: printable ones stand for
// themselves, the others for 256 and so on.
std::string byte_tokenizer() {
  std::string vocabulary;
  for (int byte = 0, others = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    const int letter = printable ? byte : 256 + others++;
    const std::string utf8 = letter < 128 ? std::string(1, char(letter))
                                          : std::string{char(0xc0 | letter >> 6), char(0x80 | (letter & 0x3f))};
    vocabulary += (byte ? ", " : "") + json_string(utf8) + ": " + std::to_string(byte);
  }
  const std::string level = R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": )";
  return R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
"pre_tokenizer": )" +
         level + R"(false}, "post_processor": null, "decoder": )" + level + R"(true},
"model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
"fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "merges": [], "vocab": {)" +
         vocabulary + "}}}\n";
}

}  // namespace

int train_command(const Call& call) {
  const auto begin = std::chrono::steady_clock::now();
  Config config;
  // which page decides which flags there are, and what --time is, how long its texts are
  const auto given = [&](const std::string& flag) {
    std::string value;
    for (size_t i = 0; i < call.args.size(); ++i) {
      if (call.args[i] == flag && i + 1 < call.args.size()) value = call.args[i + 1];
      if (call.args[i].starts_with(flag + "=")) value = call.args[i].substr(flag.size() + 1);
    }
    return value;
  };
  config.model_type = given("--model_type");
  int time = config.time;
  if (const std::string asked = given("--time"); !asked.empty()) time = std::max(2, parse_number<int>("time", asked));
  Page page = page_of(config.model_type);
  for (ConfigField& field : page.fields)  // small enough to be tried at once
    if (auto* const value = std::get_if<int*>(&field.value)) {
      if (field.name == "vocab_size") **value = 256;
      if (field.name == "n_layer" || field.name == "num_hidden_layers") **value = std::min(**value, 4);
      if (field.name == "n_embd" || field.name == "hidden_size") **value = std::min(**value, 128);
      if (field.name == "intermediate_size") **value = std::min(**value, 352);
      if (field.name == "n_head" || field.name == "num_attention_heads") **value = std::min(**value, 4);
      if (field.name == "head_dim") **value = std::min(**value, 32);
      for (const char* longest : {"n_positions", "block_size", "max_position_embeddings"})
        if (field.name == longest) **value = time;  // what is not trained is of no use
    } else if (auto* const number = std::get_if<std::optional<int>*>(&field.value)) {
      if (field.name == "num_key_value_heads" && **number) **number = std::min(***number, 4);
    } else if (auto* const tokens = std::get_if<TokenIds*>(&field.value)) {
      **tokens = {};  // bytes have no such meaning
    }
  std::vector<Flag> flags = flags_of(config_fields(config));
  for (Flag& flag : flags_of(page.fields, "model.")) flags.push_back(std::move(flag));
  if (!set_flags(flags, call, "Trains a model from new weights on the bytes of a text.",
                 call.program + " --data book.txt --model.n_layer 2 --steps 500 --out my_model"))
    return 0;
  if (!page.causal) fail("--model_type: expected a model that continues texts, got ", page.model_type);
  if (config.precision != "f32" && config.precision != "bf16")
    fail("--precision: expected f32 or bf16, got ", config.precision);
  const std::string text = config.data.empty() ? std::string(builtin_names) : read_file(config.data);
  if (text.size() < size_t(config.time)) fail("--data: expected ", config.time, " bytes or more, got ", text.size());
  if (!config.out.empty() && std::filesystem::exists(config.out) && !std::filesystem::is_directory(config.out))
    fail("--out: ", config.out, ": expected a folder");

  catch_stop_signals();
  Model model(page, config.threads, uint64_t(config.seed));
  if (!config.out.empty()) {  // better now than after an hour of training
    std::error_code error;
    std::filesystem::create_directories(config.out, error);
    if (error) fail("--out: ", config.out, ": ", error.message());
    check_writable(config.out + "/config.json");
  }
  say("{}: {} parameters; {} bytes of {}; {} x {} tokens a step\n", page.model_type,
      with_commas(model.parameters().count()), with_commas(int64_t(text.size())),
      config.data.empty() ? "built-in names" : config.data, config.batch, config.time);
  Model::Training training;
  training.matmul_type = config.precision == "bf16" ? Dtype::bf16 : Dtype::f32;
  training.optimizer.adamw.weight_decay = config.weight_decay;
  training.optimizer.adamw.beta2 = 0.99;
  training.dropout = true;  // as the page and its config have it

  Progress progress(config.steps);
  std::vector<int32_t> ids(size_t(config.batch) * size_t(config.time));
  int step = 0;
  while (step < config.steps && !stop_signal()) {
    for (int b = 0; b < config.batch; ++b) {
      // a function of the seed, the step and the place in the batch
      const uint64_t start = mixed(uint64_t(config.seed) * 0x9e3779b97f4a7c15 + (uint64_t(step) << 20 | uint64_t(b))) %
                             (text.size() - size_t(config.time) + 1);
      for (int t = 0; t < config.time; ++t)
        ids[size_t(b) * size_t(config.time) + size_t(t)] = uint8_t(text[start + size_t(t)]);
    }
    training.lr = config.lr * 0.5 * (1 + std::cos(3.14159265358979 * step / config.steps));
    const float loss = model.step({config.batch, config.time, ids, ids}, training);
    if (!std::isfinite(loss)) fail("step ", step + 1, ": the loss is ", loss, "; try a smaller --optimizer.lr");
    if (step == 0 && config.profile) model.training_plan().profile(true);
    if (step++ == 0)
      say("first step after {:.2f} s\n",
          std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    progress.step(step, loss);
  }
  progress.finish();
  if (config.profile && step > 0) say("{}", model.training_plan().summary());
  if (!config.out.empty()) {
    model.save(config.out);
    if (model.vocabulary() == 256) write_file(config.out + "/tokenizer.json", byte_tokenizer());
    say("saved {}\n", config.out);
  }
  return step == config.steps ? 0 : 128 + stop_signal();
}

}  // namespace dense::cli
