// dense twin: several models on the same batches, and how they differ.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "cli/builtin_names.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "cli/pages.h"
#include "cli/progress.h"
#include "dense/io/json.h"
#include "dense/train/twins.h"

namespace dense::cli {
namespace {

namespace fs = std::filesystem;

// A twin is named by its file, or by the folder of a run's config.json; a run's folder stands for that.
Twins::Twin twin_of(fs::path file) {
  if (fs::is_directory(file)) file /= "config.json";
  const fs::path folder = fs::absolute(file).lexically_normal().parent_path();
  Twins::Twin twin;
  twin.name = (file.filename() == "config.json" ? folder.filename() : file.stem()).string();
  const Json json = read_object(file);
  set_fields(json, file.string(), config_fields(twin.config), {}, {});  // which page it is
  twin.page = page_of_run(twin.config.model_type, twin.config.from);
  set_fields(json, file.string(), run_fields(twin.config, twin.page), {}, [](const std::string& line) { fail(line); });
  twin.config.model_type = twin.page.model_type;
  return twin;
}

}  // namespace

int twin_command(const Call& call) {
  TrainConfig shared;  // what flags say of all twins
  std::string resumed;
  std::vector<std::string> files;
  std::vector<std::pair<std::string, std::string>> changes;
  std::vector<Flag> flags = flags_of(config_fields(shared));
  std::erase_if(flags, [](const Flag& flag) { return flag.name == "model_type" || flag.name == "from"; });
  for (Flag& flag : flags) {
    flag.fallback.clear();  // the files say it
    if (flag.name == "out") flag.text = "the folder of the twins, each of which has a run's folder in it";
    else flag.set = [&changes, name = flag.name](std::string_view got) { changes.emplace_back(name, got); };
  }
  flags.insert(flags.begin(), {"resume", "TEXT", "", "go on with the twins in this folder, from their last checkpoints",
                               [&](std::string_view got) { resumed = got; }});
  const bool resume = !value_of("--resume", call).empty();
  std::vector<Place> places;
  if (!resume) places = {{"A.json B.json ...", nullptr, &files}};
  if (!set_flags(
          flags, call,
          "Trains several models in one process on the same batches. Each file is a run's config.json, or its\n"
          "folder; flags change the config of all. differences.json says how their losses differ, and since when.",
          call.program + " wide.json deep.json --steps 2000 --out runs/wide-or-deep", places))
    return 0;
  const fs::path folder = resume ? resumed : shared.out;
  if (folder.empty()) fail("expected --out");
  if (resume && !shared.out.empty()) fail("--out: expected none beside --resume");
  if (resume)
    for (const std::string& name : twins_in(folder)) files.push_back((folder / name / "config.json").string());

  std::vector<Twins::Twin> all;
  for (const std::string& file : files) {
    Twins::Twin& twin = all.emplace_back(twin_of(file));
    for (const Flag& flag : flags_of(config_fields(twin.config)))
      for (const auto& [name, value] : changes)
        if (flag.name == name) flag.set(value);
    twin.config.command = typed(call);
  }

  catch_stop_signals();
  const Warn warn = [](const std::string& line) { say("{}\n", line); };
  std::optional<Twins> made;
  try {
    ReadingProgress reading;
    made.emplace(std::move(all), folder, builtin_names, resume, warn, std::ref(reading));
  } catch (const Error& error) {
    if (!stop_signal()) throw;
    say("{}: {}\n", call.program, error.what());
    return 128 + stop_signal();
  }
  Twins& twins = *made;
  int64_t before = INT64_MAX, steps = 0;
  for (size_t i = 0; i < twins.size(); ++i) {
    Trainer& trainer = twins.trainer(i);
    say("{}: {}, {} parameters\n", twins.name(i), trainer.config().model_type,
        with_commas(trainer.model().parameters().count()));
    before = std::min(before, trainer.step()), steps = std::max<int64_t>(steps, trainer.config().steps);
  }
  if (resume) say("resumed after step {}\n", before);
  Progress progress(int(steps), "steps", int(before));
  const auto line = [&](const std::string& text) {
    progress.clear();
    say("{}\n", text);
  };
  int64_t shown = before;
  Twins::Events events;
  events.step = [&](size_t, const Trainer::Step& step) {  // of the first twin that takes it
    if (step.step > shown) progress.step(int(shown = step.step), step.loss);
  };
  events.evaluated = [&](size_t i, int64_t step, double loss) {
    line(fmt::format("step {}: {}: validation {:.4f}", step, twins.name(i), loss));
  };
  events.stop = [] { return stop_signal() != 0; };
  events.warn = line;
  const bool done = twins.run(events);
  progress.finish();
  for (size_t a = 0; a < twins.size(); ++a)
    for (size_t b = a + 1; b < twins.size(); ++b)
      if (const Differences d = twins.between(a, b); !d.steps.empty())
        say("{} - {}: {:+.4f}, {:+.4f} to {:+.4f}; {}\n", twins.name(b), twins.name(a), d.difference.back(),
            d.low.back(), d.high.back(),
            d.settled ? fmt::format("settled from step {} on", *d.settled) : std::string("not settled"));
  say("saved {}\n", folder.string());
  return done ? 0 : 128 + stop_signal();
}

}  // namespace dense::cli
