// Models: what a page and its parameters do together, beyond what `dense forward` shows.
#include "dense/train/model.h"

#include <gtest/gtest.h>

#include <random>

#include "cli/pages.h"
#include "tests/errors.h"
#include "tests/temporary.h"

namespace dense {
namespace {

Page small_gpt2() {
  Page page = cli::page_of("gpt2");
  for (ConfigField& field : page.fields)
    if (auto* const value = std::get_if<int*>(&field.value)) {
      const std::map<std::string, int> sizes = {
          {"vocab_size", 11}, {"n_positions", 8}, {"n_embd", 8}, {"n_layer", 2}, {"n_head", 2}};
      if (sizes.contains(field.name)) **value = sizes.at(field.name);
    }
  return page;
}

Page small_mixtral(int experts = 4) {
  Page page = cli::page_of("mixtral");
  for (ConfigField& field : page.fields) {
    const std::map<std::string, int> sizes = {
        {"vocab_size", 11},         {"hidden_size", 8},         {"intermediate_size", 6},      {"num_hidden_layers", 2},
        {"num_attention_heads", 2}, {"num_key_value_heads", 1}, {"num_local_experts", experts}};
    if (!sizes.contains(field.name)) continue;
    if (auto* const value = std::get_if<int*>(&field.value)) **value = sizes.at(field.name);
    if (auto* const value = std::get_if<std::optional<int>*>(&field.value)) **value = sizes.at(field.name);
  }
  return page;
}

const std::vector<int32_t> ids = {1, 5, 3, 10, 0, 7, 7, 2};

TEST(Model, SavesEveryTensorOfAHubFolderUnderItsOldName) {
  const TemporaryFolder folder;
  Model(small_gpt2(), 1).save(folder / "new");
  // as older files have it: no prefix, buffers that nobody reads
  std::vector<StoredTensor> hub;
  std::vector<std::byte> mask(64, std::byte{1});
  for (auto& [name, tensor] : read_safetensors(folder / "new")) {
    hub.push_back(tensor);
    hub.back().name = name.substr(std::string("transformer.").size());
  }
  hub.push_back({"h.0.attn.bias", "BOOL", {1, 1, 8, 8}, mask, nullptr, {}});
  std::filesystem::create_directory(folder / "hub");
  write_safetensors(folder / "hub/model.safetensors", hub);
  std::filesystem::copy_file(folder / "new/config.json", folder / "hub/config.json");

  Model model(cli::page_of("gpt2"), folder / "hub", 1);
  model.save(folder / "saved");
  EXPECT_EQ(contents(folder / "saved/model.safetensors"), contents(folder / "hub/model.safetensors"));
  Model again(cli::page_of("gpt2"), folder / "new", 1);
  EXPECT_EQ(model.run({1, 8, ids}, false).at("logits").values, again.run({1, 8, ids}, false).at("logits").values);
}

TEST(Model, NewFoldersHoldTheWeightsOfANewModelInAnyType) {
  const TemporaryFolder folder;
  const Model model(small_gpt2(), 1, 3);
  for (Dtype type : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    write_new(small_gpt2(), folder / "new", {3, type});
    model.save(folder / "saved", type);
    for (const char* file : {"model.safetensors", "config.json", "generation_config.json"})
      EXPECT_EQ(contents(folder / ("new/" + std::string(file))), contents(folder / ("saved/" + std::string(file))))
          << file << " " << name(type);
  }
  // as 16 bits would be: read, and saved as they are
  Model half(cli::page_of("gpt2"), folder / "new", 1);
  half.save(folder / "again");
  EXPECT_EQ(contents(folder / "again/model.safetensors"), contents(folder / "new/model.safetensors"));
  EXPECT_EQ(contents(folder / "again/config.json"),
            [&] {  // with the fields that a new one leaves out
              std::string config = contents(folder / "new/config.json");
              return config.substr(0, config.size() - 3) + ",\n  \"n_inner\": null\n}\n";
            }());
  half.save(folder / "wide", Dtype::f32);
  EXPECT_NE(contents(folder / "wide/config.json").find("\"torch_dtype\": \"float32\""), std::string::npos);
}

TEST(Model, ItsContextSaysWhichTokensAreReal) {
  Graph graph;
  Context context;
  const Tensor tokens = graph.input({3, 4}, Dtype::i32);
  EXPECT_FALSE(context.real(tokens));
  context.lengths = graph.input({3}, Dtype::i32);
  context.lengths.set({4, 2, 0});
  EXPECT_EQ(context.real(tokens).value(), (std::vector<float>{1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0}));
  context.firsts = graph.input({3}, Dtype::i32);
  context.firsts.set({0, 1, 3});
  EXPECT_EQ(context.real(tokens).value(), (std::vector<float>{1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0}));
}

TEST(Model, TargetsAreLabelsOnePlaceToTheLeft) {
  Model model(small_gpt2(), 1);
  std::vector<int32_t> next(ids.begin() + 1, ids.end());
  next.push_back(-100);
  const auto loss = [&](const Model::Inputs& inputs) { return model.run(inputs, false).at("loss").values[0]; };
  EXPECT_EQ(loss({1, 8, ids, ids}), loss({1, 8, ids, {}, {}, next}));
  EXPECT_NE(loss({2, 4, ids, ids}), loss({1, 8, ids, ids}));  // rows do not go on in the next one
}

TEST(Model, TrainingHasTheSameBitsForAnyThreadsAndShapesInTurn) {
  std::vector<std::vector<float>> weights;
  for (int threads : {1, 2, 3}) {
    Model model(small_gpt2(), threads, 5);
    Model::Training training;
    training.dropout = true;
    for (int step = 0; step < 4; ++step) {
      model.step({1, 8, ids, ids}, training);
      model.step({2, 4, ids, ids}, training);
    }
    std::vector<float>& all = weights.emplace_back();
    for (const Parameter* p : model.parameters().declared()) {
      const auto* values = reinterpret_cast<const float*>(p->memory.data);
      all.insert(all.end(), values, values + count_of(p->shape));
    }
  }
  EXPECT_EQ(weights[0], weights[1]);
  EXPECT_EQ(weights[0], weights[2]);
}

TEST(Model, ExpertsLearnTheSameForAnyThreadsAndNearlyTheSameInBf16) {
  std::vector<float> last;
  for (const auto& [threads, type] : {std::pair(1, Dtype::f32), {2, Dtype::f32}, {2, Dtype::bf16}}) {
    Model model(small_mixtral(), threads, 5);
    Model::Training training;
    training.lr = 0.02, training.matmul_type = type;
    const float first = model.step({2, 4, ids, ids}, training);
    for (int step = 0; step < 30; ++step) last.push_back(model.step({2, 4, ids, ids}, training));
    EXPECT_LT(last.back(), 0.5 * first) << name(type);
  }
  EXPECT_TRUE(std::equal(last.begin(), last.begin() + 30, last.begin() + 30));
  for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(last[60 + i], last[i], 0.02) << i;
}

// What is chosen is what a token costs: of more experts it reads no more but the router.
TEST(Model, WeightsThatATokenReadsAreThoseOfItsExperts) {
  const int64_t router = 2 * 8 * 4;
  const int64_t all = 4 * (11 * 8 + 2 * (8 * 8 + 2 * 4 * 8 + 8 * 8 + 2 * 3 * 6 * 8));
  for (const int64_t experts : {2, 4}) {
    Model model(small_mixtral(int(experts)), 1);
    int64_t bytes = 0;
    for (std::span<const std::byte> part : model.token_weights()) bytes += std::ssize(part);
    EXPECT_EQ(bytes, all + experts * router);
  }
}

TEST(Model, WithoutWeightsPlansTheSameAndDoesNotRun) {
  Model model(small_gpt2(), 1), outline(small_gpt2(), 1, 0, false);
  const Model::Inputs inputs{1, 8, ids, ids};
  EXPECT_EQ(outline.plan_step(inputs, {}).summary(), model.plan_step(inputs, {}).summary());
  EXPECT_EQ(error_of([&] { outline.step(inputs, {}); }), "plan: expected inputs that have memory");
  EXPECT_TRUE(std::isfinite(model.step(inputs, {})));
}

TEST(Model, CountsItsParameters) { EXPECT_EQ(Model(cli::page_of("microgpt"), 1).parameters().count(), 4192); }

}  // namespace
// As PyTorch has it of the row that stands for padding.
TEST(Model, ARowThatIsStillHasNoGradientButThatOfOtherUses) {
  Graph graph(1);
  const Tensor table = graph.input({3, 2}), rows = graph.input({4}, Dtype::i32), weight = graph.input({4, 2});
  rows.set({1, 2, 1, 0});
  weight.set({1.f, 2.f, 3.f, 4.f, 5.f, 6.f, 7.f, 8.f});
  const Tensor x = gather(table, rows, 1), y = sum(x * weight) + sum(slice(table, 0, 1, 2)) * 10;
  EXPECT_EQ(grad(y, {table})[0].value(), (std::vector<float>{7, 8, 10, 10, 3, 4}));
  EXPECT_EQ(grad(sum(gather(table, rows) * weight), {table})[0].value(), (std::vector<float>{7, 8, 6, 8, 3, 4}));
}

// With a probability so small that nothing is dropped, the weights are those of the fused kernel.
TEST(Model, AttentionWithDropoutIsThePlainFormula) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  const auto fill = [&](Tensor x) {
    for (float& value : x.data<float>()) value = normal(random);
    return x;
  };
  const std::vector<int32_t> lengths{9, 4}, firsts{0, 3};
  for (const AttentionOptions& options :
       {AttentionOptions{.scale = 0.3f}, {.scale = 0.5f, .causal = false}, {.soft_cap = 2}, {.window = 3}})
    for (int padded = 0; padded < 3; ++padded) {
      Graph graph(1);
      const Tensor q = fill(graph.input({2, 9, 6, 4})), k = fill(graph.input({2, 9, 2, 4}));
      const Tensor v = fill(graph.input({2, 9, 2, 4})), weight = fill(graph.input({2, 9, 6, 4}));
      Context fused;
      if (padded > 0) fused.lengths = graph.input({2}, Dtype::i32), fused.lengths.set(std::span(lengths));
      if (padded > 1) fused.firsts = graph.input({2}, Dtype::i32), fused.firsts.set(std::span(firsts));
      Context plain = fused;
      plain.dropout_key = graph.input({2}, Dtype::i32);
      std::vector<std::vector<float>> results[2];
      for (const auto& [ctx, result] : {std::pair(&fused, &results[0]), {&plain, &results[1]}}) {
        Tensor y = ctx->attention(q, k, v, options, 1e-12);
        if (const Tensor real = ctx->real(q)) y = y * reshape(real, {2, 9, 1, 1});
        result->push_back(y.value());
        for (Tensor d : grad(sum(y * weight), {q, k, v})) result->push_back(d.value());
      }
      for (size_t i = 0; i < 4; ++i)
        for (size_t n = 0; n < results[0][i].size(); ++n)
          ASSERT_NEAR(results[0][i][n], results[1][i][n], 2e-5) << i << " " << n << " padded " << padded;
    }
  Graph graph(1);  // half of equal weights: their sum is 1 on average
  Context ctx{.dropout_key = graph.input({2}, Dtype::i32)};
  const Tensor x = graph.input({4, 64, 4, 2}), v = x + 1;
  const std::vector<float> y = ctx.attention(x, x, v, {.causal = false}, 0.5).value();
  double mean = 0, most = 0;
  for (float value : y) mean += value / double(y.size()), most = std::max(most, std::abs(value - 1.0));
  EXPECT_NEAR(mean, 1, 0.02);
  EXPECT_GT(most, 0.1);
}

}  // namespace dense
