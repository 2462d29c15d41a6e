// dense bench microgpt: microseconds per training step, recording and compiling included.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "bench/ceiling.h"

#include "cli/builtin_names.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/pages.h"
#include "examples/microgpt.h"

namespace dense::cli {
namespace {

struct Config {
  std::string data = "names.txt";
  int steps = 1000, repeats = 7, tensor_steps = 20000, batch = 16;

  void fields(auto&& f) {
    f("data", data, "text file, one document per line; without one the built-in names");
    f("steps", steps, "training steps of a run", 1);
    f("repeats", repeats, "runs; each records all of its programs anew", 1);
    f("tensor_steps", tensor_steps, "training steps of the page on tensors, widths 16 and 64; 0 for none", 0);
    f("batch", batch, "documents of equal length in a step of the page on tensors", 1);
  }
};

struct Times {
  double all, replay;  // microseconds per step: of the whole training, of the median step
};

// What a run without steps does is left out: shuffling, the first weights, the list of parameters and Adam's program.
Times time_run(::microgpt_scalar::Config config, const std::vector<std::u32string>& docs) {
  using Clock = std::chrono::steady_clock;
  const auto microseconds = [](Clock::duration d) { return std::chrono::duration<double, std::micro>(d).count(); };
  std::vector<double> steps;
  auto start = Clock::now(), last = start;
  ::microgpt_scalar::run(
      config, docs,
      [&](int, double) {
        const auto now = Clock::now();
        steps.push_back(microseconds(now - last));
        last = now;
        return true;
      },
      nullptr);
  const double trained = microseconds(Clock::now() - start);
  config.steps = 0;
  start = Clock::now();
  ::microgpt_scalar::run(config, docs, nullptr, nullptr);
  const double prepared = microseconds(Clock::now() - start);
  return {(trained - prepared) / double(steps.size()), median(steps)};
}

// models/microgpt.h on one thread: batches of documents of one length, Adam, a learning rate that falls from 0.008 to 0.
void bench_tensors(const Config& bench, const std::vector<std::u32string>& docs, int n_embd, double rate) {
  using Clock = std::chrono::steady_clock;
  std::set<char32_t> letters;
  for (const auto& doc : docs) letters.insert(doc.begin(), doc.end());
  const std::u32string uchars(letters.begin(), letters.end());
  const auto BOS = int32_t(uchars.size());
  constexpr int block_size = 16;
  std::map<int, std::vector<std::vector<int32_t>>> by_length;  // tokens with BOS on both sides, at most block_size + 1
  for (const auto& doc : docs) {
    std::vector<int32_t> tokens{BOS};
    for (char32_t c : doc) tokens.push_back(int32_t(uchars.find(c)));
    tokens.push_back(BOS);
    tokens.resize(std::min<size_t>(tokens.size(), block_size + 1));
    by_length[int(tokens.size())].push_back(std::move(tokens));
  }
  // all batches of all documents, in random order; the last ones of a length begin with the first again
  std::mt19937 random(1);
  struct Batch {
    int time;
    std::vector<int32_t> ids, labels;
  };
  std::vector<Batch> batches;
  for (auto& [length, group] : by_length) {
    std::shuffle(group.begin(), group.end(), random);
    for (size_t i = 0; i < group.size(); i += size_t(bench.batch)) {
      Batch batch{length - 1, {}, {}};
      for (size_t k = 0; k < size_t(bench.batch); ++k) {
        const auto& tokens = group[(i + k) % group.size()];
        batch.ids.insert(batch.ids.end(), tokens.begin(), tokens.end() - 1);
        batch.labels.insert(batch.labels.end(), tokens.begin() + 1, tokens.end());
      }
      batches.push_back(std::move(batch));
    }
  }
  Page page = page_of("microgpt");
  for (ConfigField& field : page.fields) {
    if (field.name == "n_embd") *std::get<int*>(field.value) = n_embd;
    if (field.name == "vocab_size") *std::get<int*>(field.value) = BOS + 1;
  }
  Model model(page, 1, 42);
  Model::Training training;
  training.optimizer.adamw = {0.85, 0.99, 1e-8, 0};
  double last_losses = 0, last_tokens = 0, seconds = 0, flops = 0;
  std::vector<double> times;
  for (int step = 0; step < bench.tensor_steps; ++step) {
    if (step % int(batches.size()) == 0) std::shuffle(batches.begin(), batches.end(), random);
    const Batch& batch = batches[size_t(step) % batches.size()];
    training.lr = 0.008 * (1 - double(step) / bench.tensor_steps);
    const auto start = Clock::now();
    const float loss = model.step({bench.batch, batch.time, batch.ids, {}, {}, batch.labels}, training);
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    seconds += times.back();
    flops += model.training_plan().flops();
    if (step < bench.tensor_steps - 1000) continue;
    last_losses += double(loss) * batch.time;
    last_tokens += batch.time;
  }
  const double sample = seconds / bench.tensor_steps / bench.batch;
  fmt::print("microgpt on tensors, width {}, float32, one thread: {} steps of {} documents, {} parameters\n", n_embd,
             bench.tensor_steps, bench.batch, model.parameters().count());
  fmt::print("  {:6.2f} us per document (median step {:.2f}), {:.1f} GFLOP/s, {:.0f} % of oneDNN's {:.1f}\n",
             sample * 1e6, median(times) * 1e6 / bench.batch, flops / seconds * 1e-9, 100 * flops / seconds / rate,
             rate * 1e-9);
  fmt::print("  mean loss of a token, last 1,000 steps: {:.3f}; peak memory {:.0f} MB\n", last_losses / last_tokens,
             peak_memory() * 1e-6);
  model.training_plan().profile(true);  // of the last batch, 200 times more
  const Batch& last = batches[size_t(bench.tensor_steps - 1) % batches.size()];
  for (int i = 0; i < 200; ++i) model.step({bench.batch, last.time, last.ids, {}, {}, last.labels}, training);
  fmt::print("  steps of {} tokens a document:\n{}", last.time, model.training_plan().totals());
}

}  // namespace

int bench_microgpt_command(const Call& call) {
  Config bench;
  if (!parse_flags(bench, call,
                   "Times the training of microgpt with its default sizes, one thread, every number equal to Python's.",
                   call.program + " --data names.txt")) {
    return 0;
  }
  const bool builtin = bench.data == Config().data && !std::filesystem::exists(bench.data);
  const auto docs = builtin ? documents(builtin_names, "built-in names") : read_documents(bench.data);
  ::microgpt_scalar::Config config;
  config.steps = bench.steps;
  config.samples = 0;

  std::vector<Times> runs;
  for (int i = 0; i < bench.repeats; ++i) runs.push_back(time_run(config, docs));
  std::sort(runs.begin(), runs.end(), [](const Times& a, const Times& b) { return a.all < b.all; });
  const Times median = runs[runs.size() / 2];
  fmt::print("microgpt, exact float64, one thread: {} steps on {} documents of {}, {} runs\n", bench.steps, docs.size(),
             builtin ? "the built-in names" : bench.data, bench.repeats);
  fmt::print("  {:6.1f} us per step, recording and compiling included (median run; fastest {:.1f}, slowest {:.1f})\n",
             median.all, runs.front().all, runs.back().all);
  fmt::print("  {:6.1f} us of the median step, which replays\n", median.replay);
  if (bench.tensor_steps == 0) return 0;
  const double rate = matmul_rate(false, 1);
  for (int n_embd : {16, 64}) bench_tensors(bench, docs, n_embd, rate);
  return 0;
}

}  // namespace dense::cli
