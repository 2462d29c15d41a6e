#include "dense/train/model.h"

#include <algorithm>
#include <cmath>

#include "dense/io/safetensors.h"
#include "dense/scalar/error.h"

namespace dense {

// A graph for one shape of inputs.
struct Model::Recorded {
  Graph graph;
  Tensor ids, labels, lengths, key, logits, loss;
  Tensor lr, correction1, correction2;
  Context context;
  std::unique_ptr<Plan> plan;
  int64_t batch = 0, time = 0;
  explicit Recorded(int threads) : graph(threads) {}
};

namespace {

Dtype stored_type(const StoredTensor& tensor) {
  if (tensor.dtype == "BF16") return Dtype::bf16;
  if (tensor.dtype == "F16") return Dtype::f16;
  if (tensor.dtype == "F32") return Dtype::f32;
  fail(tensor.file, ": ", tensor.name, ": expected F32, BF16 or F16, got ", tensor.dtype);
}

Memory zero_floats(int64_t count) {
  const auto values = std::make_shared<std::vector<float>>(size_t(count), 0.f);
  return {reinterpret_cast<std::byte*>(values->data()), values};
}

bool ends_with_any(const std::string& name, const std::vector<std::string>& ends) {
  return std::ranges::any_of(ends, [&](const std::string& end) { return name.ends_with(end); });
}

}  // namespace

Model::~Model() = default;

Model::Model(Page page, int threads, uint64_t seed)
    : page_(std::move(page)), parameters_(seed, page_.base), threads_(threads) {
  int32_t id = 0;  // declares everything
  record({1, 1, std::span(&id, 1)}, false);
}

Model::Model(Page page, const std::filesystem::path& folder, int threads, const Warn& warn)
    : page_(std::move(page)), parameters_(0, page_.base), folder_(folder), threads_(threads) {
  set_fields(folder / "config.json", page_.fields, page_.inert, warn);
  for (auto& [name, tensor] : read_safetensors(folder)) {
    const bool known = tensor.dtype == "F32" || tensor.dtype == "BF16" || tensor.dtype == "F16";
    if (!known && ends_with_any(name, page_.inert_tensors)) continue;
    parameters_.load({name, stored_type(tensor), tensor.shape, {tensor.bytes.data(), tensor.owner}, false, {}});
  }
  int32_t id = 0;
  try {
    record({1, 1, std::span(&id, 1)}, false);
    parameters_.check(page_.inert_tensors);
  } catch (const Error& error) {
    fail(folder.string(), ": ", error.what());
  }
}

void Model::check_inputs(const Inputs& inputs) const {
  const auto expect = [&](const char* what, size_t got, int64_t want) {
    if (got != size_t(want)) fail(what, ": expected ", want, " numbers, got ", got);
  };
  if (inputs.batch < 1 || inputs.time < 1) fail("input_ids: expected a batch of one token or more");
  expect("input_ids", inputs.ids.size(), inputs.batch * inputs.time);
  if (!inputs.labels.empty()) expect("labels", inputs.labels.size(), inputs.batch * inputs.time);
  if (!inputs.lengths.empty()) expect("lengths", inputs.lengths.size(), inputs.batch);
  for (int32_t length : inputs.lengths)
    if (length < 0 || length > inputs.time) fail("lengths: expected 0 to ", inputs.time, ", got ", length);
}

std::unique_ptr<Model::Recorded> Model::record(const Inputs& inputs, bool with_loss) {
  check_inputs(inputs);
  auto r = std::make_unique<Recorded>(threads_);
  r->batch = inputs.batch, r->time = inputs.time;
  const Shape shape{inputs.batch, inputs.time};
  r->ids = r->graph.input(shape, Dtype::i32, "input_ids");
  r->ids.set(inputs.ids);
  if (!inputs.lengths.empty()) {
    r->lengths = r->context.lengths = r->graph.input({inputs.batch}, Dtype::i32, "lengths");
    r->lengths.set(inputs.lengths);
  }
  r->logits = page_.forward(Weights(r->graph, parameters_), r->ids, r->context);
  if (with_loss) {
    const auto vocabulary = int32_t(r->logits.size(-1));
    for (int32_t label : inputs.labels)
      if (label != -100 && (label < 0 || label >= vocabulary))
        fail("labels: expected 0 to ", vocabulary - 1, ", or -100 to leave out, got ", label);
    r->labels = r->graph.input(shape, Dtype::i32, "labels");
    r->labels.set(inputs.labels);
    r->loss = page_.loss(r->logits, r->labels);
  }
  return r;
}

std::map<std::string, Model::Result> Model::run(const Inputs& inputs, bool gradients) {
  const bool with_loss = !inputs.labels.empty();
  if (gradients && !with_loss) fail("gradients: expected labels");
  const auto r = record(inputs, with_loss);
  std::map<std::string, Tensor> wanted = r->context.kept;
  wanted["logits"] = r->logits;
  if (with_loss) wanted["loss"] = r->loss;
  if (gradients) {
    std::vector<Tensor> parameters;
    for (const auto& [name, x] : r->graph.parameters()) parameters.push_back(x);
    const std::vector<Tensor> d = grad(r->loss, parameters);
    for (size_t i = 0; i < d.size(); ++i) wanted["grad." + parameters[i].node().name] = d[i];
  }
  std::vector<Tensor> outputs;
  for (const auto& [name, x] : wanted) outputs.push_back(x);
  Plan plan(outputs);
  plan.run();
  std::map<std::string, Result> results;
  for (const auto& [name, x] : wanted) {
    const auto values = plan.get<float>(x);
    results[name] = {x.shape(), {values.begin(), values.end()}};
  }
  // A NaN in a result is in the weights more often than in the arithmetic: say where.
  if (std::ranges::any_of(results["logits"].values, [](float v) { return std::isnan(v); })) {
    for (const auto& [name, x] : r->graph.parameters()) {
      const std::vector<float> values = x.value();
      const auto bad = std::ranges::find_if(values, [](float v) { return !std::isfinite(v); });
      if (bad != values.end()) fail(name, ": expected finite weights, got ", *bad, " at element ", bad - values.begin());
    }
  }
  return results;
}

float Model::step(const Inputs& inputs, const Training& training) {
  if (inputs.labels.empty()) fail("step: expected labels");
  const bool same = training_ && training_->batch == inputs.batch && training_->time == inputs.time &&
                    bool(training_->lengths) == !inputs.lengths.empty() &&
                    training_->graph.matmul_type == training.matmul_type && bool(training_->key) == training.dropout;
  if (!same) {
    training_.reset();
    parameters_.widen();
    check_inputs(inputs);
    auto r = std::make_unique<Recorded>(threads_);
    Graph& graph = r->graph;
    graph.matmul_type = training.matmul_type;
    r->batch = inputs.batch, r->time = inputs.time;
    const Shape shape{inputs.batch, inputs.time};
    r->ids = graph.input(shape, Dtype::i32, "input_ids");
    r->labels = graph.input(shape, Dtype::i32, "labels");
    if (!inputs.lengths.empty()) r->lengths = r->context.lengths = graph.input({inputs.batch}, Dtype::i32, "lengths");
    if (training.dropout) r->key = r->context.dropout_key = graph.input({2}, Dtype::i32, "step");
    r->lr = graph.input({}, Dtype::f32, "lr");
    r->correction1 = graph.input({}, Dtype::f32, "correction1");
    r->correction2 = graph.input({}, Dtype::f32, "correction2");
    r->logits = page_.forward(Weights(graph, parameters_), r->ids, r->context);
    r->loss = page_.loss(r->logits, r->labels);
    std::vector<Tensor> parameters, outputs{r->loss};
    for (const auto& [name, x] : graph.parameters()) parameters.push_back(x);
    const std::vector<Tensor> d = grad(r->loss, parameters);
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Tensor p = parameters[i];
      auto& moments = moments_[p.node().name];
      if (!moments.first.data) moments = {zero_floats(p.count()), zero_floats(p.count())};
      const Tensor m = graph.external(p.shape(), Dtype::f32, moments.first, p.node().name + ".m");
      const Tensor v = graph.external(p.shape(), Dtype::f32, moments.second, p.node().name + ".v");
      AdamW options = training.optimizer.adamw;
      if (p.rank() < 2 && !training.optimizer.decay_vectors) options.weight_decay = 0;
      const auto next = adamw(p, d[i], m, v, r->lr, r->correction1, r->correction2, options);
      outputs.push_back(assign(p, next[0]));
      outputs.push_back(assign(m, next[1]));
      outputs.push_back(assign(v, next[2]));
    }
    r->plan = std::make_unique<Plan>(outputs);
    training_ = std::move(r);
  }
  Recorded& r = *training_;
  check_inputs(inputs);
  const auto vocabulary = int32_t(r.logits.size(-1));
  for (int32_t label : inputs.labels)
    if (label != -100 && (label < 0 || label >= vocabulary))
      fail("labels: expected 0 to ", vocabulary - 1, ", or -100 to leave out, got ", label);
  for (int32_t id : inputs.ids)  // before anything is changed
    if (id < 0 || id >= vocabulary) fail("input_ids: expected 0 to ", vocabulary - 1, ", got ", id);
  r.ids.set(inputs.ids);
  r.labels.set(inputs.labels);
  if (r.lengths) r.lengths.set(inputs.lengths);
  ++steps_;
  if (r.key) r.key.set({int32_t(steps_), int32_t(steps_ >> 31)});
  r.lr.set({float(training.lr)});
  r.correction1.set({float(1 - std::pow(training.optimizer.adamw.beta1, double(steps_)))});
  r.correction2.set({float(1 - std::pow(training.optimizer.adamw.beta2, double(steps_)))});
  r.plan->run();
  return r.plan->get<float>(r.loss)[0];
}

Plan& Model::training_plan() {
  if (!training_) fail("training_plan: expected a step before");
  return *training_->plan;
}

void Model::save(const std::filesystem::path& folder) const {
  std::filesystem::create_directories(folder);
  std::vector<StoredTensor> tensors;
  static constexpr const char* type_names[] = {"F32", "F64", "BF16", "F16", "I32"};
  for (const auto& [name, p] : parameters_.all())
    tensors.push_back({p.stored.empty() ? name : p.stored, type_names[int(p.dtype)], p.shape, p.bytes(), p.memory.owner, {}});
  write_sharded(folder, tensors);
  const auto original = folder_.empty() ? std::filesystem::path() : folder_ / "config.json";
  write_fields(folder / "config.json", page_.fields, page_.model_type, original);
}

}  // namespace dense
