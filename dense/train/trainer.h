// Training: a page, a run's config, and the loop that makes weights out of both.
//
//   TrainConfig config;
//   config.out = "runs/first";
//   Trainer trainer(page_of("gpt2"), config, names);
//   trainer.run({.step = [](const Trainer::Step& s) { ... }});
//
// Whatever is random is a function of (seed, step, place), so a run that was stopped and resumed has the same bits as
// one that never was.
#pragma once

#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dense/train/data.h"
#include "dense/train/generate.h"
#include "dense/train/model.h"
#include "dense/train/ranks.h"
#include "dense/train/records.h"

namespace dense {

struct TrainConfig {
  std::string model_type, from, out, precision = "f32", schedule = "cosine", prompt;
  std::string command;  // that was given, for the records
  int64_t seed = 0;
  int steps = 200, batch = 8, parts = 1, time = 64, threads = 0;
  DataConfig data;
  double lr = 3e-4, final_share = 0, beta1 = 0.9, beta2 = 0.99, eps = 1e-8, weight_decay = 0.1, clip = 1;
  int warmup = 0, evaluate_every = 100, evaluate_batches = 8, sample_every = 0, sample_tokens = 64;
  int save_every = 100, keep = 2;
  bool recompute = false;

  void fields(auto&& f) {
    f("model_type", model_type, "the page (default: the first)");
    f("from", from,
      "a Hugging Face model to begin with, a folder or a name in the local cache, instead of new weights");
    f("out", out, "the run's folder: records, checkpoints and in `model` the last weights; none: nothing is kept");
    f("seed", seed, "of new weights, the order of the data, dropout and samples", INT64_MIN);
    f("steps", steps, "training steps", 1);
    f("batch", batch, "sequences of a part of a step", 1);
    f("parts", parts, "parts of a step, whose gradients are added up; ranks share them", 1);
    f("time", time, "tokens of a sequence", 2);
    f("precision", precision, "f32, or bf16: products of bf16, everything else f32");
    f("recompute", recompute, "keep blocks' results alone for the gradient: less memory, more time, the same weights");
    f("threads", threads, "0: as many as the machine has", 0);
    f("data.path", data.path, "a text, a folder of texts, or tokens of `dense tokens` (default: built-in names)");
    f("data.tokenizer", data.tokenizer,
      "bytes, characters, or a folder or file with a tokenizer.json (default: the one of"
      " `from`, or bytes)");
    f("data.documents", data.documents,
      "files: each is a document; lines (and built-in names): each line is one; they are shuffled");
    f("data.marks", data.marks,
      "mark where documents begin and end with the tokenizer's own tokens; false: one stream");
    f("data.validation", data.validation, "share of the documents, the last ones, that is not trained on");
    f("data.seed", data.seed, "of the order of the data (default: seed)");
    f("optimizer.lr", lr, "of AdamW after warming up", 0);
    f("optimizer.schedule", schedule, "of the rate: cosine or linear down to final_share, or constant");
    f("optimizer.warmup", warmup, "steps in which the rate rises from 0", 0);
    f("optimizer.final_share", final_share, "of lr that is left at the last step");
    f("optimizer.beta1", beta1, "memory of the mean gradient");
    f("optimizer.beta2", beta2, "memory of its mean square");
    f("optimizer.eps", eps, "added to the root of the mean square", 0);
    f("optimizer.weight_decay", weight_decay, "of matrices");
    f("optimizer.clip", clip, "the gradient's norm is at most this; 0: whatever it is");
    f("evaluate.every", evaluate_every, "steps between losses on the validation data; 0: at the end alone", 0);
    f("evaluate.batches", evaluate_batches, "of the validation data for each of these", 1);
    f("sample.every", sample_every, "steps between texts that the model makes up; 0: none", 0);
    f("sample.tokens", sample_tokens, "of such a text", 1);
    f("sample.prompt", prompt, "its beginning (default: that of the validation data)");
    f("save.every", save_every, "steps between checkpoints; 0: at the end alone", 0);
    f("save.keep", keep, "checkpoints: the last ones, and the best", 1);
  }
};

// All fields of a run's config: the page's begin with "model.".
std::vector<ConfigField> run_fields(TrainConfig& config, const Page& page);
// A page's config small enough to be tried at once, without tokens of a meaning. Sizes of 0 become what the data asks
// for: of the vocabulary, of the longest sequence.
void make_small(const Page& page);
bool is_from_data(const std::string& field);  // whether it is such a size

class Trainer {
 public:
  // Throws Error for a config that makes no sense, data that cannot be read, and a run's folder that holds a run, unless
  // `resume`: then it goes on from the last checkpoint. `built_in` is the text where the config names no data; `shared`
  // is what another trainer has read, instead. Of several ranks each has a Trainer; the first one alone evaluates,
  // samples and writes. Where `reading` returns false, that is an Error, too.
  Trainer(Page page, const TrainConfig& config, std::string_view built_in, bool resume = false, const Warn& warn = {},
          const Ranks& ranks = {}, const Data* shared = nullptr, const Reading& reading = {});
  ~Trainer();

