// One suite over every page: the list is that of cli/pages.cpp. A page is made small by the names of its fields, which
// are Hugging Face's and so much the same in all of them. What a page computes is compared elsewhere (forward_test.cpp).
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "cli/pages.h"
#include "dense/io/json.h"
#include "dense/train/generate.h"
#include "tests/errors.h"
#include "tests/temporary.h"

namespace dense {
namespace {

namespace fs = std::filesystem;
using Config = nlohmann::json;
using Ids = std::vector<int32_t>;
using Results = std::map<std::string, Model::Result>;

// ---- small models

const Config sizes = {{"vocab_size", 50},  {"intermediate_size", 96},
                      {"d_ff", 96},        {"n_embd", 64},
                      {"hidden_size", 64}, {"d_model", 64},
                      {"n_layer", 2},      {"num_hidden_layers", 2},
                      {"num_layers", 2},   {"num_decoder_layers", 2},
                      {"n_head", 4},       {"num_attention_heads", 4},
                      {"num_heads", 4},    {"num_key_value_heads", 2},
                      {"head_dim", 16},    {"d_kv", 16}};
const Config texts = {{"n_positions", 200},
                      {"block_size", 200},
                      {"max_position_embeddings", 200},
                      {"original_max_position_embeddings", 10}};
const Config options = {{"sliding_window", 5},          {"use_sliding_window", true},
                        {"max_window_layers", 1},       {"relative_attention_max_distance", 20},
                        {"relative_attention", true},   {"max_relative_positions", 12},
                        {"position_buckets", 8},        {"pos_att_type", {"c2p", "p2c"}},
                        {"norm_rel_ebd", "layer_norm"}, {"conv_kernel_size", 3},
                        {"num_local_experts", 4},       {"mask_token_id", 3},
                        {"token_dropout", true}};  // where they are off unless asked for

Page small(const std::string& type, const Config& changes = {}) {
  Page page = cli::page_of(type);
  Config config;
  for (const ConfigField& field : page.fields)
    for (const Config& values : {sizes, texts, options})
      if (values.contains(field.name)) config[field.name] = values[field.name];
  if (!changes.empty()) config.update(changes, true);
  set_fields(parse_json(config.dump(), "config"), "config", page.fields, {}, {});
  return page;
}

Config config_of(const Page& page) {
  return Config::parse(to_text(with_fields({dense::Json::object}, "config", page.fields, page.model_type)));
}

Config::json_pointer pointer(std::string field) {  // a.b is "b" in the object "a"
  std::ranges::replace(field, '.', '/');
  return Config::json_pointer("/" + field);
}

bool has(const Page& page, const std::string& field) {
  return std::ranges::find(page.fields, field, &ConfigField::name) != page.fields.end();
}

std::span<float> values_of(const Parameter& p) {
  return {reinterpret_cast<float*>(p.memory.data), size_t(count_of(p.shape))};
}

// A small model whose weights are as large as trained ones: no norm is 1 and no bias 0.
std::unique_ptr<Model> lively(const std::string& type, Config changes = {}, int threads = 1) {
  if (has(small(type), "initializer_range")) changes["initializer_range"] = 0.2;
  auto model = std::make_unique<Model>(small(type, changes), threads, 3);
  std::mt19937 random(5);
  std::normal_distribution<float> noise(0, 0.2f);
  for (const Parameter* p : model->parameters().declared())
    for (float& x : values_of(*p))
      if (p->shape.size() == 1) x += noise(random);
  return model;
}

// ---- tokens: 0 and 1 stand for padding alone, and 3 is a mask for pages that know of one

struct Batch {
  int64_t rows, time;
  Ids ids, labels;
  Model::Inputs inputs() const { return {rows, time, ids, labels}; }
};

Batch random_batch(int64_t rows, int64_t time) {
  Batch batch{rows, time, Ids(size_t(rows * time)), Ids(size_t(rows * time))};
  std::mt19937 random(7);
  for (Ids* ids : {&batch.ids, &batch.labels})
    for (int32_t& id : *ids) id = int32_t(2 + random() % 48);
  for (size_t at = 3; at < batch.ids.size(); at += size_t(time)) batch.ids[at] = 3;
  return batch;
}

// ---- comparisons

double largest(std::span<const float> x) {
  double most = 0;
  for (float v : x) most = std::max(most, std::abs(double(v)));
  return most;
}

// The largest difference beside the largest value of `want`; infinite for a NaN or another size.
double error(std::span<const float> got, std::span<const float> want) {
  double most = got.size() == want.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    const double d = std::abs(double(got[i]) - double(want[i]));
    most = d <= most ? most : std::isnan(d) ? INFINITY : d;
  }
  return most / std::max(largest(want), 1e-30);
}

void expect_says(const std::string& said, const std::string& part) {
  EXPECT_NE(said.find(part), std::string::npos) << said << "\ndoes not say: " << part;
}

void expect_same(const Results& got, const Results& want) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, result] : want) {
    ASSERT_TRUE(got.contains(name)) << name;
    EXPECT_EQ(got.at(name).shape, result.shape) << name;
    EXPECT_EQ(std::memcmp(got.at(name).values.data(), result.values.data(), result.values.size() * 4), 0) << name;
  }
}

