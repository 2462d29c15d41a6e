#include "dense/train/generate.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "dense/io/config.h"
#include "dense/scalar/error.h"
#include "dense/tensor/elements.h"

namespace dense {

// ---- sampling

namespace {

struct Candidate {
  float logit;
  int32_t id;
};
bool likelier(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

// The k likeliest, in order. Most of a vocabulary is far below them, so that few are compared with each other.
std::vector<Candidate> top(std::span<const float> logits, float largest, size_t k) {
  std::vector<Candidate> found;
  for (float depth = 4; found.size() < k; depth *= 2) {
    found.clear();
    const float least = depth > 1e30f ? -std::numeric_limits<float>::infinity() : largest - depth;
    for (size_t i = 0; i < logits.size(); ++i)
      if (logits[i] >= least) found.push_back({logits[i], int32_t(i)});
  }
  const auto end = found.begin() + std::ptrdiff_t(k);
  std::partial_sort(found.begin(), end, found.end(), likelier);
  found.erase(end, found.end());
  return found;
}

}  // namespace

int32_t sample(std::span<const float> given, const Sampling& s, std::span<const int32_t> before, uint64_t step) {
  std::vector<float> penalized;
  std::span<const float> logits = given;
  if (s.repetition_penalty != 1) {
    penalized.assign(given.begin(), given.end());
    for (int32_t id : std::set<int32_t>(before.begin(), before.end())) {
      if (id < 0 || size_t(id) >= penalized.size()) continue;
      float& x = penalized[size_t(id)];
      x = x < 0 ? x * float(s.repetition_penalty) : x / float(s.repetition_penalty);
    }
    logits = penalized;
  }
  float largest = -std::numeric_limits<float>::infinity();
  size_t likeliest = 0;
  bool is_number = true;
  for (size_t i = 0; i < logits.size(); ++i) {
    is_number = is_number && !std::isnan(logits[i]);
    if (logits[i] > largest) largest = logits[i], likeliest = i;
  }
  if (!is_number || !std::isfinite(largest)) fail("logits: expected numbers, got NaN or infinity");
  if (s.temperature == 0) return int32_t(likeliest);

  // From here on only differences to the largest count.
  const auto weight = [&](float logit) { return std::exp(double(logit - largest) / s.temperature); };
  std::vector<Candidate> left;
  if (s.top_k > 0 && size_t(s.top_k) < logits.size()) {
    left = top(logits, largest, size_t(s.top_k));
  } else {
    for (size_t i = 0; i < logits.size(); ++i) left.push_back({logits[i], int32_t(i)});
    if (s.top_p < 1) std::ranges::sort(left, likelier);
  }
  if (s.top_p < 1) {
    double total = 0, sum = 0;
    for (const Candidate& c : left) total += weight(c.logit);
    size_t keep = 0;
    while (keep < left.size() && (keep == 0 || sum < s.top_p * total)) sum += weight(left[keep++].logit);
    left.resize(keep);
  }
  if (s.min_p > 0) std::erase_if(left, [&](const Candidate& c) { return weight(c.logit) < s.min_p; });
  double total = 0;
  for (const Candidate& c : left) total += weight(c.logit);
  const uint64_t bits = mixed(mixed(s.seed + 0x9e3779b97f4a7c15) + step);
  double place = double(bits >> 11) * 0x1p-53 * total;
  for (const Candidate& c : left)
    if ((place -= weight(c.logit)) < 0) return c.id;
  return left.back().id;
}

// ---- running

constexpr int64_t first_room = 256;  // tokens, for an answer

struct Generator::Recorded {
  Graph graph;
  Tensor ids, decoder_ids, lengths, starts, wanted, logits;
  Context context;
  std::unique_ptr<Plan> plan;
  explicit Recorded(const std::shared_ptr<Threads>& threads) : graph(threads) {}
};

Generator::Generator(Model& model, int64_t rows, int64_t capacity)
    : model_(model),
      capacity_(capacity),
      cache_{
          .batch = rows,
          .capacity = model.page().decoder && model.parameters().filled() ? std::min(capacity, first_room) : capacity,
          .filled = model.parameters().filled()},
      lengths_(size_t(rows), 0),
      logits_(size_t(rows)) {
  if (rows < 1 || capacity < 1) fail("generator: expected one row of one token or more");
  if (model.context() && capacity > model.context())
    fail("generator: expected rows of at most the model's ", model.context(), " tokens, got ", capacity);
}

Generator::~Generator() = default;

Generator::Recorded& Generator::recorded(int64_t time, bool decodes) {
  const auto known = recorded_.find({time, decodes});
  if (known != recorded_.end()) return *known->second;
  auto r = std::make_unique<Recorded>(model_.threads());
  Graph& graph = r->graph;
  graph.streams_weights = decodes;
  const bool answers = bool(model_.page().decoder);
  r->ids = graph.input({rows(), time}, Dtype::i32, "input_ids");
  if (answers) {
    r->decoder_ids = r->context.decoder_ids = graph.input({rows(), 1}, Dtype::i32, "decoder_input_ids");
    r->lengths = r->context.lengths = graph.input({rows()}, Dtype::i32, "lengths");
  }
  if (decodes || !answers) r->starts = r->context.starts = graph.input({rows()}, Dtype::i32, "starts");
  if (time > 1 && !answers) r->wanted = r->context.wanted = graph.input({rows()}, Dtype::i32, "wanted");
  r->context.cache = &cache_;
  r->logits = model_.page().forward(Weights(graph, model_.parameters()), r->ids, r->context);
  std::vector<Tensor> outputs = r->context.writes;
  if (r->starts) outputs.push_back(r->logits);
  r->plan = std::make_unique<Plan>(outputs, arena_);
  return *(recorded_[{time, decodes}] = std::move(r));
}

// A power of two, so that few plans serve all prompts. It changes no bit.
int64_t Generator::block() const {
  return std::min(capacity(), std::max<int64_t>(16, std::bit_floor(uint64_t(std::max<int64_t>(1, 512 / rows())))));
}

size_t Generator::cache_bytes() const {
  size_t bytes = 0;
  for (const KvCache::Entry& entry : cache_.entries) bytes += size_t(count_of(entry.shape)) * sizeof(float);
  return bytes;
}

int64_t Generator::most_tokens() const {
  uint64_t bytes = 1;  // of a token of each row
  for (const KvCache::Entry& entry : cache_.entries)
    if (entry.grows) bytes += uint64_t(count_of(entry.shape) / entry.shape[1]) * sizeof(float);
  const uint64_t memory = uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE));
  return int64_t(std::min<uint64_t>(memory / bytes, 1 << 24));  // distances are numbers of float32
}

