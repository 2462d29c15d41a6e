#include "dense/io/token_models.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "dense/io/fields.h"
#include "dense/io/unicode.h"
#include "dense/scalar/error.h"

namespace dense {

// ---- tables

uint64_t hash_of(std::string_view text) {
  constexpr uint64_t odd = 0x9e3779b97f4a7c15;
  uint64_t h = text.size() * odd;
  const auto mix = [&](uint64_t x) {
    h = (h ^ x) * odd;
    h ^= h >> 32;
  };
  uint64_t word = 0;
  for (; text.size() >= 8; text.remove_prefix(8)) std::memcpy(&word, text.data(), 8), mix(word);
  word = 0;
  if (!text.empty()) std::memcpy(&word, text.data(), text.size());
  mix(word);
  return h ^ h >> 29;
}

size_t PairMap::place(uint32_t a, uint32_t b) const {
  uint64_t h = (uint64_t(a) << 32 | b) * 0x9e3779b97f4a7c15;
  h ^= h >> 32;
  size_t at = h * 0xff51afd7ed558ccd >> 20 & (slots_.size() - 1);
  while (slots_[at].used && (slots_[at].a != a || slots_[at].b != b)) at = (at + 1) & (slots_.size() - 1);
  return at;
}
int32_t PairMap::find(uint32_t a, uint32_t b) const { return slots_[place(a, b)].value; }
void PairMap::reserve(size_t pairs) {
  size_t slots = slots_.size();
  while (slots < 2 * pairs) slots *= 2;
  if (slots == slots_.size()) return;
  const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots));
  for (const Slot& slot : old)
    if (slot.used) slots_[place(slot.a, slot.b)] = slot;
}
int32_t& PairMap::operator()(uint32_t a, uint32_t b) {
  reserve(size_ + 1);
  Slot& slot = slots_[place(a, b)];
  if (!slot.used) slot = {a, b, -1, true}, ++size_;
  return slot.value;
}

size_t Vocabulary::place(uint64_t hash, std::string_view token) const {
  size_t at = hash & (slots_.size() - 1);
  while (slots_[at].id >= 0 && (slots_[at].hash != hash || tokens_[slots_[at].token] != token))
    at = (at + 1) & (slots_.size() - 1);
  return at;
}
void Vocabulary::reserve(size_t tokens) {
  size_t slots = slots_.size();
  while (slots < 2 * tokens) slots *= 2;
  if (slots == slots_.size()) return;
  const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots));
  for (const Slot& slot : old)
    if (slot.id >= 0) slots_[place(slot.hash, tokens_[slot.token])] = slot;
}
void Vocabulary::add(std::string_view token, int32_t id) {
  reserve(tokens_.size() + 1);
  const uint64_t hash = hash_of(token);
  Slot& slot = slots_[place(hash, token)];
  if (slot.id < 0) {
    slot = {hash, id, uint32_t(tokens_.size())};
    tokens_.emplace_back(token);
    ++size_;
  }
  slot.id = id;
  if (size_t(id) >= by_id_.size()) by_id_.resize(size_t(id) + 1, -1);
  by_id_[size_t(id)] = int32_t(slot.token);
}
int32_t Vocabulary::find(std::string_view token) const { return slots_[place(hash_of(token), token)].id; }
const std::string* Vocabulary::token(int32_t id) const {
  if (id < 0 || id >= end() || by_id_[size_t(id)] < 0) return nullptr;
  return &tokens_[size_t(by_id_[size_t(id)])];
}

