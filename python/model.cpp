// See model.h. Read the class Shared first, then the methods, in the order of the list at the end.
#include "python/model.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/builtin_names.h"
#include "cli/pages.h"
#include "dense/io/hub.h"
#include "dense/io/json.h"
#include "dense/io/safetensors.h"
#include "dense/train/generate.h"
#include "dense/train/trainer.h"

namespace dense::python {

namespace {

using namespace pybind11::literals;
using Object = const py::object&;  // whatever Python gives

// A model that several threads of Python may use: one after the other, each without Python's lock, so that the others
// go on. The order of locks is always the same: nobody waits for the model's with Python's in hand.
class Shared {
 public:
  explicit Shared(std::unique_ptr<Model> model) : model_(std::move(model)) {}

  // f(model), which must not touch a Python object.
  template <class F>
  auto use(const F& f) {
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    return f(*model_);
  }
  // What never changes.
  const Page& page() const { return model_->page(); }
  std::filesystem::path folder = {};  // that it was loaded from

 private:
  const std::unique_ptr<Model> model_;
  std::recursive_mutex mutex_;  // on_text may use the model that calls it
};

// ---- arrays in

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast | py::detail::npy_api::NPY_ARRAY_ALIGNED_>;
using Ints = Array<int32_t>;

Shape shape(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

// T: the widest type of their kind.
template <class T>
Ints narrow(const std::string& what, const py::array& array) {
  const Array<T> wide(array);
  Ints result(shape(array));
  for (py::ssize_t i = 0; i < wide.size(); ++i) {
    if (!std::in_range<int32_t>(wide.data()[i]))
      fail(what, ": expected integers of 32 bits, got ", wide.data()[i], " at element ", i);
    result.mutable_data()[i] = int32_t(wide.data()[i]);
  }
  return result;
}

// x itself where it is an int32 array in C order, else a copy. Floats are refused even where they are whole: as tokens
// they are a mistake.
Ints integers(const std::string& what, Object x) {
  const py::array array(x);
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u')
    throw py::type_error(what + ": expected an array of integers, got dtype " + std::string(py::str(array.dtype())));
  if (array.itemsize() < 4 || (kind == 'i' && array.itemsize() == 4)) return Ints(array);
  return kind == 'u' ? narrow<uint64_t>(what, array) : narrow<int64_t>(what, array);
}

// The arrays of one call, which live as long as it.
struct Batch {
  Ints ids, labels, lengths, mask, positions, decoder_ids;
  RealTokens real;
  Model::Inputs inputs;

  // Of tokens x labels y, lengths n or an attention mask m, position ids p, and d: what the decoder of an encoder-decoder
  // sees, which may be of any length; labels are for that. All but x may be None.
  Batch(const std::string& who, const Page& page, Object x, Object y, Object n, Object m, Object p, Object d)
      : ids(integers(who + ": ids", x)) {
    if (ids.ndim() != 1 && ids.ndim() != 2)
      fail(who, ": ids: expected shape (B, T) or (T), got ", to_string(shape(ids)));
    inputs.batch = ids.ndim() == 1 ? 1 : ids.shape(0), inputs.time = ids.shape(ids.ndim() - 1);
    inputs.ids = {ids.data(), size_t(ids.size())};
    Shape scored = shape(ids);
    if (page.decoder && !(d.is_none() && y.is_none())) {
      const Ints given = integers(who + ": labels", d.is_none() ? y : d);
      if (given.ndim() == ids.ndim()) scored.back() = given.shape(given.ndim() - 1);
    }
    if (!d.is_none()) inputs.decoder_ids = read(decoder_ids, who + ": decoder_ids", d, scored);
    if (!y.is_none()) inputs.labels = read(labels, who + ": labels", y, scored);
    if (!n.is_none()) inputs.lengths = read(lengths, who + ": lengths", n, {inputs.batch});
    if (!p.is_none()) inputs.position_ids = read(positions, who + ": position_ids", p, shape(ids));
    if (m.is_none()) return;
    if (!n.is_none()) fail(who, ": expected lengths or attention_mask, got both");
    real = real_tokens(read(mask, who + ": attention_mask", m, shape(ids)), inputs.time);
    inputs.lengths = real.lengths, inputs.firsts = real.firsts;
  }

 private:
  static std::span<const int32_t> read(Ints& to, const std::string& what, Object x, const Shape& want) {
    to = integers(what, x);
    if (shape(to) != want) fail(what, ": expected shape ", to_string(want), ", got ", to_string(shape(to)));
    return {to.data(), size_t(to.size())};
  }
};

// ---- arrays out

// An array over memory that `owner` keeps, and the array keeps `owner`.
template <class Owner>
py::array_t<float> array_over(const Shape& shape, const float* data, Owner owner) {
  const py::capsule base(new Owner(std::move(owner)), [](void* p) { delete static_cast<Owner*>(p); });
  return py::array_t<float>(shape, data, base);
}

py::array_t<float> to_numpy(const Shape& shape, std::vector<float>&& values) {
  const float* data = values.data();  // stays where it is when the vector moves
  return array_over(shape, data, std::move(values));
}

// ---- configs

// A value from Python as config.json has it. Arrays and numbers of NumPy count as lists and numbers.
Json to_json(const char* who, const std::string& name, py::handle given) {
  py::object x = py::reinterpret_borrow<py::object>(given);
  if (py::hasattr(x, "tolist")) x = x.attr("tolist")();
  if (x.is_none()) return {Json::null, name};
  if (py::isinstance<py::bool_>(x)) return {Json::boolean, name, x.cast<bool>() ? "true" : "false"};
  if (py::isinstance<py::int_>(x) || py::isinstance<py::float_>(x))
    return {Json::number, name, std::string(py::str(x))};
  if (py::isinstance<py::str>(x)) return {Json::string, name, x.cast<std::string>()};
  if (py::isinstance<py::list>(x) || py::isinstance<py::tuple>(x)) {
    Json list{Json::array, name};
    for (py::handle item : x) list.items.push_back(to_json(who, name, item));
    return list;
  }
  if (py::isinstance<py::dict>(x)) {
    Json object{Json::object, name};
    for (auto [key, value] : x.cast<py::dict>()) object.items.push_back(to_json(who, std::string(py::str(key)), value));
    return object;
  }
  const std::string type = py::str(py::type::handle_of(x).attr("__name__"));
  throw py::type_error(text(who, ": ", name, ": expected a number, a string, a list or None, got ", type));
}

// Throws Error for a name that no field has.
void check_names(const char* who, const Json& object, const std::string& prefix, const std::string& model_type,
                 const std::vector<ConfigField>& fields) {
  for (const Json& item : object.items) {
    const std::string name = prefix + item.name;
    const auto is = [&](const ConfigField& field) { return field.name == name; };
    const auto begins = [&](const ConfigField& field) { return field.name.starts_with(name + "."); };
    if (std::ranges::any_of(fields, is)) continue;
    if (std::ranges::any_of(fields, begins)) {
      if (item.kind == Json::object) check_names(who, item, name + ".", model_type, fields);
      continue;  // what is no object is refused where fields are set
    }
    py::list names;
    for (const ConfigField& field : fields) names.append(field.name);
    const py::list near = py::module_::import("difflib").attr("get_close_matches")(name, names);
    const std::string near_names = py::str(py::str(" or ").attr("join")(near));
    const std::string all_names = py::str(py::str(", ").attr("join")(names));
    if (near.empty()) fail(who, ": unknown field ", shown(name), "; ", model_type, " has ", all_names);
    fail(who, ": unknown field ", shown(name), "; did you mean ", near_names, "?");
  }
}

template <class T>
py::object to_python(const T& value) {
  return py::cast(value);
}
py::object to_python(const TokenIds& value) {
  if (value.ids.empty()) return py::none();
  return value.ids.size() == 1 ? py::object(py::int_(value.ids[0])) : py::cast(value.ids);
}

// As config.json has it: the field a.b is "b" in the dict "a".
py::dict config(const Shared& self) {
  py::dict root("model_type"_a = self.page().model_type);
  for (const ConfigField& field : self.page().fields) {
    const py::object value = std::visit([](const auto* v) -> py::object { return to_python(*v); }, field.value);
    std::string_view name = field.name;
    if (value.is_none() && name.find('.') != name.npos) continue;  // no dict is made for nothing
    py::dict place = root;
    for (size_t dot; (dot = name.find('.')) != name.npos; name.remove_prefix(dot + 1))
      place = place.attr("setdefault")(name.substr(0, dot), py::dict());
    place[py::str(name)] = value;
  }
  return root;
}

// ---- functions and methods

void check_threads(const char* who, int threads) {
  if (threads < 0) fail(who, ": threads: expected 0 or more, got ", threads);
}

void warn_of(const std::string& line) {
  if (PyErr_WarnEx(PyExc_UserWarning, line.c_str(), 1) != 0) throw py::error_already_set();  // made an error
}

std::unique_ptr<Shared> load(const std::filesystem::path& name, int threads, const std::string& dtype) {
  check_threads("load", threads);
  const std::optional<Dtype> type = weight_type(dtype);
  std::vector<std::string> warnings;
  auto model = [&] {
    const py::gil_scoped_release release;
    const Warn warn = [&](const std::string& line) { warnings.push_back(line); };
    const std::filesystem::path path = find_model(name.string());
    auto loaded =
        std::make_unique<Shared>(std::make_unique<Model>(cli::page_of(model_type(path)), path, threads, warn));
    loaded->folder = path;
    return loaded;
  }();
  if (type) model->use([&](Model& m) { m.convert(*type); });
  for (const std::string& line : warnings) warn_of(line);
  return model;
}

std::unique_ptr<Shared> init(const std::string& model_type, uint64_t seed, int threads, const py::kwargs& given) {
  check_threads("init", threads);
  Page page = cli::page_of(model_type);
  Json fields = to_json("init", "", given);
  check_names("init", fields, "", model_type, page.fields);
  set_fields(std::move(fields), "init", page.fields, {}, {});
  const py::gil_scoped_release release;
  return std::make_unique<Shared>(std::make_unique<Model>(std::move(page), threads, seed));
}

// What a callback raises, and Ctrl-C, stops the run as a callback's False does, and is raised again once it is saved.
std::unique_ptr<Shared> train(Object given, Object on_step, Object on_evaluation, Object on_sample, bool resume) {
  const bool is_dict = py::isinstance<py::dict>(given);
  const std::string where = is_dict ? "train" : py::module_::import("os").attr("fspath")(given).cast<std::string>();
  const Json json = is_dict ? to_json("train", "", given) : read_object(where);
  TrainConfig config;
  set_fields(json, where, config_fields(config), {}, {});
  const Page page = cli::page_of_run(config.model_type, config.from);
  const std::vector<ConfigField> fields = run_fields(config, page);
  check_names(where.c_str(), json, "", page.model_type, fields);
  set_fields(json, where, fields, {}, {});
  config.model_type = page.model_type;
  config.command = "dense.train";
  if (resume && config.out.empty()) fail("train: out: expected the folder of the run to resume");

  bool stop = false;
  std::exception_ptr raised;
  const auto tell = [&](Object f, const auto& metrics) {
    if (f.is_none() || raised) return;
    const py::gil_scoped_acquire acquire;
    try {
      stop = f(metrics()).is(py::bool_(false)) || stop;
    } catch (const py::error_already_set&) {
      stop = true, raised = std::current_exception();
    }
  };
  Trainer::Events events;
  events.step = [&](const Trainer::Step& s) {
    tell(on_step, [&] {
      return py::dict("step"_a = s.step, "loss"_a = s.loss, "norm"_a = s.norm, "lr"_a = s.lr,
                      "tokens_per_second"_a = s.tokens_per_second);
    });
  };
  events.evaluated = [&](int64_t step, double loss) {
    tell(on_evaluation, [&] { return py::dict("step"_a = step, "validation"_a = loss); });
  };
  events.sampled = [&](int64_t step, const std::string& text) {
    tell(on_sample, [&] { return py::dict("step"_a = step, "sample"_a = text); });
  };
  events.stop = [&] {
    const py::gil_scoped_acquire acquire;
    if (!stop && PyErr_CheckSignals() != 0) stop = true, raised = std::make_exception_ptr(py::error_already_set());
    return stop;
  };
  events.warn = [](const std::string& line) {
    const py::gil_scoped_acquire acquire;
    warn_of(line);
  };
  auto model = [&] {
    const py::gil_scoped_release release;
    const auto reading = [&](int64_t, int64_t) { return !events.stop(); };
    try {
      Trainer trainer(page, config, cli::builtin_names, resume, events.warn, {}, nullptr, reading);
      trainer.run(events);
      return std::make_unique<Shared>(trainer.take_model());
    } catch (const Error&) {  // which Ctrl-C may have been the reason of
      if (raised) std::rethrow_exception(raised);
      throw;
    }
  }();
  if (!config.out.empty()) model->folder = std::filesystem::absolute(config.out) / "model";
  if (raised) std::rethrow_exception(raised);
  return model;
}

py::array_t<float> logits(Shared& self, Object ids, Object lengths, Object decoder_ids, Object attention_mask,
                          Object position_ids) {
  const Batch batch("logits", self.page(), ids, py::none(), lengths, attention_mask, position_ids, decoder_ids);
  Model::Result result = self.use([&](Model& m) { return std::move(m.run(batch.inputs, false).at("logits")); });
  return to_numpy(result.shape, std::move(result.values));
}

float loss(Shared& self, Object ids, Object labels, Object lengths, Object decoder_ids, Object attention_mask,
           Object position_ids) {
  const Batch batch("loss", self.page(), ids, labels, lengths, attention_mask, position_ids, decoder_ids);
  if (batch.inputs.labels.empty()) fail("loss: expected labels");
  return self.use([&](Model& m) { return m.run(batch.inputs, false).at("loss").values[0]; });
}

py::dict grads(Shared& self, Object ids, Object labels, Object lengths, Object decoder_ids, Object attention_mask,
               Object position_ids) {
  const Batch batch("grads", self.page(), ids, labels, lengths, attention_mask, position_ids, decoder_ids);
  auto results = self.use([&](Model& m) { return m.run(batch.inputs, true); });
  constexpr std::string_view prefix = "grad.";
  py::dict grads;
  for (auto& [name, result] : results)
    if (name.starts_with(prefix))
      grads[py::str(name.substr(prefix.size()))] = to_numpy(result.shape, std::move(result.values));
  return grads;
}

Dtype dtype_of(const char* who, Object name, std::initializer_list<Dtype> types) {
  std::string expected;
  for (Dtype type : types) {
    const char* known = dtype_names[int(type)];
    if (py::isinstance<py::str>(name) && name.equal(py::str(known))) return type;
    expected += text(expected.empty() ? "'" : " or '", known, "'");
  }
  const std::string error = text(who, ": dtype: expected ", expected, ", got ", std::string(py::repr(name)));
  if (!py::isinstance<py::str>(name)) throw py::type_error(error);
  fail(error);
}

float step(Shared& self, Object ids, Object labels, double lr, double beta1, double beta2, double eps,
           double weight_decay, Object lengths, Object dtype, bool dropout, Object decoder_ids, bool recompute,
           Object attention_mask, Object position_ids) {
  const Batch batch("step", self.page(), ids, labels, lengths, attention_mask, position_ids, decoder_ids);
  const auto check = [](const char* name, double value, bool fits, const char* expected) {
    if (!fits) fail("step: ", name, ": expected ", expected, ", got ", value);
  };
  check("lr", lr, std::isfinite(lr), "a finite number");
  check("beta1", beta1, beta1 >= 0 && beta1 < 1, "0 or more, below 1");
  check("beta2", beta2, beta2 >= 0 && beta2 < 1, "0 or more, below 1");
  check("eps", eps, eps > 0 && std::isfinite(eps), "a number above 0");
  check("weight_decay", weight_decay, std::isfinite(weight_decay), "a finite number");
  Model::Training training;
  training.lr = lr, training.optimizer.adamw = {beta1, beta2, eps, weight_decay};
  training.matmul_type = dtype_of("step", dtype, {Dtype::f32, Dtype::bf16}), training.dropout = dropout;
  training.recompute = recompute;
  return self.use([&](Model& m) { return m.step(batch.inputs, training); });
}

// What new tokens follow: the answer of an encoder-decoder stands alone.
std::span<const int32_t> before(const Page& page, std::span<const int32_t> prompt) {
  return page.causal ? prompt : std::span<const int32_t>();
}

// Continues a prompt, or several: texts, or token ids.
py::object generate_text(Shared& self, Object prompt, int64_t tokens, const SamplingChanges& changes, uint64_t seed,
                         bool ignore_eos, Object on_text) {
  const bool one_text = py::isinstance<py::str>(prompt);
  const bool some_texts =
      py::isinstance<py::list>(prompt) && py::len(prompt) > 0 && py::isinstance<py::str>(prompt.cast<py::list>()[0]);
  std::vector<std::string> texts;
  if (one_text) texts = {prompt.cast<std::string>()};
  if (some_texts)
    for (const py::handle text : prompt) {
      if (!py::isinstance<py::str>(text))
        throw py::type_error("generate: prompt: expected texts alone in a list of them");
      texts.push_back(text.cast<std::string>());
    }
  if (self.folder.empty() && !texts.empty())
    fail("generate: expected token ids: only a model that was loaded has a tokenizer");
  if (!on_text.is_none() && !one_text) fail("generate: on_text: expected one text as prompt");
  if (tokens < 0) fail("generate: tokens: expected 0 or more, got ", tokens);
  std::vector<std::vector<int32_t>> prompts;
  if (texts.empty()) {
    const Ints ids = integers("generate: prompt", prompt);
    if (ids.ndim() != 1) fail("generate: prompt: expected a text, texts or ids (T), got ids ", to_string(shape(ids)));
    prompts.emplace_back(ids.data(), ids.data() + ids.size());
  }
  std::optional<Tokenizer> tokenizer;
  std::optional<TextStream> stream;
  const auto tell = [&](const std::string& text) {
    if (!text.empty()) on_text(text);
  };
  const Generated out = self.use([&](Model& m) {
    if (!m.page().generates()) fail("generate: expected a model that continues texts, got ", m.page().model_type);
    Generation generation;
    if (!self.folder.empty()) generation = read_generation(self.folder);
    generation.tokens = tokens;
    generation.sampling = changed(generation.sampling, changes);
    generation.sampling.seed = seed;
    if (ignore_eos) generation.stops.clear();
    if (!texts.empty()) {
      tokenizer.emplace(self.folder);
      check_vocabulary(*tokenizer, m);
      for (const std::string& text : texts) prompts.push_back(tokenizer->encode(text, true));
      stream.emplace(*tokenizer, true);
      stream->follow(before(m.page(), prompts[0]));
    }
    return generate(m, prompts, generation, [&](int64_t, int32_t id) {
      const py::gil_scoped_acquire acquire;
      if (!on_text.is_none()) tell(stream->push(id));
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // Ctrl-C
      return true;
    });
  });
  if (!on_text.is_none()) tell(stream->finish());
  if (texts.empty()) return py::cast(out.ids[0]);
  py::list results;
  for (size_t row = 0; row < prompts.size(); ++row)
    results.append(continuation(*tokenizer, before(self.page(), prompts[row]), out.ids[row]));
  return one_text ? py::object(results[0]) : results;
}

// A parameter as it is now.
struct Taken {
  std::string name;
  Dtype dtype;
  Shape shape;
  Memory memory;                 // of the model, unless
  std::vector<float> wide = {};  // it is of 16 bits, which NumPy would have no type for: converted
};

std::vector<Taken> take(Shared& self, bool values) {
  return self.use([&](Model& m) {
    std::vector<Taken> all;
    for (const Parameter* p : m.parameters().declared()) {
      Taken& taken = all.emplace_back(Taken{p->name, p->dtype, p->shape, p->memory});
      if (values && is_quantised(p->dtype))
        fail("parameters: ", p->name, ": expected weights that are not quantised, got ", name(p->dtype));
      if (values && p->dtype != Dtype::f32)
        taken.wide = to_f32({p->name, p->dtype == Dtype::bf16 ? "BF16" : "F16", p->shape, p->bytes(), nullptr, {}});
    }
    return all;
  });
}

py::dict parameters(Shared& self) {
  py::dict parameters;
  for (Taken& p : take(self, true)) {
    py::array_t<float> array;
    if (p.dtype == Dtype::f32) {
      array = array_over(p.shape, reinterpret_cast<const float*>(p.memory.data), p.memory.owner);
    } else {
      array = to_numpy(p.shape, std::move(p.wide));
      array.attr("flags").attr("writeable") = false;  // nothing that is written there would reach the model
    }
    parameters[py::str(p.name)] = array;
  }
  return parameters;
}

int64_t num_parameters(Shared& self) {
  return self.use([](Model& m) { return m.parameters().count(); });
}

// One line for each parameter: its name, type and shape. Then how many numbers they are.
std::string summary(Shared& self) {
  const std::vector<Taken> all = take(self, false);
  size_t width = 0;
  int64_t total = 0;
  for (const Taken& p : all) width = std::max(width, p.name.size()), total += count_of(p.shape);
  std::string lines;
  for (const Taken& p : all) {
    const std::string type = name(p.dtype);
    lines += p.name + std::string(width - p.name.size() + 2, ' ') + type + std::string(6 - type.size(), ' ') +
             to_string(p.shape) + "\n";
  }
  return lines + self.page().model_type + ": " + std::to_string(total) + " parameters";
}

std::string repr(Shared& self) {
  return "<dense.Model: " + self.page().model_type + ", " + std::to_string(num_parameters(self)) + " parameters>";
}

void save(Shared& self, const std::filesystem::path& path, Object dtype) {
  std::optional<Dtype> type;
  if (!dtype.is_none()) type = dtype_of("save", dtype, {Dtype::f32, Dtype::bf16, Dtype::f16});
  try {
    self.use([&](Model& m) { m.save(path, type); });
  } catch (const std::filesystem::filesystem_error& error) {
    fail(path.string(), ": cannot write: ", error.code().message());
  }
}

std::string profile(Shared& self, bool on) {
  return self.use([&](Model& m) {
    std::string totals = m.training_plan().totals();
    m.training_plan().profile(on);
    return totals;
  });
}

constexpr char model_doc[] = R"(
A language model and its optimizer; dense.load, dense.init and dense.train make one.

    m = dense.init("gpt2", n_layer=2, n_head=2, n_embd=64, vocab_size=256, n_positions=64)
    ids = np.frombuffer(b"to be or not to be", np.uint8)
    for _ in range(100):
        print(m.step(ids, labels=ids, lr=1e-3))

ids             integers of any type, (B, T), or (T,) for B = 1; int32 in C order is read where it is
labels          the same shape; -100 counts for nothing. A causal model scores logits[:, t] against labels[:, t + 1]:
                pass ids
lengths         (B,): how many tokens of each row are real, from its first on; None: all of them
attention_mask  in place of lengths: (B, T), 1 for real tokens, side by side, and 0 for padding before or behind them
position_ids    (B, T): where each token stands; None: 0, 1, ..., padding counted
decoder_ids     what the decoder of an encoder-decoder sees, (B, T') or (T',); labels have this shape then. None: the
                labels, each one place later

Arrays that come back are float32. Threads may call one model: one waits for the other, and threads that do not wait run
meanwhile. Raises Error for what does not fit, TypeError for tokens that are not integers; the model stays as it was.)";

constexpr char load_doc[] = R"(
The Model in a folder as Hugging Face has it: config.json and model.safetensors or its shards. Fields of config.json
that are unknown here are named in a warning. path may also be a name in the local Hugging Face cache, such as "gpt2".
threads: at most so many; 0: as many as the machine has. dtype: what the weights of matrix products are converted to:
'f32', 'bf16', 'int8' or 'int4'; the last two are for generation, logits and loss alone.

Raises Error for a model_type that is not supported and for weights that do not fit.)";

constexpr char init_doc[] = R"(
A Model with new weights, which depend on the seed alone. The rest are fields of its config, by their names in
config.json: dense.init("gpt2", n_layer=2). What is not given is as in the smallest published model; `config` of the
Model shows them all, and dense.init(**m.config) makes another one like m.

Raises Error for a field that does not exist or a value that does not fit.)";