class EveryPage : public testing::TestWithParam<std::string> {
 protected:
  const std::string type = GetParam();
  const TemporaryFolder folder;

  // A folder like the one saved there, with other tensors and fields.
  std::string written(const std::string& name, const std::vector<StoredTensor>& tensors, const Config& config) {
    fs::create_directories(folder / name);
    folder.write(name + "/config.json", config.dump());
    write_safetensors(folder / (name + "/model.safetensors"), tensors);
    return folder / name;
  }
  // What is complained about in a folder, "no error" where nothing is.
  std::string complaint(const std::string& path) {
    return error_of([&] { Model(cli::page_of(type), path, 1); });
  }
};

std::vector<StoredTensor> tensors_in(const std::string& path) {
  std::vector<StoredTensor> tensors;
  for (const auto& [name, tensor] : read_safetensors(path)) tensors.push_back(tensor);
  return tensors;
}
Config config_in(const std::string& path) { return Config::parse(contents(path + "/config.json")); }

// ---- files

TEST_P(EveryPage, IsTheSameAfterSavingAndLoading) {
  const auto model = lively(type);
  const Batch batch = random_batch(2, 9);
  model->save(folder / "saved");
  Model again(cli::page_of(type), folder / "saved", 1, [](const std::string& line) { ADD_FAILURE() << line; });
  expect_same(again.run(batch.inputs(), true), model->run(batch.inputs(), true));
  EXPECT_EQ(config_of(again.page()), config_of(model->page()));
  again.save(folder / "again");
  EXPECT_EQ(contents(folder / "again/model.safetensors"), contents(folder / "saved/model.safetensors"));
}

TEST_P(EveryPage, NamesEveryTensorThatDoesNotFit) {
  lively(type)->save(folder / "saved");
  const Config config = config_in(folder / "saved");
  std::vector<StoredTensor> tensors = tensors_in(folder / "saved"), some;
  std::vector<std::string> expected = {"surplus.weight (3): expected no such tensor"};
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string name = tensors[i].name, shape = to_string(tensors[i].shape);
    if (i % 2) {
      expected.push_back(name + ": expected " + shape + ", missing");
      continue;
    }
    some.push_back(tensors[i]);
    some.back().shape.insert(some.back().shape.begin(), 1);
    expected.push_back(name + ": expected " + shape + ", got " + to_string(some.back().shape));
  }
  std::vector<float> three(3);
  some.push_back({"surplus.weight", "F32", {3}, std::as_writable_bytes(std::span(three)), nullptr, {}});
  const std::string said = complaint(written("changed", some, config));
  for (const std::string& part : expected) expect_says(said, part);
  const StoredTensor last = tensors.back();
  tensors.pop_back();
  expect_says(complaint(written("missing", tensors, config)),
              last.name + ": expected " + to_string(last.shape) + ", missing");
}

