// dense sweep: a run for each combination of some values of a config's fields.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "cli/pages.h"
#include "cli/progress.h"
#include "dense/io/files.h"
#include "dense/io/json.h"
#include "dense/train/records.h"
#include "dense/train/trainer.h"

namespace dense::cli {
namespace {

namespace fs = std::filesystem;

struct Config {
  std::string out;
  int jobs = 0;
  bool dry_run = false, slurm = false;

  void fields(auto&& f) {
    f("out", out, "the sweep's folder, in which each run has its own (default: runs/ and the name of BASE.json)");
    f("jobs", jobs, "runs at a time, which share the threads; 0: one, and under Slurm all", 0);
    f("dry-run", dry_run, "say what there is to do, and do nothing");
    f("slurm", slurm, "write an array job for sbatch instead of running");
  }
};

// What a run has come to, as its records tell.
struct State {
  std::string status = "new";  // or running, done, stopped, failed
  int64_t step = 0;
  std::optional<double> loss = {}, validation = {};  // the mean of the last losses, and the last one
};

struct Run {
  std::string name;
  fs::path folder;
  int steps, threads;
  Json config, whole;  // what is written, and that with all fields of the model
  State state = {};
};

// ---- what there is to do

// One field that changes, and its values: "lr=1e-3,3e-4".
struct Override {
  std::string name;
  std::vector<std::string> values;
};

Override parse_override(const std::string& given) {
  const size_t equals = given.find('=');
  if (equals == given.npos || equals == 0) fail("expected FIELD=VALUE,..., got ", given);
  Override result{given.substr(0, equals), {}};
  for (size_t begin = equals + 1; begin <= given.size();) {
    const size_t end = std::min(given.find(',', begin), given.size());
    result.values.push_back(given.substr(begin, end - begin));
    if (result.values.back().empty()) fail(result.name, ": expected values with commas between them, got ", given);
    begin = end + 1;
  }
  return result;
}

std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }

// The fields of this name, or else those whose last part it is.
std::vector<const ConfigField*> fields_named(const std::vector<ConfigField>& fields, const std::string& name) {
  std::vector<const ConfigField*> found;
  for (const ConfigField& field : fields)
    if (field.name == name) return {&field};
    else if (last_part(field.name) == name) found.push_back(&field);
  return found;
}

const ConfigField& field_named(const std::vector<ConfigField>& fields, const std::string& name) {
  const std::vector<const ConfigField*> found = fields_named(fields, name);
  if (found.size() == 1) return *found[0];
  std::vector<std::string> all;
  std::string candidates;
  for (const ConfigField* field : found) candidates += (candidates.empty() ? "" : ", ") + field->name;
  for (const ConfigField& field : fields) all.push_back(field.name), all.push_back(last_part(field.name));
  if (found.empty()) fail(name, ": expected a field of the config", did_you_mean(name, all));
  fail(name, ": expected one of ", candidates);
}

bool mentions(const Json& object, const std::string& name) {
  const size_t dot = name.find('.');
  const Json* item = object.find(name.substr(0, dot));
  return item && (dot == name.npos || (item->kind == Json::object && mentions(*item, name.substr(dot + 1))));
}

// The run of one combination. Its config has all fields of training, and those of the model that base and overrides
// mention: the others depend on the data.
Run planned(const Json& base, const std::string& file,
            const std::vector<std::pair<std::string, std::string>>& overrides, const fs::path& out) {
  TrainConfig config;
  set_fields(base, file, config_fields(config), {}, {});  // which page it is
  for (const auto& [name, value] : overrides)
    if (name == "model_type") config.model_type = value;
    else if (name == "from") config.from = value;
  const Page page = page_of_run(config.model_type, config.from);
  std::vector<ConfigField> fields = run_fields(config, page);
  set_fields(base, file, fields, {}, [](const std::string& line) { fail(line); });
  std::vector<std::string> changed;
  std::string folder;
  for (const auto& [name, value] : overrides) {
    const ConfigField& field = field_named(fields, name);
    if (field.name == "out") fail("out: expected to be given as --out");
    if (std::ranges::find(changed, field.name) != changed.end())
      fail(field.name, ": expected its values once, got them twice");
    flags_of({field})[0].set(value);
    const bool is_short = fields_named(fields, last_part(field.name)).size() == 1 &&
                          fields_named(fields, last_part(field.name))[0] == &field;
    folder += (folder.empty() ? "" : ",") + (is_short ? last_part(field.name) : field.name) + "=" +
              flags_of({field})[0].fallback;
    changed.push_back(field.name);
  }
  std::ranges::replace(folder, '/', '_');
  Run run{folder, out / folder, config.steps, config.threads, {}, {}};
  config.model_type = page.model_type;
  config.out = run.folder.string();
  run.whole = with_fields(Json{Json::object}, file, fields, page.model_type);
  std::erase_if(fields, [&](const ConfigField& field) {
    return field.name.starts_with("model.") && !mentions(base, field.name) &&
           std::ranges::find(changed, field.name) == changed.end();
  });
  run.config = with_fields(Json{Json::object}, file, fields, page.model_type);
  return run;
}

std::vector<Run> plan(const std::string& base_file, const std::vector<Override>& overrides, const fs::path& out) {
  const Json base = read_object(base_file);
  std::vector<std::vector<std::pair<std::string, std::string>>> all{{}};
  for (const Override& each : overrides) {
    const auto before = std::exchange(all, {});
    for (const auto& chosen : before)
      for (const std::string& value : each.values) (all.emplace_back(chosen)).emplace_back(each.name, value);
  }
  std::vector<Run> runs;
  for (const auto& chosen : all) {
    Run run = planned(base, base_file, chosen, out);
    if (std::ranges::any_of(runs, [&](const Run& other) { return other.name == run.name; }))
      fail(run.name, ": expected one run of these values, got two");
    runs.push_back(std::move(run));
  }
  return runs;
}

// The first field in which a run that there is differs from what it would be now; none where what differs is of no
// matter, or is filled in when it begins: what the data says, and in a run that has yet to begin what nobody chose.
std::string difference(const Json& now, const Json& then, const Json& chosen) {
  static const Json nothing{Json::object};
  const auto part = [](const Json& object, const std::string& name) -> const Json& {
    const Json* found = object.find(name);
    return found && found->kind == Json::object ? *found : nothing;
  };
  const auto value = [](const Json* json) { return json && json->kind != Json::null ? to_text(*json) : "none"; };
  std::vector<std::string> names;
  for (const Json& item : now.items) names.push_back(item.name);
  for (const Json& item : then.items)
    if (!now.find(item.name)) names.push_back(item.name);
  for (const std::string& name : names) {
    const Json *a = now.find(name), *b = then.find(name);
    if (name == "threads" || name == "out") continue;
    if ((a ? a : b)->kind == Json::object) {
      const std::string inner = difference(part(now, name), part(then, name), part(chosen, name));
      if (!inner.empty()) return name + "." + inner;
    } else if (value(a) != value(b) && !(is_from_data(name) && value(a) == "0") && (b || chosen.find(name))) {
      return name + " = " + value(b) + " instead of " + value(a);
    }
  }
  return "";
}

State state_of(const Run& run) {
  State state;
  if (!fs::exists(run.folder / "run.json")) return state;
  const Json records = read_object(run.folder / "run.json");
  if (const Json* status = records.find("status")) state.status = status->text;
  const fs::path file = run.folder / "metrics.jsonl";
  std::vector<double> losses;
  if (fs::exists(file))
    each_metric(file, [&](const Metric& m) {
      state.step = int64_t(m.step);
      if (m.name == "loss" && !std::isnan(m.value)) losses.push_back(m.value);
      if (m.name == "validation") state.validation = std::isnan(m.value) ? std::nullopt : std::optional(m.value);
    });
  const size_t count = std::min<size_t>(50, losses.size());
  double sum = 0;
  for (size_t i = losses.size() - count; i < losses.size(); ++i) sum += losses[i];
  if (count > 0) state.loss = sum / double(count);
  return state;
}

std::string shown(const State& state, int steps) {
  std::string text = state.status;
  if (state.status != "new") text += fmt::format(", {} of {} steps", state.step, steps);
  if (state.loss) text += fmt::format(", loss {:.4f}", *state.loss);
  if (state.validation) text += fmt::format(", validation {:.4f}", *state.validation);
  return text;
}

// ---- running

// `dense train` in a process of its own, whose output goes to the run's log. Ctrl-C at the terminal does not reach it:
// it is told by its parent, once, or when that is no more.
pid_t start(const Run& run, int threads) {
  const std::string log = (run.folder / "log.txt").string();
  std::vector<std::string> args{"dense", "train", "--resume", run.folder.string()};
  if (run.threads == 0) args.insert(args.end(), {"--threads", std::to_string(threads)});
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid < 0) fail("cannot start another process: ", std::strerror(errno));
  if (pid > 0) return pid;
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  const int in = open("/dev/null", O_RDONLY), out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (in >= 0 && out >= 0 && dup2(in, 0) == 0 && dup2(out, 1) == 1 && dup2(out, 2) == 2)
    execv("/proc/self/exe", argv.data());
  _exit(127);
}

