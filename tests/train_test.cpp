// dense train and tokens: runs that learn, stop, go on with the same bits, and leave records.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <thread>

#include "cli/pages.h"
#include "dense/io/files.h"
#include "dense/io/safetensors.h"
#include "dense/train/data.h"
#include "dense/train/trainer.h"
#include "tests/errors.h"
#include "tests/process.h"

namespace {

using namespace std::chrono_literals;
using namespace dense;
using nlohmann::json;

// Each test has a small file of documents.
class Train : public InFolder {
 protected:
  void SetUp() override { write("names.txt", names(40)); }
  static std::string names(int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += "anna\nbob\ncarol\ndave\n";
    return all;
  }
  Outcome train(const Args& more) { return run(small + more); }
  json lines_of(const std::string& file) {
    json all = json::array();
    for (const std::string& line : lines(contents(folder / file))) all.push_back(json::parse(line));
    return all;
  }
  std::vector<double> losses(const std::string& run) {
    std::vector<double> all;
    for (const json& line : lines_of(run + "/metrics.jsonl"))
      if (line.contains("loss")) all.push_back(line["loss"]);
    return all;
  }
  std::string weights(const std::string& run) { return contents(folder / run / "model/model.safetensors"); }
  void expect_refused(const Args& args, const std::string& says) {
    InFolder::expect_refused(Args{"train"} + args, says, "dense train");
  }
  const Args small = {"train", "--data.path",      "names.txt", "--batch",        "4",  "--time",
                      "8",     "--model.n_layer",  "1",         "--model.n_embd", "16", "--optimizer.lr",
                      "0.01",  "--evaluate.every", "0"};
};

TEST_F(Train, LearnsAndLeavesAFolderLikeHuggingFaces) {
  for (const Args& more : {Args{}, {"--precision", "bf16"}, {"--model_type", "microgpt"}}) {
    const Outcome outcome = train(Args{"--steps", "60", "--out", "r"} + more);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(losses("r").size(), 60u);
    EXPECT_LT(losses("r").back(), losses("r").front() - 1) << outcome.err;
    EXPECT_EQ(json::parse(contents(folder / "r/model/config.json"))["vocab_size"], 256);
    EXPECT_EQ(json::parse(contents(folder / "r/run.json"))["status"], "done");
    ASSERT_EQ(train(Args{"--steps", "60", "--out", "s", "--threads", "1", "--recompute", "true"} + more).exit_code, 0);
    EXPECT_TRUE(weights("r") == weights("s")) << "other bits with one thread, recomputed";
    EXPECT_EQ(run({"generate", "r", "--prompt", "an", "--tokens", "3"}).exit_code, 0);
    fs::remove_all(folder / "r"), fs::remove_all(folder / "s");
  }
}

TEST_F(Train, EveryPageIsSmallEnoughToBeTriedAtOnce) {
  write("t/tokenizer.json", R"({"added_tokens": [{"id": 0, "content": "[MASK]", "special": true, "single_word": false,
    "lstrip": false, "rstrip": false, "normalized": false}], "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9,
    "vocab": {"[MASK]": 0, "[UNK]": 1, "anna": 2, "bob": 3, "carol": 4, "dave": 5}}})");
  for (const Page& page : cli::pages()) {
    const Args call = {"train", "--model_type", page.model_type, "--data.path", "names.txt", "--time", "8", "--batch",
                       "2"};
    const Outcome outcome = run(call + Args{"--steps", "2", "--evaluate.every", "0"} +
                                (page.generates() ? Args{} : Args{"--data.tokenizer", "t"}));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_TRUE(contains(outcome.err, "trained 2 of 2 steps")) << outcome.err;
  }
}

// ---- steps of several parts

TEST_F(Train, PartsAreTheWholeBatchToRounding) {
  const Args steps = {"--steps", "5", "--optimizer.clip", "0.5", "--model.resid_pdrop", "0", "--model.embd_pdrop", "0"};
  const Args rest = {"--data.path", "names.txt", "--time", "8", "--model.n_layer", "1", "--model.n_embd", "16"};
  ASSERT_EQ(run(Args{"train", "--out", "whole", "--batch", "12"} + rest + steps).exit_code, 0);
  ASSERT_EQ(run(Args{"train", "--out", "six", "--batch", "2", "--parts", "6"} + rest + steps).exit_code, 0);
  const json whole = lines_of("whole/metrics.jsonl"), six = lines_of("six/metrics.jsonl");
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_NEAR(double(whole[i]["loss"]), double(six[i]["loss"]), 2e-6);
    EXPECT_NEAR(double(whole[i]["norm"]), double(six[i]["norm"]), 2e-5);
  }
  EXPECT_GT(double(whole[0]["norm"]), 0.5);  // it was clipped
}

// ---- stopping and going on

