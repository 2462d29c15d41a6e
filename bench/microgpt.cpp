// dense bench microgpt: microseconds per training step, recording and compiling included.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/builtin_names.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "examples/microgpt.h"

namespace dense::cli {
namespace {

struct Config {
  std::string data = "names.txt";
  int steps = 1000, repeats = 7;

  void fields(auto&& f) {
    f("data", data, "text file, one document per line; without one the built-in names");
    f("steps", steps, "training steps of a run", 1);
    f("repeats", repeats, "runs; each records all of its programs anew", 1);
  }
};

struct Times {
  double all, replay;  // microseconds per step: of the whole training, of the median step
};

// What a run without steps does is left out: shuffling, the first weights, the list of parameters and Adam's program.
Times time_run(::microgpt::Config config, const std::vector<std::u32string>& docs) {
  using Clock = std::chrono::steady_clock;
  const auto microseconds = [](Clock::duration d) { return std::chrono::duration<double, std::micro>(d).count(); };
  std::vector<double> steps;
  auto start = Clock::now(), last = start;
  ::microgpt::run(
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
  ::microgpt::run(config, docs, nullptr, nullptr);
  const double prepared = microseconds(Clock::now() - start);
  std::nth_element(steps.begin(), steps.begin() + steps.size() / 2, steps.end());
  return {(trained - prepared) / double(steps.size()), steps[steps.size() / 2]};
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
  ::microgpt::Config config;
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
  return 0;
}

}  // namespace dense::cli