std::string last_line(const fs::path& file) {
  std::string all = fs::exists(file) ? read_file(file) : "";
  while (all.ends_with('\n')) all.pop_back();
  return all.substr(all.rfind('\n') + 1);
}

// Runs what is not done, some at a time, and says of each how it ended.
void run_all(std::vector<Run>& runs, int jobs) {
  std::vector<Run*> waiting;
  for (Run& run : runs)
    if (run.state.status != "done") waiting.push_back(&run);
  jobs = std::min(jobs, int(waiting.size()));
  const int threads = std::max(1, int(std::thread::hardware_concurrency()) / std::max(1, jobs));
  std::map<pid_t, Run*> running;
  bool told = false;
  for (size_t next = 0;;) {
    for (; next < waiting.size() && int(running.size()) < jobs && !stop_signal(); ++next) {
      say("{}: {}\n", waiting[next]->name, waiting[next]->state.step ? "goes on" : "starts");
      running[start(*waiting[next], threads)] = waiting[next];
    }
    if (running.empty()) return;
    if (stop_signal() && !std::exchange(told, true))
      for (const auto& [pid, run] : running) kill(pid, stop_signal());
    int status = 0;
    const pid_t pid = waitpid(-1, &status, WNOHANG);
    if (!running.contains(pid)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      continue;
    }
    Run& run = *running.extract(pid).mapped();
    run.state = state_of(run);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    const bool stopped = code == 128 + SIGINT || code == 128 + SIGTERM || code == 128 + SIGUSR1;
    if (code != 0 && !stopped) run.state.status = "failed";
    if (WIFSIGNALED(status)) run.state.status = fmt::format("killed by signal {}", WTERMSIG(status));
    say("{}: {}{}\n", run.name, shown(run.state, run.steps),
        run.state.status == "failed" ? ": " + last_line(run.folder / "log.txt") : "");
  }
}