TEST_P(EveryPage, TiedWeightsAreOneTensor) {
  if (!has(small(type), "tie_word_embeddings")) return;
  const auto tied = lively(type, {{"tie_word_embeddings", true}});
  Model untied(small(type, {{"tie_word_embeddings", false}}), 1);
  const auto only = [](Model& one, const auto& fits) {  // the one parameter that fits
    std::vector<std::string> names;
    for (const Parameter* p : one.parameters().declared())
      if (fits(*p)) names.push_back(p->name);
    EXPECT_EQ(names.size(), 1u) << testing::PrintToString(names);
    return names.empty() ? "none" : names[0];
  };
  const std::string head = only(untied, [&](const Parameter& p) { return !tied->parameters().all().contains(p.name); });
  const std::string table = only(*tied, [](const Parameter& p) { return p.shape == Shape{50, 64}; });

  tied->save(folder / "tied");
  const Batch batch = random_batch(2, 9);
  const Results want = tied->run(batch.inputs(), true);
  std::vector<StoredTensor> tensors = tensors_in(folder / "tied");
  Config config = config_in(folder / "tied");
  EXPECT_EQ(std::ranges::count(tensors, head, &StoredTensor::name), 0);
  config["tie_word_embeddings"] = false;
  expect_says(complaint(written("headless", tensors, config)), head + ": expected (50, 64), missing");

  tensors.push_back(*std::ranges::find(tensors, table, &StoredTensor::name));
  tensors.back().name = head;
  config["tie_word_embeddings"] = true;  // some files hold the copy nonetheless
  expect_same(Model(cli::page_of(type), written("copy", tensors, config), 1).run(batch.inputs(), true), want);
  config["tie_word_embeddings"] = false;
  const float scale = type == "t5" ? 0.125f : 1;  // by which T5 multiplies what goes to a tied head
  std::vector<float> scaled = to_f32(tensors.back());
  for (float& x : scaled) x *= scale;
  tensors.back().bytes = std::as_writable_bytes(std::span(scaled));
  Results apart = Model(cli::page_of(type), written("apart", tensors, config), 1).run(batch.inputs(), true);
  EXPECT_EQ(apart.at("logits").values, want.at("logits").values);
  std::vector<float> both = apart.at("grad." + table).values;
  for (size_t i = 0; i < both.size(); ++i) both[i] += scale * apart.at("grad." + head).values[i];
  EXPECT_LT(error(both, want.at("grad." + table).values), 1e-5);
}

TEST_P(EveryPage, KeepsTheFilesOfHuggingFace) {
  const fs::path fixtures = fs::path(shared_folder()) / "fixtures/hf";
  if (!fs::exists(fixtures)) GTEST_SKIP() << "no fixtures in " << shared_folder();
  for (const auto& entry : fs::directory_iterator(fixtures)) {
    const fs::path& path = entry.path();
    if (model_type(path) != type) continue;
    SCOPED_TRACE(path);
    // a field of config.json that the page does not read is on its list of inert ones, or on that of all pages
    Model model(cli::page_of(type), path, 1, [](const std::string& line) { ADD_FAILURE() << line; });
    // a new model has the same parameters
    Page page = cli::page_of(type);
    set_fields(path / "config.json", page.fields, page.inert, {});
    Model made(page, 1);
    for (const Parameter* p : made.parameters().declared())
      EXPECT_EQ(p->shape, model.parameters().all().at(p->name).shape) << p->name;
    EXPECT_EQ(made.parameters().count(), model.parameters().count());
    model.save(folder / "saved");
    const auto before = read_safetensors(path), after = read_safetensors(folder / "saved");
    EXPECT_EQ(before.size(), after.size());
    for (const auto& [name, tensor] : before) {
      ASSERT_TRUE(after.contains(name)) << name;
      EXPECT_EQ(after.at(name).dtype, tensor.dtype) << name;
      EXPECT_EQ(after.at(name).shape, tensor.shape) << name;
      EXPECT_TRUE(std::ranges::equal(after.at(name).bytes, tensor.bytes)) << name;
    }
  }
}

