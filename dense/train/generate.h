// Generation: prompts in, one token after the other out.
//
//   Generator generator(model, 1, 1024);              // one row of at most 1024 tokens
//   generator.prefill({prompt});                      // in blocks
//   int32_t id = sample(generator.logits(0), {}, prompt, 0);
//   generator.step({&id, 1});                         // one decode step, recorded once and replayed
//
// A row has the same bits alone and among others.
#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "dense/io/tokenizer.h"
#include "dense/train/model.h"

namespace dense {

// How a token is chosen from logits, in this order, as Hugging Face's processors do it.
struct Sampling {
  double repetition_penalty = 1;  // logits of tokens that were there are divided by it, negative ones multiplied
  double temperature = 0;         // logits are divided by it; 0: the likeliest token, and nothing below counts
  int top_k = 0;                  // only so many of the likeliest; 0: all
  double top_p = 1;               // of these the fewest that have this probability together
  double min_p = 0;               // of these those that have this share of the likeliest one's probability
  uint64_t seed = 0;
};

// The next token after `before`. Random numbers are a function of (seed, step). Throws Error for logits with NaN.
int32_t sample(std::span<const float> logits, const Sampling& sampling, std::span<const int32_t> before, uint64_t step);

class Generator {
 public:
  // `rows` at once, of at most `capacity` tokens each; of an encoder-decoder these are its decoder's. Throws Error for
  // more than the model's context. What the model's convert() or first step() puts in place of weights later does not
  // reach it.
  Generator(Model& model, int64_t rows, int64_t capacity);
  ~Generator();

  // More tokens of each row, one or more. Throws Error for what is no token or more than there is room for. An
  // encoder-decoder takes a row's whole text at once, and its decoder then begins.
  void prefill(std::span<const std::span<const int32_t>> tokens);
  // One more token of each row; of those with -1 none.
  void step(std::span<const int32_t> ids);
  // Begins anew, without tokens.
  void forget() { std::ranges::fill(lengths_, 0); }
  // (V) after a row's last token.
  std::span<const float> logits(int64_t row) const;

  int64_t rows() const { return cache_.batch; }
  int64_t capacity() const { return capacity_; }
  int64_t block() const;       // the most tokens of a row that prefill has at once
  size_t cache_bytes() const;  // of keys and values, once there is a plan
  // The most tokens of a row, once there is a plan: those whose keys and values the machine's memory holds. (Answers
  // have no context that would end them.)
  int64_t most_tokens() const;
  // Of step, and of prefill with blocks of so many tokens: for their profiles.
  Plan& decode_plan();
  Plan& prefill_plan(int64_t tokens);

 private:
  struct Recorded;
  Recorded& recorded(int64_t time, bool decodes);
  void expect_text(int64_t time);
  void see(std::span<const std::span<const int32_t>> tokens, int64_t longest);
  void grow();

  Model& model_;
  int64_t capacity_;
  KvCache cache_;
  int64_t text_time_ = 1;  // of the longest text that an encoder saw
  std::shared_ptr<Arena> arena_ = std::make_shared<Arena>();
  std::map<std::pair<int64_t, bool>, std::unique_ptr<Recorded>> recorded_;  // by new tokens of a row
  std::vector<int32_t> lengths_;
  std::vector<std::vector<float>> logits_;
};

struct Generation {
  int64_t tokens = 128;  // new ones, at most
  Sampling sampling = {};
  std::vector<int32_t> stops = {};  // tokens after which a row is done; they are part of it
  bool profile = false;
};

struct Generated {
  std::vector<std::vector<int32_t>> ids;  // new ones of each row
  int64_t prompt_tokens = 0, steps = 0;   // of all rows; of decoding
  double prefill_seconds = 0, decode_seconds = 0;
  std::string profile = {};  // of the decode step's kernels, if asked for
};

// Throws Error for prompts that are empty, leave no room in the model's context or have tokens that it has not.
void check_prompts(const Model& model, std::span<const std::vector<int32_t>> prompts);

// Continues prompts of one token or more each; an encoder-decoder answers them. `on_token` is told of every new one;
// where it returns false, all ends. Rows that would be longer than the model's context end there. Throws what
// check_prompts throws.
Generated generate(Model& model, std::span<const std::vector<int32_t>> prompts, const Generation& generation,
                   const std::function<bool(int64_t row, int32_t id)>& on_token = {});

// What a user asks for instead of what a model's files say. Without temperature, asking for top_k, top_p or min_p means 1.
struct SamplingChanges {
  std::optional<double> temperature = {}, top_p = {}, min_p = {}, repetition_penalty = {};
  std::optional<int> top_k = {};
  bool greedy = false;
};
// Throws Error for values that make no sense, which starts with `prefix` and the name of one.
Sampling changed(Sampling sampling, const SamplingChanges& changes, const std::string& prefix = {});

// What generation_config.json says, or where there is none config.json: how to choose tokens, and which ones end a text.
// Throws Error for values that make no sense.
Generation read_generation(const std::filesystem::path& folder);

// The text that new tokens add to their prompt's.
std::string continuation(const Tokenizer& tokenizer, std::span<const int32_t> prompt, std::span<const int32_t> ids);
// Throws Error for a tokenizer with tokens that the model has not.
void check_vocabulary(const Tokenizer& tokenizer, const Model& model);

}  // namespace dense