Plan& Generator::decode_plan() { return *recorded(text_time_, true).plan; }
Plan& Generator::prefill_plan(int64_t tokens) {
  if (model_.page().decoder) expect_text(tokens);
  return *recorded(tokens, false).plan;
}

// What an encoder-decoder has recorded is for texts of one length.
void Generator::expect_text(int64_t time) {
  if (time != text_time_) recorded_.clear(), cache_.entries.clear();
  text_time_ = time;
}

void Generator::prefill(std::span<const std::span<const int32_t>> tokens) {
  if (int64_t(tokens.size()) != rows()) fail("prefill: expected tokens of ", rows(), " rows, got ", tokens.size());
  const bool answers = bool(model_.page().decoder);
  size_t longest = 0;
  for (size_t row = 0; row < tokens.size(); ++row) {
    longest = std::max(longest, tokens[row].size());
    if (tokens[row].empty()) fail("prefill: row ", row, ": expected one token or more");
    if (answers) continue;
    if (lengths_[row] + int64_t(tokens[row].size()) > capacity())
      fail("prefill: row ", row, ": expected at most ", capacity() - lengths_[row], " tokens, got ",
           tokens[row].size());
  }
  if (answers) return see(tokens, int64_t(longest));
  for (size_t begin = 0, time = 0; begin < longest; begin += time) {
    time = std::min(uint64_t(block()), std::max<uint64_t>(std::bit_ceil(longest - begin), 2));
    time = std::max<size_t>(time, 1);
    Recorded& r = recorded(int64_t(time), false);
    const auto ids = r.ids.data<int32_t>(), starts = r.starts.data<int32_t>();
    for (size_t row = 0; row < tokens.size(); ++row) {
      starts[row] = lengths_[row] + int32_t(begin);
      for (size_t t = 0; t < time; ++t)
        ids[row * time + t] = begin + t < tokens[row].size() ? tokens[row][begin + t] : 0;
      const size_t last = std::clamp(tokens[row].size() - 1, begin, begin + time - 1) - begin;
      if (r.wanted) r.wanted.data<int32_t>()[row] = int32_t(row * time + last);
    }
    r.plan->run();
    const auto logits = r.plan->get<float>(r.logits);
    const size_t vocabulary = logits.size() / tokens.size();
    for (size_t row = 0; row < tokens.size(); ++row) {
      const size_t last = tokens[row].size() - 1;
      if (last < begin || last >= begin + time) continue;
      const auto of_row = logits.subspan(row * vocabulary, vocabulary);
      logits_[row].assign(of_row.begin(), of_row.end());
    }
  }
  for (size_t row = 0; row < tokens.size(); ++row) lengths_[row] += int32_t(tokens[row].size());
}