// ---- configs

TEST_P(EveryPage, RefusesValuesThatDoNotFit) {
  const Page page = small(type);
  lively(type)->save(folder / "saved");
  const std::vector<StoredTensor> tensors = tensors_in(folder / "saved");
  const Config saved = config_in(folder / "saved");
  const auto with = [&](const std::string& field, const Config& value) {
    Config config = saved;
    config[pointer(field)] = value;
    return complaint(written("changed", tensors, config));
  };
  for (const ConfigField& field : page.fields) {
    SCOPED_TRACE(field.name);
    expect_says(with(field.name, Config::object({{"no", "value"}})), field.name + ": expected ");
    if (field.check) expect_says(with(field.name, -1), field.name + ": expected ");
    const bool named = std::holds_alternative<std::string*>(field.value) ||
                       std::holds_alternative<std::optional<std::string>*>(field.value);
    if (named) expect_says(with(field.name, "swoosh"), "got swoosh");
    // no size is another one's, nor the files'
    if (sizes.contains(field.name)) expect_says(with(field.name, 3), "expected ");
  }
}

// A field that does nothing would be one that is silently ignored.
TEST_P(EveryPage, HasNoConfigFieldWithoutAnEffect) {
  Config base;
  if (has(small(type), "rope_scaling.low_freq_factor"))  // without them its numbers would have none
    base["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 4},
                            {"low_freq_factor", 1},
                            {"high_freq_factor", 3},
                            {"original_max_position_embeddings", 16}};
  if (has(small(type), "rope_scaling.short_factor"))
    base["rope_scaling"] = {{"rope_type", "longrope"},
                            {"short_factor", {1, 1, 2, 2, 3, 3, 4, 4}},
                            {"long_factor", {2, 2, 3, 3, 4, 4, 5, 5}}};
  const auto outputs = [&](const Config& changes) -> std::pair<std::string, std::vector<float>> {
    try {
      const auto model = lively(type, changes);
      std::pair<std::string, std::vector<float>> all;
      all.first = std::to_string(model->context());
      for (const auto& [name, p] : model->parameters().all()) all.first += " " + name + to_string(p.shape);
      for (const int64_t time : {8, 12}) {
        Batch batch = random_batch(1, time);
        batch.labels[1] = -100;
        const std::vector<float> logits = model->run(batch.inputs(), false).at("logits").values;
        all.second.insert(all.second.end(), logits.begin(), logits.end());
      }
      Model::Training training;
      training.dropout = true;
      all.second.push_back(model->step(random_batch(2, 12).inputs(), training));
      return all;
    } catch (const Error& error) {
      return {error.what(), {}};
    }
  };
  const auto usual = outputs(base);
  ASSERT_FALSE(usual.second.empty()) << usual.first;
  const Config before = config_of(small(type, base));
  for (const ConfigField& field : small(type).fields) {
    if (std::holds_alternative<TokenIds*>(field.value)) continue;  // that is how texts begin and end
    if (field.name == "initializer_range") continue;               // lively() sets it
    const Config value = before.value(pointer(field.name), Config());
    Config changes = base;
    Config& to = changes[pointer(field.name)];
    const bool several = std::holds_alternative<std::vector<float>*>(field.value) ||
                         std::holds_alternative<std::optional<std::vector<float>>*>(field.value);
    if (value.is_boolean()) to = !value;
    else if (value.is_number_integer()) to = value.get<int>() + 1;
    else if (value.is_number()) to = value.get<double>() * 2 + 0.25;
    else if (several) to = {1, 2, 3, 4, 5, 6, 7, 8};
    else if (std::holds_alternative<std::optional<int>*>(field.value)) to = 6;
    else if (std::holds_alternative<std::optional<double>*>(field.value)) to = 1.5;
    else if (value.is_string() || std::holds_alternative<std::optional<std::string>*>(field.value)) to = "swoosh";
    else to = {"sliding_attention", "sliding_attention"};
    EXPECT_TRUE(outputs(changes) != usual) << field.name << ": " << to;
  }
}

