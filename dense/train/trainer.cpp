#include "dense/train/trainer.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numbers>

#include "dense/io/files.h"
#include "dense/io/hub.h"
#include "dense/io/json.h"
#include "dense/scalar/error.h"
#include "dense/scalar/kernels.h"
#include "dense/tensor/elements.h"

namespace dense {

namespace fs = std::filesystem;

namespace {

// Files of a Hugging Face folder that are no part of config or weights.
constexpr const char* companions[] = {"generation_config.json",
                                      "tokenizer.json",
                                      "tokenizer_config.json",
                                      "special_tokens_map.json",
                                      "vocab.json",
                                      "vocab.txt",
                                      "merges.txt",
                                      "tokenizer.model",
                                      "added_tokens.json",
                                      "chat_template.jinja"};
constexpr const char* optimizer_file = "optimizer.safetensors";
constexpr const char* state_file = "state.json";

std::string step_name(int64_t step) {
  const std::string digits = std::to_string(step);
  return "step-" + std::string(8 - std::min<size_t>(8, digits.size()), '0') + digits;
}

// Whole checkpoints of a run by their steps.
std::vector<std::pair<int64_t, fs::path>> checkpoints_in(const fs::path& run) {
  std::vector<std::pair<int64_t, fs::path>> all;
  std::error_code error;
  for (fs::directory_iterator entry(run / "checkpoints", error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename();
    const char* const end_of_name = name.data() + name.size();
    int64_t step = 0;
    if (name.starts_with("step-") && std::from_chars(name.data() + 5, end_of_name, step).ptr == end_of_name)
      all.emplace_back(step, entry->path());
  }
  std::ranges::sort(all);
  return all;
}

bool is_finite(Model& model) {
  return std::ranges::all_of(model.parameters().declared(), [](const Parameter* p) {
    if (p->dtype != Dtype::f32) return true;  // not trained yet
    float sum = 0;                            // NaN once a value is, or infinite
    const auto* const values = reinterpret_cast<const float*>(p->memory.data);
    for (int64_t i = 0; i < count_of(p->shape); ++i) sum += values[i] * values[i] * 0;
    return sum == 0;
  });
}

int32_t hidden_token(const Tokenizer& tokenizer, const std::string& model_type) {
  for (const char* token : {"[MASK]", "<mask>"})
    if (const auto id = tokenizer.id_of(token)) return *id;
  fail("data.tokenizer: expected one with a token [MASK] or <mask>, since ", model_type, " learns to fill it in");
}

}  // namespace

std::vector<ConfigField> run_fields(TrainConfig& config, const Page& page) {
  std::vector<ConfigField> fields = config_fields(config);
  for (ConfigField field : page.fields) {
    field.name = "model." + field.name;
    fields.push_back(std::move(field));
  }
  return fields;
}

bool is_from_data(const std::string& field) {
  for (const char* size : {"vocab_size", "n_positions", "block_size", "max_position_embeddings"})
    if (field == size) return true;
  return false;
}

void make_small(const Page& page) {
  for (const ConfigField& field : page.fields)
    if (auto* const value = std::get_if<int*>(&field.value)) {
      const auto at_most = [&](int most, std::initializer_list<const char*> names) {
        if (std::ranges::any_of(names, [&](const char* name) { return field.name == name; }))
          **value = std::min(**value, most);
      };
      if (is_from_data(field.name)) **value = std::min(**value, 0);
      at_most(4, {"n_layer", "num_hidden_layers", "num_layers", "n_head", "num_attention_heads", "num_heads"});
      at_most(128, {"n_embd", "hidden_size", "d_model"});
      at_most(352, {"intermediate_size", "d_ff"});
      at_most(32, {"head_dim", "d_kv"});
    } else if (auto* const number = std::get_if<std::optional<int>*>(&field.value)) {
      if (field.name == "num_key_value_heads" && **number) **number = std::min(***number, 4);
    } else if (auto* const tokens = std::get_if<TokenIds*>(&field.value)) {
      **tokens = {};
    }
}

Trainer::Trainer(Page page, const TrainConfig& given, std::string_view built_in, bool resume, const Warn& warn,
                 const Ranks& ranks, const Data* shared, const Reading& reading)
    : config_(given), ranks_(ranks) {
  TrainConfig& c = config_;
  const auto one_of = [](const char* name, const std::string& value, std::initializer_list<const char*> values) {
    std::string all;
    for (const char* each : values) {
      if (value == each) return;
      all += (all.empty() ? "" : each == values.end()[-1] ? " or " : ", ") + std::string(each);
    }
    fail(name, ": expected ", all, ", got ", value);
  };
  one_of("precision", c.precision, {"f32", "bf16"});
  one_of("optimizer.schedule", c.schedule, {"cosine", "linear", "constant"});
  const auto at_least_0 = [](const char* name, double value, double below) {
    if (!(value >= 0 && value < below))
      fail(name, ": expected 0 or more", below < 2 ? ", below 1" : "", ", got ", value);
  };
  constexpr double most = std::numeric_limits<double>::infinity();
  at_least_0("optimizer.beta1", c.beta1, 1), at_least_0("optimizer.beta2", c.beta2, 1);
  at_least_0("optimizer.clip", c.clip, most), at_least_0("optimizer.weight_decay", c.weight_decay, most);
  at_least_0("optimizer.final_share", c.final_share, most);
  if (const auto n = unsigned(ranks.size()); !std::has_single_bit(n) || c.parts % int(n) != 0)
    fail("ranks: expected a power of two that divides parts = ", c.parts, ", got ", n);
  const bool writes = ranks.rank() == 0 && !c.out.empty();
  const fs::path run = c.out;
  const auto expect_no_run = [&] {
    if (fs::exists(run / "config.json") || !checkpoints_in(run).empty())
      fail("out: ", c.out, ": holds a run already; resume it, or choose another folder");
  };
  const auto lock = [&] {
    lock_ = lock_file(run / ".lock");
    if (!lock_) fail("out: ", c.out, ": another process trains this run");
  };
  if (!c.out.empty() && fs::exists(run) && !fs::is_directory(run)) fail("out: ", c.out, ": expected a folder");
  if (!resume && writes) expect_no_run();
  if (resume && !fs::exists(run / "config.json")) fail("resume: ", c.out, ": expected a run's folder");
  if (resume && writes) lock();
  const std::vector<std::pair<int64_t, fs::path>> checkpoints = checkpoints_in(run);
  resume = resume && !checkpoints.empty();  // else it stopped before it had one, and begins anew

  page.configured = page.configured || resume;
  if (resume) companions_ = checkpoints.back().second;
  else if (!c.from.empty()) companions_ = find_model(c.from);
  DataConfig data = c.data;
  if (data.tokenizer.empty() && !c.from.empty() && !is_folder_of_tokens(data.path))
    data.tokenizer = companions_.string();
  const int threads = c.threads > 0 ? c.threads : ranks.threads();
  data_ = shared ? *shared : read_data(data, built_in, uint64_t(c.data.seed.value_or(c.seed)), threads, reading);
  if (resume && !data_.tokenizer.empty() && fs::exists(companions_ / "tokenizer.json") &&
      read_file(companions_ / "tokenizer.json") != data_.tokenizer)
    fail("data: expected the tokens of ", (companions_ / "tokenizer.json").string(), ", got others");
  for (const ConfigField& field : page.fields)
    if (auto* const value = std::get_if<int*>(&field.value); value && **value == 0) {
      if (field.name == "vocab_size") **value = int(data_.vocabulary);
      else if (is_from_data(field.name)) **value = c.time + (page.causal ? 0 : 8);  // some begin behind a padding token
    }
  model_ = companions_.empty() ? std::make_unique<Model>(page, threads, uint64_t(c.seed))
                               : std::make_unique<Model>(page, companions_, threads, warn);
  if (data_.vocabulary > model_->vocabulary())
    fail("data: expected at most the model's ", model_->vocabulary(), " tokens, got ", data_.vocabulary);
  if (data_.training.windows(c.time) == 0)
    fail("data: expected more than time = ", c.time, " tokens to train on, got ", data_.training.size());
  if (c.evaluate_every > 0 && c.data.validation > 0 && data_.validation.windows(c.time) < c.batch && warn && writes)
    warn(text("data.validation: fewer than ", c.batch, " sequences of ", c.time, " tokens, so nothing is evaluated"));
  if (!data_.tokenizer.empty()) tokenizer_ = Tokenizer::parse(data_.tokenizer, "tokenizer.json");
  if (!page.generates()) {
    if (!tokenizer_) fail("data.tokenizer: expected one, since ", page.model_type, " learns to fill in a token of it");
    mask_ = hidden_token(*tokenizer_, page.model_type);
  }
  if (tokenizer_ && !c.prompt.empty() && tokenizer_->encode(c.prompt).empty())
    fail("sample.prompt: expected one token or more, got none");
  if (resume) {
    model_->restore_optimizer(companions_ / optimizer_file);
    saved_step_ = step();
    const Json state = read_object(companions_ / state_file);
    if (const Json* step = state.find("best_step"))
      std::from_chars(step->text.data(), step->text.data() + step->text.size(), best_step_);
    if (const Json* loss = state.find("best_loss")) best_loss_ = std::strtod(loss->text.c_str(), nullptr);
  }
  if (!writes) return;
  std::error_code error;
  fs::create_directories(run / "checkpoints", error);
  if (error) fail("out: ", c.out, ": ", error.message());
  if (!lock_) {  // a new run, which somebody else may have begun meanwhile
    lock();
    expect_no_run();
  }
  Json json = with_fields(Json{Json::object}, "config.json", config_fields(c), page.model_type);
  Json model = with_fields(Json{Json::object}, "config.json: model", page.fields, page.model_type);  // its nulls, too
  std::erase_if(model.items, [](const Json& item) { return item.name == "model_type"; });
  model.name = "model";
  json.items.push_back(std::move(model));
  write_file(run / "config.json", to_text(json, 2) + "\n");
  if (const fs::path source = run / "page.h"; !page.source.empty()) {
    if (resume && warn && fs::exists(source) && read_file(source) != page.source)
      warn(text("out: ", c.out, ": page.h: the page has changed since this run last took a step"));
    write_file(source, page.source);
  } else {
    fs::remove(source, error);  // which another page left
  }
  records_ = std::make_unique<Records>(run, step(), c.command);
}

Trainer::~Trainer() = default;

std::string Trainer::fingerprint() const {
  uint64_t hash = 0;
  for (const Parameter* p : model_->parameters().declared())
    for (std::span<const std::byte> rest = p->bytes(); !rest.empty();) {
      uint64_t word = 0;
      const size_t bytes = std::min(rest.size(), sizeof word);
      std::memcpy(&word, rest.data(), bytes);
      hash = mixed(hash ^ word);
      rest = rest.subspan(bytes);
    }
  return text("step ", step(), ", ", data_.training.size(), " tokens to train on, weights ", hash, " and ",
              name(best_isa()));
}

double Trainer::learning_rate(int64_t step) const {
  const TrainConfig& c = config_;
  if (step < c.warmup) return c.lr * double(step + 1) / c.warmup;
  if (c.schedule == "constant") return c.lr;
  const double done = double(step - c.warmup) / std::max(1, c.steps - c.warmup);
  const double left = c.schedule == "linear" ? 1 - done : 0.5 * (1 + std::cos(std::numbers::pi * done));
  return c.lr * (c.final_share + (1 - c.final_share) * left);
}

// The windows first, first + 1, ... of an order that is another one in each epoch. A causal page is scored on the token
// that comes next; one with a decoder continues a window's first half with its second one; the others are scored on
// hidden tokens: of 15% of all, 80% are hidden, 10% replaced and 10% left as they are. Devlin et al. 2018, arXiv:1810.04805
Trainer::Batch Trainer::read_batch(const Tokens& tokens, uint64_t first, bool in_order) const {
  const auto windows = uint64_t(tokens.windows(config_.time)),
             seed = mixed(uint64_t(config_.data.seed.value_or(config_.seed)));
  const bool answers = bool(model_->page().decoder);
  const int64_t time = answers ? config_.time / 2 : config_.time;
  Batch batch{time, {}, {}};
  std::vector<int32_t> window(size_t(config_.time) + 1);
  for (uint64_t i = first; i < first + uint64_t(config_.batch); ++i) {
    const uint64_t number = in_order ? i % windows : shuffled(i % windows, windows, seed + i / windows);
    tokens.window(int64_t(number), config_.time, window);
    const auto begin = window.begin(), target = begin + (answers ? time : mask_ ? 0 : 1);
    batch.ids.insert(batch.ids.end(), begin, begin + time);
    batch.targets.insert(batch.targets.end(), target, target + time);
    if (!mask_) continue;
    bool any = false;
    for (auto t = batch.ids.size() - size_t(time); t < batch.ids.size(); ++t) {
      const uint64_t dice = mixed(mixed(seed ^ (in_order ? number : i)) + t), share = dice % 1000;
      const bool last_chance = t + 1 == batch.ids.size() && !any;  // each row has a target
      any = any || share < 150 || last_chance;
      if (share >= 150 && !last_chance) batch.targets[t] = -100;
      if (share < 120 || last_chance) batch.ids[t] = *mask_;
      else if (share < 135) batch.ids[t] = int32_t((dice >> 32) % uint64_t(data_.vocabulary));
    }
  }
  return batch;
}

std::optional<double> Trainer::evaluate() {
  const int64_t batches =
      std::min<int64_t>(config_.evaluate_batches, data_.validation.windows(config_.time) / config_.batch);
  double sum = 0;
  for (int64_t n = 0; n < batches; ++n) {
    const Batch batch = read_batch(data_.validation, uint64_t(n * config_.batch), true);
    sum += model_->loss({.batch = config_.batch, .time = batch.time, .ids = batch.ids, .targets = batch.targets});
  }
  return batches ? std::optional(sum / double(batches)) : std::nullopt;
}

std::string Trainer::sample(int64_t step) {
  std::vector<int32_t> prompt;
  if (!config_.prompt.empty()) {
    prompt = tokenizer_->encode(config_.prompt, false);
  } else {
    const Tokens& tokens = data_.validation.windows(config_.time) ? data_.validation : data_.training;
    prompt.resize(std::min<size_t>(8, size_t(config_.time) / 2 + 1));
    tokens.window(0, config_.time, prompt);
  }
  Generation generation{.tokens = config_.sample_tokens};
  generation.sampling = {.temperature = 0.8, .seed = uint64_t(config_.seed + step)};
  const Generated made = generate(*model_, std::array{prompt}, generation);
  return tokenizer_->decode(prompt) + continuation(*tokenizer_, prompt, made.ids[0]);
}

// A checkpoint is written beside its place and renamed: whatever has that name is whole.
bool Trainer::save(const Events& events) {
  if (!records_) return true;
  const bool is_best = last_loss_ && *last_loss_ < best_loss_;
  if (is_best) best_loss_ = *last_loss_, best_step_ = step();
  const fs::path folder = fs::path(config_.out) / "checkpoints", to = folder / step_name(step());
  const fs::path draft = folder / ("." + step_name(step()) + ".partial");
  std::error_code ignored;
  try {
    fs::remove_all(draft);
    if (!is_finite(*model_)) fail("the weights are not finite numbers; try a smaller optimizer.lr");
    model_->save(draft);
    if (!data_.tokenizer.empty()) write_file(draft / "tokenizer.json", data_.tokenizer);
    const fs::path known = companions_ / "tokenizer.json";
    const bool same_tokens = data_.tokenizer.empty() || (fs::exists(known) && read_file(known) == data_.tokenizer);
    for (const char* name : companions)
      if (!companions_.empty() && (same_tokens || name == std::string_view("generation_config.json")) &&
          fs::exists(companions_ / name) && !fs::exists(draft / name))
        fs::copy_file(companions_ / name, draft / name);
    model_->save_optimizer(draft / optimizer_file);
    Json state{Json::object};
    state.items.push_back({Json::number, "step", std::to_string(step())});
    if (best_step_ >= 0) {
      state.items.push_back({Json::number, "best_step", std::to_string(best_step_)});
      state.items.push_back({Json::number, "best_loss", text(best_loss_)});
    }
    write_file(draft / state_file, to_text(state, 2) + "\n");
    records_->flush();  // what is known of a step is there before its checkpoint is
    fs::remove_all(to);
    fs::rename(draft, to);
  } catch (const std::exception& error) {  // a full disk ends no training
    fs::remove_all(draft, ignored);
    if (events.warn) events.warn(text("step ", step(), ": nothing saved: ", error.what()));
    return false;
  }
  saved_step_ = step();
  if (!companions_.empty()) companions_ = to;  // an old checkpoint goes
  const auto all = checkpoints_in(config_.out);
  for (size_t i = 0; i + size_t(config_.keep) < all.size(); ++i)
    if (all[i].first != best_step_) fs::remove_all(all[i].second, ignored);
  return true;
}

// The last checkpoint's model once more, as `model`: the same files under another name where the disk can do that.
void Trainer::publish() const {
  const fs::path run = config_.out, draft = run / ".model.partial";
  const fs::path from = run / "checkpoints" / step_name(step());
  fs::remove_all(draft);
  fs::create_directories(draft);
  for (const auto& entry : fs::directory_iterator(from)) {
    const fs::path name = entry.path().filename();
    if (name == optimizer_file || name == state_file) continue;
    std::error_code error;
    fs::create_hard_link(entry.path(), draft / name, error);
    if (error) fs::copy_file(entry.path(), draft / name);
  }
  fs::remove_all(run / "model");
  fs::rename(draft, run / "model");
}

std::vector<Trainer::Batch> Trainer::read(int64_t step) const {
  const int own = config_.parts / ranks_.size(), first = own * ranks_.rank();
  std::vector<Batch> parts;
  for (int part = first; part < first + own; ++part)
    parts.push_back(
        read_batch(data_.training, uint64_t((step * config_.parts + part) * config_.batch), /*in_order=*/false));
  return parts;
}

bool Trainer::run(const Events& events) {
  try {
    for (int stop = 0; !done() && !stop; stop = ranks_.most(events.stop && events.stop())) take(read(step()), events);
    finish(events);
  } catch (...) {
    failed();
    throw;
  }
  return done();
}

Trainer::Step Trainer::take(const std::vector<Batch>& batches, const Events& events) {
  using Clock = std::chrono::steady_clock;
  const TrainConfig& c = config_;
  Model::Training training;
  training.matmul_type = c.precision == "bf16" ? Dtype::bf16 : Dtype::f32;
  training.recompute = c.recompute;
  training.dropout = true;  // as the page and its config have it
  training.optimizer = {.adamw = {c.beta1, c.beta2, c.eps, c.weight_decay}, .norm = true, .clip = c.clip};
  training.ranks = ranks_;
  const bool leads = ranks_.rank() == 0;
  training.lr = learning_rate(step());
  const Clock::time_point begin = Clock::now();
  std::vector<Model::Inputs> parts;
  for (const Batch& b : batches)
    parts.push_back({.batch = c.batch, .time = b.time, .ids = b.ids, .targets = b.targets});
  const Model::Step result = model_->step(parts, training);
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const Step taken{step(), result.loss, result.norm, training.lr, double(c.parts) * c.batch * c.time / seconds};
  if (leads && (!std::isfinite(result.loss) || !std::isfinite(result.norm)))
    fail("step ", step(), ": the loss is ", result.loss, ", its gradient's norm ", result.norm,
         "; try a smaller optimizer.lr");
  if (records_)
    records_->add(
        step(),
        {{"loss", taken.loss}, {"norm", taken.norm}, {"lr", taken.lr}, {"tokens_per_second", taken.tokens_per_second}});
  if (events.step) events.step(taken);
  const auto is_due = [&](int every) { return (every > 0 && step() % every == 0) || done(); };
  if (leads && is_due(c.evaluate_every)) {
    last_loss_ = evaluate();
    if (last_loss_ && records_) records_->add(step(), {{"validation", *last_loss_}});
    if (last_loss_ && events.evaluated) events.evaluated(step(), *last_loss_);
  }
  if (leads && c.sample_every > 0 && is_due(c.sample_every) && tokenizer_ && !mask_) {
    try {
      const std::string text = sample(step());
      if (records_) records_->add_text(step(), "sample", text);
      if (events.sampled) events.sampled(step(), text);
    } catch (const Error& error) {  // is no reason to end
      if (events.warn) events.warn(dense::text("step ", step(), ": no sample: ", error.what()));
    }
  }
  if (records_ && records_->failed() && !std::exchange(told_, true) && events.warn)
    events.warn(dense::text("step ", step(), ": ", c.out, ": metrics cannot be written from here on"));
  if (is_due(c.save_every)) save(events);
  return taken;
}

void Trainer::finish(const Events& events) {
  if (!records_) return;
  if (saved_step_ != step() && !save(events)) fail("out: ", config_.out, ": the last step is not saved");
  publish();
  records_->flush();
  records_->status(done() ? "done" : "stopped");
}

void Trainer::failed() {
  if (!records_) return;
  records_->flush();
  try {
    records_->status("failed");
  } catch (const std::exception&) {  // what went wrong first is what is told
  }
}

}  // namespace dense