constexpr char train_doc[] = R"(
Trains a model as the command `dense train` does, and returns the Model.

    dense.train({"model": {"n_layer": 2}, "data": {"path": "book.txt"}, "steps": 500, "out": "runs/book"},
                on_step=lambda m: print(m["step"], m["loss"]))

config         a dict, or the path of a JSON file such as runs/book/config.json; `dense train --help` lists its fields,
               of which --data.path is config["data"]["path"]
on_step        called after each step with a dict: step, loss, norm, lr, tokens_per_second
on_evaluation  step, validation: the loss on the validation data, every config["evaluate"]["every"] steps
on_sample      step, sample: a text that the model makes up, every config["sample"]["every"] steps
resume         go on with the run in config["out"], from its last checkpoint

A callback that returns False stops the run, which then saves, and what it has become is returned. Ctrl-C and what a
callback raises stop it, too, and are raised once it has saved. Other threads of Python run meanwhile.

Raises Error for a field that does not exist, a value that does not fit, and data or folders that cannot be read.)";

constexpr char generate_doc[] = R"(
Continues a prompt: a text, of which the new part is returned; a list of texts, all at once; or token ids, which gives
ids. An encoder-decoder answers it instead. Tokens are chosen as the model's generation_config.json says, unless
arguments say otherwise; temperature=0 or greedy=True takes the likeliest each time. A text ends after `tokens` new
ones, or after a token that ends texts.

