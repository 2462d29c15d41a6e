// dense bench train: tokens a second of GPT-2's training, beside the rate of oneDNN's matmul on the same machine.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "bench/ceiling.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/pages.h"

namespace dense::cli {
namespace {

struct Config {
  std::string precision = "f32";
  int batch = 1, time = 1024, steps = 3, threads = 0, n_layer = 12, n_embd = 768, n_head = 12, vocab_size = 50257;
  int profile = 1;

  void fields(auto&& f) {
    f("precision", precision, "f32, or bf16: products of bf16, everything else f32");
    f("batch", batch, "sequences", 1);
    f("time", time, "tokens of each", 1);
    f("steps", steps, "steps that are timed, after one that is not", 1);
    f("threads", threads, "0: as many as the machine has", 0);
    f("n_layer", n_layer, "blocks", 1);
    f("n_embd", n_embd, "width", 1);
    f("n_head", n_head, "heads", 1);
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("profile", profile, "0: no times of kernels, 1: of each kind, 2: of each", 0);
  }
};

}  // namespace

int bench_train_command(const Call& call) {
  Config config;
  if (!parse_flags(config, call, "Times training steps of GPT-2 (AdamW included) on random tokens.",
                   call.program + " --batch 4 --time 64")) {
    return 0;
  }
  if (config.precision != "f32" && config.precision != "bf16")
    fail("--precision: expected f32 or bf16, got ", config.precision);
  const bool bf16 = config.precision == "bf16";
  const int threads = config.threads ? config.threads : std::max(1, int(std::thread::hardware_concurrency()));

  Page page = page_of("gpt2");
  for (ConfigField& field : page.fields) {
    const auto set = [&](const char* name, int value) {
      if (field.name == name) *std::get<int*>(field.value) = value;
    };
    set("n_layer", config.n_layer), set("n_embd", config.n_embd), set("n_head", config.n_head);
    set("vocab_size", config.vocab_size), set("n_positions", std::max(1024, config.time));
  }
  Model model(page, threads, 0);
  std::mt19937 random(1);
  std::vector<int32_t> ids(size_t(config.batch) * size_t(config.time));
  for (int32_t& id : ids) id = int32_t(random() % unsigned(config.vocab_size));
  const Model::Inputs inputs{config.batch, config.time, ids, ids};
  Model::Training training;
  training.matmul_type = bf16 ? Dtype::bf16 : Dtype::f32;

  auto start = Clock::now();
  float loss = model.step(inputs, training);
  fmt::print("GPT-2, {} layers, width {}, {} parameters, {} x {} tokens, {}, {} threads\n", config.n_layer,
             config.n_embd, model.parameters().count(), config.batch, config.time, config.precision, threads);
  fmt::print("  first step, recording and planning included: {:.2f} s, loss {:.3f}\n", seconds_since(start), loss);
  Plan& plan = model.training_plan();
  plan.profile(config.profile > 0);
  std::vector<double> times;
  for (int i = 0; i < config.steps; ++i) {
    start = Clock::now();
    loss = model.step(inputs, training);
    times.push_back(seconds_since(start));
  }
  const double step = median(times), tokens = double(config.batch) * config.time;
  double rate = matmul_rate(bf16, threads);
  if (rate == 0) rate = matmul_rate(false, threads);  // bf16 is computed in f32
  const double ceiling = rate / plan.flops() * tokens;
  fmt::print("  {:.1f} tok/s (median of {} steps, fastest {:.1f}), {:.1f} GFLOP/s\n", tokens / step, times.size(),
             tokens / *std::ranges::min_element(times), plan.flops() / step * 1e-9);
  fmt::print("  ceiling {:.1f} tok/s = {:.1f} GFLOP a step at the {:.1f} GFLOP/s of oneDNN: {:.1f} % reached\n",
             ceiling, plan.flops() * 1e-9, rate * 1e-9, 100 * tokens / step / ceiling);
  fmt::print("  peak memory {:.2f} GB, arena {:.2f} GB, {} kernels, loss {:.3f}\n", peak_memory() * 1e-9,
             double(plan.arena_bytes()) * 1e-9, plan.kernels(), loss);
  if (config.profile > 0) fmt::print("{}", config.profile > 1 ? plan.summary() : plan.totals());
  return 0;
}

}  // namespace dense::cli
