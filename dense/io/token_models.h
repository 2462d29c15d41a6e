// What turns a word into tokens: byte pair encoding, unigram, WordPiece, whole words. See tokenizer.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dense/io/json.h"

namespace dense {

// From (a, b) to a number; -1 where there is none. A table with open addressing: a look-up touches one line of memory.
class PairMap {
 public:
  int32_t find(uint32_t a, uint32_t b) const;
  // The place for the number of (a, b), -1 at first; valid until the next call.
  int32_t& operator()(uint32_t a, uint32_t b);
  void reserve(size_t pairs);

 private:
  struct Slot {
    uint32_t a, b;
    int32_t value = -1;
    bool used = false;
  };
  size_t place(uint32_t a, uint32_t b) const;
  std::vector<Slot> slots_ = std::vector<Slot>(16);
  size_t size_ = 0;
};

// Tokens and their ids. Of two ids for one token the later counts, and so it is for two tokens with one id.
class Vocabulary {
 public:
  void add(std::string_view token, int32_t id);
  void reserve(size_t tokens);
  int32_t find(std::string_view token) const;             // -1 where there is none
  const std::string* token(int32_t id) const;             // nullptr where there is none
  int32_t end() const { return int32_t(by_id_.size()); }  // all ids are below
  size_t size() const { return size_; }                   // how many tokens

 private:
  struct Slot {
    uint64_t hash = 0;
    int32_t id = -1;
    uint32_t token = 0;  // in tokens_
  };
  size_t place(uint64_t hash, std::string_view token) const;
  std::vector<Slot> slots_ = std::vector<Slot>(16);
  std::vector<std::string> tokens_;
  std::vector<int32_t> by_id_;  // in tokens_, or -1
  size_t size_ = 0;
};

uint64_t hash_of(std::string_view text);

// Memory that a model needs meanwhile, kept from word to word.
struct Scratch {
  struct Symbol {
    int32_t id, previous, next;
  };
  struct Node {
    double score;
    int32_t begin, id;
  };
  std::vector<Symbol> symbols;
  std::vector<uint64_t> first, heap;
  std::vector<Node> nodes;
  std::string text;
};

class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Appends the ids of a word, which is UTF-8 and not empty.
  virtual void encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const = 0;

  // How much of a long word's beginning can be encoded on its own, the rest being a word again: the ids are the same.
  virtual size_t part(std::string_view word) const { return word.size(); }

  Vocabulary vocabulary;
};

// From "model" of a tokenizer.json. Throws Error, starting with `where`.
std::unique_ptr<TokenModel> read_model(const Json& model, const std::string& where);

}  // namespace dense