// What an encoder-decoder does with a text: its encoder sees all of it at once, and then its decoder its first token.
void Generator::see(std::span<const std::span<const int32_t>> tokens, int64_t longest) {
  if (std::ranges::any_of(lengths_, [](int32_t length) { return length > 0; }))
    fail("prefill: expected no tokens before, since ", model_.page().model_type, " sees a text at once");
  expect_text(longest);
  Recorded &seen = recorded(longest, false), &next = recorded(longest, true);
  for (size_t row = 0; row < tokens.size(); ++row) {
    const auto ids = seen.ids.data<int32_t>().subspan(row * size_t(longest), size_t(longest));
    std::ranges::fill(ids, 0);
    std::ranges::copy(tokens[row], ids.begin());
    for (const Recorded* r : {&seen, &next}) r->lengths.data<int32_t>()[row] = int32_t(tokens[row].size());
  }
  seen.plan->run();
  step(std::vector<int32_t>(tokens.size(), model_.page().decoder().start));
}

// Answers have no longest length, and most are short: their room is doubled when they need it. It changes no bit.
void Generator::grow() {
  const int64_t capacity = std::min(2 * cache_.capacity, capacity_);
  for (KvCache::Entry& entry : cache_.entries) {
    if (!entry.grows) continue;
    const size_t row = size_t(count_of(entry.shape)) * sizeof(float) / size_t(rows());
    entry.shape[1] = capacity;
    const Memory wider = zero_memory(size_t(count_of(entry.shape)) * sizeof(float));
    const size_t wide_row = size_t(count_of(entry.shape)) * sizeof(float) / size_t(rows());
    for (size_t b = 0; b < size_t(rows()); ++b)
      std::memcpy(wider.data + b * wide_row, entry.memory.data + b * row, row);
    entry.memory = wider;
  }
  cache_.capacity = capacity;
  recorded_.erase({text_time_, true});
  const auto lengths = recorded(text_time_, false).lengths.data<int32_t>();
  std::ranges::copy(lengths, recorded(text_time_, true).lengths.data<int32_t>().begin());
}