// ---- gradients and training

TEST_P(EveryPage, EveryParameterGetsItsGradient) {
  const auto model = lively(type);
  const Batch batch = random_batch(3, 10);
  const Results results = model->run(batch.inputs(), true);
  double square = 0;
  for (const Parameter* p : model->parameters().declared()) {
    ASSERT_TRUE(results.contains("grad." + p->name)) << p->name;
    const auto& d = results.at("grad." + p->name).values;
    EXPECT_GT(largest(d), 0) << p->name;
    for (float x : d) square += double(x) * double(x);
  }
  // along it the loss rises as much as it says
  const double way = 0.001 / square;
  const auto loss_after = [&](double step) {
    for (const Parameter* p : model->parameters().declared()) {
      const auto& d = results.at("grad." + p->name).values;
      for (size_t i = 0; i < d.size(); ++i) values_of(*p)[i] += float(step * d[i]);
    }
    return double(model->run(batch.inputs(), false).at("loss").values[0]);
  };
  const double above = loss_after(way), below = loss_after(-2 * way);
  EXPECT_NEAR((above - below) / (2 * way * square), 1, 0.005);
}

TEST_P(EveryPage, ThreadsChangeNoBit) {
  const Batch batch = random_batch(3, 20);
  const Results want = lively(type)->run(batch.inputs(), true);
  for (int threads : {2, 3}) expect_same(lively(type, {}, threads)->run(batch.inputs(), true), want);
}

TEST_P(EveryPage, RecomputingBlocksChangesNoBit) {
  const Batch batch = random_batch(2, 10);
  std::vector<std::vector<float>> all;
  for (const bool recompute : {false, true}) {
    const auto model = lively(type);
    Model::Training training;
    training.dropout = true, training.recompute = recompute;
    std::vector<float>& values = all.emplace_back();
    for (int step = 0; step < 3; ++step) values.push_back(model->step(batch.inputs(), training));
    for (const Parameter* p : model->parameters().declared())
      values.insert(values.end(), values_of(*p).begin(), values_of(*p).end());
  }
  EXPECT_EQ(all[0], all[1]);
  const Page page = small(type);
  Graph graph;
  Parameters parameters;
  Context context;
  context.recompute = true;
  const Tensor ids = graph.input({1, 4}, Dtype::i32);
  if (page.decoder) context.decoder_ids = ids;
  page.forward(Weights(graph, parameters), ids, context);
  EXPECT_EQ(graph.regions, page.decoder ? 4 : 2);  // its layers
}

TEST_P(EveryPage, LearnsABatchByHeart) {
  Model model(small(type), 1, 3);
  const Batch batch = random_batch(2, 8);
  Model::Training training;
  training.lr = 1e-2;
  const float first = model.loss(batch.inputs());
  EXPECT_NEAR(first, std::log(50), 1.5);
  for (int step = 0; step < 60; ++step) model.step(batch.inputs(), training);
  EXPECT_LT(model.loss(batch.inputs()), 0.05);
}

TEST_P(EveryPage, SixteenBitsAreNear) {
  const Batch batch = random_batch(2, 12);
  const Results want = lively(type)->run(batch.inputs(), false);
  const auto narrow = lively(type), stored = lively(type);
  narrow->convert(Dtype::bf16);
  const double bound = has(narrow->page(), "num_local_experts") ? 0.5 : 0.03;  // another expert may be chosen
  EXPECT_LT(error(narrow->run(batch.inputs(), false).at("logits").values, want.at("logits").values), bound);
  stored->save(folder / "bf16", Dtype::bf16);
  Model again(cli::page_of(type), folder / "bf16", 1);
  EXPECT_LT(error(again.run(batch.inputs(), false).at("logits").values, want.at("logits").values), bound);
  again.save(folder / "again");
  EXPECT_EQ(contents(folder / "again/model.safetensors"), contents(folder / "bf16/model.safetensors"));
  Model::Training training;
  training.matmul_type = Dtype::bf16;
  const float loss = want.at("loss").values[0];
  EXPECT_NEAR(stored->step(batch.inputs(), training), loss, 0.01 * loss);
}