namespace {

void read_vocabulary(const Fields& model, Vocabulary& vocabulary) {
  const std::vector<Json>& items = model.get("vocab", Json::object).items;
  vocabulary.reserve(items.size());
  const std::string where = model.where("vocab");
  for (const Json& item : items) {
    if (item.kind != Json::number) fail(where, ".", shown(item.name), ": expected an id, got ", shown(item));
    vocabulary.add(item.name, Fields::id_of(item, where));
  }
}

std::string byte_token(uint8_t byte) {
  constexpr const char* digits = "0123456789ABCDEF";
  return {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
}

// Ids of <0x00> to <0xFF>, -1 where there is none.
struct ByteTokens {
  int32_t ids[256];
  bool given = false;

  ByteTokens(const Vocabulary& vocabulary, bool wanted) : given(wanted) {
    for (int b = 0; b < 256; ++b) ids[b] = vocabulary.find(byte_token(uint8_t(b)));
  }
  // Appends the tokens of all bytes, or false where one has none.
  bool append(std::string_view text, const auto& push) const {
    const auto has = [&](char byte) { return ids[uint8_t(byte)] >= 0; };
    if (!given || !std::all_of(text.begin(), text.end(), has)) return false;
    for (const char byte : text) push(ids[uint8_t(byte)]);
    return true;
  }
};

// ---- byte pair encoding: characters, of which two neighbours become one token as long as there is a merge for them;
// the earliest of the file's merges first, and of equal ones the leftmost.

class Bpe : public TokenModel {
 public:
  explicit Bpe(const Fields& f) {
    if (const Json* dropout = f.find("dropout")) {
      double p = 1;
      const std::string& given = dropout->text;
      std::from_chars(given.data(), given.data() + given.size(), p);
      if (dropout->kind != Json::number || p != 0) {
        fail(f.where("dropout"), ": expected null or 0, since ids would be random, got ", shown(*dropout));
      }
    }
    read_vocabulary(f, vocabulary);
    prefix_ = f.text("continuing_subword_prefix", "");
    suffix_ = f.text("end_of_word_suffix", "");
    fuse_unk_ = f.flag("fuse_unk", false);
    ignore_merges_ = f.flag("ignore_merges", false);
    bytes_ = ByteTokens(vocabulary, f.flag("byte_fallback", false));
    unk_token_ = f.text("unk_token", "");
    unk_ = vocabulary.find(unk_token_);
    read_merges(f.list("merges"), f.where("merges"));
    for (char c = 0; uint8_t(c) < 128; ++c) ascii_[uint8_t(c)] = vocabulary.find({&c, 1});
  }

  void encode(std::string_view word, Scratch& s, std::vector<int32_t>& ids) const override {
    if (ignore_merges_) {
      if (const int32_t id = vocabulary.find(word); id >= 0) return ids.push_back(id);
    }
    characters(word, s);
    merge(s);
    for (int32_t i = s.symbols.empty() ? -1 : 0; i >= 0; i = s.symbols[size_t(i)].next)
      ids.push_back(s.symbols[size_t(i)].id);
  }

  // Two known characters that no merge brings together are a place where to cut. Models of whole texts, such as Llama
  // 2's, so become models of words.
  size_t part(std::string_view word) const override {
    if (ignore_merges_ || !prefix_.empty() || !suffix_.empty()) return word.size();
    const char *p = word.data(), *const end = p + word.size();
    const auto known = [&](const char* from, const char* to, char32_t c) {
      return (c < 128 ? ascii_[c] : vocabulary.find({from, size_t(to - from)})) >= 0;
    };
    const char* before = p;
    char32_t left = next_char(p);
    while (p < end) {
      const char* const at = p;
      const char32_t right = next_char(p);
      if (seams_.find(left, right) < 0 && known(before, at, left) && known(at, p, right))
        return size_t(at - word.data());
      left = right, before = at;
    }
    return word.size();
  }

 private:
  void read_merges(const std::vector<Json>& items, const std::string& where) {
    merges_.reserve(items.size());
    merged_.reserve(items.size());
    std::string text;
    for (size_t i = 0; i < items.size(); ++i) {
      const Json& item = items[i];
      std::string_view left, right;  // "left right" or ["left", "right"]
      if (item.kind == Json::array) {
        const bool is_pair =
            item.items.size() == 2 && item.items[0].kind == Json::string && item.items[1].kind == Json::string;
        if (is_pair) left = item.items[0].text, right = item.items[1].text;
        else fail(where, "[", i, "]: expected two tokens, got ", shown(item));
      } else {
        const size_t space = item.text.find(' ');
        if (item.kind == Json::string && item.text.starts_with("#version")) continue;
        if (item.kind != Json::string || space == item.text.npos || item.text.find(' ', space + 1) != item.text.npos)
          fail(where, "[", i, "]: expected two tokens with a space between them, got ", shown(item));
        left = std::string_view(item.text).substr(0, space), right = std::string_view(item.text).substr(space + 1);
      }
      if (right.size() < prefix_.size()) fail(where, "[", i, "]: ", shown(right), " is shorter than the prefix");
      text.assign(left).append(right.substr(prefix_.size()));
      const int32_t l = vocabulary.find(left), r = vocabulary.find(right), both = vocabulary.find(text);
      for (const auto& [id, token] : {std::pair(l, left), {r, right}, {both, std::string_view(text)}})
        if (id < 0) fail(where, "[", i, "]: token ", shown(token), " is not in the vocabulary");
      merges_(uint32_t(l), uint32_t(r)) = int32_t(merged_.size());  // a later one replaces an equal earlier one
      merged_.push_back(both);
      if (!left.empty() && !right.empty()) seams_(last_char(left), first_char(right)) = 0;
    }
  }
  static uint32_t first_char(std::string_view text) {
    const char* p = text.data();
    return next_char(p);
  }
  static uint32_t last_char(std::string_view text) {
    size_t at = text.size() - 1;
    while ((uint8_t(text[at]) & 0xc0) == 0x80) --at;
    return first_char(text.substr(at));
  }

  // The symbols of the word before any merge.
  void characters(std::string_view word, Scratch& s) const {
    s.symbols.clear();
    const auto push = [&](int32_t id) {
      const int32_t i = int32_t(s.symbols.size());
      if (i) s.symbols.back().next = i;
      s.symbols.push_back({id, i - 1, -1});
    };
    const bool plain = prefix_.empty() && suffix_.empty();
    bool unknown = false;  // an unknown character awaits its token: several may share one
    for_chars(word, [&](char32_t c, size_t begin, size_t end) {
      std::string_view text = word.substr(begin, end - begin);
      int32_t id;
      if (plain && c < 128) {
        id = ascii_[c];
      } else if (plain) {
        id = vocabulary.find(text);
      } else {
        s.text.clear();
        if (begin > 0) s.text += prefix_;
        s.text += text;
        if (end == word.size()) s.text += suffix_;
        text = s.text;
        id = vocabulary.find(text);
      }
      if (id >= 0) {
        if (std::exchange(unknown, false)) push(unk_);
        push(id);
      } else if (!bytes_.append(text, push) && !unk_token_.empty()) {
        if (unk_ < 0)
          fail("encode: ", shown(text), " is unknown, and ", shown(unk_token_), " is not in the vocabulary");
        if (unknown && !fuse_unk_) push(unk_);
        unknown = true;
      }
    });
    if (unknown) push(unk_);
  }

  void merge(Scratch& s) const {
    // A merge that may happen: its rank, and the place of its left symbol. Those of the word as it is are sorted; those
    // that come up later wait in a heap.
    s.first.clear(), s.heap.clear();
    const auto rank_at = [&](int32_t left, int32_t right) {
      return merges_.find(uint32_t(s.symbols[size_t(left)].id), uint32_t(s.symbols[size_t(right)].id));
    };
    const auto candidate = [](int32_t rank, int32_t place) { return uint64_t(rank) << 32 | uint32_t(place); };
    for (int32_t i = 0; i + 1 < int32_t(s.symbols.size()); ++i)
      if (const int32_t rank = rank_at(i, i + 1); rank >= 0) s.first.push_back(candidate(rank, i));
    std::sort(s.first.begin(), s.first.end());
    for (size_t next_first = 0; next_first < s.first.size() || !s.heap.empty();) {
      uint64_t best;
      if (s.heap.empty() || (next_first < s.first.size() && s.first[next_first] <= s.heap.front())) {
        best = s.first[next_first++];
      } else {
        best = s.heap.front();
        std::pop_heap(s.heap.begin(), s.heap.end(), std::greater());
        s.heap.pop_back();
      }
      const int32_t place = int32_t(uint32_t(best)), id = merged_[size_t(best >> 32)];
      Scratch::Symbol& left = s.symbols[size_t(place)];
      if (left.id < 0 || left.next < 0) continue;
      // Things may have changed since. What counts, as in Hugging Face's, is that the same token would result.
      const int32_t rank = rank_at(place, left.next);
      if (rank < 0 || merged_[size_t(rank)] != id) continue;
      Scratch::Symbol& right = s.symbols[size_t(left.next)];
      right.id = -1;
      left.id = id, left.next = right.next;
      if (left.next >= 0) s.symbols[size_t(left.next)].previous = place;
      const auto consider = [&](int32_t a, int32_t b) {
        if (a < 0 || b < 0) return;
        if (const int32_t r = rank_at(a, b); r >= 0) {
          s.heap.push_back(candidate(r, a));
          std::push_heap(s.heap.begin(), s.heap.end(), std::greater());
        }
      };
      consider(left.previous, place);
      consider(place, left.next);
    }
  }

  PairMap merges_;                           // (left, right) -> rank
  PairMap seams_;                            // of characters: those at which the two parts of a merge meet
  std::vector<int32_t> merged_;              // rank -> the token that left and right become
  std::string prefix_, suffix_, unk_token_;  // without an unk_token unknown characters are dropped
  int32_t unk_ = -1;
  bool fuse_unk_ = false, ignore_merges_ = false;
  ByteTokens bytes_{vocabulary, false};
  int32_t ascii_[128] = {};
};

// ---- unigram: of all ways to cut the word into tokens the one with the largest sum of scores (Viterbi).

class Unigram : public TokenModel {
 public:
  explicit Unigram(const Fields& f) {
    double least = std::numeric_limits<double>::infinity();
    const std::vector<Json>& items = f.list("vocab");
    vocabulary.reserve(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      const std::vector<Json>& pair = items[i].items;
      double score = 0;
      bool is_pair = items[i].kind == Json::array && pair.size() == 2 && pair[0].kind == Json::string &&
                     pair[1].kind == Json::number;
      if (is_pair) {
        const char *begin = pair[1].text.data(), *end = begin + pair[1].text.size();
        is_pair = std::from_chars(begin, end, score).ptr == end;
      }
      if (!is_pair) fail(f.where("vocab"), "[", i, "]: expected a token and its score, got ", shown(items[i]));
      vocabulary.add(pair[0].text, int32_t(i));
      scores_.push_back(score);
      least = std::min(least, score);
      // The token as a path in the trie, whose nodes are numbers and whose edges are bytes.
      uint32_t node = 0;
      for (const char byte : pair[0].text) {
        int32_t& child = trie_(node, uint8_t(byte));
        if (child < 0) child = int32_t(ends_.size()), ends_.push_back(-1);
        node = uint32_t(child);
      }
      ends_[node] = int32_t(i);
    }
    ends_[0] = -1;  // no token is empty
    unk_score_ = least - 10;
    if (f.find("unk_id")) {
      unk_ = f.id("unk_id");
      if (unk_ >= int32_t(scores_.size()))
        fail(f.where("unk_id"), ": expected an id below ", scores_.size(), ", got ", unk_);
    }
    bytes_ = ByteTokens(vocabulary, f.flag("byte_fallback", false));
  }

  void encode(std::string_view word, Scratch& s, std::vector<int32_t>& ids) const override {
    s.nodes.assign(word.size() + 1, {0, -1, 0});  // the best way to each place: its score, its last token
    const auto offer = [&](size_t begin, size_t end, double score, int32_t id) {
      Scratch::Node& node = s.nodes[end];
      score += s.nodes[begin].score;
      if (node.begin < 0 || score > node.score) node = {score, int32_t(begin), id};
    };
    for_chars(word, [&](char32_t, size_t begin, size_t end) {
      bool alone = false;  // the character is a token
      int32_t node = 0;
      for (size_t at = begin; at < word.size(); ++at) {
        node = trie_.find(uint32_t(node), uint8_t(word[at]));
        if (node < 0) break;
        const int32_t id = ends_[size_t(node)];
        if (id < 0) continue;
        offer(begin, at + 1, scores_[size_t(id)], id);
        alone |= at + 1 == end;
      }
      if (alone) return;
      if (unk_ < 0) fail("encode: ", shown(word.substr(begin, end - begin)), " is unknown, and there is no unk_id");
      offer(begin, end, unk_score_, unk_);
    });
    // Backwards from the end; unknown characters in a row are one token.
    const size_t first = ids.size();
    for (size_t end = word.size(); end > 0;) {
      size_t begin = size_t(s.nodes[end].begin);
      const int32_t id = s.nodes[end].id;
      if (id != unk_) {
        ids.push_back(id);
      } else {
        while (begin > 0 && s.nodes[begin].id == unk_) begin = size_t(s.nodes[begin].begin);
        unknown(word.substr(begin, end - begin), ids);
      }
      end = begin;
    }
    std::reverse(ids.begin() + std::ptrdiff_t(first), ids.end());
  }

 private:
  // What it is, last id first.
  void unknown(std::string_view text, std::vector<int32_t>& ids) const {
    const size_t first = ids.size();
    if (const int32_t id = vocabulary.find(text); id >= 0) ids.push_back(id);
    else if (!bytes_.append(text, [&](int32_t byte) { ids.push_back(byte); })) ids.push_back(unk_);
    std::reverse(ids.begin() + std::ptrdiff_t(first), ids.end());
  }

  PairMap trie_;                      // (node, byte) -> node
  std::vector<int32_t> ends_ = {-1};  // of each node: the token that ends there, or -1
  std::vector<double> scores_;
  double unk_score_ = 0;
  int32_t unk_ = -1;
  ByteTokens bytes_{vocabulary, false};
};

// ---- WordPiece: from the left always the longest token; the word is unknown where none fits.

class WordPiece : public TokenModel {
 public:
  explicit WordPiece(const Fields& f) {
    read_vocabulary(f, vocabulary);
    prefix_ = f.text("continuing_subword_prefix", "##");
    unk_ = f.text("unk_token", "[UNK]");
    if (f.find("max_input_chars_per_word")) most_ = f.id("max_input_chars_per_word");
    for (int32_t id = 0; id < vocabulary.end(); ++id)
      if (const std::string* token = vocabulary.token(id)) longest_ = std::max(longest_, token->size());
  }

  void encode(std::string_view word, Scratch& s, std::vector<int32_t>& ids) const override {
    const size_t first = ids.size();
    const auto begins_char = [&](size_t at) { return at >= word.size() || (uint8_t(word[at]) & 0xc0) != 0x80; };
    const auto chars = std::count_if(word.begin(), word.end(), [](char c) { return (uint8_t(c) & 0xc0) != 0x80; });
    for (size_t begin = 0; chars <= most_ && begin < word.size();) {
      s.text.assign(begin > 0 ? prefix_ : "");
      const size_t before = s.text.size();
      size_t end = std::min(word.size(), begin + longest_);
      while (!begins_char(end)) --end;
      s.text += word.substr(begin, end - begin);
      int32_t id = -1;
      while (end > begin && (id = vocabulary.find(s.text)) < 0) {
        do --end;
        while (!begins_char(end));
        s.text.resize(before + end - begin);
      }
      if (end == begin) break;
      ids.push_back(id);
      if (end == word.size()) return;
      begin = end;
    }
    ids.resize(first);
    const int32_t unk = vocabulary.find(unk_);
    if (unk < 0) fail("encode: ", shown(word), " is unknown, and ", shown(unk_), " is not in the vocabulary");
    ids.push_back(unk);
  }

 private:
  std::string prefix_, unk_;
  std::ptrdiff_t most_ = 100;
  size_t longest_ = 0;
};

// ---- whole words

class WordLevel : public TokenModel {
 public:
  explicit WordLevel(const Fields& f) : unk_(f.text("unk_token", "<unk>")) { read_vocabulary(f, vocabulary); }
  void encode(std::string_view word, Scratch&, std::vector<int32_t>& ids) const override {
    int32_t id = vocabulary.find(word);
    if (id < 0) id = vocabulary.find(unk_);
    if (id < 0) fail("encode: ", shown(word), " is unknown, and ", shown(unk_), " is not in the vocabulary");
    ids.push_back(id);
  }

 private:
  std::string unk_;
};

}  // namespace

std::unique_ptr<TokenModel> read_model(const Json& model, const std::string& where) {
  const Fields f(model, where);
  std::string type = f.text("type", "");
  // Files of old name no type; each has fields that the others lack.
  if (type.empty()) {
    const Json* vocab = f.find("vocab");
    type = f.find("merges")                      ? "BPE"
           : vocab && vocab->kind == Json::array ? "Unigram"
           : f.find("continuing_subword_prefix") ? "WordPiece"
                                                 : "WordLevel";
  }
  if (type == "BPE") return std::make_unique<Bpe>(f);
  if (type == "Unigram") return std::make_unique<Unigram>(f);
  if (type == "WordPiece") return std::make_unique<WordPiece>(f);
  if (type == "WordLevel") return std::make_unique<WordLevel>(f);
  fail(f.where("type"), ": expected BPE, Unigram, WordPiece or WordLevel, got ", shown(type));
}

}  // namespace dense