void Generator::step(std::span<const int32_t> ids) {
  if (int64_t(ids.size()) != rows()) fail("step: expected a token of each of ", rows(), " rows, got ", ids.size());
  for (size_t row = 0; row < ids.size(); ++row)
    if (ids[row] >= 0 && lengths_[row] >= capacity())
      fail("step: row ", row, ": expected at most ", capacity(), " tokens");
  if (cache_.capacity < capacity_ && std::ranges::max(lengths_) >= cache_.capacity) grow();
  Recorded& r = recorded(text_time_, true);
  if (r.lengths && r.lengths.data<int32_t>()[0] == 0) fail("step: expected a text before, from prefill");
  const auto to = (r.decoder_ids ? r.decoder_ids : r.ids).data<int32_t>(), starts = r.starts.data<int32_t>();
  for (size_t row = 0; row < ids.size(); ++row) {
    to[row] = std::max(ids[row], 0);
    starts[row] = std::min(lengths_[row], int32_t(cache_.capacity) - 1);
  }
  r.plan->run();
  const auto logits = r.plan->get<float>(r.logits);
  const size_t vocabulary = logits.size() / ids.size();
  for (size_t row = 0; row < ids.size(); ++row) {
    if (ids[row] < 0) continue;
    const auto of_row = logits.subspan(row * vocabulary, vocabulary);
    logits_[row].assign(of_row.begin(), of_row.end());
    ++lengths_[row];
  }
}

std::span<const float> Generator::logits(int64_t row) const {
  if (row < 0 || row >= rows() || logits_[size_t(row)].empty()) fail("logits: expected a row with tokens, got ", row);
  return logits_[size_t(row)];
}

void check_prompts(const Model& model, std::span<const std::vector<int32_t>> prompts) {
  const int64_t context = model.context(), vocabulary = model.vocabulary();
  for (size_t row = 0; row < prompts.size(); ++row) {
    const std::string where = prompts.size() > 1 ? text("prompt ", row + 1, ": ") : std::string("prompt: ");
    if (prompts[row].empty()) fail(where, "expected one token or more");
    if (context && int64_t(prompts[row].size()) >= context)
      fail(where, "expected fewer than the ", context, " tokens of the model's context, got ", prompts[row].size());
    for (int32_t id : prompts[row])
      if (id < 0 || id >= vocabulary) fail(where, "expected ids of 0 to ", vocabulary - 1, ", got ", id);
  }
}

Generated generate(Model& model, std::span<const std::vector<int32_t>> prompts, const Generation& generation,
                   const std::function<bool(int64_t row, int32_t id)>& on_token) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  if (prompts.empty()) fail("generate: expected one prompt or more");
  check_prompts(model, prompts);
  Generated result;
  size_t longest = 0;
  const int64_t context = model.context();
  for (const std::vector<int32_t>& prompt : prompts) {
    longest = std::max(longest, prompt.size());
    result.prompt_tokens += int64_t(prompt.size());
  }
  if (generation.tokens < 0) fail("generate: expected 0 tokens or more, got ", generation.tokens);
  result.ids.resize(prompts.size());
  if (generation.tokens == 0) return result;
  const int64_t most = context ? context : INT32_MAX;
  // an answer begins with a token of its own, and its last one is not seen
  const bool answers = bool(model.page().decoder);
  const int64_t capacity = answers ? std::min(generation.tokens, most)
                                   : int64_t(longest) + std::min(generation.tokens, most - int64_t(longest));

  const auto begin = Clock::now();
  Generator generator(model, int64_t(prompts.size()), capacity);
  std::vector<std::vector<int32_t>> texts(prompts.begin(), prompts.end());
  if (answers) std::ranges::fill(texts, std::vector<int32_t>{model.page().decoder().start});
  generator.prefill(std::vector<std::span<const int32_t>>(prompts.begin(), prompts.end()));
  result.prefill_seconds = seconds(begin);
  if (answers && generation.tokens > generator.most_tokens())
    fail("tokens: expected at most ", generator.most_tokens(), ", whose keys and values fit in memory, got ",
         generation.tokens);
  const auto start = Clock::now();
  std::vector<int32_t> next(prompts.size(), 0);
  std::vector<char> done(prompts.size(), 0);
  bool goes_on = true;
  for (int64_t step = 0; goes_on; ++step) {
    bool any = false;
    for (size_t row = 0; row < prompts.size() && goes_on; ++row) {
      if (done[row]) continue;
      next[row] = sample(generator.logits(int64_t(row)), generation.sampling, texts[row], uint64_t(step));
      texts[row].push_back(next[row]);
      result.ids[row].push_back(next[row]);
      goes_on = !on_token || on_token(int64_t(row), next[row]);
      done[row] = step + 1 == generation.tokens || (context && int64_t(texts[row].size()) >= context) ||
                  std::ranges::find(generation.stops, next[row]) != generation.stops.end();
      any = any || !done[row];
      if (done[row]) next[row] = -1;
    }
    if (!goes_on || !any) break;
    if (generation.profile) generator.decode_plan().profile(true);  // which may be another one
    generator.step(next);
    ++result.steps;
  }
  result.decode_seconds = seconds(start);
  if (generation.profile) result.profile = generator.decode_plan().summary();
  return result;
}