// ---- rows

// Rows of a batch: of each the tokens first .. first + length - 1 are real.
struct Rows {
  Batch batch;
  Ids firsts, lengths, positions;
  bool answered = false;  // by a decoder, which begins at once: labels and results are not moved
  Model::Inputs inputs() const {
    Model::Inputs inputs = batch.inputs();
    inputs.lengths = lengths, inputs.firsts = firsts;
    if (!firsts.empty() && !answered) inputs.position_ids = positions;
    return inputs;
  }
  size_t first(size_t row) const { return firsts.empty() ? 0 : size_t(firsts[row]); }
};

// Row `row` of values (rows, time, ...) without its padding.
std::span<const float> real(const Rows& rows, const std::vector<float>& values, size_t row) {
  const size_t time = rows.batch.labels.size() / size_t(rows.batch.rows),
               each = values.size() / rows.batch.labels.size();
  const size_t first = row * time + (rows.answered ? 0 : rows.first(row));
  return std::span(values).subspan(first * each, size_t(rows.lengths[row]) * each);
}

// The tokens of a batch without padding, of each row so many, moved to the right by so much.
Rows padded(const Page& page, const Batch& batch, const Ids& lengths, const Ids& firsts, int64_t time) {
  const size_t n = size_t(batch.rows * time), scored = page.decoder ? batch.labels.size() : n;
  Rows rows{{batch.rows, time, Ids(n, 1), Ids(scored, -100)}, firsts, lengths, Ids(n, 0), bool(page.decoder)};
  for (size_t row = 0; row < lengths.size(); ++row)
    for (size_t t = 0; t < size_t(lengths[row]); ++t) {
      const size_t from = row * size_t(batch.time) + t, to = row * size_t(time) + rows.first(row) + t;
      rows.batch.ids[to] = batch.ids[from], rows.positions[to] = int32_t(t);
      if (t) rows.batch.labels[page.decoder ? from : to] = batch.labels[from];
    }
  return rows;
}

TEST_P(EveryPage, ARowHasTheBitsThatItHasAlone) {
  const auto model = lively(type, {}, 2), other = lively(type);
  const Batch batch = random_batch(3, 12);
  const Rows rows = padded(small(type), batch, {12, 7, 2}, {}, 12);
  const Results together = model->run(rows.inputs(), false);
  double loss = 0;
  for (size_t row = 0; row < 3; ++row) {
    const size_t length = size_t(rows.lengths[row]);
    Model::Inputs inputs{1, rows.lengths[row], std::span(rows.batch.ids).subspan(row * 12, length),
                         std::span(rows.batch.labels).subspan(row * 12, length)};
    const Results alone = other->run(inputs, false);
    for (const char* name : {"logits", "last_hidden_state"})
      EXPECT_TRUE(std::ranges::equal(real(rows, together.at(name).values, row), alone.at(name).values))
          << name << " of row " << row;
    loss += double(alone.at("loss").values[0]) * double(length - 1) / 18;
  }
  EXPECT_NEAR(together.at("loss").values[0], loss, 1e-5 * loss);
}