// ---- what came of it

void write_table(std::vector<Run> runs, const fs::path& out) {
  const auto rank = [](const Run& run) {
    const auto or_last = [](const std::optional<double>& loss) { return loss.value_or(HUGE_VAL); };
    return std::pair(or_last(run.state.validation), or_last(run.state.loss));
  };
  std::ranges::stable_sort(runs, [&](const Run& a, const Run& b) { return rank(a) < rank(b); });
  const auto number = [](const char* name, const std::optional<double>& value) {
    return value ? Json{Json::number, name, text(*value)} : Json{Json::null, name};
  };
  Json rows{Json::array, "runs"};
  fmt::print("{:>10}  {:>10}  {:>8}  {:<8}  {}\n", "validation", "loss", "steps", "status", "run");
  for (const Run& run : runs) {
    const auto digits = [](const std::optional<double>& loss) { return loss ? fmt::format("{:.4f}", *loss) : "-"; };
    fmt::print("{:>10}  {:>10}  {:>8}  {:<8}  {}\n", digits(run.state.validation), digits(run.state.loss),
               run.state.step, run.state.status, run.name);
    rows.items.push_back({Json::object,
                          "",
                          "",
                          {{Json::string, "name", run.name},
                           {Json::string, "status", run.state.status},
                           {Json::number, "step", std::to_string(run.state.step)},
                           number("loss", run.state.loss),
                           number("validation", run.state.validation),
                           {Json::object, "config", "", run.config.items}}});
  }
  write_file(out / "table.json", to_text({Json::object, "", "", {std::move(rows)}}, 2) + "\n");
}

// For lines that sbatch reads, which takes a character behind a backslash as it is; as shells do outside of quotes.
std::string escaped(const std::string& text) {
  std::string result;
  for (char c : text) {
    const bool plain = c < 0 || std::isalnum(uint8_t(c)) || std::strchr("/._-+=,:%@", c);
    result += plain ? std::string(1, c) : std::string("\\") + c;
  }
  return result;
}