TEST_F(Train, AResumedRunHasTheBitsOfOneThatNeverStopped) {
  for (const Args& more : {Args{}, {"--parts", "3"}, {"--precision", "bf16", "--optimizer.clip", "0.1"}}) {
    const Args schedule = {"--optimizer.schedule", "constant", "--optimizer.warmup", "6", "--save.every", "4"};
    ASSERT_EQ(train(schedule + more + Args{"--steps", "20", "--out", "a"}).exit_code, 0);
    ASSERT_EQ(train(schedule + more + Args{"--steps", "11", "--out", "b"}).exit_code, 0);
    EXPECT_FALSE(weights("a") == weights("b"));
    const Outcome resumed = run({"train", "--resume", "b", "--steps", "20"});
    ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
    EXPECT_TRUE(contains(resumed.err, "resumed after step 11")) << resumed.err;
    EXPECT_TRUE(weights("a") == weights("b"));
    EXPECT_EQ(losses("a"), losses("b"));
    fs::remove_all(folder / "a"), fs::remove_all(folder / "b");
  }
}

TEST_F(Train, ARunThatIsKilledAnywhereGoesOnWithTheSameBits) {
  const Args length = {"--steps", "60", "--save.every", "3", "--model.n_embd=16"};
  const Args call = {"train", "--data.path", "names.txt", "--batch", "4", "--time", "8", "--model.n_layer", "1"};
  ASSERT_EQ(run(call + length + Args{"--out", "a"}).exit_code, 0);
  std::mt19937 random(1);
  Args next = call + length + Args{"--out", "b"};
  for (int kills = 0; kills < 20; ++kills) {
    Process process(folder, next);
    std::this_thread::sleep_for(std::chrono::microseconds(20'000 + random() % 130'000));
    process.send(SIGKILL);
    process.wait();
    if (fs::exists(folder / "b/config.json")) next = {"train", "--resume", "b"};
  }
  const Outcome last = run(next);
  ASSERT_EQ(last.exit_code, 0) << last.err;
  EXPECT_TRUE(weights("a") == weights("b"));
  EXPECT_EQ(losses("a"), losses("b"));
}

TEST_F(Train, SignalsSaveAndHaveTheirOwnExitCodes) {
  for (int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    Process process(folder, small + Args{"--steps", "2000000000", "--out", "r"});
    while (!contains(process.err(), "first step")) std::this_thread::sleep_for(1ms);
    process.send(signal);
    EXPECT_EQ(process.wait(), 128 + signal);
    EXPECT_TRUE(contains(process.err(), "saved r")) << process.err();
    EXPECT_EQ(json::parse(contents(folder / "r/run.json"))["status"], "stopped");
    EXPECT_TRUE(fs::exists(folder / "r/model/model.safetensors"));
    fs::remove_all(folder / "r");
  }
}

TEST_F(Train, ARunHasOneTrainerAtATime) {
  const Args endless = {"--steps", "2000000000", "--save.every", "5", "--out", "r"};
  Process first(folder, small + endless);
  while (!fs::exists(folder / "r/checkpoints/step-00000005")) std::this_thread::sleep_for(1ms);
  const auto refused = [&](const Args& call) {
    const Outcome outcome = run(call);
    EXPECT_EQ(outcome.exit_code, 2);
    return outcome.err;
  };
  EXPECT_EQ(refused({"train", "--resume", "r"}), "dense train: out: r: another process trains this run\n");
  EXPECT_EQ(refused(small + endless),
            "dense train: out: r: holds a run already; resume it, or choose another folder\n");
  first.send(SIGKILL);
  first.wait();
  Process second(folder, {"train", "--resume", "r"});
  while (!contains(second.err(), "resumed after step")) std::this_thread::sleep_for(1ms);
  second.send(SIGTERM);
  EXPECT_EQ(second.wait(), 128 + SIGTERM) << second.err();
}

// Of runs that begin at the same time one is made.
TEST_F(Train, ARunIsBegunOnce) {
  TrainConfig config;
  config.out = folder / "r", config.time = 8, config.data.path = folder / "names.txt";
  Page page = cli::page_of("microgpt");
  make_small(page);
  fs::create_directory(folder / "r");
  const std::shared_ptr<void> lock = lock_file(folder / "r/.lock");
  EXPECT_TRUE(contains(error_of([&] { Trainer(page, config, {}); }), "r: another process trains this run"));
  EXPECT_FALSE(fs::exists(folder / "r/config.json"));
}

