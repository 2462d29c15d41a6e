// dense train: a page, a text, and weights in the end.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>

#include "cli/builtin_names.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "cli/pages.h"
#include "cli/progress.h"
#include "dense/io/json.h"
#include "dense/tensor/threads.h"
#include "dense/train/trainer.h"

namespace dense::cli {
namespace {

namespace fs = std::filesystem;

// What is asked for, by a file and by flags. False where --help asked for nothing but help.
struct Asked {
  Page page;
  TrainConfig config;
  bool profile = false, resume = false;
};
bool read(const Call& call, Asked& asked) {
  // The page decides which flags there are; who says which page, is asked first.
  std::string file = value_of("--config", call);
  const std::string run = value_of("--resume", call);
  if (!run.empty() && !file.empty()) fail("--config: expected none beside --resume");
  if (!run.empty()) file = (fs::path(run) / "config.json").string();
  const Json json = file.empty() ? Json{Json::object} : read_object(file);
  asked.resume = !run.empty();
  TrainConfig& config = asked.config;
  set_fields(json, file, config_fields(config), {}, {});
  if (const std::string type = value_of("--model_type", call); !type.empty()) config.model_type = type;
  if (const std::string from = value_of("--from", call); !from.empty()) config.from = from;
  std::error_code error;  // a checkpoint needs what its run began with no more
  const bool saved = asked.resume && !fs::is_empty(fs::path(run) / "checkpoints", error) && !error;
  asked.page =
      page_of_run(config.model_type, saved ? "" : config.from, [](const std::string& line) { say("{}\n", line); });
  const std::vector<ConfigField> fields = run_fields(config, asked.page);
  set_fields(json, file, fields, {}, [](const std::string& line) { fail(line); });
  std::vector<Flag> flags = flags_of(fields);
  const auto add = [&](const char* name, const char* text, std::string& value) {
    flags.insert(flags.begin(), {name, "TEXT", "", text, [&](std::string_view got) { value = got; }});
  };
  std::string resumed, config_file;
  add("resume", "go on with the run in this folder, from its last checkpoint; flags change its config", resumed);
  add("config", "a run's config.json; flags change what it says", config_file);
  flags.push_back({"profile", "true|false", "false", "at the end say how long each kernel took",
                   [&](std::string_view got) { asked.profile = got == "true"; }});
  if (!set_flags(flags, call,
                 "Trains a model on a text, from new weights or from those of a Hugging Face folder.\n"
                 "A run's folder holds its config, records, checkpoints and, as `model`, a Hugging Face folder.",
                 call.program + " --data.path book.txt --model.n_layer 2 --steps 500 --out runs/book"))
    return false;
  config.model_type = asked.page.model_type;
  if (asked.resume) {
    if (!config.out.empty() && !value_of("--out", call).empty()) fail("--out: expected none beside --resume");
    config.out = run;
  }
  config.command = typed(call);
  return true;
}

// Whether training came to its end. One rank speaks.
bool run(Trainer& trainer, const Asked& asked, const Ranks& ranks, std::chrono::steady_clock::time_point begin) {
  Trainer::Events events;
  events.stop = [] { return stop_signal() != 0; };
  if (ranks.rank() > 0) return trainer.run(events);
  const TrainConfig& config = asked.config;
  const Data& data = trainer.data();
  say("{}: {} parameters; {} tokens of {}, {} to validate; {} x {} tokens a step\n", config.model_type,
      with_commas(trainer.model().parameters().count()), with_commas(data.training.size()),
      config.data.path.empty() ? "built-in names" : config.data.path, with_commas(data.validation.size()),
      config.batch * config.parts, config.time);
  if (ranks.size() > 1) say("{} ranks, threads of each: {}\n", ranks.size(), trainer.model().threads()->count());
  if (asked.resume) say("resumed after step {}\n", trainer.step());

  Progress progress(config.steps, "steps", int(trainer.step()));
  const int64_t before = trainer.step();
  events.step = [&](const Trainer::Step& step) {
    if (step.step == before + 1) {
      say("first step after {:.2f} s\n",
          std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      if (asked.profile) trainer.model().training_plan().profile(true);
    }
    progress.step(int(step.step), step.loss);
  };
  const auto line = [&](const std::string& text) {
    progress.clear();
    say("{}\n", text);
  };
  events.evaluated = [&](int64_t step, double loss) { line(fmt::format("step {}: validation {:.4f}", step, loss)); };
  events.sampled = [&](int64_t step, const std::string& text) { line(fmt::format("step {}: {}", step, text)); };
  events.warn = line;
  const bool done = trainer.run(events);
  progress.finish();
  if (asked.profile && trainer.step() > before) say("{}", trainer.model().training_plan().summary());
  if (!config.out.empty()) say("saved {}\n", config.out);
  return done;
}

}  // namespace

int train_command(const Call& call) {
  const auto begin = std::chrono::steady_clock::now();
  const Ranks ranks = Ranks::started();
  Asked asked;
  std::optional<Trainer> trainer;
  catch_stop_signals();
  try {
    ranks.agree([&]() -> std::string {
      if (!read(call, asked)) return "";
      const Warn warn = [&](const std::string& line) {
        if (ranks.rank() == 0) say("{}\n", line);
      };
      ReadingProgress reading;
      trainer.emplace(asked.page, asked.config, builtin_names, asked.resume, warn, ranks, nullptr, std::ref(reading));
      return ranks.size() > 1 ? trainer->fingerprint() : "";
    });
  } catch (const Error& error) {
    if (ranks.size() == 1 && !stop_signal()) throw;
    if (ranks.rank() == 0) say("{}: {}\n", call.program, error.what());
    return ranks.most(stop_signal() ? 128 + stop_signal() : 2);  // once that is said: the first one to end ends all
  }
  if (!trainer) return 0;
  try {
    return run(*trainer, asked, ranks, begin) ? 0 : 128 + ranks.most(stop_signal());
  } catch (const std::exception& error) {
    if (ranks.size() == 1) throw;
    say("{}: rank {}: {}\n", call.program, ranks.rank(), error.what());
    ranks.abort(2);  // the others wait for this one
  }
}

}  // namespace dense::cli