// An array job: one task for each run that is not done. Slurm sends USR1 90 seconds before it takes the machine away;
// the run then saves and ends with 128 + 10, and its task goes back into the queue, a few times.
std::string sbatch_script(const std::vector<Run>& runs, const fs::path& out, int jobs) {
  std::string list;
  int count = 0;
  for (const Run& run : runs)
    if (run.state.status != "done") list += "  " + shell_word(fs::absolute(run.folder).string()) + "\n", ++count;
  const fs::path to = fs::absolute(out).lexically_normal();
  std::string logs;  // in which sbatch fills in what begins with %
  for (char c : to.string()) logs += c == '%' ? "%%" : std::string(1, c);
  return fmt::format(R"(#!/bin/bash
#SBATCH --job-name={}
#SBATCH --array=0-{}{}
#SBATCH --output={}/logs/%A_%a.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@90
#SBATCH --requeue
# Written by dense sweep --slurm. Time, partition and cores are for sbatch: sbatch --time=4:00:00 --cpus-per-task=8 ...
cd {} || exit 1
runs=(
{})
{} train --resume "${{runs[$SLURM_ARRAY_TASK_ID]}}" --threads "${{SLURM_CPUS_PER_TASK:-0}}" &
child=$!
trap 'kill -USR1 "$child"' USR1
trap 'kill -TERM "$child"' TERM
while :; do  # a signal ends the wait, not the run
  wait "$child"
  code=$?
  kill -0 "$child" 2>/dev/null || break
done
if [ "$code" = 138 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt 5 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
)",
                     escaped(to.filename().string()), count - 1, jobs > 0 ? fmt::format("%{}", jobs) : "",
                     escaped(logs), shell_word(fs::current_path().string()), list,
                     shell_word(fs::read_symlink("/proc/self/exe").string()));
}

}  // namespace

int sweep_command(const Call& call) {
  Config config;
  std::string base;
  std::vector<std::string> given;
  if (!parse_flags(
          config, call,
          "Trains once for each combination of values. A field is named in full, as optimizer.lr, or by its\n"
          "last part. Called again it leaves out what is done and goes on with what is not. At the end a table\n"
          "of all runs, by their losses on the validation data.",
          call.program + " base.json n_layer=2,4 lr=1e-3,3e-4 --jobs 2",
          {{"BASE.json", &base}, {"FIELD=VALUE,...", nullptr, &given}}))
    return 0;
  if (fs::is_directory(base)) base = (fs::path(base) / "config.json").string();
  const fs::path file = fs::absolute(base).lexically_normal(), folder = file.parent_path();
  const fs::path name = file.filename() == "config.json" ? folder.filename() : file.stem();
  const fs::path out = config.out.empty() ? "runs" / name : fs::path(config.out);
  std::vector<Override> overrides;
  for (const std::string& each : given) overrides.push_back(parse_override(each));
  std::vector<Run> runs = plan(base, overrides, out);
  for (Run& run : runs) {
    run.state = state_of(run);
    if (!fs::exists(run.folder / "config.json")) continue;
    const std::string differs = difference(run.whole, read_object(run.folder / "config.json"), run.config);
    if (!differs.empty()) fail(run.folder.string(), ": holds a run with ", differs, "; choose another --out");
  }
  if (config.slurm && fs::absolute(out).string().find_first_of("\\\n") != std::string::npos)
    fail("--out: ", out.string(), ": expected a path without backslashes and ends of lines, which sbatch cannot have");
  if (config.dry_run) {
    for (const Run& run : runs) fmt::print("{}: {}\n", run.name, shown(run.state, run.steps));
    return 0;
  }

  for (const Run& run : runs) {
    fs::create_directories(run.folder);
    if (!fs::exists(run.folder / "config.json")) write_file(run.folder / "config.json", to_text(run.config, 2) + "\n");
  }
  const auto done = [](const Run& run) { return run.state.status == "done"; };
  if (config.slurm) {
    if (std::ranges::all_of(runs, done)) return say("nothing to do: all runs are done\n"), 0;
    fs::create_directories(out / "logs");
    write_file(out / "sweep.sbatch", sbatch_script(runs, out, config.jobs));
    fmt::print("sbatch {}\n", escaped((out / "sweep.sbatch").string()));
    return 0;
  }
  catch_stop_signals();
  run_all(runs, std::max(1, config.jobs));
  write_table(runs, out);
  if (stop_signal()) return 128 + stop_signal();
  return std::ranges::all_of(runs, done) ? 0 : 1;
}

}  // namespace dense::cli
