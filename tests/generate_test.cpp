// Generation: the tokens that Hugging Face's models choose, and rows that do not depend on their company.
#include "dense/train/generate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "cli/pages.h"
#include "tests/arrays.h"
#include "tests/errors.h"
#include "tests/temporary.h"

namespace {

using namespace dense;
using Ids = std::vector<int32_t>;

const std::filesystem::path fixtures = std::filesystem::path(shared_folder()) / "fixtures/hf";

Page page_with(const std::string& type, const std::map<std::string, int>& values) {
  Page page = cli::page_of(type);
  for (ConfigField& field : page.fields)
    if (values.contains(field.name)) {
      if (auto* const number = std::get_if<int*>(&field.value)) **number = values.at(field.name);
      if (auto* const maybe = std::get_if<std::optional<int>*>(&field.value)) **maybe = values.at(field.name);
    }
  return page;
}

Page small_gpt2() {
  return page_with("gpt2", {{"vocab_size", 100}, {"n_positions", 200}, {"n_embd", 48}, {"n_layer", 2}, {"n_head", 3}});
}

Page small_t5() {
  return page_with("t5", {{"vocab_size", 100},
                          {"d_model", 48},
                          {"d_kv", 12},
                          {"d_ff", 64},
                          {"num_layers", 2},
                          {"num_decoder_layers", 3},
                          {"num_heads", 3},
                          {"relative_attention_num_buckets", 8},
                          {"decoder_start_token_id", 7},
                          {"relative_attention_max_distance", 20}});
}

Page small_mixtral() {
  return page_with("mixtral", {{"vocab_size", 100},
                               {"hidden_size", 48},
                               {"intermediate_size", 64},
                               {"num_hidden_layers", 2},
                               {"num_attention_heads", 6},
                               {"num_key_value_heads", 2},
                               {"num_local_experts", 5},
                               {"max_position_embeddings", 200}});
}

Ids random_ids(size_t n, unsigned seed, int32_t vocabulary = 100) {
  std::mt19937 random(seed);
  Ids ids(n);
  for (int32_t& id : ids) id = int32_t(random() % unsigned(vocabulary));
  return ids;
}

void expect_error(const auto& call, const std::string& part) {
  const std::string error = error_of(call);
  EXPECT_NE(error.find(part), std::string::npos) << error;
}

TEST(Generate, ContinuesAsHuggingFaceDoes) {
  if (!std::filesystem::exists(fixtures)) GTEST_SKIP() << "no ../shared";
  int compared = 0;
  for (const auto& folder : std::filesystem::directory_iterator(fixtures)) {
    const auto known = cli::pages();
    const std::string type = model_type(folder.path());
    const auto page = std::ranges::find(known, type, &Page::model_type);
    if (page == known.end() || !page->generates()) continue;
    std::ifstream file(folder.path() / "expected.json");
    const auto expected = nlohmann::json::parse(file);
    Model model(*page, folder.path());
    std::vector<Ids> prompts, want;
    for (const auto& row : expected["greedy"]) {
      prompts.push_back(row["prompt_ids"].get<Ids>());
      want.push_back(row["generated_ids"].get<Ids>());
    }
    EXPECT_EQ(generate(model, prompts, {.tokens = 24}).ids, want) << folder.path();
    for (size_t row = 0; row < prompts.size(); ++row)
      EXPECT_EQ(generate(model, {&prompts[row], 1}, {.tokens = 24}).ids[0], want[row]) << folder.path();
    ++compared;
  }
  EXPECT_GE(compared, 15);
}

// The logits of the last token, by running the model on all of them at once.
std::vector<float> whole(Model& model, const Ids& ids) {
  const auto logits = model.run({1, int64_t(ids.size()), ids}, false).at("logits");
  const auto vocabulary = std::ptrdiff_t(logits.shape.back());
  return {logits.values.end() - vocabulary, logits.values.end()};
}

void expect_close(std::span<const float> got, std::span<const float> want, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << what << " " << i;
}

TEST(Generate, RowsHaveTheSameBitsAloneAndAmongOthersAndWithAnyThreads) {
  for (const auto& [page, type] : {std::pair(small_gpt2(), Dtype::f32),
                                   {small_gpt2(), Dtype::bf16},
                                   {small_gpt2(), Dtype::q8},
                                   {small_gpt2(), Dtype::q4},
                                   {small_mixtral(), Dtype::f32},
                                   {small_mixtral(), Dtype::bf16},
                                   {small_mixtral(), Dtype::q8},
                                   {small_mixtral(), Dtype::q4},
                                   {small_t5(), Dtype::f32},
                                   {small_t5(), Dtype::q8}}) {
    Model model(page, 2, 3), alone(page, 1, 3);
    model.convert(type);
    alone.convert(type);
    const std::vector<Ids> prompts{random_ids(1, 1), random_ids(70, 2), random_ids(50, 3), random_ids(140, 4)};
    const std::vector<std::span<const int32_t>> all(prompts.begin(), prompts.end());
    Generator together(model, 4, 200);
    together.prefill(all);
    std::vector<Ids> steps;
    for (unsigned i = 0; i < 5; ++i) steps.push_back(random_ids(4, 10 + i));
    std::vector<std::vector<std::vector<float>>> logits(4);  // of each row, after each step
    const auto keep = [&](const Generator& g) {
      for (size_t row = 0; row < 4; ++row)
        logits[row].emplace_back(g.logits(int64_t(row)).begin(), g.logits(int64_t(row)).end());
    };
    keep(together);
    for (const Ids& step : steps) together.step(step), keep(together);
    for (size_t row = 0; row < 4; ++row) {
      Generator one(alone, 1, 180);
      one.prefill({&all[row], 1});
      for (size_t i = 0; i <= steps.size(); ++i) {
        if (i > 0) one.step({&steps[i - 1][row], 1});
        EXPECT_TRUE(std::ranges::equal(one.logits(0), logits[row][i]))
            << page.model_type << " " << name(type) << " row " << row << " step " << i;
      }
    }
  }
}

// The logits after an answer's last token, by running the model on all of it at once.
std::vector<float> whole_answer(Model& model, const Ids& text, const Ids& answer) {
  Model::Inputs inputs{1, int64_t(text.size()), text};
  inputs.decoder_ids = answer;
  const auto logits = model.run(inputs, false).at("logits");
  return {logits.values.end() - 100, logits.values.end()};
}

TEST(Generate, StepsOfAnEncoderDecoderGiveTheLogitsOfItsWholeAnswer) {
  Model model(small_t5(), 2, 3);
  Generator generator(model, 1, 600);
  expect_error([&] { generator.step(Ids{1}); }, "step: expected a text before, from prefill");
  for (const size_t length : {37, 1, 37, 70}) {
    const Ids text = random_ids(length, unsigned(length));
    Ids answer{7};
    generator.forget();
    generator.prefill(std::vector<std::span<const int32_t>>{text});
    double largest = 0;
    for (const int32_t id : random_ids(599, 2)) {
      const size_t n = answer.size();
      if (n < 30 || (255 <= n && n <= 258) || n == 513 || n == 599) {  // there is more room from 257 and 513 on
        const std::vector<float> want = whole_answer(model, text, answer);
        for (float x : want) largest = std::max(largest, std::abs(double(x)));
        expect_close(generator.logits(0), want, 1e-5 * largest, std::to_string(n) + " tokens");
      }
      answer.push_back(id);
      generator.step({&id, 1});
    }
    EXPECT_GT(largest, 1);
    expect_error([&] { generator.prefill(std::vector<std::span<const int32_t>>{text}); },
                 "prefill: expected no tokens before, since t5 sees a text at once");
    expect_error([&] { generator.step(Ids{1}); }, "expected at most 600 tokens");
  }
}

// No context ends an answer: memory does, and float32, which has the distances between tokens.
TEST(Generate, AnswersThatNoMemoryHoldsAreRefused) {
  Model model(small_t5(), 2, 3);
  const std::vector<Ids> prompts{random_ids(5, 1)};
  expect_error([&] { generate(model, prompts, {.tokens = INT64_MAX}); }, "tokens: expected at most 16777216, whose");
  EXPECT_EQ(generate(model, prompts, {.tokens = 3}).ids[0].size(), 3u);
}

TEST(Generate, TheRoomForAnAnswerChangesNoBit) {
  Model model(small_t5(), 2, 3);
  const std::vector<Ids> texts{random_ids(9, 1), random_ids(20, 2)};
  const std::vector<std::span<const int32_t>> all(texts.begin(), texts.end());
  Generator both(model, 2, 600), wide(model, 1, 281), narrow(model, 1, 63);  // the first two have more from 257 on
  both.prefill(all), wide.prefill({&all[1], 1}), narrow.prefill({&all[1], 1});
  const Ids steps = random_ids(280, 3);
  for (size_t i = 0; i < steps.size(); ++i) {
    ASSERT_TRUE(std::ranges::equal(both.logits(1), wide.logits(0))) << i;
    both.step(Ids{1, steps[i]}), wide.step({&steps[i], 1});
    if (i >= 62) continue;
    narrow.step({&steps[i], 1});
    ASSERT_TRUE(std::ranges::equal(narrow.logits(0), wide.logits(0))) << i;
  }
}

TEST(Generate, QuantisedLogitsAreNear) {
  Model exact(small_gpt2(), 2, 3);
  const Ids ids = random_ids(50, 1);
  const std::vector<float> want = whole(exact, ids);
  double spread = 0;
  for (float x : want) spread = std::max(spread, std::abs(double(x)));
  for (const auto& [type, share] : {std::pair(Dtype::bf16, 0.02), {Dtype::q8, 0.03}, {Dtype::q4, 0.3}}) {
    Model model(small_gpt2(), 2, 3);
    model.convert(type);
    expect_close(whole(model, ids), want, share * spread, name(type));
    EXPECT_NE(whole(model, ids), want) << name(type);
  }
}

// Its experts, too: a router that is almost undecided may choose another one, and so the tail is longer.
TEST(Generate, QuantisedExpertsGiveNearLogits) {
  Model exact(small_mixtral(), 2, 3);
  const Ids ids = random_ids(50, 1);
  const std::vector<float> want = whole(exact, ids);
  double size = 0;
  for (float x : want) size += double(x) * double(x);
  for (const auto& [type, share] : {std::pair(Dtype::bf16, 0.02), {Dtype::q8, 0.05}, {Dtype::q4, 0.5}}) {
    Model model(small_mixtral(), 2, 3);
    model.convert(type);
    for (const char* matrix : {"w1", "w2", "w3"})
      EXPECT_EQ(
          model.parameters().all().at(text("model.layers.1.block_sparse_moe.experts.4.", matrix, ".weight")).dtype,
          type);
    const std::vector<float> got = whole(model, ids);
    double error = 0;
    for (size_t i = 0; i < want.size(); ++i) error += std::pow(double(got[i]) - double(want[i]), 2);
    EXPECT_LT(std::sqrt(error / size), share) << name(type);
    EXPECT_GT(error, 0) << name(type);
  }
}

TEST(Generate, QuantisedModelsAreSavedAndReadBack) {
  for (int turn = 0; turn < 4; ++turn) {
    const Dtype type = turn / 2 ? Dtype::q8 : Dtype::q4;
    Model model(turn % 2 ? small_mixtral() : small_gpt2(), 2, 3);
    model.convert(type);
    const TemporaryFolder folder;
    model.save(folder.path());
    Model again(cli::page_of(model.page().model_type), folder.path());
    const Ids ids = random_ids(20, 1);
    EXPECT_EQ(whole(again, ids), whole(model, ids));
    expect_error([&] { again.step({1, 20, ids, ids}, {}); }, "expected weights that are not quantised");
    expect_error([&] { again.run({1, 20, ids, ids}, true); }, "expected weights that are not quantised");
  }
}

TEST(Generate, QuantisedWeightsAreMultipliedWholeAlone) {
  Model model(small_gpt2(), 2, 3);
  model.convert(Dtype::q8);
  const Parameter& p = model.parameters().all().at("transformer.h.0.mlp.c_fc.weight");  // (48, 192)
  Graph graph;
  const Tensor w = graph.parameter(p.name, p.shape, p.dtype, p.memory), x = graph.input({1, 48});
  EXPECT_EQ(matmul(x, w).shape(), (Shape{1, 192}));
  expect_error([&] { matmul(x, slice(w, 1, 0, 96)); }, "c_fc.weight (48, 96): expected all of int8 weights (48, 192)");
}

TEST(Generate, QuantisedWeightsMayLieAnywhereInAFile) {
  for (int positions : {60, 61, 62, 63}) {  // of 12 floats each, before the quantised weights
    Model model(page_with(
        "gpt2", {{"vocab_size", 100}, {"n_positions", positions}, {"n_embd", 12}, {"n_layer", 1}, {"n_head", 2}}));
    model.convert(Dtype::q8);
    const TemporaryFolder folder;
    model.save(folder.path());
    Model again(cli::page_of("gpt2"), folder.path());
    const Ids ids = random_ids(20, 1);
    EXPECT_EQ(whole(again, ids), whole(model, ids));
  }
}

TEST(Generate, ARowThatRestsStaysAsItIs) {
  Model model(small_gpt2(), 2, 3);
  const std::vector<Ids> prompts{random_ids(3, 1), random_ids(5, 2)};
  Generator generator(model, 2, 8);
  generator.prefill(std::vector<std::span<const int32_t>>(prompts.begin(), prompts.end()));
  generator.step(Ids{1, 2}), generator.step(Ids{3, 4}), generator.step(Ids{5, 6});  // the second is full
  expect_error([&] { generator.step(Ids{1, 1}); }, "expected at most 8 tokens");
  const std::vector<float> before(generator.logits(1).begin(), generator.logits(1).end());
  generator.step(Ids{7, -1});
  EXPECT_TRUE(std::ranges::equal(generator.logits(1), before));
  Ids first = prompts[0];
  first.insert(first.end(), {1, 3, 5, 7});
  expect_close(generator.logits(0), whole(model, first), 2e-5, "first row");
}

TEST(Generate, EndsAtStopsAtTheContextAndWhenAsked) {
  Model model(small_gpt2(), 2, 3);
  const std::vector<Ids> prompts{random_ids(195, 1), random_ids(10, 2)};
  Generated all = generate(model, prompts, {.tokens = 20});
  EXPECT_EQ(all.ids[0].size(), 5u);  // 200 in all
  EXPECT_EQ(all.ids[1].size(), 20u);
  const int32_t stop = all.ids[1][7];
  const auto first = std::ranges::find(all.ids[1], stop) - all.ids[1].begin();
  all = generate(model, {&prompts[1], 1}, {.tokens = 20, .stops = {stop}});
  EXPECT_EQ(all.ids[0].size(), size_t(first) + 1);
  int calls = 0;
  all = generate(model, prompts, {.tokens = 20}, [&](int64_t, int32_t) { return ++calls < 6; });
  EXPECT_EQ(calls, 6);
  EXPECT_EQ(generate(model, {&prompts[0], 1}, {.tokens = INT64_MAX}).ids[0].size(), 5u);
  EXPECT_EQ(generate(model, {&prompts[0], 1}, {.tokens = 0}).ids, std::vector<Ids>(1));
  expect_error([&] { generate(model, {&prompts[0], 1}, {.tokens = -1}); }, "expected 0 tokens or more, got -1");
  expect_error([&] { Generator(model, 1, 201); }, "expected rows of at most the model's 200 tokens, got 201");
  expect_error([&] { generate(model, std::vector<Ids>{random_ids(200, 1)}, {}); },
               "expected fewer than the 200 tokens");
  expect_error([&] { generate(model, std::vector<Ids>{{}}, {}); }, "expected one token or more");
  expect_error([&] { generate(model, std::vector<Ids>{{100}}, {}); }, "expected ids of 0 to 99");
}

// ---- sampling

std::vector<int> counts(const Sampling& s, std::span<const float> logits, int n) {
  std::vector<int> found(logits.size());
  for (int i = 0; i < n; ++i) ++found[size_t(sample(logits, s, {}, uint64_t(i)))];
  return found;
}

TEST(Sample, FollowsTheProbabilities) {
  const std::vector<float> logits{0, std::log(2.0f), std::log(5.0f)};
  const std::vector<int> found = counts({.temperature = 1}, logits, 80'000);
  EXPECT_NEAR(found[0], 10'000, 400);
  EXPECT_NEAR(found[1], 20'000, 500);
  EXPECT_NEAR(found[2], 50'000, 600);
  const std::vector<int> cold = counts({.temperature = 0.5}, logits, 30'000);  // 1 : 4 : 25
  EXPECT_NEAR(cold[0], 1000, 150);
  EXPECT_NEAR(cold[1], 4000, 250);
  EXPECT_EQ(sample(logits, {}, {}, 0), 2);                       // greedy
  EXPECT_EQ(sample(logits, {.temperature = 1e-310}, {}, 0), 2);  // its inverse is infinite
}

TEST(Sample, LeavesOutWhatIsUnlikely) {
  std::vector<float> logits;
  for (double p : {0.4, 0.3, 0.15, 0.1, 0.05}) logits.push_back(float(std::log(p)) + 7);
  const auto kept = [&](const Sampling& s) {
    int n = 0;
    for (int x : counts(s, logits, 4000)) n += x > 0;
    return n;
  };
  EXPECT_EQ(kept({.temperature = 1}), 5);
  EXPECT_EQ(kept({.temperature = 1, .top_k = 2}), 2);
  EXPECT_EQ(kept({.temperature = 1, .top_k = 100}), 5);
  EXPECT_EQ(kept({.temperature = 1, .top_p = 0.39}), 1);
  EXPECT_EQ(kept({.temperature = 1, .top_p = 0.75}), 3);
  EXPECT_EQ(kept({.temperature = 1, .min_p = 0.3}), 3);
  EXPECT_EQ(kept({.temperature = 1, .top_k = 3, .top_p = 0.5}), 2);
}

TEST(Sample, PenalizesWhatWasThere) {
  const std::vector<float> logits{2, 1.5f, -1};
  const Ids before{0, 2, 0};
  EXPECT_EQ(sample(logits, {.repetition_penalty = 1.2}, before, 0), 0);
  EXPECT_EQ(sample(logits, {.repetition_penalty = 1.5}, before, 0), 1);
}

TEST(Sample, TopKOfManyIsThatOfASort) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(50'000);
  for (float& x : logits) x = normal(random);
  std::vector<float> sorted = logits;
  std::ranges::sort(sorted, std::greater());
  for (int i = 0; i < 300; ++i)
    EXPECT_GE(logits[size_t(sample(logits, {.temperature = 5, .top_k = 40}, {}, uint64_t(i)))], sorted[39]);
}

TEST(Sample, IsWhatTheFolderSays) {
  const TemporaryFolder folder;
  const auto says = [&](const std::string& json) {
    std::ofstream(folder.path() / "generation_config.json") << json;
    return read_generation(folder.path());
  };
  std::ofstream(folder.path() / "config.json") << R"({"eos_token_id": 3, "repetition_penalty": 1.25})";
  Generation g = read_generation(folder.path());
  EXPECT_EQ(g.stops, Ids{3});
  EXPECT_EQ(g.sampling.temperature, 0);
  EXPECT_EQ(g.sampling.repetition_penalty, 1.25);
  g = says(R"({"temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2], "transformers_version": "4.40"})");
  EXPECT_EQ(g.sampling.temperature, 0);  // nothing says do_sample
  EXPECT_EQ(g.sampling.top_p, 1);
  EXPECT_EQ(g.stops, (Ids{1, 2}));
  g = says(R"({"do_sample": true, "top_p": 0.9, "min_p": null, "eos_token_id": null})");
  EXPECT_EQ(g.sampling.temperature, 1);
  EXPECT_EQ(g.sampling.top_k, 50);  // Hugging Face's own
  EXPECT_EQ(g.sampling.top_p, 0.9);
  EXPECT_EQ(g.stops, Ids{});
  g = says(R"({"do_sample": true, "temperature": null, "top_k": null})");
  EXPECT_EQ(g.sampling.temperature, 1);
  EXPECT_EQ(g.sampling.top_k, 0);
  const std::string file = (folder.path() / "generation_config.json").string();
  expect_error([&] { says(R"({"do_sample": true, "temperature": -1})"); },
               file + ": temperature: expected 0 or more, got -1");
  expect_error([&] { says(R"({"repetition_penalty": 0})"); },
               file + ": repetition_penalty: expected more than 0, got 0");
  expect_error([&] { says(R"({"do_sample": true, "top_k": 1.5})"); }, "top_k: expected a whole number");
  expect_error([&] { says(R"({"eos_token_id": "</s>"})"); }, "eos_token_id: expected a token or a list of tokens");
}

TEST(Sample, RefusesWhatIsNoNumber) {
  expect_error([&] { sample(std::vector<float>{1, NAN}, {}, {}, 0); }, "expected numbers");
  expect_error([&] { sample(std::vector<float>{}, {}, {}, 0); }, "expected numbers");
}

}  // namespace
