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

bool is_folder_of_tokens(const std::filesystem::path& path);

struct DataConfig {
  std::string path = {}, tokenizer = {}, documents = "files";
  bool marks = true;
  double validation = 0.05;
  std::optional<int64_t> seed = {};  // none: the run's
};

// Told now and then how much text has become tokens. Where it returns false, that is all.
using Reading = std::function<bool(int64_t bytes, int64_t of)>;

// Texts, one document after the other, and their tokens.
class Documents {
 public:
  // `built_in` is the text where the config names none; 0 threads are as many as the machine has. Throws Error for what
  // cannot be read.
  Documents(const DataConfig& config, std::string_view built_in, uint64_t seed, int threads = 0);
  // f(ids, begins) for each document, its beginning or end marked by the tokenizer's own token where it has one and the
  // config wants marks. They are shuffled. A document of some megabytes comes in several pieces, of which the first one begins it. All threads
  // make tokens, a few megabytes ahead of f. Whether `reading` let it come to the end.
  bool each(const std::function<void(std::span<const uint32_t> ids, bool begins)>& f,
            const Reading& reading = {}) const;
  int64_t vocabulary() const;                             // ids are below
  const std::string& tokenizer() const { return json_; }  // as the text of a tokenizer.json

 private:
  struct Piece {
    std::string_view text;
    bool first, last;  // of its document
    std::shared_ptr<const void> owner;
  };
  bool each_text(const std::function<bool(std::string_view text, const std::shared_ptr<void>& owner)>& f) const;
  void encode(const Piece& piece, std::vector<uint32_t>& ids) const;
  std::vector<std::filesystem::path> files_;
  int64_t bytes_ = 0;  // of all
  int threads_;
  std::string_view built_in_;
  bool lines_;
  uint64_t seed_;
  std::string json_;
  std::optional<Tokenizer> tokenizer_;  // else bytes or characters
  std::vector<char32_t> characters_;    // in order; their numbers are the tokens
  bool marks_;
  std::optional<uint32_t> mark_;  // before each document
};

// What to train on: tokens of texts, or a folder of tokens that `dense tokens` wrote.
struct Data {
  Tokens training, validation;
  int64_t vocabulary = 0;
  std::string tokenizer = {};  // the text of a tokenizer.json
};
// Throws Error for what cannot be read, and where `reading` ends it early.
Data read_data(const DataConfig& config, std::string_view built_in, uint64_t seed, int threads = 0,
               const Reading& reading = {});

// 0 ... n - 1 in another order for each seed: a Feistel network on the bits of i, walked until it is below n. There is
// no table, so any place of the order is found at once.                      Black & Rogaway 2002, arbitrary finite domains
uint64_t shuffled(uint64_t i, uint64_t n, uint64_t seed);

}  // namespace dense
