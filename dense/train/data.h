// Texts as tokens to train on, and the order in which they are read.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dense/io/tokenizer.h"

namespace dense {

// A stream of tokens, in parts that lie in memory or in mapped files.
class Tokens {
 public:
  // More tokens, and where documents begin among them.
  void add(std::vector<uint32_t> ids, std::vector<int64_t> documents);
  // A file that write_tokens made, mapped, whose ids are below `vocabulary`: those of a window are looked at when it is
  // read, the others never. Throws Error for one that is none.
  void add_file(const std::filesystem::path& file, int64_t vocabulary = INT64_MAX);

  int64_t size() const { return size_; }
  // Windows of `length` + 1 tokens, each of which begins with the last one of the window before; none spans two parts.
  int64_t windows(int64_t length) const;
  // Throws Error, which names the file, for an id that the vocabulary does not have.
  void window(int64_t number, int64_t length, std::span<int32_t> to) const;
  // The first tokens, and the last ones: this share of all, or somewhat less, so that a document begins there. Where
  // there is but one document, it is cut.
  std::pair<Tokens, Tokens> split(double share) const;
  int64_t largest() const;  // token

 private:
  struct Part {
    std::span<const uint16_t> narrow = {};
    std::span<const uint32_t> wide = {};  // one of them is empty
    std::shared_ptr<const void> owner = {};
    std::string file = {};
    int64_t vocabulary = INT64_MAX;
    int64_t size() const { return int64_t(narrow.size() + wide.size()); }
    Part slice(int64_t begin, int64_t end) const;
  };
  void add(Part part);
  std::vector<Part> parts_;
  std::vector<int64_t> documents_;  // where each begins
  int64_t size_ = 0;
};

// Writes tokens as "tokens" (U16 if they fit, else U32) and where documents begin as "documents" (I64) in safetensors'
// format.
void write_tokens(const std::filesystem::path& file, std::span<const uint32_t> ids, std::span<const int64_t> documents);
// The name of such a file where several make a whole, by its number, from 0, and how many there are.
std::string shard_name(int64_t number, int64_t count);

struct DataConfig {
  std::string path = {}, tokenizer = {}, documents = "files";
  double validation = 0.05;
  std::optional<int64_t> seed = {};  // none: the run's
};

// Texts, one document after the other, and their tokens.
class Documents {
 public:
  // `built_in` is the text where the config names none. Throws Error for what cannot be read.
  Documents(const DataConfig& config, std::string_view built_in, uint64_t seed);
  // f(tokens) for each document, its beginning or end marked by the tokenizer's own token where it has one. They are
  // shuffled. Where f returns false, all ends.
  void each(const std::function<bool(std::vector<uint32_t>&& ids)>& f) const;
  int64_t vocabulary() const;                             // ids are below
  const std::string& tokenizer() const { return json_; }  // as the text of a tokenizer.json

 private:
  void each_text(const std::function<bool(std::string_view text)>& f) const;
  std::vector<uint32_t> encode(std::string_view text) const;
  std::vector<std::filesystem::path> files_;
  std::string_view built_in_;
  bool lines_;
  uint64_t seed_;
  std::string json_;
  std::optional<Tokenizer> tokenizer_;  // else bytes or characters
  std::vector<char32_t> characters_;    // in order; their numbers are the tokens
  std::optional<uint32_t> mark_;        // before each document
};

// What to train on: tokens of texts, or a folder of tokens that `dense tokens` wrote.
struct Data {
  Tokens training, validation;
  int64_t vocabulary = 0;
  std::string tokenizer = {};  // the text of a tokenizer.json
};
Data read_data(const DataConfig& config, std::string_view built_in, uint64_t seed);

// 0 ... n - 1 in another order for each seed: a Feistel network on the bits of i, walked until it is below n. There is
// no table, so any place of the order is found at once.                      Black & Rogaway 2002, arbitrary finite domains
uint64_t shuffled(uint64_t i, uint64_t n, uint64_t seed);

}  // namespace dense
