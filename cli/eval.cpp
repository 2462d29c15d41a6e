// dense eval: how well a model predicts a text.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "cli/pages.h"
#include "cli/progress.h"
#include "dense/io/files.h"
#include "dense/io/hub.h"
#include "dense/train/generate.h"

namespace dense::cli {
namespace {

struct Config {
  std::string data, dtype = "as-stored";
  int context = 0, threads = 0;
  bool json = false;

  void fields(auto&& f) {
    f("data", data, "text file");
    f("context", context, "tokens of a window; windows follow one another (0: the model's context, at most 1024)", 0);
    f("dtype", dtype, "weights as-stored, or f32, bf16, int8, int4");
    f("json", json, "print the numbers as JSON");
    f("threads", threads, "0: as many as the machine has", 0);
  }
};

}  // namespace

int eval_command(const Call& call) {
  Config config;
  std::string model_name;
  if (!parse_flags(config, call,
                   "Reports a model's perplexity on a text, and nats per byte, which compare across tokenizers.",
                   call.program + " gpt2/ --data book.txt --dtype int8", {{"MODEL", &model_name}}))
    return 0;
  if (config.data.empty()) fail("expected --data");
  const std::optional<Dtype> type = weight_type(config.dtype, "--");
  const std::filesystem::path folder = find_model(model_name);
  const Tokenizer tokenizer(folder);
  const std::string text = read_file(config.data);
  std::vector<int32_t> ids;
  try {
    ids = tokenizer.encode(text, true);
  } catch (const Error& error) {
    fail(config.data, ": ", error.what());
  }
  if (ids.size() < 2) fail(config.data, ": expected two tokens or more, got ", ids.size());
  Model model(page_of(model_type(folder)), folder, config.threads, [](const std::string& line) { say("{}\n", line); });
  if (!model.page().causal) fail(folder.string(), ": expected a causal model, got ", model.page().model_type);
  check_vocabulary(tokenizer, model);
  if (type) model.convert(*type);
  int64_t time = config.context ? config.context : 1024;
  if (model.context() && config.context > model.context())
    fail("--context: expected at most the model's ", model.context(), ", got ", config.context);
  if (model.context()) time = std::min(time, model.context());
  time = std::min(time, int64_t(ids.size()) - 1);

  // Each window's tokens but the first are predicted in it, the first in the window before.
  catch_stop_signals();
  const int64_t predicted = int64_t(ids.size()) - 1, windows = (predicted + time - 1) / time;
  Progress progress(int(windows), "windows");
  double nats = 0;
  int64_t window = 0;
  for (; window < windows && !stop_signal(); ++window) {
    const int64_t begin = window * time, n = std::min(time, predicted - begin);
    std::vector<int32_t> here(size_t(time), 0), targets(size_t(time), -100);
    std::copy_n(ids.begin() + begin, n, here.begin());
    std::copy_n(ids.begin() + begin + 1, n, targets.begin());
    const double loss = model.loss({.batch = 1, .time = time, .ids = here, .targets = targets});
    nats += loss * double(n);
    progress.step(int(window + 1), loss);
  }
  progress.clear();
  if (stop_signal()) return 128 + stop_signal();
  const double mean = nats / double(predicted), per_byte = nats / double(text.size());
  if (config.json)
    fmt::print(
        "{{\"perplexity\": {:.6g}, \"nats_per_token\": {:.6f}, \"nats_per_byte\": {:.6f}, \"tokens\": {}, "
        "\"bytes\": {}}}\n",
        std::exp(mean), mean, per_byte, predicted, text.size());
  else
    fmt::print("perplexity {:.4f}, {:.4f} nats per token, {:.4f} nats per byte; {} tokens, {} bytes, windows of {}\n",
               std::exp(mean), mean, per_byte, with_commas(predicted), with_commas(int64_t(text.size())), time);
  return 0;
}

}  // namespace dense::cli
