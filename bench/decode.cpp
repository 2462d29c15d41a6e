// dense bench decode: tokens a second of generation, beside the rate at which this machine reads memory.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>

#include "bench/ceiling.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/pages.h"
#include "dense/io/hub.h"
#include "dense/train/generate.h"

namespace dense::cli {
namespace {

struct Config {
  std::string dtype = "as-stored";
  int tokens = 128, prompt = 1, rows = 1, prefill = 512, rounds = 3, threads = 0, profile = 1;

  void fields(auto&& f) {
    f("dtype", dtype, "weights as-stored, or f32, bf16, int8, int4");
    f("tokens", tokens, "decoded in a round", 1);
    f("prompt", prompt, "tokens before them", 1);
    f("rows", rows, "texts at once", 1);
    f("prefill", prefill, "tokens of the prompt that is timed by itself; 0: none", 0);
    f("rounds", rounds, "of decoding and of the prompt; the middle counts", 1);
    f("threads", threads, "0: as many as the machine has", 0);
    f("profile", profile, "0: no times of kernels, 1: of each kind, 2: of each", 0);
  }
};

}  // namespace

int bench_decode_command(const Call& call) {
  Config config;
  std::string model_name;
  if (!parse_flags(config, call,
                   "Times generation: bytes of weights a token times tokens a second, as a share of what memory gives.",
                   call.program + " gpt2/ --dtype int4", {{"MODEL", &model_name}}))
    return 0;
  const std::optional<Dtype> type = weight_type(config.dtype, "--");
  auto start = Clock::now();
  const std::filesystem::path folder = find_model(model_name);
  Model model(page_of(model_type(folder)), folder, config.threads);
  if (!model.page().causal) fail(folder.string(), ": expected a causal model, got ", model.page().model_type);
  if (type) model.convert(*type);
  const double loaded = seconds_since(start);
  std::mt19937 random(1);
  const auto tokens = [&](int n) {
    std::vector<int32_t> ids(static_cast<size_t>(n));
    for (int32_t& id : ids) id = int32_t(random() % unsigned(model.vocabulary()));
    return ids;
  };
  const std::vector<int32_t> prompt = tokens(config.prompt), first_tokens = tokens(config.rows);
  const int64_t most = model.context() ? model.context() : INT64_MAX, capacity = int64_t(config.prompt) + config.tokens;
  if (capacity > most) fail("expected --prompt and --tokens together at most the model's ", most, ", got ", capacity);
  if (config.prefill > most) fail("--prefill: expected at most the model's ", most, ", got ", config.prefill);
  Generator generator(model, config.rows, capacity);
  generator.prefill(std::vector<std::span<const int32_t>>(size_t(config.rows), prompt));
  const double first = seconds_since(start);
  const std::vector<std::span<const std::byte>> weights = model.token_weights();
  const double bytes = std::accumulate(weights.begin(), weights.end(), 0.0,
                                       [](double sum, std::span<const std::byte> w) { return sum + double(w.size()); });
  fmt::print("{}, {} parameters, weights {}: {:.1f} MB a token; loaded in {:.2f} s, first token after {:.2f} s\n",
             model.page().model_type, model.parameters().count(), config.dtype, bytes * 1e-6, loaded, first);
  Reading reading(*model.threads(), weights);
  struct Times {
    std::vector<double> steps, reads, memory;  // seconds: of a token; of its weights; of as much other memory
  } all;
  const std::string at_once = config.rows > 1 ? fmt::format(" ({} rows)", config.rows) : "";
  const auto say = [&](const char* what, const Times& times) {
    const double step = median(times.steps), read = median(times.reads), memory = median(times.memory);
    fmt::print(
        "{}{:.1f} tok/s{}, {:.1f} GB/s of weights: {:.1f} % of {:.1f} GB/s that memory gives, {:.1f} % of {:.1f} GB/s "
        "when they are but read\n",
        what, config.rows / step, at_once, bytes / step * 1e-9, 100 * memory / step, bytes / memory * 1e-9,
        100 * read / step, bytes / read * 1e-9);
  };
  const auto decode = [&] {  // from the prompt on, so that every round has as many tokens to attend to
    Times times;
    generator.forget();
    generator.prefill(std::vector<std::span<const int32_t>>(size_t(config.rows), prompt));
    for (int i = 0; i < config.tokens; ++i) {
      if (i % 8 == 0) times.reads.push_back(reading.seconds());
      start = Clock::now();
      generator.step(first_tokens);
      times.steps.push_back(seconds_since(start));
    }
    return times;
  };
  decode();
  for (int round = 0; round < config.rounds; ++round) {
    const double before = bytes / read_bandwidth(*model.threads());
    Times times = decode();
    times.memory = {before, bytes / read_bandwidth(*model.threads())};
    say("  ", times);
    all.steps.insert(all.steps.end(), times.steps.begin(), times.steps.end());
    all.reads.insert(all.reads.end(), times.reads.begin(), times.reads.end());
    all.memory.insert(all.memory.end(), times.memory.begin(), times.memory.end());
  }
  say("decode: ", all);
  if (config.profile > 0) {
    generator.decode_plan().profile(true);
    decode();
    fmt::print("{}", config.profile > 1 ? generator.decode_plan().summary() : generator.decode_plan().totals());
  }
  if (config.prefill > 0) {
    const std::vector<int32_t> text = tokens(config.prefill);
    const std::span<const int32_t> row(text);
    Generator one(model, 1, config.prefill);
    one.prefill({&row, 1});  // records and plans
    Plan& plan = one.prefill_plan(std::min(512, config.prefill));
    plan.profile(config.profile > 0);
    const double flops = plan.flops() / std::min(512, config.prefill) * config.prefill;
    const int threads = model.threads()->count();
    std::vector<double> times, f32, bf16;  // in turn, as above
    for (int round = 0; round < config.rounds; ++round) {
      one.forget();
      start = Clock::now();
      one.prefill({&row, 1});
      times.push_back(seconds_since(start));
      f32.push_back(matmul_rate(false, threads)), bf16.push_back(matmul_rate(true, threads));
    }
    const double seconds = median(times), best = std::max(median(f32), median(bf16));
    fmt::print(
        "prefill: {:.0f} tok/s ({} tokens in {:.3f} s), {:.0f} GFLOP/s; oneDNN's products {:.0f} in f32 and {} in "
        "bf16: {:.1f} %\n",
        config.prefill / seconds, config.prefill, seconds, flops / seconds * 1e-9, median(f32) * 1e-9,
        median(bf16) > 0 ? fmt::format("{:.0f}", median(bf16) * 1e-9) : "none", 100 * flops / seconds / best);
    if (config.profile > 0) fmt::print("{}", config.profile > 1 ? plan.summary() : plan.totals());
  }
  return 0;
}

}  // namespace dense::cli
