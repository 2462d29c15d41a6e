#include "dense/train/twins.h"

#include <algorithm>

#include "dense/io/files.h"
#include "dense/io/hub.h"
#include "dense/io/json.h"
#include "dense/scalar/error.h"
#include "dense/train/records.h"

namespace dense {

namespace fs = std::filesystem;

namespace {

constexpr const char* differences_file = "differences.json";

int64_t data_seed(const TrainConfig& config) { return config.data.seed.value_or(config.seed); }

std::string tokenizer_of(const TrainConfig& config) {
  if (!config.data.tokenizer.empty()) return config.data.tokenizer;
  return config.from.empty() ? "bytes" : find_model(config.from).string();
}

// Throws Error unless both read the same batches.
void check_alike(const Twins::Twin& a, const Twins::Twin& b) {
  const auto check = [&](const char* field, const auto& first, const auto& second) {
    if (first != second)
      fail(b.name, ": ", field, ": expected ", first, " as in ", a.name, ", since twins have the same batches, got ",
           second);
  };
  const TrainConfig &c = a.config, &d = b.config;
  check("batch", c.batch, d.batch);
  check("parts", c.parts, d.parts);
  check("time", c.time, d.time);
  check("data.path", c.data.path, d.data.path);
  check("data.tokenizer", tokenizer_of(c), tokenizer_of(d));
  check("data.documents", c.data.documents, d.data.documents);
  check("data.validation", c.data.validation, d.data.validation);
  const auto task = [](const Page& page) {
    return page.decoder  ? "one that continues a text"
           : page.causal ? "one that predicts the next token"
                         : "one that fills in hidden tokens";
  };
  check("model_type", std::string(task(a.page)), std::string(task(b.page)));
}

// The losses that a run's records tell, up to a step.
std::vector<double> recorded_losses(const fs::path& run, int64_t steps) {
  std::vector<double> losses;
  const fs::path file = run / "metrics.jsonl";
  each_metric(file, [&](const Metric& m) {
    if (m.name == "loss" && int64_t(losses.size()) < steps) losses.push_back(float(m.value));
  });
  if (int64_t(losses.size()) != steps)
    fail(file.string(), ": expected the losses of ", steps, " steps, got ", losses.size());
  return losses;
}

}  // namespace

std::vector<std::string> twins_in(const fs::path& folder) {
  const std::string file = (folder / differences_file).string();
  const Json root = read_object(file);
  std::vector<std::string> names;
  const Json* pairs = root.find("pairs");
  if (!pairs || pairs->items.empty()) fail(file, ": pairs: expected a list of them");
  for (const Json& pair : pairs->items)
    for (const char* key : {"a", "b"}) {
      const Json* name = pair.find(key);
      if (!name || name->kind != Json::string) fail(file, ": pairs: ", key, ": expected a twin's name");
      if (std::ranges::find(names, name->text) == names.end()) names.push_back(name->text);
    }
  return names;
}

Twins::Twins(std::vector<Twin> twins, const fs::path& folder, std::string_view built_in, bool resume, const Warn& warn,
             const Reading& reading)
    : folder_(folder) {
  const bool is_new = !fs::exists(folder);
  if (twins.size() < 2) fail("twins: expected two or more");
  if (!resume && fs::exists(folder / differences_file))
    fail(folder.string(), ": holds twins already; resume them, or choose another folder");
  for (Twin& twin : twins) {
    if (std::ranges::find(names_, twin.name) != names_.end()) fail("twins: ", twin.name, ": expected another name");
    names_.push_back(twin.name);
    twin.config.seed = twins[0].config.seed;
    twin.config.out = (folder / twin.name).string();
    check_alike(twins[0], twin);
  }
  try {
    for (const Twin& twin : twins) {
      const bool shared = !trainers_.empty() && data_seed(twin.config) == data_seed(twins[0].config);
      trainers_.emplace_back(twin.page, twin.config, built_in, resume, warn, Ranks(),
                             shared ? &trainers_[0].data() : nullptr, reading);
      losses_.push_back(resume ? recorded_losses(twin.config.out, trainers_.back().step()) : std::vector<double>());
    }
    write_differences();
  } catch (...) {  // the folders made so far would be in the way of another attempt
    std::error_code ignored;
    for (size_t i = 0; !resume && i < trainers_.size(); ++i) fs::remove_all(trainers_[i].config().out, ignored);
    if (is_new) fs::remove(folder, ignored);
    throw;
  }
}

bool Twins::run(const Events& events) {
  const auto of = [&](size_t i) {
    Trainer::Events one{.warn = events.warn};
    one.step = [&, i](const Trainer::Step& step) {
      if (events.step) events.step(i, step);
    };
    one.evaluated = [&, i](int64_t step, double loss) {
      if (events.evaluated) events.evaluated(i, step, loss);
    };
    return one;
  };
  const auto write = [&] {  // a full disk ends no training
    try {
      write_differences();
    } catch (const Error& error) {
      if (events.warn) events.warn(error.what());
    }
  };
  try {
    for (bool stopped = false; !stopped; stopped = events.stop && events.stop()) {
      int64_t step = INT64_MAX;
      for (const Trainer& trainer : trainers_)
        if (!trainer.done()) step = std::min(step, trainer.step());
      if (step == INT64_MAX) break;
      std::vector<Trainer::Batch> batch;
      int64_t order = 0;  // of the batch that was read
      for (size_t i = 0; i < size(); ++i) {
        Trainer& trainer = trainers_[i];
        if (trainer.done() || trainer.step() != step) continue;
        if (const int64_t seed = data_seed(trainer.config()); batch.empty() || seed != order)
          batch = trainer.read(step), order = seed;
        losses_[i].push_back(float(trainer.take(batch, of(i)).loss));  // as records have it
      }
      if (std::chrono::steady_clock::now() >= write_next_) write();
    }
    for (size_t i = 0; i < size(); ++i) trainers_[i].finish(of(i));
  } catch (...) {
    for (Trainer& trainer : trainers_) trainer.failed();
    throw;
  }
  write();
  return std::ranges::all_of(trainers_, [](const Trainer& trainer) { return trainer.done(); });
}

Differences Twins::between(size_t a, size_t b) const {
  const bool same_batches = data_seed(trainers_[a].config()) == data_seed(trainers_[b].config());
  return differences(losses_[a], losses_[b], same_batches);
}

// Of every pair of twins. It takes a small part of the time, however long that is.
void Twins::write_differences() {
  using namespace std::chrono_literals;
  const auto begin = std::chrono::steady_clock::now();
  const auto list = [](const char* name, const auto& numbers) {
    Json all{Json::array, name};
    for (const auto& number : numbers) all.items.push_back({Json::number, "", text(number)});
    return all;
  };
  Json pairs{Json::array, "pairs"};
  for (size_t a = 0; a < size(); ++a)
    for (size_t b = a + 1; b < size(); ++b) {
      const Differences d = between(a, b);
      Json pair{Json::object, "", "", {{Json::string, "a", names_[a]}, {Json::string, "b", names_[b]}}};
      pair.items.push_back(list("steps", d.steps));
      pair.items.push_back(list("difference", d.difference));
      pair.items.push_back(list("low", d.low));
      pair.items.push_back(list("high", d.high));
      pair.items.push_back(d.settled ? Json{Json::number, "settled", std::to_string(*d.settled)}
                                     : Json{Json::null, "settled"});
      pairs.items.push_back(std::move(pair));
    }
  const auto end = std::chrono::steady_clock::now();
  write_next_ = end + std::max<std::chrono::steady_clock::duration>(3s, 50 * (end - begin));
  write_file(folder_ / differences_file, to_text({Json::object, "", "", {std::move(pairs)}}) + "\n");
}

}  // namespace dense
