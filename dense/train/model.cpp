#include "dense/train/model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstring>

#include "dense/io/files.h"
#include "dense/io/json.h"
#include "dense/scalar/error.h"
#include "dense/tensor/quantised.h"
#include "dense/tensor/threads.h"

namespace dense {

// A graph for one shape of inputs.
struct Model::Recorded {
  Graph graph;
  Tensor ids, decoder_ids, types, positions, targets, lengths, firsts, key, logits, loss;
  Tensor lr, rate, scale, places, norm;
  std::vector<Tensor> gradients;  // of training in parts, in the order of the parameters' names
  bool in_parts = false;
  Context context;
  Optimizer optimizer;
  std::unique_ptr<Plan> plan;
  explicit Recorded(const std::shared_ptr<Threads>& threads) : graph(threads) {}
  // Whether it is for inputs of these shapes.
  bool fits(const Inputs& inputs) const {
    return ids.shape() == Shape{inputs.batch, inputs.time} && bool(lengths) == !inputs.lengths.empty() &&
           bool(firsts) == !inputs.firsts.empty() && bool(positions) == !inputs.position_ids.empty() &&
           bool(types) == !inputs.token_types.empty() &&
           (decoder_ids ? decoder_ids.size(1) == inputs.decoder_time() : inputs.decoder_ids.empty());
  }
};

namespace {

constexpr const char* type_names[] = {"F32", "F64", "BF16", "F16", "I32", "U8", "U8"};         // in safetensors
constexpr const char* torch_names[] = {"float32", "float64", "bfloat16", "float16", "int32"};  // in config.json
constexpr size_t most_shapes = 32;  // whose plans are kept for training

Dtype stored_type(const StoredTensor& tensor) {
  if (tensor.dtype == "BF16") return Dtype::bf16;
  if (tensor.dtype == "F16") return Dtype::f16;
  if (tensor.dtype == "F32") return Dtype::f32;
  fail(tensor.file, ": ", tensor.name, ": expected F32, BF16 or F16, got ", tensor.dtype);
}

// What `dense quantize` writes: bytes, under the name of the weights and this ending.
const char* quantised_ending(Dtype type) { return type == Dtype::q8 ? ".int8" : ".int4"; }
Dtype quantised_type(const StoredTensor& tensor) {
  for (Dtype type : {Dtype::q8, Dtype::q4})
    if (tensor.dtype == "U8" && tensor.name.ends_with(quantised_ending(type))) return type;
  return Dtype::f32;
}

bool ends_with_any(const std::string& name, const std::vector<std::string>& ends) {
  return std::ranges::any_of(ends, [&](const std::string& end) { return name.ends_with(end); });
}

// The files beside new weights, as save_pretrained leaves them: names in order, and no nulls but for tokens, which have
// other defaults there.
void write_new_config(const Page& page, const std::filesystem::path& folder, Dtype dtype) {
  Json root{Json::object};
  if (!page.architecture.empty()) {
    root.items.push_back({Json::array, "architectures", "", {{Json::string, "", page.architecture}}});
    root.items.push_back({Json::string, "torch_dtype", torch_names[int(dtype)]});
  }
  root = with_fields(std::move(root), page.model_type, page.fields, page.model_type);
  const auto is_token = [](const Json& item) { return item.name.ends_with("_token_id"); };
  std::erase_if(root.items, [&](const Json& item) { return item.kind == Json::null && !is_token(item); });
  const auto by_name = [](const Json& a, const Json& b) { return a.name < b.name; };
  std::ranges::sort(root.items, by_name);
  for (Json& item : root.items)
    if (item.kind == Json::object) std::ranges::sort(item.items, by_name);
  write_file(folder / "config.json", to_text(root, 2) + "\n");

  if (!page.generates() || page.architecture.empty()) return;
  Json generation{Json::object, "", "", {{Json::boolean, "_from_model_config", "true"}}};
  for (const Json& item : root.items)
    if (is_token(item) && item.kind != Json::null) generation.items.push_back(item);
  write_file(folder / "generation_config.json", to_text(generation, 2) + "\n");
}

// What the folder that a model was read from says, with what the weights have become.
void write_old_config(const Page& page, const std::filesystem::path& folder, const Json& original,
                      std::optional<Dtype> dtype) {
  Json root = with_fields(original, "config.json", page.fields, page.model_type);
  for (const char* key : {"torch_dtype", "dtype"})
    if (Json* type = root.find(key); type && dtype) *type = {Json::string, key, torch_names[int(*dtype)]};
  write_file(folder / "config.json", to_text(root, 2) + "\n");
}

}  // namespace

Model::~Model() = default;

Model::Model(Page page, int threads, uint64_t seed, bool filled)
    : page_(std::move(page)), parameters_(seed, page_.base, filled), threads_(make_threads(threads)) {
  declare();
}

// Records the page, and so every parameter.
void Model::declare() {
  const int32_t id = 0;
  Inputs inputs{1, 1, {&id, 1}};
  if (page_.decoder) inputs.decoder_ids = inputs.ids;
  vocabulary_ = record(inputs)->logits.size(-1);
  if (!page_.decoder) return;
  const Page::Decoder decoder = page_.decoder();
  const auto expect_token = [&](const char* name, int32_t token) {
    if (token >= vocabulary_) fail(name, ": expected a token of 0 to ", vocabulary_ - 1, ", got ", token);
  };
  expect_token("decoder_start_token_id", decoder.start), expect_token("pad_token_id", decoder.pad);
}

Model::Model(Page page, const std::filesystem::path& folder, int threads, const Warn& warn, bool filled)
    : page_(std::move(page)), parameters_(0, page_.base, filled), threads_(make_threads(threads)) {
  original_ = std::make_shared<const Json>(read_object(folder / "config.json"));
  if (!page_.configured) set_fields(*original_, (folder / "config.json").string(), page_.fields, page_.inert, warn);
  for (auto& [name, tensor] : read_safetensors(folder)) {
    const bool known = is_quantised(quantised_type(tensor)) || tensor.dtype == "F32" || tensor.dtype == "BF16" ||
                       tensor.dtype == "F16";
    if (!known && ends_with_any(name, page_.inert_tensors)) {
      unread_.push_back(tensor);
      continue;
    }
    if (const Dtype type = quantised_type(tensor); is_quantised(type)) {
      if (tensor.shape.size() != 3 || tensor.shape[2] != block_bytes(type))
        fail(tensor.file, ": ", name, ": expected (strips, blocks, ", block_bytes(type), "), got ",
             to_string(tensor.shape));
      const std::string base = name.substr(0, name.rfind('.'));
      Memory memory{tensor.bytes.data(), tensor.owner};
      if (reinterpret_cast<uintptr_t>(memory.data) % 64) {  // files promise less than the kernels need
        memory = zero_memory(tensor.bytes.size());
        std::ranges::copy(tensor.bytes, memory.data);
      }
      parameters_.load({base, type, {}, memory, false, {}, {}, tensor.shape});
      continue;
    }
    parameters_.load({name, stored_type(tensor), tensor.shape, {tensor.bytes.data(), tensor.owner}, false, {}});
  }
  try {
    declare();
    std::vector<std::string> inert = page_.inert_tensors;
    for (const std::string& name : page_.unreached) parameters_.adopt(name), inert.push_back(name);
    parameters_.check(inert);
  } catch (const Error& error) {
    fail(folder.string(), ": ", error.what());
  }
}

// Throws Error before anything is changed.
void Model::set_inputs(Recorded& r, const Inputs& inputs) const {
  const auto vocabulary = int32_t(r.logits.size(-1));
  const auto expect = [&](const char* what, std::span<const int32_t> given, int64_t count, int32_t least,
                          int32_t most) {
    if (given.size() != size_t(count)) fail(what, ": expected ", count, " numbers, got ", given.size());
    for (size_t i = 0; i < given.size(); ++i)
      if ((given[i] < 0 || given[i] > most) && !(least < 0 && given[i] == least))
        fail(what, ": expected 0 to ", most, least < 0 ? ", or -100 to leave out" : "", ", got ", given[i], " at ", i);
  };
  const int64_t count = inputs.batch * inputs.time, scored = r.logits.size(0) * r.logits.size(1);
  expect("input_ids", inputs.ids, count, 0, vocabulary - 1);
  if (!inputs.lengths.empty()) expect("lengths", inputs.lengths, inputs.batch, 0, int32_t(inputs.time));
  if (!inputs.firsts.empty()) {
    if (inputs.lengths.empty()) fail("firsts: expected lengths, too");
    expect("firsts", inputs.firsts, inputs.batch, 0, int32_t(inputs.time));
  }
  std::vector<int32_t> next;
  std::span<const int32_t> targets = inputs.targets;
  if (!inputs.labels.empty()) {
    expect("labels", inputs.labels, scored, -100, vocabulary - 1);
    targets = inputs.labels;
    if (page_.causal) {
      next.assign(inputs.labels.begin() + 1, inputs.labels.end());
      next.push_back(-100);
      for (int64_t row = 1; row < inputs.batch; ++row) next[size_t(row * inputs.time - 1)] = -100;
      for (size_t row = 0; row < inputs.firsts.size(); ++row)  // padding is not asked what comes next
        if (inputs.firsts[row] > 0) next[row * size_t(inputs.time) + size_t(inputs.firsts[row]) - 1] = -100;
      targets = next;
    }
  }
  if (inputs.scored()) expect("targets", targets, scored, -100, vocabulary - 1);
  std::vector<int32_t> earlier;
  std::span<const int32_t> decoder_ids = inputs.decoder_ids;
  if (r.decoder_ids && decoder_ids.empty()) {
    const Page::Decoder decoder = page_.decoder();
    for (int64_t i = 0; i < scored; ++i) {
      const int32_t before = i % r.decoder_ids.size(1) ? targets[size_t(i - 1)] : decoder.start;
      earlier.push_back(before == -100 ? decoder.pad : before);
    }
    decoder_ids = earlier;
  }
  if (r.decoder_ids) expect("decoder_input_ids", decoder_ids, scored, 0, vocabulary - 1);
  const int64_t positions = context() ? std::max(context(), inputs.time) : 1 << 24;
  if (!inputs.position_ids.empty()) expect("position_ids", inputs.position_ids, count, 0, int32_t(positions) - 1);
  if (!inputs.token_types.empty())
    expect("token_type_ids", inputs.token_types, count, 0, int32_t(page_.token_types()) - 1);
  r.ids.set(inputs.ids);
  if (r.decoder_ids) r.decoder_ids.set(decoder_ids);
  if (r.types) r.types.set(inputs.token_types);
  if (r.targets) r.targets.set(targets);
  if (r.positions) r.positions.set(inputs.position_ids);
  if (r.lengths) r.lengths.set(inputs.lengths);
  if (r.firsts) r.firsts.set(inputs.firsts);
}

std::unique_ptr<Model::Recorded> Model::record(const Inputs& inputs, Dtype matmul_type, bool dropout, bool wide,
                                               bool recompute) {
  if (inputs.batch < 1 || inputs.time < 1) fail("input_ids: expected a batch of one token or more");
  auto r = std::make_unique<Recorded>(threads_);
  Graph& graph = r->graph;
  graph.matmul_type = matmul_type;
  graph.wide = wide;
  const Shape shape{inputs.batch, inputs.time};
  r->ids = graph.input(shape, Dtype::i32, "input_ids");
  if (page_.decoder) {
    if (inputs.decoder_time() < 1) fail("decoder_input_ids: expected one token of each row or more, or labels");
    r->decoder_ids = graph.input({inputs.batch, inputs.decoder_time()}, Dtype::i32, "decoder_input_ids");
    r->context.decoder_ids = r->decoder_ids;
  } else if (!inputs.decoder_ids.empty()) {
    fail("decoder_input_ids: expected none, since ", page_.model_type, " is no encoder-decoder");
  }
  if (!inputs.token_types.empty()) {
    if (!page_.token_types || page_.token_types() == 0)
      fail("token_type_ids: expected none, since ", page_.model_type, " knows of no types");
    r->types = r->context.token_types = graph.input(shape, Dtype::i32, "token_type_ids");
  }
  if (!inputs.lengths.empty()) r->lengths = r->context.lengths = graph.input({inputs.batch}, Dtype::i32, "lengths");
  if (!inputs.firsts.empty()) r->firsts = r->context.firsts = graph.input({inputs.batch}, Dtype::i32, "firsts");
  if (!inputs.position_ids.empty()) {
    if (page_.decoder) fail("position_ids: expected none, since ", page_.model_type, " knows of distances alone");
    r->positions = r->context.position_ids = graph.input(shape, Dtype::i32, "position_ids");
  }
  r->context.recompute = recompute;
  if (dropout) r->key = r->context.dropout_key = graph.input({2}, Dtype::i32, "step");
  r->logits = page_.forward(Weights(graph, parameters_), r->ids, r->context);
  if (inputs.scored()) {
    r->targets = graph.input((r->decoder_ids ? r->decoder_ids : r->ids).shape(), Dtype::i32, "targets");
    r->loss = cross_entropy(r->logits, r->targets);
  }
  return r;
}

std::map<std::string, Model::Result> Model::run(const Inputs& inputs, bool gradients, std::string* profile) {
  return results<float>(inputs, gradients, profile);
}

std::map<std::string, Model::ResultOf<double>> Model::run_float64(const Inputs& inputs, bool gradients,
                                                                  std::string* profile) {
  return results<double>(inputs, gradients, profile);
}

template <class T>
std::map<std::string, Model::ResultOf<T>> Model::results(const Inputs& inputs, bool gradients, std::string* profile) {
  if (gradients && !inputs.scored()) fail("gradients: expected labels");
  const auto r = record(inputs, Dtype::f32, false, std::same_as<T, double>);
  set_inputs(*r, inputs);
  std::map<std::string, Tensor> wanted = r->context.kept;
  wanted["logits"] = r->logits;
  if (r->loss) wanted["loss"] = r->loss;
  if (gradients) {
    std::vector<Tensor> parameters;
    for (const auto& [name, x] : r->graph.parameters()) parameters.push_back(x);
    const std::vector<Tensor> d = grad(r->loss, parameters);
    for (size_t i = 0; i < d.size(); ++i) wanted["grad." + parameters[i].node().name] = d[i];
  }
  std::vector<Tensor> outputs;
  for (const auto& [name, x] : wanted) outputs.push_back(x);
  Plan plan(outputs);
  plan.profile(profile);
  plan.run();
  if (profile) *profile = plan.summary();
  std::map<std::string, ResultOf<T>> results;
  for (const auto& [name, x] : wanted) {
    const auto values = plan.get<T>(x);
    results[name] = {x.shape(), {values.begin(), values.end()}};
  }
  for (const std::string& name : page_.unreached)
    if (const auto found = parameters_.all().find(name);
        gradients && found != parameters_.all().end() && !found->second.declared)
      results["grad." + name] = {found->second.shape, std::vector<T>(size_t(count_of(found->second.shape)))};
  // A NaN in a result is in the weights more often than in the arithmetic: say where.
  if (std::ranges::any_of(results["logits"].values, [](T v) { return std::isnan(v); })) {
    for (const auto& [name, x] : r->graph.parameters()) {
      if (is_quantised(x.dtype())) continue;  // they were finite
      const std::vector<float> values = x.value();
      const auto bad = std::ranges::find_if(values, [](float v) { return !std::isfinite(v); });
      if (bad != values.end())
        fail(name, ": expected finite weights, got ", *bad, " at element ", bad - values.begin());
    }
    fail("logits: expected numbers, got NaN, though all weights are finite");
  }
  return results;
}

float Model::loss(const Inputs& inputs) {
  if (!inputs.scored()) fail("loss: expected labels");
  if (!evaluation_ || !evaluation_->fits(inputs)) {
    evaluation_ = record(inputs);
    evaluation_->plan = std::make_unique<Plan>(std::initializer_list<Tensor>{evaluation_->loss});
  }
  set_inputs(*evaluation_, inputs);
  evaluation_->plan->run();
  return evaluation_->plan->get<float>(evaluation_->loss)[0];
}

std::pair<Memory, Memory>& Model::moments(const std::string& name, const Shape& shape) {
  auto& moments = moments_[name];
  const size_t bytes = size_t(count_of(shape)) * sizeof(float);
  if (!moments.first.data && parameters_.filled()) moments = {zero_memory(bytes), zero_memory(bytes)};
  return moments;
}

// The end of a step, appended to r's graph: AdamW on every parameter, given their gradients in the order of their names.
std::vector<Tensor> Model::record_update(Recorded& r, std::span<const Tensor> gradients) {
  Graph& graph = r.graph;
  const Optimizer& optimizer = r.optimizer;
  r.lr = graph.input({}, Dtype::f32, "lr");
  r.rate = graph.input({}, Dtype::f32, "rate");
  r.scale = graph.input({}, Dtype::f32, "scale");
  std::vector<Tensor> outputs;
  Tensor shorter;
  if (optimizer.norm || optimizer.clip > 0) {
    Tensor squares;
    for (Tensor g : gradients) squares = squares ? squares + sum(g * g) : sum(g * g);
    outputs.push_back(r.norm = sqrt(squares));
    if (optimizer.clip > 0) shorter = min(optimizer.clip / (r.norm + 1e-6), 1.0);
  }
  for (size_t i = 0; const auto& [name, p] : graph.parameters()) {
    const Tensor g = shorter ? gradients[i] * shorter : gradients[i];
    const auto& [m_memory, v_memory] = moments(name, p.shape());
    const Tensor m = graph.external(p.shape(), Dtype::f32, m_memory, name + ".m");
    const Tensor v = graph.external(p.shape(), Dtype::f32, v_memory, name + ".v");
    AdamW options = optimizer.adamw;
    if (p.rank() < 2 && !optimizer.decay_vectors) options.weight_decay = 0;
    const auto next = adamw(p, g, m, v, r.lr, r.rate, r.scale, options);
    outputs.insert(outputs.end(), {assign(p, next[0]), assign(m, next[1]), assign(v, next[2])});
    ++i;
  }
  return outputs;
}

// A whole step as one plan, or of one of its parts the sum of losses and its gradient.
Model::Recorded& Model::recorded_training(const Inputs& inputs, const Training& training, bool in_parts) {
  if (!inputs.scored()) fail("step: expected labels");
  const auto same = std::ranges::find_if(trainings_, [&](const auto& t) {
    return t->fits(inputs) && t->graph.matmul_type == training.matmul_type && bool(t->key) == training.dropout &&
           t->context.recompute == training.recompute && t->optimizer == training.optimizer && t->in_parts == in_parts;
  });
  if (same != trainings_.end()) {
    std::rotate(trainings_.begin(), same, same + 1);
    return *trainings_[0];
  }
  if (trainings_.size() == most_shapes) trainings_.pop_back();
  parameters_.forget_copies();
  parameters_.widen();
  evaluation_.reset();  // it may have what was widened
  auto r = record(inputs, training.matmul_type, training.dropout, false, training.recompute);
  r->optimizer = training.optimizer;
  r->in_parts = in_parts;
  if (in_parts) r->loss = r->loss * (r->places = r->graph.input({}, Dtype::f32, "places"));
  std::vector<Tensor> parameters, outputs{r->loss};
  for (const auto& [name, x] : r->graph.parameters()) parameters.push_back(x);
  r->gradients = grad(r->loss, parameters);
  const std::vector<Tensor> rest = in_parts ? r->gradients : record_update(*r, r->gradients);
  outputs.insert(outputs.end(), rest.begin(), rest.end());
  r->plan = std::make_unique<Plan>(outputs, arena_);
  trainings_.insert(trainings_.begin(), std::move(r));
  return *trainings_[0];
}

Plan& Model::plan_step(const Inputs& inputs, const Training& training) {
  return *recorded_training(inputs, training, false).plan;
}

Model::Step Model::step(std::span<const Inputs> parts, const Training& training) {
  if (parts.size() != 1 || training.ranks.size() > 1) return step_in_parts(parts, training);
  Recorded& r = recorded_training(parts[0], training, false);
  set_inputs(r, parts[0]);
  if (places(r) == 0) fail("step: expected labels other than -100");  // the loss would be NaN, and then every weight
  begin_step(r, training);
  if (r.key) r.key.set({int32_t(steps_), 0});
  r.plan->run();
  return {r.plan->get<float>(r.loss)[0], r.norm ? r.plan->get<float>(r.norm)[0] : 0};
}

int64_t Model::places(const Recorded& r) {
  return std::ranges::count_if(r.targets.data<int32_t>(), [](int32_t t) { return t != -100; });
}

void Model::begin_step(Recorded& r, const Training& training) {
  const AdamW& adamw = training.optimizer.adamw;
  ++steps_;
  r.lr.set({float(training.lr)});
  r.rate.set({float(training.lr / (1 - std::pow(adamw.beta1, double(steps_))))});
  r.scale.set({float(1 / (1 - std::pow(adamw.beta2, double(steps_))))});
}

// Of one part, or of two halves, or of all but the last and the last: the order of additions depends on the number of
// parts alone, of 2^n ranks each has a branch of its own where they divide the parts, and few sums are in memory at once.
Model::Sum Model::sum_of_parts(std::span<const Inputs> parts, const Training& training, size_t first, size_t level) {
  if (parts.size() == 1) {
    Recorded& r = recorded_training(parts[0], training, true);
    set_inputs(r, parts[0]);
    const int64_t n = places(r);
    if (n == 0) fail("step: part ", first + 1, ": expected labels other than -100");
    r.places.set({float(n)});
    if (r.key) r.key.set({int32_t(steps_ + 1), int32_t(first)});
    r.plan->run();
    Sum sum{r.plan->get<float>(r.loss)[0], double(n), {}};
    for (Tensor g : r.gradients) sum.gradients.push_back(r.plan->get<float>(g));
    return sum;
  }
  const size_t half = parts.size() % 2 ? parts.size() - 1 : parts.size() / 2;
  Sum sum = sum_of_parts(parts.first(half), training, first, level);
  keep(sum, level);
  const Sum rest = sum_of_parts(parts.subspan(half), training, first + half, level + 1);
  for (size_t i = 0; i < rest.gradients.size(); ++i) {
    const std::span<const float> from = rest.gradients[i];
    constexpr size_t block = 1 << 16;
    threads_->run(int((from.size() + block - 1) / block), [&](int task) {
      const size_t begin = size_t(task) * block, end = std::min(from.size(), begin + block);
      for (size_t k = begin; k < end; ++k) sums_[level][i][k] += from[k];
    });
  }
  sum.loss += rest.loss;
  sum.places += rest.places;
  return sum;
}

// Has the gradients in sums_[level], where the next part's do not overwrite them.
void Model::keep(Sum& sum, size_t level) {
  if (sums_.size() == level) sums_.emplace_back(sum.gradients.size());
  for (size_t i = 0; i < sum.gradients.size(); ++i) {
    std::vector<float>& to = sums_[level][i];
    if (sum.gradients[i].data() != to.data()) to.assign(sum.gradients[i].begin(), sum.gradients[i].end());
    sum.gradients[i] = to;
  }
}

Model::Step Model::step_in_parts(std::span<const Inputs> parts, const Training& training) {
  if (parts.empty()) fail("step: expected one part or more");
  const Ranks& ranks = training.ranks;
  Sum sum = sum_of_parts(parts, training, size_t(ranks.rank()) * parts.size(), 0);
  keep(sum, 0);
  for (std::vector<float>& gradient : sums_[0]) ranks.sum(gradient);
  std::array<double, 2> totals{sum.loss, sum.places};
  ranks.sum(totals);
  const auto [loss, all_places] = totals;

  if (!update_ || update_->optimizer != training.optimizer) {
    update_ = std::make_unique<Recorded>(threads_);
    Graph& graph = update_->graph;
    update_->optimizer = training.optimizer;
    update_->places = graph.input({}, Dtype::f32, "places");
    std::vector<Tensor> gradients;
    for (size_t i = 0; const Parameter* p : parameters_.declared()) {
      graph.parameter(p->name, p->shape, p->dtype, p->memory);
      const Memory memory{reinterpret_cast<std::byte*>(sums_[0][i++].data()), {}};
      gradients.push_back(graph.external(p->shape, Dtype::f32, memory, "grad." + p->name) / update_->places);
    }
    update_->plan = std::make_unique<Plan>(record_update(*update_, gradients), arena_);
  }
  begin_step(*update_, training);
  update_->places.set({float(all_places)});
  update_->plan->run();
  return {loss / all_places, update_->norm ? update_->plan->get<float>(update_->norm)[0] : 0};
}

void Model::save_optimizer(const std::filesystem::path& file) const {
  const Memory steps{const_cast<std::byte*>(reinterpret_cast<const std::byte*>(&steps_)), {}};
  std::vector<StoredTensor> tensors{{"steps", "I64", {}, {steps.data, sizeof steps_}, nullptr, {}}};
  for (const auto& [name, moments] : moments_) {
    const Shape& shape = parameters_.all().at(name).shape;
    const size_t bytes = size_t(count_of(shape)) * sizeof(float);
    tensors.push_back({name + ".m", "F32", shape, {moments.first.data, bytes}, nullptr, {}});
    tensors.push_back({name + ".v", "F32", shape, {moments.second.data, bytes}, nullptr, {}});
  }
  write_safetensors(file, tensors);
}

void Model::restore_optimizer(const std::filesystem::path& file) {
  StoredTensors stored = read_safetensors(file);
  const auto take = [&](const std::string& name, const char* dtype, const Shape& shape) {
    const auto found = stored.find(name);
    if (found == stored.end())
      fail(file.string(), ": ", name, ": expected ", dtype, " ", to_string(shape), ", missing");
    StoredTensor tensor = std::move(found->second);
    stored.erase(found);
    if (tensor.dtype != dtype || tensor.shape != shape)
      fail(file.string(), ": ", name, ": expected ", dtype, " ", to_string(shape), ", got ", tensor.dtype, " ",
           to_string(tensor.shape));
    return tensor;
  };
  const StoredTensor steps = take("steps", "I64", {});
  std::map<std::string, std::array<StoredTensor, 2>> taken;
  for (const Parameter* p : parameters_.declared())
    taken[p->name] = {take(p->name + ".m", "F32", p->shape), take(p->name + ".v", "F32", p->shape)};
  if (!stored.empty()) fail(file.string(), ": ", stored.begin()->first, ": expected no such tensor");
  std::memcpy(&steps_, steps.bytes.data(), sizeof steps_);
  for (const auto& [name, tensors] : taken) {
    const auto& [m, v] = moments(name, tensors[0].shape);
    std::ranges::copy(tensors[0].bytes, m.data);
    std::ranges::copy(tensors[1].bytes, v.data);
  }
}

Plan& Model::training_plan() {
  if (trainings_.empty()) fail("training_plan: expected a step before");
  return *trainings_[0]->plan;
}

// Which parameters products multiply by.
std::map<std::string, Model::Multiplier> Model::multipliers() {
  Recorded r(threads_);
  r.graph.streams_weights = true;  // takes them as they are
  r.context.wanted = r.graph.input({1}, Dtype::i32);
  r.ids = r.context.decoder_ids = r.graph.input({1, 1}, Dtype::i32);
  page_.forward(Weights(r.graph, parameters_), r.ids, r.context);
  std::map<std::string, Multiplier> result;
  for (int32_t id = 0; id < r.graph.nodes(); ++id) {
    const TensorNode& product = r.graph.node(id);
    const bool experts = product.kind == Kind::expert_matmul;
    if (product.kind != Kind::matmul && !experts) continue;
    const size_t first = experts ? 2 : 1;
    const int64_t rows = count_of(product.shape) / product.shape.back();
    for (size_t i = first; i < product.operands.size(); ++i) {
      const TensorNode& weights = r.graph.node(product.operands[i]);
      const bool is_view = weights.kind == Kind::view;
      const TensorNode& base = is_view ? r.graph.node(weights.operands[0]) : weights;
      if (base.kind == Kind::input && base.shape.size() == 2)
        result[base.name] = {is_view && std::get<View>(weights.detail).strides[0] == 1,
                             experts ? double(rows) / double(product.operands.size() - first) : 1};
    }
  }
  return result;
}

std::vector<std::span<const std::byte>> Model::token_weights() {
  std::vector<std::span<const std::byte>> result;
  for (const auto& [name, m] : multipliers()) {
    const std::span<const std::byte> all = parameters_.all().at(name).bytes();
    result.push_back(all.first(size_t(m.share * double(all.size()))));
  }
  return result;
}

std::optional<Dtype> weight_type(const std::string& name, const std::string& prefix) {
  if (name == "as-stored") return {};
  if (name == "f32") return Dtype::f32;
  if (name == "bf16") return Dtype::bf16;
  if (name == "int8") return Dtype::q8;
  if (name == "int4") return Dtype::q4;
  fail(prefix, "dtype: expected as-stored, f32, bf16, int8 or int4, got ", name);
}

RealTokens real_tokens(std::span<const int32_t> mask, int64_t time) {
  RealTokens real;
  for (size_t begin = 0; begin < mask.size(); begin += size_t(time)) {
    const auto row = mask.subspan(begin, size_t(time));
    const auto first = std::ranges::find(row, 1), end = std::find(first, row.end(), 0);
    for (auto m = row.begin(); m != row.end(); ++m) {
      const auto where = [&] { return text("attention_mask: row ", real.lengths.size(), ": "); };
      if (*m != 0 && *m != 1) fail(where(), "expected 0 and 1, got ", *m, " at ", m - row.begin());
      if (*m == 1 && m > end) fail(where(), "expected ones side by side, got a 1 at ", m - row.begin(), " after a 0");
    }
    real.lengths.push_back(int32_t(end - first));
    real.firsts.push_back(first == row.end() ? 0 : int32_t(first - row.begin()));
  }
  if (std::ranges::count(real.firsts, 0) == std::ssize(real.firsts)) real.firsts.clear();
  return real;
}

void Model::convert(Dtype type) {
  evaluation_.reset();
  trainings_.clear();
  if (type == Dtype::f32) return parameters_.widen();
  for (const auto& [name, m] : multipliers()) parameters_.convert(name, type, m.by_row, *threads_);
}

void Model::save(const std::filesystem::path& folder, std::optional<Dtype> dtype) const {
  std::filesystem::create_directories(folder);
  std::vector<StoredTensor> tensors = unread_;
  std::map<std::string, const Parameter*> parameters;  // by the name in the file
  std::set<Dtype> types;
  for (const auto& [key, p] : parameters_.all()) {
    const bool packed = is_quantised(p.dtype);
    const std::string name = (p.stored.empty() ? key : p.stored) + (packed ? quantised_ending(p.dtype) : "");
    const Dtype type = packed ? p.dtype : dtype.value_or(p.dtype);
    parameters[name] = &p;
    if (!packed) types.insert(type);
    tensors.push_back({name, type_names[int(type)], packed ? p.packed : p.shape, {}, nullptr, {}});
  }
  Memory converted;
  write_sharded(folder, tensors, most_shard_bytes, {{"format", "pt"}},
                [&](const StoredTensor& tensor) -> std::span<const std::byte> {
                  const auto found = parameters.find(tensor.name);
                  if (found == parameters.end()) return tensor.bytes;
                  const Parameter& p = *found->second;
                  if (is_quantised(p.dtype) || p.dtype == dtype.value_or(p.dtype)) return p.bytes();
                  Graph graph(threads_);
                  converted = zero_memory(size_t(count_of(p.shape)) * size_of(*dtype));
                  const Tensor to = graph.external(p.shape, *dtype, converted, p.name);
                  Plan({assign(to, graph.external(p.shape, p.dtype, p.memory, p.name))}).run();
                  return {converted.data, size_t(count_of(p.shape)) * size_of(*dtype)};
                });
  const std::optional<Dtype> all = types.size() == 1 ? std::optional(*types.begin()) : std::nullopt;
  if (original_) write_old_config(page_, folder, *original_, all);
  else write_new_config(page_, folder, all.value_or(Dtype::f32));
}

int64_t write_new(const Page& page, const std::filesystem::path& folder, const NewFolder& options) {
  Parameters parameters(options.seed, page.base, false);
  Graph graph;
  Context context;
  const Tensor ids = context.decoder_ids = graph.input({1, 1}, Dtype::i32, "input_ids");
  page.forward(Weights(graph, parameters), ids, context);
  std::vector<StoredTensor> tensors;
  const auto size = [&](const Parameter& p) { return size_t(count_of(p.shape)) * size_of(options.dtype); };
  for (const Parameter* p : parameters.declared())
    tensors.push_back({p->name, type_names[int(options.dtype)], p->shape, {}, nullptr, {}});
  const uint64_t total = uint64_t(parameters.count()) * size_of(options.dtype);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail(folder.string(), ": cannot create: ", error.message());
  const auto disk = std::filesystem::space(folder, error);
  if (!error && disk.available < total)
    fail(folder.string(), ": expected ", total, " bytes free on its disk, got ", disk.available);
  write_new_config(page, folder, options.dtype);
  uint64_t bytes = 0;
  Memory memory;
  write_sharded(folder, tensors, options.shard_bytes, {{"format", "pt"}},
                [&](const StoredTensor& tensor) -> std::span<const std::byte> {
                  const Parameter& p = parameters.all().at(tensor.name);
                  memory = {};  // not both at once
                  memory = parameters.initial(p, options.dtype);
                  bytes += size(p);
                  if (options.wrote) options.wrote(bytes, total);
                  return {memory.data, size(p)};
                });
  return parameters.count();
}

}  // namespace dense
