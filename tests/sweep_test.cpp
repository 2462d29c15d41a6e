// dense sweep: a run for each combination of values.
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/process.h"

namespace {

using namespace std::chrono_literals;
using nlohmann::json;

class Sweep : public InFolder {
 protected:
  void SetUp() override {
    std::string names;
    for (int i = 0; i < 40; ++i) names += "anna\nbob\ncarol\ndave\n";
    write("names.txt", names);
    write("base.json", base.dump());
  }
  json json_in(const std::string& file) { return json::parse(contents(folder / file)); }
  void expect_refused(const Args& args, const std::string& says) {
    InFolder::expect_refused(Args{"sweep"} + args, says, "dense sweep");
  }
  // A shell command in the folder.
  int shell(const std::string& command) {
    const int status = std::system(("cd '" + folder.string() + "' && " + command).c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  const json base = {{"data", {{"path", "names.txt"}, {"validation", 0.2}}},
                     {"batch", 4},
                     {"time", 8},
                     {"steps", 20},
                     {"model", {{"n_layer", 1}, {"n_embd", 16}}}};
};

TEST_F(Sweep, RunsEveryCombinationAndRanksThem) {
  const Args call = {"sweep", "base.json", "n_layer=1,2", "lr=1e-2,3e-4", "--jobs", "2"};
  const Outcome dry = run(call + Args{"--dry-run"});
  EXPECT_EQ(dry.exit_code, 0) << dry.err;
  EXPECT_EQ(lines(dry.out), (Args{"n_layer=1,lr=0.01: new", "n_layer=1,lr=0.0003: new", "n_layer=2,lr=0.01: new",
                                  "n_layer=2,lr=0.0003: new"}));
  EXPECT_FALSE(fs::exists(folder / "runs"));
  const Outcome outcome = run(call);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json config = json_in("runs/base/n_layer=2,lr=0.0003/config.json");
  EXPECT_EQ(config["model"]["n_layer"], 2);
  EXPECT_EQ(config["model"]["n_embd"], 16);
  EXPECT_EQ(config["optimizer"]["lr"], 3e-4);
  const json table = json_in("runs/base/table.json")["runs"];
  ASSERT_EQ(table.size(), 4u);
  EXPECT_EQ(lines(outcome.out).size(), 5u) << outcome.out;
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(table[i]["status"], "done");
    EXPECT_EQ(table[i]["step"], 20);
    EXPECT_TRUE(lines(outcome.out)[i + 1].ends_with(table[i]["name"].get<std::string>())) << outcome.out;
    if (i > 0) {
      EXPECT_GT(table[i]["validation"], table[i - 1]["validation"]);
    }
  }
  EXPECT_EQ(table[0]["config"]["optimizer"]["lr"], 0.01);

  // The same run as without a sweep.
  const Outcome alone = run({"train", "--config", "base.json", "--optimizer.lr", "0.01", "--out", "alone"});
  ASSERT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_TRUE(contents(folder / "alone/model/model.safetensors") ==
              contents(folder / "runs/base/n_layer=1,lr=0.01/model/model.safetensors"));

  // One whose last validation is no number comes last.
  const std::string best = table[0]["name"], records = "runs/base/" + best + "/metrics.jsonl";
  const std::string were = contents(folder / records);
  write(records, were + "{\"step\": 20, \"validation\": null}\n");
  EXPECT_TRUE(lines(run(call).out).back().ends_with(best));
  write(records, were);
  ASSERT_EQ(run(call).exit_code, 0);

  // What is done is left as it is, and what is not goes on.
  const auto before = snapshot();
  const Outcome again = run(call + Args{"--dry-run"});
  EXPECT_TRUE(again.out.starts_with("n_layer=1,lr=0.01: done, 20 of 20 steps, loss ")) << again.out;
  EXPECT_TRUE(snapshot() == before);
  ASSERT_EQ(run({"sweep", "base.json", "n_layer=1,2", "lr=1e-2,1e-3", "--out", "runs/base"}).exit_code, 0);
  for (const char* kept : {"n_layer=1,lr=0.01", "n_layer=2,lr=0.01"})
    for (const auto& [file, text] : snapshot())
      if (contains(file, kept)) {
        EXPECT_TRUE(before.at(file) == text) << file;
      }
  EXPECT_TRUE(fs::exists(folder / "runs/base/n_layer=1,lr=0.001/model"));
}

TEST_F(Sweep, ARunThatFailsStopsNoOther) {
  const Outcome outcome = run({"sweep", "base.json", "n_head=3,4", "--out", "s"});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_TRUE(
      contains(outcome.err, "n_head=3: failed, 0 of 20 steps: dense train: gpt2: n_head: expected a divisor of"))
      << outcome.err;
  const json table = json_in("s/table.json")["runs"];
  EXPECT_EQ(table[0]["name"], "n_head=4");
  EXPECT_EQ(table[0]["status"], "done");
  EXPECT_EQ(table[1]["status"], "failed");
  EXPECT_EQ(table[1]["validation"], nullptr);
}

TEST_F(Sweep, StopsPolitelyAndGoesOn) {
  json longer = base;
  longer["steps"] = 2'000'000'000;
  longer["save"] = {{"every", 0}};
  write("base.json", longer.dump());
  const Args call = {"sweep", "base.json", "seed=1,2,3", "--jobs", "2", "--out", "s"};
  int64_t before = 0;
  for (const char* begins : {"starts", "goes on"}) {
    Process process(folder, call);
    const auto trains = [&](const std::string& run) {  // again, since it was stopped
      const std::string log = contents(folder / "s" / run / "log.txt");
      const size_t first = log.rfind("first step"), saved = log.rfind("saved");
      return first != log.npos && (saved == log.npos || first > saved);
    };
    while (!trains("seed=1") || !trains("seed=2")) std::this_thread::sleep_for(1ms);
    process.send(SIGINT);
    EXPECT_EQ(process.wait(), 128 + SIGINT);
    EXPECT_TRUE(contains(process.err(), std::string("seed=2: ") + begins)) << process.err();
    EXPECT_TRUE(contains(process.err(), "seed=2: stopped, ")) << process.err();
    EXPECT_FALSE(contains(process.err(), "seed=3")) << process.err();
    EXPECT_EQ(json_in("s/seed=1/run.json")["status"], "stopped");
    const json table = json_in("s/table.json")["runs"];
    const auto row = std::ranges::find_if(table, [](const json& run) { return run["name"] == "seed=2"; });
    EXPECT_GT((*row)["step"], before);
    before = (*row)["step"];
  }
}

TEST_F(Sweep, RefusesWhatItCannotTell) {
  expect_refused({"base.json", "every=1,2"}, "every: expected one of evaluate.every, sample.every, save.every");
  expect_refused({"base.json", "n_lair=1,2"}, "n_lair: expected a field of the config; did you mean n_layer?");
  expect_refused({"base.json", "n_layer=1,x"}, "--model.n_layer: expected a whole number, got \"x\"");
  expect_refused({"base.json", "n_layer=1,0"}, "--model.n_layer: expected 1 or more, got 0");
  expect_refused({"base.json", "lr=1e-3,0.001"}, "lr=0.001: expected one run of these values, got two");
  expect_refused({"base.json", "n_layer"}, "expected FIELD=VALUE,..., got n_layer");
  expect_refused({"base.json", "n_layer=1,,2"}, "n_layer: expected values with commas between them, got n_layer=1,,2");
  expect_refused({"base.json", "out=a,b"}, "out: expected to be given as --out");
  expect_refused({"base.json", "lr=1e-3", "seed=1", "optimizer.lr=1e-4"},
                 "optimizer.lr: expected its values once, got them twice");
  expect_refused({"base.json"}, "expected FIELD=VALUE,...");
  expect_refused({"none.json", "n_layer=1"}, "none.json: cannot open");
  ASSERT_EQ(run({"sweep", "base.json", "seed=1", "--out", "s"}).exit_code, 0);
  json other = base;
  other["steps"] = 21;
  write("base.json", other.dump());
  expect_refused({"base.json", "seed=1", "--out", "s"},
                 "s/seed=1: holds a run with steps = 20 instead of 21; choose another --out");
}

TEST_F(Sweep, RunsOfAnotherBaseAreNotTakenForItsOwn) {
  const Args call = {"base.json", "seed=1", "--out", "s"};
  ASSERT_EQ(run(Args{"sweep"} + call).exit_code, 0);
  const auto is_refused = [&](const char* place, const json& value, const std::string& says) {
    json other = base;
    if (value.is_null()) other = other.flatten(), other.erase(place), other = other.unflatten();
    else other[json::json_pointer(place)] = value;
    write("base.json", other.dump());
    expect_refused(call, "s/seed=1: holds a run with " + says + "; choose another --out");
  };
  is_refused("/steps", 21, "steps = 20 instead of 21");
  is_refused("/model/n_embd", nullptr, "model.n_embd = 16 instead of 128");
  is_refused("/model/n_head", 2, "model.n_head = 4 instead of 2");
  is_refused("/model/vocab_size", 300, "model.vocab_size = 256 instead of 300");
  is_refused("/data/path", nullptr, "data.path = \"names.txt\" instead of \"\"");
  is_refused("/data/seed", 3, "data.seed = none instead of 3");
  is_refused("/model_type", "microgpt", "model_type = \"gpt2\" instead of \"microgpt\"");
  json seeded = base;
  seeded["data"]["seed"] = 3;
  write("base.json", seeded.dump());
  ASSERT_EQ(run({"sweep", "base.json", "seed=1", "--slurm", "--out", "t"}).exit_code, 0);  // which begins nothing
  EXPECT_EQ(run({"sweep", "base.json", "seed=1", "--dry-run", "--out", "t"}).out, "seed=1: new\n");
  write("base.json", base.dump());
  expect_refused({"base.json", "seed=1", "--out", "t"}, "t/seed=1: holds a run with data.seed = 3 instead of none");
  EXPECT_EQ(run({"sweep", "base.json", "seed=1", "--dry-run", "--out", "s"}).exit_code, 0);
}

TEST_F(Sweep, PagesAreValuesAsOthersAre) {
  json plain = base;
  plain.erase("model");
  write("base.json", plain.dump());
  const Outcome outcome = run({"sweep", "base.json", "model_type=gpt2,microgpt", "optimizer.lr=1e-3", "--out", "s"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(json_in("s/model_type=microgpt,lr=0.001/model/config.json")["model_type"], "microgpt");
}

// Outside of quotes sbatch takes a character behind a backslash as it is, as shells do; which stand in for it here.
TEST_F(Sweep, AnyPathIsSafeInWhatSlurmReads) {
  const std::string out = "it's \"$(touch bad)\" `x` $HOME #1 100%j;*&";
  const std::string word = "an; touch bad; 'd' $USER\ntwo";
  const Outcome outcome = run({"sweep", "base.json", "prompt=" + word, "steps=2", "--slurm", "--out", out});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const std::string script = contents(folder / out / "sweep.sbatch");
  write("script", script);
  EXPECT_EQ(shell("bash -n script"), 0) << script;
  write("read.sh",
        "grep -a '^#SBATCH' script | while IFS= read -r line; do\n"
        "eval \"set -- ${line#'#SBATCH'}\"; printf '%s\\n' \"$#\" \"$1\" >> words; done\n");
  EXPECT_EQ(shell("bash read.sh"), 0);
  std::string path = (folder / out).string();
  path.replace(path.find('%'), 1, "%%");  // which sbatch would fill in
  const Args words = lines(contents(folder / "words"));
  for (const std::string& expected : {"--job-name=" + out, "--output=" + path + "/logs/%A_%a.log"})
    EXPECT_EQ(std::ranges::count(words, expected), 1) << script;
  for (size_t i = 0; i < words.size(); i += 2) EXPECT_EQ(words[i], "1") << script;

  write("print.sh", "sbatch() { printf '%s' \"$#$1\"; }\n" + outcome.out);
  EXPECT_EQ(shell("bash print.sh > printed"), 0);
  EXPECT_EQ(contents(folder / "printed"), "1" + out + "/sweep.sbatch");
  EXPECT_EQ(shell("cd / && SLURM_ARRAY_TASK_ID=0 bash \"$OLDPWD/script\" 2> \"$OLDPWD/err\""), 0)
      << contents(folder / "err");
  EXPECT_FALSE(fs::exists(folder / "bad"));
  size_t done = 0;
  for (const auto& run : fs::directory_iterator(folder / out)) done += fs::exists(run.path() / "model/config.json");
  EXPECT_EQ(done, 1u);
  for (const char* name : {"a\\b", "a\nb"})
    expect_refused({"base.json", "seed=1", "--slurm", "--out", name},
                   "expected a path without backslashes and ends of");
}

TEST_F(Sweep, TasksOfSlurmSaveAndAreQueuedAgain) {
  json longer = base;
  longer["steps"] = 1'000'000;
  write("base.json", longer.dump());
  const Outcome outcome = run({"sweep", "base.json", "seed=1,2", "--jobs", "3", "--slurm", "--out", "it's"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "sbatch it\\'s/sweep.sbatch\n");
  const std::string script = contents(folder / "it's/sweep.sbatch");
  EXPECT_TRUE(contains(script, "#SBATCH --array=0-1%3\n")) << script;
  EXPECT_EQ(shell("bash -n \"it's/sweep.sbatch\""), 0);

  write("bin/scontrol", "#!/bin/sh\necho \"$@\" >> queue\n");
  fs::permissions(folder / "bin/scontrol", fs::perms::owner_all);
  const std::string task = "PATH=\"$PWD/bin:$PATH\" SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=1 ";
  const std::string script_is_told =
      "bash \"it's/sweep.sbatch\" 2> err & p=$!; i=0;"
      " while ! [ -s \"it's/seed=2/metrics.jsonl\" ] && [ $i -lt 3000 ]; do sleep 0.01; i=$((i+1)); done;"
      " kill -USR1 $p; wait $p";
  EXPECT_EQ(shell("export " + task + "; " + script_is_told), 128 + SIGUSR1) << contents(folder / "err");
  EXPECT_EQ(contents(folder / "queue"), "requeue 7_1\n");
  EXPECT_EQ(json_in("it's/seed=2/run.json")["status"], "stopped");
  EXPECT_FALSE(fs::exists(folder / "it's/seed=1/run.json"));
  fs::remove(folder / "it's/seed=2/metrics.jsonl");
  EXPECT_EQ(shell("export SLURM_RESTART_COUNT=5 " + task + "; " + script_is_told), 128 + SIGUSR1);
  EXPECT_EQ(contents(folder / "queue"), "requeue 7_1\n") << "queued without end";
}

}  // namespace