TEST_P(EveryPage, PaddingInFrontChangesNoMoreThanRounding) {
  const auto model = lively(type, {}, 2);
  const Batch batch = random_batch(3, 12);
  const Rows plain = padded(small(type), batch, {12, 7, 2}, {0, 0, 0}, 12),
             moved = padded(small(type), batch, {12, 7, 2}, {0, 5, 8}, 15);
  const Results want = model->run(plain.inputs(), true), got = model->run(moved.inputs(), true);
  for (const char* name : {"logits", "last_hidden_state"})
    for (size_t row = 0; row < 3; ++row)
      EXPECT_LT(error(real(moved, got.at(name).values, row), real(plain, want.at(name).values, row)), 1e-5) << name;
  for (const auto& [name, result] : want)
    if (name.starts_with("grad.") || name == "loss") {
      // some gradients are nothing but rounding: biases of keys, where only differences between keys count
      const double most = std::max(largest(result.values), 1e-3);
      EXPECT_LT(error(got.at(name).values, result.values) * largest(result.values), 1e-4 * most) << name;
    }
  // the padding itself is not seen, whatever it is
  Rows changed = moved;
  std::ranges::replace(changed.batch.ids, 1, 2);
  const Results same = model->run(changed.inputs(), false);
  for (size_t row = 0; row < 3; ++row)
    EXPECT_TRUE(
        std::ranges::equal(real(moved, same.at("logits").values, row), real(moved, got.at("logits").values, row)));
}

TEST_P(EveryPage, PositionsAreThoseInTheRowUnlessTheyAreGiven) {
  if (small(type).decoder) return;  // knows of distances alone
  const auto model = lively(type);
  const Batch batch = random_batch(2, 9);
  Ids positions(18);
  for (size_t i = 0; i < 18; ++i) positions[i] = int32_t(i % 9) + (type == "esm" ? 2 : 0);  // counted from pad_token_id
  Model::Inputs given = batch.inputs();
  given.position_ids = positions;
  expect_same(model->run(given, true), model->run(batch.inputs(), true));
  const std::vector<float> before = model->run(given, false).at("logits").values;
  for (size_t i = 0; i < 18; ++i) positions[i] += int32_t(i % 9);  // twice as far from one to the next
  EXPECT_GT(error(model->run(given, false).at("logits").values, before), 1e-3);
  positions[17] = int32_t(model->context());
  EXPECT_EQ(error_of([&] { model->run(given, false); }),
            text("position_ids: expected 0 to ", positions[17] - 1, ", got ", positions[17], " at 17"));
}

// ---- generation

TEST_P(EveryPage, StepsGiveTheLogitsOfTheWholeText) {
  if (!small(type).causal) return;
  Config changes;
  if (has(small(type), "original_max_position_embeddings")) changes["original_max_position_embeddings"] = 200;
  const auto model = lively(type, changes, 2);
  const Batch batch = random_batch(2, 110);
  const std::vector<float> whole = model->run(batch.inputs(), false).at("logits").values;
  Generator generator(*model, 2, 115);
  size_t begin[] = {0, 0};
  const auto expect_logits = [&] {
    for (size_t row = 0; row < 2; ++row) {
      const auto want = std::span(whole).subspan((row * 110 + begin[row] - 1) * 50, 50);
      EXPECT_LT(error(generator.logits(int64_t(row)), want), 1e-5) << "row " << row << " at " << begin[row];
    }
  };
  const auto prefill = [&](size_t first, size_t second) {
    const std::span<const int32_t> tokens[] = {std::span(batch.ids).subspan(begin[0], first),
                                               std::span(batch.ids).subspan(110 + begin[1], second)};
    generator.prefill(tokens);
    begin[0] += first, begin[1] += second;
    expect_logits();
  };
  prefill(1, 37);
  for (int step = 0; step < 20; ++step) {
    generator.step(Ids{batch.ids[begin[0]++], batch.ids[110 + begin[1]++]});
    expect_logits();
  }
  prefill(80, 53);
}

std::vector<std::string> model_types() {
  std::vector<std::string> types;
  for (const Page& page : cli::pages()) types.push_back(page.model_type);
  return types;
}
INSTANTIATE_TEST_SUITE_P(Models, EveryPage, testing::ValuesIn(model_types()), [](const auto& page) {
  std::string name = page.param;
  std::ranges::replace(name, '-', '_');
  return name;
});

}  // namespace
}  // namespace dense