Sampling changed(Sampling s, const SamplingChanges& c, const std::string& prefix) {
  const auto check = [&](const char* name, const auto& value, bool fits, const char* expected) {
    if (value && !fits) fail(prefix, name, ": expected ", expected, ", got ", *value);
  };
  check("temperature", c.temperature, c.temperature >= 0.0 && std::isfinite(*c.temperature), "0 or more");
  check("top_k", c.top_k, c.top_k >= 0, "0 or more");
  check("top_p", c.top_p, c.top_p > 0.0 && c.top_p <= 1.0, "more than 0, at most 1");
  check("min_p", c.min_p, c.min_p >= 0.0 && c.min_p <= 1.0, "0 to 1");
  check("repetition_penalty", c.repetition_penalty, c.repetition_penalty > 0.0 && std::isfinite(*c.repetition_penalty),
        "more than 0");
  const bool samples = c.temperature || c.top_k || c.top_p || c.min_p;
  if (c.greedy && samples) fail(prefix, "greedy: expected no temperature, top_k, top_p or min_p beside it");
  if (samples && s.temperature == 0) s.temperature = 1;
  s.temperature = c.greedy ? 0 : c.temperature.value_or(s.temperature);
  s.top_k = c.top_k.value_or(s.top_k);
  s.top_p = c.top_p.value_or(s.top_p);
  s.min_p = c.min_p.value_or(s.min_p);
  s.repetition_penalty = c.repetition_penalty.value_or(s.repetition_penalty);
  return s;
}

std::string continuation(const Tokenizer& tokenizer, std::span<const int32_t> prompt, std::span<const int32_t> ids) {
  TextStream stream(tokenizer, true);
  stream.follow(prompt);
  std::string text;
  for (int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

void check_vocabulary(const Tokenizer& tokenizer, const Model& model) {
  if (tokenizer.size() > model.vocabulary())
    fail("tokenizer: expected at most the model's ", model.vocabulary(), " tokens, got ", tokenizer.size());
}

namespace {

// generation_config.json, with the values that Hugging Face has for what is not in it.
struct GenerationConfig {
  bool do_sample = false;
  SamplingChanges sampling{.temperature = 1, .top_k = 50};
  TokenIds eos_token_id;
  void fields(auto&& f) {
    f("do_sample", do_sample, "choose at random; else temperature, top_k, top_p and min_p do not count");
    f("temperature", sampling.temperature, "null: 1");
    f("top_k", sampling.top_k, "null: all");
    f("top_p", sampling.top_p, "null: 1");
    f("min_p", sampling.min_p, "null: 0");
    f("repetition_penalty", sampling.repetition_penalty, "null: 1");
    f("eos_token_id", eos_token_id, "tokens that end a text");
  }
};

}  // namespace

Generation read_generation(const std::filesystem::path& folder) {
  std::filesystem::path file = folder / "generation_config.json";
  if (!std::filesystem::exists(file)) file = folder / "config.json";
  GenerationConfig config;
  read_config(file, config, {});
  SamplingChanges& sampling = config.sampling;
  if (!config.do_sample) sampling = {.repetition_penalty = sampling.repetition_penalty};
  else if (!sampling.temperature) sampling.temperature = 1;
  Generation result;
  result.sampling = changed({}, sampling, file.string() + ": ");
  result.stops.assign(config.eos_token_id.ids.begin(), config.eos_token_id.ids.end());
  return result;
}

}  // namespace dense