  struct Step {
    int64_t step;  // from 1
    double loss, norm, lr, tokens_per_second;
  };
  // What happens, in the order in which it does. Any of them may be none.
  struct Events {
    std::function<void(const Step&)> step = {};
    std::function<void(int64_t step, double loss)> evaluated = {};  // on the validation data
    std::function<void(int64_t step, const std::string& text)> sampled = {};
    std::function<bool()> stop = {};  // asked after each step: whether to save and end; of ranks one is enough
    Warn warn = {};
  };
  // Trains until the config's last step or until it is asked to stop; whether it reached the last step. Throws Error
  // for a loss that is no number, and where nothing can be saved at the end.
  bool run(const Events& events);

  // What run() is made of, for several trainers that take the same steps.
  struct Batch {
    int64_t time;  // tokens of a row
    std::vector<int32_t> ids, targets;
  };
  std::vector<Batch> read(int64_t step) const;  // the parts of a step, this rank's
  // One step, and what is due after it. Throws Error for a loss that is no number.
  Step take(const std::vector<Batch>& parts, const Events& events);
  // At the end: the last step is saved. Throws Error where it cannot be.
  void finish(const Events& events);
  void failed();  // instead, after an exception: the records say so
  bool done() const { return step() >= config_.steps; }
  // What must be the same on every rank, in words.
  std::string fingerprint() const;

  Model& model() { return *model_; }
  std::unique_ptr<Model> take_model() { return std::move(model_); }  // at last: nothing is left to train
  const Data& data() const { return data_; }
  const TrainConfig& config() const { return config_; }
  int64_t step() const { return model_->steps(); }  // taken so far, before this run, too

 private:
  double learning_rate(int64_t step) const;
  std::optional<double> evaluate();
  std::string sample(int64_t step);
  Batch read_batch(const Tokens& tokens, uint64_t first, bool in_order) const;
  bool save(const Events& events);
  void publish() const;

  TrainConfig config_;
  Ranks ranks_;
  Data data_;
  std::unique_ptr<Model> model_;
  std::shared_ptr<void> lock_;        // on the run's folder, where this process writes to it
  std::unique_ptr<Records> records_;  // none where nothing is kept
  std::optional<Tokenizer> tokenizer_;
  std::optional<int32_t> mask_;           // of pages that fill in what is hidden
  std::filesystem::path companions_;      // folder with files that belong to the model, such as its tokenizer
  std::optional<double> last_loss_ = {};  // on the validation data
  double best_loss_ = std::numeric_limits<double>::infinity();
  bool told_ = false;                         // that metrics cannot be written
  int64_t best_step_ = -1, saved_step_ = -1;  // none yet
};

}  // namespace dense
