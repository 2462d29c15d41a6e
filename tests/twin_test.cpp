// dense twin: models on the same batches, and when they differ.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "cli/pages.h"
#include "dense/train/differences.h"
#include "dense/train/twins.h"
#include "tests/errors.h"
#include "tests/process.h"

namespace {

using namespace std::chrono_literals;
using namespace dense;
using nlohmann::json;

// ---- the band, on made up losses

// A curve that goes down to 1, with noise of each batch that twins share but for a little.
std::vector<double> losses(unsigned seed, size_t steps, double higher = 0) {
  std::mt19937 batches(7), own(seed);
  std::normal_distribution<double> shared(0, 0.05), rest(0, 0.02);
  std::vector<double> all;
  for (size_t t = 0; t < steps; ++t)
    all.push_back(1 + higher + std::exp(-double(t) / 20) + shared(batches) + rest(own));
  return all;
}

TEST(Differences, OfEqualLossesAreNone) {
  const std::vector<double> a = losses(1, 300);
  const Differences d = differences(a, a);
  ASSERT_EQ(d.steps.size(), 300u - 300 / 8 + 1);
  EXPECT_EQ(d.steps.front(), 300 / 8);
  EXPECT_EQ(d.steps.back(), 300);
  for (size_t i = 0; i < d.steps.size(); ++i) {
    EXPECT_EQ(d.difference[i], 0);
    EXPECT_EQ(d.low[i], 0);
    EXPECT_EQ(d.high[i], 0);
  }
  EXPECT_FALSE(d.settled);
}

TEST(Differences, TheBandHoldsTheTruthNineteenTimesInTwenty) {
  int held = 0;
  for (unsigned seed = 0; seed < 400; ++seed) {
    const Differences d = differences(losses(2 * seed, 64), losses(2 * seed + 1, 64, 0.01));
    held += d.low.back() < 0.01 && 0.01 < d.high.back();
  }
  EXPECT_GT(held, 400 * 0.90);
  EXPECT_LT(held, 400 * 0.985);  // no wider than it must be
}

TEST(Differences, AreFoundOnceTheyAreThereToStay) {
  const size_t steps = 800, from = 300;
  std::vector<double> a = losses(1, steps), worse = losses(2, steps, 0.05), b = losses(2, steps);
  std::copy(worse.begin() + from, worse.end(), b.begin() + from);
  const Differences d = differences(a, b);
  ASSERT_TRUE(d.settled);
  EXPECT_GT(*d.settled, int64_t(from));
  EXPECT_LT(*d.settled, int64_t(from + steps / 8));
  EXPECT_EQ(differences(b, a).settled, d.settled);
  EXPECT_EQ(differences(b, a).difference.back(), -d.difference.back());
  std::copy(a.end() - 120, a.end(), b.end() - 120);  // equal again: not to the end
  EXPECT_FALSE(differences(a, b).settled);
}

TEST(Differences, WhatAFewMoreStepsWouldMakeUpForIsLuck) {
  const auto curve = [](double speed) {
    std::vector<double> losses;
    for (int t = 0; t < 400; ++t) losses.push_back(3 * std::exp(-speed * t / 200) + 0.01 * std::sin(t * t));
    return losses;
  };
  const Differences near = differences(curve(1), curve(0.9)), far = differences(curve(1), curve(0.6));
  EXPECT_GT(near.low.back(), 0);  // they do differ
  EXPECT_FALSE(near.settled);
  EXPECT_TRUE(far.settled);
  EXPECT_FALSE(differences(curve(1), curve(0.6), false).settled);  // other batches: more luck
  EXPECT_TRUE(differences(curve(1), curve(0.4), false).settled);
}

TEST(Differences, OfLongRunsArePointsInTheThousands) {
  std::vector<double> a = losses(1, 100'000), b = losses(2, 100'000, 0.01);
  const Differences d = differences(a, b);
  EXPECT_GT(d.steps.size(), 900u);
  EXPECT_LE(d.steps.size(), 2000u);
  EXPECT_EQ(d.steps.back() % 64, 0);
  EXPECT_NEAR(d.difference.back(), 0.01, 0.001);
  EXPECT_TRUE(d.settled);
  EXPECT_TRUE(differences(std::span(a).first(3), b).steps.empty());
}

// ---- models

class Twin : public InFolder {
 protected:
  void SetUp() override {
    std::string names;
    for (int i = 0; i < 40; ++i) names += "anna\nbob\ncarol\ndave\n";
    write("names.txt", names);
  }
  json config(const json& change = json::object()) {
    json all = {{"data", {{"path", "names.txt"}}},
                {"batch", 4},
                {"time", 8},
                {"steps", 40},
                {"threads", 1},
                {"evaluate", {{"every", 0}}},
                {"optimizer", {{"lr", 0.01}}},
                {"save", {{"every", 0}}},
                {"model", {{"n_layer", 1}, {"n_embd", 16}}}};
    all.merge_patch(change);
    return all;
  }
  std::string weights(const std::string& run) {
    const std::string bytes = contents(folder / run / "model/model.safetensors");
    EXPECT_FALSE(bytes.empty()) << run;
    return bytes;
  }
  json pairs(const std::string& twins) { return json::parse(contents(folder / twins / "differences.json"))["pairs"]; }
  void expect_refused(const Args& args, const std::string& says) {
    InFolder::expect_refused(Args{"twin"} + args, says, "dense twin");
  }
};

TEST_F(Twin, EachHasTheBitsOfARunOfItsOwn) {
  write("a.json", config({{"parts", 2}}).dump());
  write("same.json", config({{"parts", 2}, {"seed", 5}}).dump());  // the first one's seed is that of all
  write("deep.json", config({{"parts", 2}, {"model", {{"n_layer", 2}}}, {"precision", "bf16"}}).dump());
  write("llama.json",
        config({{"parts", 2}, {"model_type", "llama"}, {"model", nullptr}, {"optimizer", {{"lr", 0.001}}}}).dump());
  const Outcome outcome = run({"twin", "a.json", "same.json", "deep.json", "llama.json", "--out", "t"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  for (const char* name : {"a", "deep", "llama"}) {
    ASSERT_EQ(run({"train", "--config", std::string(name) + ".json", "--out", name}).exit_code, 0);
    EXPECT_TRUE(weights(name) == weights(std::string("t/") + name)) << name;
  }
  EXPECT_TRUE(weights("t/a") == weights("t/same"));
  const json all = pairs("t");
  ASSERT_EQ(all.size(), 6u);
  EXPECT_EQ(all[0]["a"], "a");
  EXPECT_EQ(all[0]["b"], "same");
  EXPECT_EQ(all[0]["settled"], nullptr);
  for (const json& difference : all[0]["difference"]) EXPECT_EQ(difference, 0);
  for (const json& pair : all)
    for (const char* list : {"difference", "low", "high"}) EXPECT_EQ(pair[list].size(), pair["steps"].size());
  // Their records, side by side: what is written are the means of these.
  const auto losses = [&](const char* run) {
    std::vector<double> found;
    for (const std::string& line : lines(contents(folder / "t" / run / "metrics.jsonl")))
      if (json::parse(line).contains("loss")) found.push_back(json::parse(line)["loss"].get<float>());
    return found;
  };
  const std::vector<double> a = losses("a"), deep = losses("deep");
  double sum = 0;
  for (size_t t = 24; t < 40; ++t) sum += deep[t] - a[t];
  EXPECT_EQ(all[1]["b"], "deep");
  EXPECT_NEAR(double(all[1]["difference"].back()), sum / 16, 1e-9);
}

TEST_F(Twin, ParametersOfEqualNameAndShapeBeginEqual) {
  const auto twin = [&](const char* name, const char* type, int layers, double range) {
    Twins::Twin made{name, cli::page_of(type), {}};
    make_small(made.page);
    for (const ConfigField& field : made.page.fields) {
      if (field.name == "n_layer") *std::get<int*>(field.value) = layers;
      if (field.name == "initializer_range") *std::get<double*>(field.value) = range;
    }
    made.config.data.path = folder / "names.txt";
    made.config.time = 8, made.config.threads = 1, made.config.seed = 3 * layers;
    return made;
  };
  Twins twins({twin("a", "gpt2", 2, 0.02), twin("b", "gpt2", 3, 0.02), twin("c", "gpt2", 2, 0.04)}, folder / "t", "");
  const auto value = [&](size_t i, const std::string& name, size_t element) {
    return reinterpret_cast<const float*>(twins.trainer(i).model().parameters().all().at(name).memory.data)[element];
  };
  for (const Parameter* p : twins.trainer(0).model().parameters().declared()) {
    // The page scales what is added to the stream by the number of blocks: the same numbers, scaled as it says.
    const bool scaled = p->name.ends_with("c_proj.weight"), drawn = p->init.deviation > 0;
    for (size_t i : {0, 1, 100}) {
      if (int64_t(i) >= count_of(p->shape)) continue;
      const float expected = value(0, p->name, i);
      EXPECT_FLOAT_EQ(value(1, p->name, i), scaled ? expected * std::sqrt(2.f / 3) : expected) << p->name;
      EXPECT_FLOAT_EQ(value(2, p->name, i), drawn ? expected * 2 : expected) << p->name;
    }
  }
}

TEST_F(Twin, AreKilledAnywhereAndGoOnWithTheSameBits) {
  for (const char* name : {"a", "b"})
    write(std::string(name) + ".json", config({{"steps", 60},
                                               {"save", {{"every", name[0] == 'a' ? 3 : 4}}},
                                               {"optimizer", {{"lr", name[0] == 'a' ? 0.01 : 0.003}}}})
                                           .dump());
  ASSERT_EQ(run({"twin", "a.json", "b.json", "--out", "whole"}).exit_code, 0);
  std::mt19937 random(1);
  Args next = {"twin", "a.json", "b.json", "--out", "t"};
  for (int kills = 0; kills < 6; ++kills) {
    Process process(folder, next);
    if (kills == 0)
      while (!fs::exists(folder / "t/differences.json")) std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(std::chrono::microseconds(10'000 + random() % 80'000));
    process.send(SIGKILL);
    process.wait();
    next = {"twin", "--resume", "t"};
  }
  const Outcome last = run(next);
  ASSERT_EQ(last.exit_code, 0) << last.err;
  for (const char* name : {"a", "b"})
    EXPECT_TRUE(weights(std::string("whole/") + name) == weights(std::string("t/") + name));
  EXPECT_EQ(contents(folder / "whole/differences.json"), contents(folder / "t/differences.json"));
}

TEST_F(Twin, ASignalSavesAll) {
  for (const char* name : {"a", "b"})
    write(std::string(name) + "/config.json", config({{"steps", 2'000'000'000}}).dump());
  Process process(folder, {"twin", "a", "b/config.json", "--out", "t"});
  while (contents(folder / "t/b/metrics.jsonl").empty()) std::this_thread::sleep_for(1ms);
  process.send(SIGINT);
  ASSERT_EQ(process.wait(), 128 + SIGINT) << process.err();
  EXPECT_TRUE(weights("t/a") == weights("t/b"));
  for (const char* name : {"a", "b"})
    EXPECT_EQ(json::parse(contents(folder / "t" / name / "run.json"))["status"], "stopped");
}

TEST_F(Twin, GoOnWhereTheirDifferencesCannotBeWritten) {
  write("a.json", config({{"steps", 2'000'000'000}}).dump());
  write("b.json", config({{"steps", 2'000'000'000}}).dump());
  Process process(folder, {"twin", "a.json", "b.json", "--out", "t"});
  while (contents(folder / "t/b/metrics.jsonl").empty()) std::this_thread::sleep_for(1ms);
  fs::remove(folder / "t/differences.json");
  write("t/differences.json/is/a", "folder");
  process.send(SIGTERM);
  EXPECT_EQ(process.wait(), 128 + SIGTERM) << process.err();
  EXPECT_TRUE(contains(process.err(), "t/differences.json: ")) << process.err();
  EXPECT_TRUE(weights("t/a") == weights("t/b"));
}

// Luck is rarely taken for a difference; tools/false_alarms.py has the rates.
TEST_F(Twin, ThatLuckAlonePartsAreNotToldApart) {
  Args files;
  for (int i = 0; i < 5; ++i)
    for (const bool other_order : {true, false}) {
      json one = config({{"steps", 500}, {"time", 16}, {"data", {{"path", DENSE_SOURCE_DIR "/LICENSE"}}}});
      if (other_order) one["data"]["seed"] = i;
      else one["optimizer"]["lr"] = 0.01 + 1e-6 * i;
      files.push_back((other_order ? "order" : "rate") + std::to_string(i) + ".json");
      write(files.back(), one.dump());
    }
  const Outcome outcome = run(Args{"twin"} + files + Args{"--out", "t"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_FALSE(weights("t/order1") == weights("t/order2"));
  int settled = 0, banded = 0;
  for (const json& pair : pairs("t")) {
    if (pair["a"].get<std::string>()[0] != pair["b"].get<std::string>()[0]) continue;
    settled += pair["settled"] != nullptr;
    banded += pair["low"].back() > 0 || pair["high"].back() < 0;
  }
  EXPECT_LE(settled, 1) << "of 20 pairs";
  EXPECT_GE(banded, 4) << "of 20 pairs: luck was never in the way";
}

TEST_F(Twin, ThatLearnFasterAreToldApartSoon) {
  write("fast.json", config({{"optimizer", {{"lr", 1e-3}}}}).dump());
  write("slow.json", config({{"optimizer", {{"lr", 1e-5}}}}).dump());
  const Outcome outcome = run({"twin", "fast.json", "slow.json", "--steps", "200", "--out", "t"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json pair = pairs("t")[0];
  ASSERT_TRUE(pair["settled"].is_number()) << pair;
  EXPECT_LE(pair["settled"], 50);
  EXPECT_GT(pair["low"].back(), 0.5);
  EXPECT_TRUE(contains(outcome.err, "slow - fast: +")) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "settled from step ")) << outcome.err;
}

TEST_F(Twin, RefusesTwinsWithoutTheSameBatches) {
  write("a.json", config().dump());
  const std::pair<json, std::string> cases[] = {
      {{{"batch", 5}}, "b: batch: expected 4 as in a, since twins have the same batches, got 5"},
      {{{"time", 9}}, "b: time: expected 8"},
      {{{"parts", 2}}, "b: parts: expected 1"},
      {{{"data", {{"path", "none.txt"}}}}, "b: data.path: expected names.txt"},
      {{{"data", {{"tokenizer", "characters"}}}}, "b: data.tokenizer: expected bytes as in a"},
      {{{"data", {{"documents", "lines"}}}}, "b: data.documents: expected files"},
      {{{"data", {{"validation", 0.5}}}}, "b: data.validation: expected 0.05"},
      {{{"model_type", "bert"}, {"model", nullptr}},
       "b: model_type: expected one that predicts the next token as in a"},
      {{{"optimiser", 1}}, "b.json: ignored, being unknown here: optimiser"},
      {{{"model", {{"n_head", 3}}}}, "gpt2: n_head: expected a divisor of n_embd = 16, got 3"},
  };
  for (const auto& [change, says] : cases) {
    write("b.json", config(change).dump());
    expect_refused({"a.json", "b.json", "--out", "t"}, says);
  }
  expect_refused({"a.json", "--out", "t"}, "twins: expected two or more");
  expect_refused({"a.json", "a.json", "--out", "t"}, "twins: a: expected another name");
  expect_refused({"--out", "t"}, "expected A.json B.json ...");
  expect_refused({"a.json", "b.json"}, "expected --out");
  expect_refused({"--resume", "t"}, "t/differences.json: cannot open");
  write("b.json", config().dump());
  ASSERT_EQ(run({"twin", "a.json", "b.json", "--out", "t", "--steps", "1", "--sample.prompt", "it's an"}).exit_code, 0);
  EXPECT_EQ(json::parse(contents(folder / "t/a/run.json"))["command"],
            R"(dense twin a.json b.json --out t --steps 1 --sample.prompt 'it'\''s an')");
  expect_refused({"a.json", "b.json", "--out", "t"}, "t: holds twins already; resume them, or choose another folder");
}

}  // namespace
