// A page and its parameters, ready to be called: what commands and bindings share.
#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dense/io/config.h"
#include "dense/io/safetensors.h"
#include "dense/tensor/context.h"
#include "dense/tensor/plan.h"
#include "dense/tensor/weights.h"
#include "dense/train/ranks.h"

namespace dense {

// A page as a value: its config, and its functions on it.
struct Page {
  std::string model_type, architecture, base;  // architecture: Hugging Face's class; empty where it has none
  std::vector<std::string> inert, inert_tensors;
  std::vector<std::string> unreached;                            // parameters without a use: files may hold them
  std::vector<ConfigField> fields;                               // of the config
  std::function<Tensor(Weights, Tensor ids, Context&)> forward;  // (B, T) -> (B, T, V)
  std::function<int64_t()> context = {};                         // the most tokens of a row; none: any number
  std::function<int64_t()> token_types = {};                     // how many there are; none, or 0: it knows of no types
  struct Decoder {
    int32_t start, pad;  // the token that it begins with, and the one that it sees where a label is left out
  };
  std::function<Decoder()> decoder = {};  // of an encoder-decoder, which answers a text; none: it is none
  std::string_view source = {};           // its text, as it was built; none: it is not known
  bool configured = false;                // its fields count where a folder's config.json says otherwise
  bool causal = false;  // labels are the tokens themselves, and each place is scored on the one that comes next
  bool generates() const { return causal || decoder; }
};

// The page that a config belongs to: its namespace has forward(config, ...).
template <class Config>
Page page() {
  const auto config = std::make_shared<Config>();
  Page page;
  page.model_type = Config::model_type;
  if constexpr (requires { Config::architecture; }) page.architecture = Config::architecture;
  if constexpr (requires { Config::base; }) page.base = Config::base;
  if constexpr (requires { Config::inert; }) page.inert.assign(std::begin(Config::inert), std::end(Config::inert));
  if constexpr (requires { Config::inert_tensors; })
    page.inert_tensors.assign(std::begin(Config::inert_tensors), std::end(Config::inert_tensors));
  if constexpr (requires { Config::unreached; })
    page.unreached.assign(std::begin(Config::unreached), std::end(Config::unreached));
  page.fields = config_fields(*config);
  page.forward = [config](Weights w, Tensor ids, Context& ctx) { return forward(*config, w, ids, ctx); };
  if constexpr (requires { config->context(); }) page.context = [config] { return int64_t(config->context()); };
  if constexpr (requires { config->type_vocab_size; })
    page.token_types = [config] { return int64_t(config->type_vocab_size); };
  if constexpr (requires { config->decoder_start_token_id; })
    page.decoder = [config] { return Page::Decoder{config->decoder_start_token_id, config->pad_token_id}; };
  if constexpr (requires { Config::causal; }) page.causal = Config::causal;
  return page;
}

// The type that weights are asked to have: f32, bf16, int8 (q8) or int4 (q4); none for as-stored. Throws Error, which
// starts with `prefix`, for other names.
std::optional<Dtype> weight_type(const std::string& name, const std::string& prefix = {});

// Which tokens of each row are real.
struct RealTokens {
  std::vector<int32_t> lengths, firsts;  // see Model::Inputs; no firsts where all of them are 0
};
// What an attention mask (B, time) says: 1 for real tokens, which are side by side, and 0 for others. Throws Error for
// other masks, saying where.
RealTokens real_tokens(std::span<const int32_t> mask, int64_t time);

// Of everything that can be trained, the settings of its optimizer.
struct Optimizer {
  AdamW adamw;
  bool decay_vectors = false;  // else only parameters of two axes and more are decayed, as in GPT-2
  bool norm = false;           // the gradient's is asked for
  double clip = 0;             // gradients of a larger norm are shortened to this one; 0: none. Pascanu et al. 2013
  bool operator==(const Optimizer&) const = default;
};

class Model {
 public:
  // With new weights. One that is not `filled` has none: it plans what it cannot run, and takes no memory.
  explicit Model(Page page, int threads = 0, uint64_t seed = 0, bool filled = true);
  // From a folder as Hugging Face has it: its config.json and weights. Throws Error for anything that does not fit.
  Model(Page page, const std::filesystem::path& folder, int threads = 0, const Warn& warn = {}, bool filled = true);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  ~Model();

  // Ids (B, T), and lengths (B): none, or how many tokens of each row are real; those from firsts (B) on, which need
  // lengths, or the first ones. Position ids (B, T) say where tokens stand; none: where they are in their rows. Token
  // types (B, T) are for pages that know of them; none: zeros. The loss is the mean cross entropy at the places whose
  // target is not -100; targets (B, T) may also be given as Hugging Face has labels: to a causal model the tokens
  // themselves, of which padding in front is not asked for the first one. The ids of an encoder-decoder are its
  // encoder's. Its targets have the shape (B, T') of its decoder's ids, and where these are not given they are the
  // targets, each one place later.
  struct Inputs {
    int64_t batch = 0, time = 0;
    std::span<const int32_t> ids, labels = {}, lengths = {}, targets = {}, token_types = {}, firsts = {},
                                  position_ids = {}, decoder_ids = {};
    bool scored() const { return !labels.empty() || !targets.empty(); }
    int64_t decoder_time() const {
      return int64_t(std::max({decoder_ids.size(), labels.size(), targets.size()})) / batch;
    }
  };
  template <class T>
  struct ResultOf {
    Shape shape;
    std::vector<T> values;
  };
  using Result = ResultOf<float>;
  // By name: "logits", what the page keeps, "loss" if there are targets, and "grad." + the name of each parameter. A
  // profile is what the plan says of its kernels and their times.
  std::map<std::string, Result> run(const Inputs& inputs, bool gradients, std::string* profile = nullptr);
  // The same, all of it in float64 but for the weights, which are as stored: how far rounding takes run from it.
  std::map<std::string, ResultOf<double>> run_float64(const Inputs& inputs, bool gradients,
                                                      std::string* profile = nullptr);
  // The loss alone. The plan of the last shape is kept.
  float loss(const Inputs& inputs);