TEST_F(Train, KeepsTheLastCheckpointsAndTheBest) {
  write("v.txt", names(30) + std::string(60, 'x') + "\n");  // what is validated on becomes less likely
  const Outcome outcome = run({"train", "--data.path",      "v.txt", "--data.validation",
                               "0.1",   "--batch",          "4",     "--time",
                               "8",     "--steps",          "60",    "--save.every",
                               "10",    "--evaluate.every", "10",    "--save.keep",
                               "2",     "--optimizer.lr",   "0.01",  "--out",
                               "r"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  double best = 1e9;
  int64_t best_step = 0;
  for (const json& line : lines_of("r/metrics.jsonl"))
    if (line.contains("validation") && line["validation"] < best) best = line["validation"], best_step = line["step"];
  std::set<int64_t> kept, expected{50, 60, best_step};
  for (const auto& entry : fs::directory_iterator(folder / "r/checkpoints"))
    kept.insert(std::stoll(entry.path().filename().string().substr(5)));
  EXPECT_EQ(kept, expected);
  EXPECT_LT(best_step, 50);
}

TEST_F(Train, GoesOnWhereNothingCanBeSavedAndKeepsWhatThereIs) {
  Process process(folder,
                  small + Args{"--steps", "2000000000", "--save.every", "20", "--save.keep", "1000000", "--out", "r"});
  while (!fs::exists(folder / "r/checkpoints/step-00000020")) std::this_thread::sleep_for(1ms);
  fs::rename(folder / "r/checkpoints", folder / "r/kept");
  write("r/checkpoints", "not a folder");
  while (!contains(process.err(), "nothing saved: ")) std::this_thread::sleep_for(1ms);
  const auto warned = lines(process.err()).size();
  while (lines(process.err()).size() < warned + 2) std::this_thread::sleep_for(1ms);  // it says so again: it goes on
  process.send(SIGTERM);
  EXPECT_EQ(process.wait(), 2);
  EXPECT_TRUE(contains(process.err(), "the last step is not saved")) << process.err();
  EXPECT_FALSE(fs::is_empty(folder / "r/kept"));
  EXPECT_EQ(json::parse(contents(folder / "r/run.json"))["status"], "failed");
}

// ---- from a Hugging Face folder, and back

TEST_F(Train, ContinuesFromAHuggingFaceFolder) {
  ASSERT_EQ(train({"--steps", "40", "--out", "a"}).exit_code, 0);
  const Args call = {"train", "--from", "a", "--data.path", "names.txt", "--batch", "4", "--time", "8", "--out", "b"};
  const Outcome tuned = run(call + Args{"--steps", "5", "--optimizer.lr", "1e-4"});
  ASSERT_EQ(tuned.exit_code, 0) << tuned.err;
  EXPECT_NEAR(losses("b").front(), losses("a").back(), 0.5);
  EXPECT_EQ(contents(folder / "a/model/tokenizer.json"), contents(folder / "b/model/tokenizer.json"));
  EXPECT_EQ(run({"generate", "b", "--prompt", "an", "--tokens", "2"}).exit_code, 0);
}

TEST_F(Train, FlagsCountMoreThanTheConfigOfTheFolderThatItBeginsWith) {
  ASSERT_EQ(train({"--steps", "4", "--out", "a", "--model.attn_pdrop", "0.3", "--model.resid_pdrop", "0.2"}).exit_code,
            0);
  const Args call = {"train", "--data.path", "names.txt", "--batch",      "4", "--time",
                     "8",     "--steps",     "4",         "--save.every", "2"};
  ASSERT_EQ(run(call + Args{"--from", "a", "--model.attn_pdrop", "0", "--out", "b"}).exit_code, 0);
  const json config = json::parse(contents(folder / "b/model/config.json"));
  EXPECT_EQ(config["attn_pdrop"], 0.0);
  EXPECT_EQ(config["resid_pdrop"], 0.2);
  EXPECT_EQ(config["n_embd"], 16);
  EXPECT_EQ(json::parse(contents(folder / "b/config.json"))["model"]["resid_pdrop"], 0.2);
  fs::remove_all(folder / "a");  // a checkpoint is enough to go on
  EXPECT_EQ(run({"train", "--resume", "b", "--steps", "6", "--data.tokenizer", "bytes"}).exit_code, 0);
  EXPECT_EQ(json::parse(contents(folder / "b/model/config.json"))["resid_pdrop"], 0.2);
  expect_refused({"--from", "b", "--model.n_layer", "2", "--out", "c", "--time", "8"},
                 "transformer.h.1.attn.c_attn.bias: expected (48), missing");
}

TEST_F(Train, AModelKeepsTheTokenizerOfItsData) {
  ASSERT_EQ(train({"--steps", "2", "--out", "a"}).exit_code, 0);
  const Args call = {"train", "--data.path", "names.txt", "--batch", "4", "--time", "8", "--steps", "2"};
  ASSERT_EQ(run(call + Args{"--from", "a", "--data.tokenizer", "characters", "--out", "b"}).exit_code, 0);
  EXPECT_NE(contents(folder / "a/model/tokenizer.json"), contents(folder / "b/model/tokenizer.json"));
  EXPECT_TRUE(run({"generate", "b", "--prompt", "an", "--tokens", "2"}).out.starts_with("an"));
  write("names.txt", names(40) + "x");  // other characters, other tokens
  expect_refused({"--resume", "b", "--steps", "3"},
                 "data: expected the tokens of b/checkpoints/step-00000002/tokenizer.json, got others");
  expect_refused({"--from", "a", "--model_type", "llama"}, "from: a: expected a llama, got a gpt2");
}

TEST_F(Train, WeightsThatAreNoNumbersAreNotSaved) {
  const Args call = {"--save.every", "1", "--save.keep", "1", "--out", "r"};
  ASSERT_EQ(train(call + Args{"--steps", "2"}).exit_code, 0);
  const Outcome worse = run({"train", "--resume", "r", "--steps", "9", "--optimizer.lr", "1e38"});
  EXPECT_EQ(worse.exit_code, 2) << worse.err;
  EXPECT_TRUE(contains(worse.err, "step 3: nothing saved: the weights are not finite numbers")) << worse.err;
  EXPECT_EQ(run({"train", "--resume", "r", "--steps", "3", "--optimizer.lr", "0.01"}).exit_code, 0);
}

// null is no default: Mistral's window is 4096 where nothing is said.
TEST_F(Train, NullsOfAConfigAreKept) {
  const Args call = {"train", "--model_type", "mistral", "--data.path", "names.txt", "--time", "8", "--steps", "2"};
  write("m.json", R"({"model_type": "mistral", "model": {"sliding_window": null}})");
  ASSERT_EQ(run(call + Args{"--config", "m.json", "--out", "a"}).exit_code, 0);
  ASSERT_EQ(run({"train", "--resume", "a", "--steps", "3"}).exit_code, 0);
  EXPECT_TRUE(json::parse(contents(folder / "a/config.json"))["model"]["sliding_window"].is_null());
  EXPECT_TRUE(json::parse(contents(folder / "a/model/config.json"))["sliding_window"].is_null());
}

// Older files hold tied weights twice; the copy must not outlive the training of the other.
TEST_F(Train, ATiedCopyThatAFileHoldsIsNotKeptUntrained) {
  ASSERT_EQ(train({"--steps", "1", "--out", "a"}).exit_code, 0);
  const StoredTensors stored = read_safetensors(folder / "a/model");
  std::vector<StoredTensor> with_copy;
  for (const auto& [name, tensor] : stored) with_copy.push_back(tensor);
  with_copy.push_back(stored.at("transformer.wte.weight"));
  with_copy.back().name = "lm_head.weight";
  write_safetensors(folder / "a/model/model.safetensors", with_copy);
  ASSERT_EQ(
      run({"train", "--from", "a", "--data.path", "names.txt", "--time", "8", "--steps", "1", "--out", "b"}).exit_code,
      0);
  EXPECT_FALSE(read_safetensors(folder / "b/model").contains("lm_head.weight"));
}

// ---- configs

TEST_F(Train, TheConfigOfARunMakesTheSameRun) {
  ASSERT_EQ(train({"--steps", "6", "--out", "a", "--optimizer.beta1", "0.8"}).exit_code, 0);
  const json config = json::parse(contents(folder / "a/config.json"));
  EXPECT_EQ(config["optimizer"]["beta1"], 0.8);
  EXPECT_EQ(config["model"]["n_embd"], 16);
  ASSERT_EQ(run({"train", "--config", "a/config.json", "--out", "b"}).exit_code, 0);
  EXPECT_TRUE(weights("a") == weights("b"));
  json changed = config;
  changed["optimiser"] = {{"lr", 1}};
  write("c.json", changed.dump());
  expect_refused({"--config", "c.json"}, "c.json: ignored, being unknown here: optimiser");
  changed = config;
  changed["batch"] = 0;
  write("c.json", changed.dump());
  expect_refused({"--config", "c.json"}, "c.json: batch: expected 1 or more, got 0");
}

std::string one_of_the_pages() {
  std::string names;
  for (const Page& page : cli::pages()) names += (names.empty() ? "" : ", ") + page.model_type;
  return "expected one of " + names;
}

TEST_F(Train, RefusesWhatDoesNotFit) {
  write("dotted.json", R"({"optimizer.lr": 0.1})");
  ASSERT_EQ(train({"--steps", "1", "--out", "r"}).exit_code, 0);
  const std::pair<Args, std::string> cases[] = {
      {{"--precision", "f16"}, "precision: expected f32 or bf16, got f16"},
      {{"--optimizer.schedule", "step"}, "optimizer.schedule: expected cosine, linear or constant, got step"},
      {{"--model.n_heads", "2"}, "unknown flag --model.n_heads; did you mean --model.n_head?"},
      {{"--model.n_layer", "0"}, "--model.n_layer: expected 1 or more, got 0"},
      {{"--model.n_head", "3"}, "gpt2: n_head: expected a divisor of n_embd = 128, got 3"},
      {{"--model.activation_function", "gelo"}, "activation: expected one of gelu, "},
      {{"--model.tie_word_embeddings", "yes"}, "--model.tie_word_embeddings: expected true or false, got \"yes\""},
      {{"--model.vocab_size", "9"}, "data: expected at most the model's 9 tokens, got 256"},
      {{"--model_type", "gpt3"}, "model_type: " + one_of_the_pages() + ", got gpt3"},
      {{"--model_type", "bert"},
       "data.tokenizer: expected one with a token [MASK] or <mask>, since bert learns to fill it in"},
      {{"--data.path", "none.txt"}, "none.txt: cannot open"},
      {{"--data.documents", "words"}, "data.documents: expected files or lines, got words"},
      {{"--data.validation", "1"}, "data.validation: expected a share of 0 or more, below 1, got 1"},
      {{"--time", "1000"}, "data: expected more than time = 1000 tokens to train on, got "},
      {{"--out", "names.txt"}, "out: names.txt: expected a folder"},
      {{"--out", "r"}, "out: r: holds a run already; resume it, or choose another folder"},
      {{"--resume", "none"}, "none/config.json: cannot open"},
      {{"--resume", "r", "--config", "c.json"}, "--config: expected none beside --resume"},
      {{"--config", "dotted.json"}, "dotted.json: ignored, being unknown here: optimizer.lr"},
      {{"--optimizer.beta1", "1"}, "optimizer.beta1: expected 0 or more, below 1, got 1"},
      {{"--optimizer.clip", "-1"}, "optimizer.clip: expected 0 or more, got -1"},
      {{"--sample.prompt", "ß", "--data.tokenizer", "characters"},
       "sample.prompt: expected one token or more, got none"},
  };
  for (const auto& [args, says] : cases) {
    Args all = args;
    for (const auto& [flag, value] : {std::pair("--data.path", "names.txt"), {"--steps", "1"}, {"--time", "8"}})
      if (args[0] != flag && args[0] != "--resume") all = all + Args{flag, value};
    expect_refused(all, says);
  }
}

// Each of them would write what the others do.
TEST_F(Train, RefusesToBeStartedManyTimesWhereThatMakesNoRanks) {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"})
    InFolder::expect_refused(small, "2 processes are started, and each is alone", "dense train",
                             {.environment = {{name, "2"}}});
}

// ---- data

TEST(Data, AnOrderHasEveryNumberOnce) {
  for (uint64_t n : {1, 2, 3, 7, 64, 1000}) {
    std::vector<uint64_t> a, b;
    for (uint64_t i = 0; i < n; ++i) a.push_back(shuffled(i, n, 1)), b.push_back(shuffled(i, n, 2));
    if (n > 60) {
      EXPECT_NE(a, b);
      EXPECT_FALSE(std::ranges::is_sorted(a));
    }
    std::ranges::sort(a);
    for (uint64_t i = 0; i < n; ++i) EXPECT_EQ(a[i], i);
  }
}

TEST(Data, WindowsShareOneTokenAndSpanNoParts) {
  Tokens tokens;
  std::vector<uint32_t> ids(10);
  std::iota(ids.begin(), ids.end(), 0);
  tokens.add(ids, {0, 6});
  tokens.add({20, 21, 22, 23, 24}, {0});
  EXPECT_EQ(tokens.size(), 15);
  EXPECT_EQ(tokens.windows(3), 3 + 1);
  std::vector<int32_t> window(4);
  tokens.window(2, 3, window);
  EXPECT_EQ(window, (std::vector<int32_t>{6, 7, 8, 9}));
  tokens.window(3, 3, window);
  EXPECT_EQ(window, (std::vector<int32_t>{20, 21, 22, 23}));
  const auto [first, last] = tokens.split(0.4);  // the next document begins after 10
  EXPECT_EQ(first.size(), 10);
  EXPECT_EQ(last.size(), 5);
  EXPECT_EQ(tokens.split(0).first.size(), 15);
}

TEST_F(Train, TokensAreTrainedOnAsTheirTextIs) {
  write("words/b.txt", "the cat saw the dog; " + names(10));
  write("words/a.txt", names(20));
  const Args rest = {"--batch", "2", "--time", "8", "--steps", "5", "--data.validation", "0"};
  for (const char* tokenizer : {"bytes", "characters"}) {
    const Outcome made = run({"tokens", "words", "t", "--tokenizer", tokenizer});
    ASSERT_EQ(made.exit_code, 0) << made.err;
    const StoredTensors stored = read_safetensors(folder / "t/tokens-00001-of-00001.safetensors");
    EXPECT_EQ(stored.at("tokens").dtype, "U16");
    EXPECT_EQ(stored.at("tokens").shape, Shape{int64_t(names(30).size() + 21)});
    ASSERT_EQ(run(Args{"train", "--data.path", "t", "--out", "a"} + rest).exit_code, 0);
    ASSERT_EQ(run(Args{"train", "--data.path", "words", "--data.tokenizer", tokenizer, "--out", "b"} + rest).exit_code,
              0);
    EXPECT_TRUE(weights("a") == weights("b"));
    EXPECT_EQ(contents(folder / "a/model/tokenizer.json"), contents(folder / "b/model/tokenizer.json"));
    const Outcome said = run({"generate", "a", "--prompt", "an", "--tokens", "3"});
    EXPECT_TRUE(said.out.starts_with("an")) << said.out << said.err;
    for (const char* each : {"t", "a", "b"}) fs::remove_all(folder / each);
  }
  ASSERT_EQ(run({"tokens", "words", "t", "--documents", "lines", "--shard", "100"}).exit_code, 0);
  EXPECT_TRUE(fs::exists(folder / "t/tokens-00005-of-00007.safetensors"));
  ASSERT_EQ(run(Args{"train", "--data.path", "t", "--out", "a"} + rest).exit_code, 0);
  InFolder::expect_refused({"tokens", "words", "t"}, "t: exists already", "dense tokens");
  expect_refused({"--data.path", "t/tokens-00001-of-00007.safetensors"},
                 "expected a text or the folder of tokens that it is in");
  write("t/tokens-00002-of-00007.safetensors", contents(folder / "a/model/model.safetensors"));
  expect_refused({"--data.path", "t"},
                 "t/tokens-00002-of-00007.safetensors: tokens: expected a list of whole numbers, missing");
}

// What made them tokens is settled.
TEST_F(Train, TokensHaveNoOtherTokenizerOrDocuments) {
  ASSERT_EQ(run({"tokens", "names.txt", "t"}).exit_code, 0);
  for (const auto& [flag, value] :
       {std::pair("--data.tokenizer", "bytes"), {"--data.documents", "lines"}, {"--data.marks", "false"}})
    expect_refused({"--data.path", "t", flag, value, "--steps", "1"},
                   std::string(flag + 2) + ": expected none beside tokens, which t holds");
}

TEST_F(Train, TokensAreAllThere) {
  ASSERT_EQ(run({"tokens", "names.txt", "t", "--documents", "lines", "--shard", "300"}).exit_code, 0);
  const std::string first = "t/tokens-00001-of-00003.safetensors", last = "t/tokens-00003-of-00003.safetensors";
  for (const std::string& file : {first, last}) {
    fs::rename(folder / file, folder / "kept");
    expect_refused({"--data.path", "t"}, file + ": missing");
    fs::rename(folder / "kept", folder / file);
  }
  write("t/tokens-00001-of-00002.safetensors", contents(folder / first));
  expect_refused({"--data.path", "t"}, "t: expected 3 files of tokens, got 4");
  fs::rename(folder / "t/tokens-00001-of-00002.safetensors", folder / "t/tokens-00004.safetensors");
  expect_refused({"--data.path", "t"},
                 "t/tokens-00004.safetensors: expected a name that says how many files there are");
}

TEST_F(Train, TokensThatTheTokenizerDoesNotHaveAreNamedWithTheirFile) {
  ASSERT_EQ(run({"tokens", "names.txt", "t", "--tokenizer", "characters"}).exit_code, 0);
  const std::string file = "t/tokens-00001-of-00001.safetensors";
  const std::string says = file + ": tokens: expected ids below 11, as the tokenizer has them, got ";
  for (const auto& [id, shown] : {std::pair(11u, "11"), {~0u, "4294967295"}}) {
    write_tokens(folder / file, std::vector<uint32_t>(64, id), std::vector<int64_t>{0});
    const Outcome outcome =
        run({"train", "--data.path", "t", "--steps", "1", "--time", "8", "--model.vocab_size", "300"});
    EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
    EXPECT_TRUE(contains(outcome.err, says + shown + "\n")) << outcome.err;
  }
}

// Each of these tokenizers cuts at spaces.
TEST_F(Train, ADocumentOfMegabytesHasTheTokensOfTheWhole) {
  std::string text;
  std::mt19937 random(1);
  for (const char* words[] = {"anna", " bob", "\n", ".\n\n", " 12", "\t", " \u00fc", "\u4e16", "\r\n"};
       text.size() < 3'200'000;)
    text += words[random() % std::size(words)];
  write("text.txt", text);
  std::erase_if(text, [](char c) { return c == '\r' || c == '\n'; });
  write("line.txt", text);
  const std::string real = shared_folder() + "/fixtures/tokenizers/";
  Args tokenizers = {"bytes", "characters"};
  if (fs::exists(real)) tokenizers = tokenizers + Args{real + "gpt-2", real + "bert-bge"};
  for (const std::string& tokenizer : tokenizers) {
    const std::string file = (folder / (tokenizer == "characters" ? "line.txt" : "text.txt")).string();
    const Documents documents({.path = file, .tokenizer = tokenizer}, {}, 1, 2);
    std::vector<int32_t> ids;
    int pieces = 0, begin = 0;
    documents.each([&](std::span<const uint32_t> piece, bool begins) {
      ids.insert(ids.end(), piece.begin(), piece.end()), ++pieces, begin += begins;
    });
    EXPECT_GT(pieces, 1);
    EXPECT_EQ(begin, 1);
    const Tokenizer whole = Tokenizer::parse(documents.tokenizer(), "tokenizer.json");
    std::vector<int32_t> expected = whole.encode(contents(file), true);
    if (tokenizer.ends_with("gpt-2")) expected.insert(expected.begin(), *whole.id_of("<|endoftext|>"));
    EXPECT_TRUE(ids == expected) << tokenizer << ": " << ids.size() << " tokens, expected " << expected.size();
  }
}

TEST_F(Train, DocumentsAreOneStreamWithoutMarks) {
  const std::string real = shared_folder() + "/fixtures/tokenizers/";
  if (!fs::exists(real)) GTEST_SKIP() << "needs " << real;
  for (const char* name : {"gpt-2", "bert-bge"}) {
    const auto ids_of = [&](bool marks) {
      std::vector<uint32_t> ids;
      const DataConfig config{
          .path = folder / "names.txt", .tokenizer = real + name, .documents = "lines", .marks = marks};
      Documents(config, {}, 1).each([&](auto piece, bool) { ids.insert(ids.end(), piece.begin(), piece.end()); });
      return ids;
    };
    std::vector<uint32_t> marked = ids_of(true);
    const auto is_mark = [](uint32_t id) { return id == 50256 || id == 101 || id == 102; };  // end of text, CLS, SEP
    EXPECT_EQ(std::erase_if(marked, is_mark), name[0] == 'g' ? 160u : 320u);
    EXPECT_EQ(marked, ids_of(false)) << name;
  }
}

TEST_F(Train, SaysWhereThereIsTooLittleToEvaluateOn) {
  const auto says = [&](const char* share) {
    const Outcome outcome =
        run({"train", "--data.path=names.txt", "--batch=4", "--time=8", "--model.n_layer=1", "--model.n_embd=16",
             "--steps=1", std::string("--out=") + share, std::string("--data.validation=") + share});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return contains(outcome.err, "data.validation: fewer than 4 sequences of 8 tokens, so nothing is evaluated\n");
  };
  EXPECT_TRUE(says("0.01"));
  EXPECT_FALSE(says("0.5"));
  EXPECT_FALSE(says("0"));
}

TEST_F(Train, LinesKeepTheirOrderWhateverTheThreads) {
  const int count = 300'000;
  std::string text;
  for (int i = 0; i < count; ++i) text += "line " + std::to_string(i) + (i % 1000 ? "\n" : "\n\r\n");
  write("text.txt", text);
  std::string expected;
  for (int i = 0; i < count; ++i) expected += "line " + std::to_string(shuffled(uint64_t(i), count, 1)) + "\n";
  for (int threads : {1, 3}) {
    const Documents documents({.path = (folder / "text.txt").string(), .documents = "lines"}, {}, 1, threads);
    std::string all;
    int begin = 0;
    documents.each([&](std::span<const uint32_t> ids, bool begins) {
      all.insert(all.end(), ids.begin(), ids.end()), begin += begins;
    });
    EXPECT_TRUE(all == expected);
    EXPECT_EQ(begin, count);
  }
}

TEST_F(Train, ReadingEndsWhereItIsToldTo) {
  write("text.txt", std::string(20'000'000, 'a'));
  const DataConfig config{.path = (folder / "text.txt").string()};
  std::vector<int64_t> told;
  const auto read = [&](size_t times) {
    told.clear();
    return read_data(config, {}, 1, 1, [&](int64_t bytes, int64_t of) {
      EXPECT_EQ(of, 20'000'000);
      told.push_back(bytes);
      return told.size() < times;
    });
  };
  EXPECT_EQ(error_of([&] { read(1); }), "data: stopped before all of it was tokens");
  EXPECT_EQ(told.size(), 1u);
  EXPECT_LT(told[0], 20'000'000);
  read(100);
  EXPECT_EQ(told.back(), 20'000'000);
}

TEST_F(Train, ATextThatIsNotUtf8IsNamedAndLeavesNothing) {
  for (int i = 0; i < 9; ++i) write("words/" + std::to_string(i) + ".txt", names(20));
  write("words/5.txt", names(20) + "Jos\xe9" + names(20));
  const std::string says = "words/5.txt: expected UTF-8, got byte 233 at " + std::to_string(names(20).size() + 3);
  for (const char* documents : {"files", "lines"})
    expect_refused(
        {"--data.path", "words", "--data.tokenizer", "characters", "--data.documents", documents, "--out", "r"}, says);
  EXPECT_FALSE(fs::exists(folder / "r"));
  InFolder::expect_refused({"tokens", "words", "t", "--tokenizer", "characters"}, says, "dense tokens");
  EXPECT_FALSE(fs::exists(folder / "t"));
}

TEST_F(Train, CtrlCEndsReadingAndLeavesNothing) {
  std::string text(1 << 20, 'a');
  for (size_t i = 9; i < text.size(); i += 10) text[i] = '\n';
  std::ofstream file(folder / "text.txt");
  for (int i = 0; i < 48; ++i) file << text;
  file.close();
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  ASSERT_TRUE(terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0);
  const int other_end = open(ptsname(terminal), O_RDWR | O_NOCTTY | O_CLOEXEC);
  Process process(
      folder, {"train", "--data.path", "text.txt", "--data.tokenizer", "characters", "--threads", "1", "--out", "r"},
      {.err_fd = other_end});
  close(other_end);
  std::string shown;
  char block[4096];
  bool sent = false;
  for (ssize_t count; (count = read(terminal, block, sizeof block)) > 0;) {  // until the program closes the other end
    shown.append(block, size_t(count));
    if (!sent && contains(shown, " of 48 MB of text")) process.send(SIGINT), sent = true;
  }
  close(terminal);
  EXPECT_EQ(process.wait(), 130);
  EXPECT_TRUE(shown.ends_with("\r\x1b[Kdense train: data: stopped before all of it was tokens\r\n")) << shown;
  EXPECT_FALSE(fs::exists(folder / "r"));
}

TEST_F(Train, LinesAreDocumentsInAnotherOrder) {
  ASSERT_EQ(run({"tokens", "names.txt", "t", "--documents", "lines"}).exit_code, 0);
  const StoredTensors stored = read_safetensors(folder / "t/tokens-00001-of-00001.safetensors");
  const std::vector<int32_t> ids = [&] {
    const auto bytes = stored.at("tokens").bytes;
    const std::span narrow(reinterpret_cast<const uint16_t*>(bytes.data()), bytes.size() / 2);
    return std::vector<int32_t>(narrow.begin(), narrow.end());
  }();
  const std::string text(ids.begin(), ids.end());
  Args shuffled_lines = lines(text), sorted_lines = shuffled_lines, before = lines(names(40));
  EXPECT_NE(shuffled_lines, before);
  std::ranges::sort(sorted_lines), std::ranges::sort(before);
  EXPECT_EQ(sorted_lines, before);
  EXPECT_EQ(stored.at("documents").shape, Shape{160});
  EXPECT_EQ(stored.at("tokens").shape, Shape{int64_t(names(40).size())});
}

// ---- records

std::string source_of(const std::string& model_type) {
  std::string file = model_type + ".h";
  std::ranges::replace(file, '-', '_');
  return contents(fs::path(DENSE_SOURCE_DIR) / "models" / file);
}

TEST_F(Train, ARunKeepsTheSourceOfItsPage) {
  for (const Page& page : cli::pages()) EXPECT_TRUE(page.source == source_of(page.model_type)) << page.model_type;
  ASSERT_EQ(train({"--steps", "1", "--out", "r", "--model_type", "gpt2"}).exit_code, 0);
  EXPECT_EQ(contents(folder / "r/page.h"), source_of("gpt2"));
  EXPECT_FALSE(contains(run({"train", "--resume", "r", "--steps", "2"}).err, "page.h"));

  write("r/page.h", "another page");
  const Outcome outcome = run({"train", "--resume", "r", "--steps", "3"});
  EXPECT_TRUE(contains(outcome.err, "r: page.h: the page has changed since")) << outcome.err;
  EXPECT_EQ(contents(folder / "r/page.h"), source_of("gpt2"));

  Page own = cli::page_of("gpt2");  // as a program of somebody's own has it
  set_fields(folder / "r/model/config.json", own.fields, own.inert, {});
  own.source = {};
  TrainConfig config;
  config.out = folder / "r", config.time = 8, config.data.path = folder / "names.txt";
  Trainer(own, config, {}, true);
  EXPECT_FALSE(fs::exists(folder / "r/page.h")) << "it is another page's";
}

TEST_F(Train, SourcesThatAreNotUtf8AreRecorded) {
  if (std::system("command -v git >/dev/null") != 0) GTEST_SKIP() << "git is not installed";
  write("source.txt", "cafe\n");
  const std::string in = "cd " + folder.string() + " && git init -q . 2>/dev/null && git add source.txt && ";
  ASSERT_EQ(std::system((in + "git -c user.name=a -c user.email=a@b commit -qm first").c_str()), 0);
  write("source.txt", "caf\xe9\n");
  ASSERT_EQ(train({"--steps", "1", "--out", "r"}).exit_code, 0);
  const json run = json::parse(contents(folder / "r/run.json"));
  EXPECT_TRUE(contains(run["git_changes"], "+caf\ufffd")) << run;
}

uint32_t crc32c(const std::string& data) {
  uint32_t crc = 0xffffffff;
  for (char c : data) {
    crc ^= uint8_t(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
  }
  crc = ~crc;
  return (crc >> 15 | crc << 17) + 0xa282ead8;
}

TEST_F(Train, TensorBoardFindsTheSameNumbers) {
  EXPECT_EQ(crc32c(std::string("\x18\0\0\0\0\0\0\0", 8)), 0x224b7fa3u);  // of TensorBoard's own tests
  ASSERT_EQ(train({"--steps", "5", "--out", "r"}).exit_code, 0);
  fs::path file;
  for (const auto& entry : fs::directory_iterator(folder / "r"))
    if (contains(entry.path().filename().string(), "tfevents")) file = entry.path();
  const std::string bytes = contents(file);
  std::vector<std::string> records;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t length = 0;
    uint32_t of_length = 0, of_data = 0;
    std::memcpy(&length, bytes.data() + at, 8);
    std::memcpy(&of_length, bytes.data() + at + 8, 4);
    ASSERT_LE(at + 16 + length, bytes.size());
    EXPECT_EQ(of_length, crc32c(bytes.substr(at, 8)));
    records.push_back(bytes.substr(at + 12, length));
    std::memcpy(&of_data, bytes.data() + at + 12 + length, 4);
    EXPECT_EQ(of_data, crc32c(records.back()));
    at += 16 + length;
  }
  ASSERT_GE(records.size(), 6u);
  EXPECT_TRUE(contains(records[0], "brain.Event:2"));
  const json metrics = lines_of("r/metrics.jsonl");
  for (size_t i = 0; i < 5; ++i) {  // "loss", then its value as a float
    const size_t name = records[i + 1].find("loss");
    ASSERT_NE(name, std::string::npos);
    float value = 0;
    ASSERT_EQ(records[i + 1][name + 4], '\x15');
    std::memcpy(&value, records[i + 1].data() + name + 5, 4);
    EXPECT_EQ(value, float(metrics[i]["loss"]));
    EXPECT_EQ(records[i + 1][10], char(i + 1));  // the step
  }
}

}  // namespace