seed     of the choices: same arguments, same text
on_text  called with each piece of text as it comes)";

constexpr char step_doc[] = R"(
One step of AdamW on a batch; returns the loss before it. As in GPT-2, parameters with one axis are not decayed.

dtype      'bf16': matrices are multiplied in bf16, with sums in float32; weights and moments are float32 either way
dropout    whether the config's dropout is on
recompute  keep less for the gradient and compute it once more: less memory, more time, the same bits

Steps of shapes and settings (but for lr) that came before are faster than others, which are prepared first. A model of
16-bit weights is float32 from its first step on.)";

constexpr char parameters_doc[] = R"(
A dict of the model's weights by name. Arrays are views: writing to them changes the model, and steps change them. Only
16-bit weights, before the first step, are given as float32 copies, which are read-only.)";

constexpr char save_doc[] = R"(
Writes a folder as Hugging Face has it: config.json and model.safetensors. dtype: 'f32', 'bf16' or 'f16', what weights
are rounded to on the way; None: they stay as they are.)";

constexpr char profile_doc[] = R"(
What a step of the last shape costs, a line for each kind of kernel: how many, operations, bytes; and time, of the steps
since profile was called for the first time. on=False ends measuring. Raises Error before the first step.)";

}  // namespace

void add_model(py::module_& m) {
  constexpr AdamW o;
  py::class_<Shared>(m, "Model", py::is_final(), model_doc)
      .def("logits", logits, "ids"_a, "lengths"_a = py::none(), "decoder_ids"_a = py::none(), py::kw_only(),
           "attention_mask"_a = py::none(), "position_ids"_a = py::none(), "The scores of the next token: (B, T, V).")
      .def("loss", loss, "ids"_a, "labels"_a, "lengths"_a = py::none(), "decoder_ids"_a = py::none(), py::kw_only(),
           "attention_mask"_a = py::none(), "position_ids"_a = py::none(), "The mean loss over the labels, a float.")
      .def("grads", grads, "ids"_a, "labels"_a, "lengths"_a = py::none(), "decoder_ids"_a = py::none(), py::kw_only(),
           "attention_mask"_a = py::none(), "position_ids"_a = py::none(),
           "The gradient of the loss: a dict of arrays, by the names of parameters.")
      .def("step", step, "ids"_a, "labels"_a, "lr"_a = Model::Training().lr, "beta1"_a = o.beta1, "beta2"_a = o.beta2,
           "eps"_a = o.eps, "weight_decay"_a = o.weight_decay, "lengths"_a = py::none(), "dtype"_a = "f32",
           "dropout"_a = false, "decoder_ids"_a = py::none(), py::kw_only(), "recompute"_a = false,
           "attention_mask"_a = py::none(), "position_ids"_a = py::none(), step_doc)
      .def(
          "generate",
          [](Shared& self, Object prompt, int64_t tokens, std::optional<double> temperature, std::optional<int> top_k,
             std::optional<double> top_p, std::optional<double> min_p, std::optional<double> repetition_penalty,
             bool greedy, uint64_t seed, bool ignore_eos, Object on_text) {
            const SamplingChanges changes{temperature, top_p, min_p, repetition_penalty, top_k, greedy};
            return generate_text(self, prompt, tokens, changes, seed, ignore_eos, on_text);
          },
          "prompt"_a, "tokens"_a = 128, py::kw_only(), "temperature"_a = py::none(), "top_k"_a = py::none(),
          "top_p"_a = py::none(), "min_p"_a = py::none(), "repetition_penalty"_a = py::none(), "greedy"_a = false,
          "seed"_a = 0, "ignore_eos"_a = false, "on_text"_a = py::none(), generate_doc)
      .def("parameters", parameters, parameters_doc)
      .def("save", save, "path"_a, "dtype"_a = py::none(), save_doc)
      .def("summary", summary, "One line for each parameter, and how many numbers they are; print(m) shows it, too.")
      .def("profile", profile, "on"_a = true, profile_doc)
      .def_property_readonly("config", config, "The fields of the config, as a dict like config.json.")
      .def_property_readonly("num_parameters", num_parameters, "how many numbers the parameters are")
      .def("__str__", summary)
      .def("__repr__", repr);
  m.def("load", load, "path"_a, "threads"_a = 0, "dtype"_a = "as-stored", load_doc);
  m.def("init", init, "model_type"_a, "seed"_a = 0, "threads"_a = 0, init_doc);
  m.def("train", train, "config"_a, "on_step"_a = py::none(), "on_evaluation"_a = py::none(),
        "on_sample"_a = py::none(), "resume"_a = false, train_doc);
}

}  // namespace dense::python