  // One step of AdamW on a batch. A shape that came before replays its plan.
  struct Training {
    double lr = 3e-4;
    Dtype matmul_type = Dtype::f32;
    Optimizer optimizer = {};
    bool dropout = false;
    bool recompute = false;  // keep blocks' results alone for the gradient: less memory, more time, the same bits
    Ranks ranks = {};        // which take the step together
  };
  // Before it: the mean loss of all places with a target, and its gradient's norm, if asked for.
  struct Step {
    double loss, norm = 0;
  };
  // On a batch that comes in parts: their losses and gradients are summed in one fixed binary tree. Of several ranks each
  // has equally many parts, the first rank the first ones: bits do not depend on how many ranks share the parts.
  Step step(std::span<const Inputs> parts, const Training& training);
  float step(const Inputs& inputs, const Training& training) {
    return float(step(std::span(&inputs, 1), training).loss);
  }
  int64_t steps() const { return steps_; }  // taken so far
  // The plan of a step of one part, of which no number counts but the shapes.
  Plan& plan_step(const Inputs& inputs, const Training& training);
  // The plan of the last step's shape, for its profile. Throws Error before the first step.
  Plan& training_plan();

  // Writes config.json and weights, whole or not at all each, under the names they were read with, and in the types that
  // they have or in the one given.
  void save(const std::filesystem::path& folder, std::optional<Dtype> dtype = {}) const;

  // What the next step needs beside the weights: AdamW's moments and the number of steps. Restoring throws Error for a
  // file of another model's.
  void save_optimizer(const std::filesystem::path& file) const;
  void restore_optimizer(const std::filesystem::path& file);

  // Has the weights that it multiplies by in this type: f32, bf16, or q8 and q4, which are for generation and loss alone.
  void convert(Dtype type);

  const Page& page() const { return page_; }
  int64_t vocabulary() const { return vocabulary_; }  // logits of a token
  // What products read to compute one token: of experts, as much as is chosen of them on average.
  std::vector<std::span<const std::byte>> token_weights();
  int64_t context() const { return page_.context ? page_.context() : 0; }
  const std::shared_ptr<Threads>& threads() const { return threads_; }
  Parameters& parameters() { return parameters_; }

 private:
  struct Recorded;
  void declare();
  struct Multiplier {
    bool by_row;   // whether its rows are what products sum along
    double share;  // of its bytes that a token reads on average: of experts only some are chosen
  };
  std::map<std::string, Multiplier> multipliers();
  std::unique_ptr<Recorded> record(const Inputs& inputs, Dtype matmul_type = Dtype::f32, bool dropout = false,
                                   bool wide = false, bool recompute = false);
  template <class T>
  std::map<std::string, ResultOf<T>> results(const Inputs& inputs, bool gradients, std::string* profile);
  Recorded& recorded_training(const Inputs& inputs, const Training& training, bool in_parts);
  std::vector<Tensor> record_update(Recorded& r, std::span<const Tensor> gradients);
  std::pair<Memory, Memory>& moments(const std::string& name, const Shape& shape);
  void begin_step(Recorded& r, const Training& training);
  Step step_in_parts(std::span<const Inputs> parts, const Training& training);
  struct Sum {
    double loss, places;  // of each place with a target; how many they are
    std::vector<std::span<const float>> gradients;
  };
  Sum sum_of_parts(std::span<const Inputs> parts, const Training& training, size_t first, size_t level);
  void keep(Sum& sum, size_t level);
  static int64_t places(const Recorded& r);  // with a target
  void set_inputs(Recorded& r, const Inputs& inputs) const;

  Page page_;
  Parameters parameters_;
  std::shared_ptr<const Json> original_;  // the config.json that it was read from; none: it is new
  std::vector<StoredTensor> unread_;      // inert ones that are no floating-point numbers; kept for saving
  std::shared_ptr<Threads> threads_;
  int64_t vocabulary_ = 0, steps_ = 0;
  std::map<std::string, std::pair<Memory, Memory>> moments_;
  std::shared_ptr<Arena> arena_ = std::make_shared<Arena>();  // of training
  std::unique_ptr<Recorded> evaluation_;
  std::vector<std::unique_ptr<Recorded>> trainings_;   // of the last shapes; the last one first
  std::vector<std::vector<std::vector<float>>> sums_;  // of several parts' gradients
  std::unique_ptr<Recorded> update_;                   // what ends a step of several parts
};

// Writes a folder with new weights, those of Model(page, threads, seed), one by one: one parameter is in memory at a
// time. `wrote` is told how many bytes of how many are on their way; what it throws ends the writing. The page's fields
// are those that count.
struct NewFolder {
  uint64_t seed = 0;
  Dtype dtype = Dtype::f32;
  uint64_t shard_bytes = most_shard_bytes;
  std::function<void(uint64_t bytes, uint64_t of)> wrote = {};
};
// How many parameters there are.
int64_t write_new(const Page& page, const std::filesystem::path& folder, const NewFolder& options);

}  // namespace dense
