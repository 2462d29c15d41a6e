#include "dense/io/tokenizer.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <limits>
#include <mutex>
#include <unordered_set>
#include <utility>

#include "dense/io/decode.h"
#include "dense/io/fields.h"
#include "dense/io/files.h"
#include "dense/io/json.h"
#include "dense/io/normalize.h"
#include "dense/io/pattern.h"
#include "dense/io/token_models.h"
#include "dense/io/unicode.h"
#include "dense/scalar/error.h"

namespace dense {
namespace {

namespace fs = std::filesystem;
using Match = Regex::Match;

// ---- Words: a text and where its words are. A pre-tokenizer cuts them further, or rewrites them.

struct Words {
  struct Word {
    size_t begin, end;
    bool at_start;  // see Text
  };
  std::string text;
  std::vector<Word> words;

  std::string_view operator[](const Word& word) const {
    return std::string_view(text).substr(word.begin, word.end - word.begin);
  }
  // Each word becomes what f(word, out) appends.
  void rewrite(const auto& f) {
    std::string out;
    out.reserve(text.size() + text.size() / 2);
    for (Word& word : words) {
      const size_t begin = out.size();
      f(word, out);
      word.begin = begin, word.end = out.size();
    }
    text = std::move(out);
  }
};
using PreTokenizer = std::function<void(Words&)>;

enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

Behavior read_behavior(const Fields& f, std::string_view fallback) {
  static constexpr std::string_view names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext",
                                               "Contiguous"};
  const std::string name = f.text("behavior", fallback);
  const auto found = std::ranges::find(names, name);
  if (found == std::end(names)) fail(f.where("behavior"), ": ", shown(name), " is no known behavior");
  return Behavior(found - std::begin(names));
}

// Cuts words at the matches of a pattern; what becomes of the matches themselves is the behavior.
struct Cut {
  size_t begin, end;
  bool match;
};
void cut_words(Words& words, const Pattern& pattern, Behavior behavior, bool invert = false) {
  std::vector<Words::Word> out;
  std::vector<Match> matches;
  std::vector<Cut> cuts, joined;
  out.reserve(words.words.size());
  for (const Words::Word& word : words.words) {
    const auto push = [&](const Cut& cut) {
      if (cut.begin == cut.end || (behavior == Behavior::removed && cut.match)) return;
      out.push_back({word.begin + cut.begin, word.begin + cut.end, word.at_start && cut.begin == 0});
    };
    const auto for_cuts = [&](const auto& f) {
      size_t at = 0;
      for (const auto [begin, end] : matches) {
        if (at != begin) f(Cut{at, begin, invert});
        f(Cut{begin, end, !invert});
        at = end;
      }
      if (at != word.end - word.begin) f(Cut{at, word.end - word.begin, invert});
    };
    matches.clear();
    pattern(words[word], matches);
    if (behavior == Behavior::removed || behavior == Behavior::isolated) {
      for_cuts(push);
      continue;
    }
    // A match joins what came before it (from the end: what comes after), unless that was one itself; with contiguous,
    // matches join matches and the rest joins the rest.
    cuts.clear(), joined.clear();
    for_cuts([&](const Cut& cut) { cuts.push_back(cut); });
    if (behavior == Behavior::merged_with_next) std::reverse(cuts.begin(), cuts.end());
    bool before = false;
    for (const Cut& cut : cuts) {
      const bool joins = behavior == Behavior::contiguous ? cut.match == before : cut.match && !before;
      if (joins && !joined.empty()) {
        joined.back().begin = std::min(joined.back().begin, cut.begin);
        joined.back().end = std::max(joined.back().end, cut.end);
      } else {
        joined.push_back(cut);
      }
      before = cut.match;
    }
    if (behavior == Behavior::merged_with_next) std::reverse(joined.begin(), joined.end());
    for (const Cut& cut : joined) push(cut);
  }
  words.words = std::move(out);
}

// Every character with this property is a match of its own.
Pattern each(bool (*property)(char32_t)) {
  return [property](std::string_view text, std::vector<Match>& matches) {
    for_chars(text, [&](char32_t c, size_t begin, size_t end) {
      if (property(c)) matches.push_back({begin, end});
    });
  };
}
PreTokenizer cutter(Pattern pattern, Behavior behavior, bool invert = false) {
  return [pattern = std::move(pattern), behavior, invert](Words& w) { cut_words(w, pattern, behavior, invert); };
}

// ---- pre-tokenizers: "pre_tokenizer" of a tokenizer.json

constexpr const char* byte_level_regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

PreTokenizer byte_level(const Fields& f) {
  const bool add_space = f.flag("add_prefix_space", true), cut = f.flag("use_regex", true);
  const auto bytes = std::make_shared<const ByteCharacters>();
  const Regex regex(byte_level_regex, f.where());
  const Pattern pattern = [regex](std::string_view text, std::vector<Match>& matches) {
    regex.find_all(text, matches);
  };
  return [=](Words& w) {
    if (add_space) {
      w.rewrite([&](const Words::Word& word, std::string& out) {
        if (!w[word].starts_with(' ')) out += ' ';
        out += w[word];
      });
    }
    if (cut) cut_words(w, pattern, Behavior::isolated);
    w.rewrite([&](const Words::Word& word, std::string& out) { bytes->append(out, w[word]); });
  };
}

PreTokenizer metaspace(const Fields& f) {
  const std::string& sign = f.text("replacement");
  const char* p = sign.data();
  if (sign.empty() || (next_char(p), p != sign.data() + sign.size()))
    fail(f.where("replacement"), ": expected one character, got \"", shown(sign), '"');
  std::string prepend = f.text("prepend_scheme", f.flag("add_prefix_space", true) ? "always" : "never");
  if (prepend != "always" && prepend != "first" && prepend != "never")
    fail(f.where("prepend_scheme"), ": expected always, first or never, got ", shown(prepend));
  if (prepend != "never" && !f.flag("add_prefix_space", true))
    fail(f.where("prepend_scheme"), ": expected never, as add_prefix_space is false, got ", prepend);
  const bool cut = f.flag("split", true);
  const Pattern pattern = literal(sign);
  return [=](Words& w) {
    w.rewrite([&](const Words::Word& word, std::string& out) {
      const std::string_view text = w[word];
      const bool wanted = prepend == "always" || (prepend == "first" && word.at_start);
      if (wanted && !text.empty() && text[0] != ' ' && !text.starts_with(sign)) out += sign;
      for (const char c : text) {
        if (c == ' ') out += sign;
        else out += c;
      }
    });
    if (cut) cut_words(w, pattern, Behavior::merged_with_next);
  };
}

// Runs of word characters, and runs of what is neither that nor space.
void find_whitespace_words(std::string_view text, std::vector<Match>& matches) {
  const auto kind_of = [](char32_t c) { return is_space(c) ? 0 : is_word(c) ? 1 : 2; };
  int before = 0;
  for_chars(text, [&](char32_t c, size_t begin, size_t end) {
    const int kind = kind_of(c);
    if (kind && kind == before) matches.back().end = end;
    else if (kind) matches.push_back({begin, end});
    before = kind;
  });
}

PreTokenizer read_pre_tokenizer(const Json& pre_tokenizer, const std::string& where);

struct PreTokenizerKind {
  const char* type;
  PreTokenizer (*make)(const Fields& f);
};
const PreTokenizerKind pre_tokenizers[] = {
    {"ByteLevel", byte_level},
    {"Metaspace", metaspace},
    {"Split",
     [](const Fields& f) {
       return cutter(read_pattern(f.fields("pattern")), read_behavior(f, "Isolated"), f.flag("invert", false));
     }},
    {"Digits",
     [](const Fields& f) {
       return cutter(each(is_number), f.flag("individual_digits", false) ? Behavior::isolated : Behavior::contiguous);
     }},
    {"Punctuation", [](const Fields& f) { return cutter(each(is_punctuation), read_behavior(f, "Isolated")); }},
    {"Whitespace", [](const Fields&) { return cutter(find_whitespace_words, Behavior::removed, true); }},
    {"WhitespaceSplit", [](const Fields&) { return cutter(each(is_space), Behavior::removed); }},
    {"BertPreTokenizer",
     [](const Fields&) -> PreTokenizer {
       return [](Words& w) {
         cut_words(w, each(is_space), Behavior::removed);
         cut_words(w, each(is_punctuation), Behavior::isolated);
       };
     }},
    {"CharDelimiterSplit",
     [](const Fields& f) {
       if (f.text("delimiter").empty()) fail(f.where("delimiter"), ": expected one character, got none");
       return cutter(literal(f.text("delimiter")), Behavior::removed);
     }},
    {"Sequence",
     [](const Fields& f) -> PreTokenizer {
       std::vector<PreTokenizer> parts;
       for (const Json& part : f.list("pretokenizers"))
         parts.push_back(read_pre_tokenizer(part, text(f.where("pretokenizers"), '[', parts.size(), ']')));
       return [parts](Words& w) {
         for (const PreTokenizer& part : parts) part(w);
       };
     }},
};

PreTokenizer read_pre_tokenizer(const Json& pre_tokenizer, const std::string& where) {
  const Fields f(pre_tokenizer, where);
  const std::string& type = f.text("type");
  for (const PreTokenizerKind& kind : pre_tokenizers)
    if (type == kind.type) return kind.make(f);
  fail(f.where("type"), ": ", shown(type), " is no known pre-tokenizer");
}

// ---- added tokens: found in the text before it is normalized, or after

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool single_word, lstrip, rstrip, normalized, special;
};

class AddedTokens {
 public:
  void add(std::string_view content, const AddedToken* token) {
    if (content.empty()) return;
    uint32_t node = 0;
    for (const char byte : content) {
      int32_t& child = trie_(node, uint8_t(byte));
      if (child < 0) child = int32_t(tokens_.size()), tokens_.push_back(nullptr);
      node = uint32_t(child);
    }
    if (!tokens_[node]) tokens_[node] = token;
    begins_[uint8_t(content[0])] = true;
  }

  struct Part {
    size_t begin, end;
    int32_t id;  // or -1 for text between tokens
  };
  // The leftmost tokens, and of those that begin at one place the longest.
  std::vector<Part> find(std::string_view text) const {
    std::vector<Part> parts;
    size_t from = 0;
    for (size_t at = 0; at < text.size();) {
      if (!begins_[uint8_t(text[at])]) {
        ++at;
        continue;
      }
      const auto [token, size] = longest(text.substr(at));
      size_t begin = at, end = at + size;
      at += token ? size : 1;
      if (!token) continue;
      if (token->single_word && (word_before(text, begin) || word_at(text, end))) continue;
      if (token->lstrip) {
        while (begin > 0 && is_space(before(text, begin))) begin -= size_before(text, begin);
      }
      if (token->rstrip) {
        for (const char* p = text.data() + end; p < text.data() + text.size() && is_space(next_char(p));)
          end = size_t(p - text.data());
      }
      if (from < begin) parts.push_back({from, begin, -1});
      parts.push_back({begin, end, token->id});
      from = end;
    }
    if (from < text.size()) parts.push_back({from, text.size(), -1});
    return parts;
  }

 private:
  std::pair<const AddedToken*, size_t> longest(std::string_view text) const {
    std::pair<const AddedToken*, size_t> found = {};
    int32_t node = 0;
    for (size_t i = 0; i < text.size() && (node = trie_.find(uint32_t(node), uint8_t(text[i]))) >= 0; ++i)
      if (tokens_[size_t(node)]) found = {tokens_[size_t(node)], i + 1};
    return found;
  }
  static size_t size_before(std::string_view text, size_t at) {
    size_t size = 1;
    while ((uint8_t(text[at - size]) & 0xc0) == 0x80) ++size;
    return size;
  }
  static char32_t before(std::string_view text, size_t at) {
    const char* p = text.data() + at - size_before(text, at);
    return next_char(p);
  }
  static bool word_before(std::string_view text, size_t at) { return at > 0 && is_word(before(text, at)); }
  static bool word_at(std::string_view text, size_t at) {
    const char* p = text.data() + at;
    return at < text.size() && is_word(next_char(p));
  }

  PairMap trie_;                                       // (node, byte) -> node
  std::vector<const AddedToken*> tokens_ = {nullptr};  // of each node: the token that ends there
  bool begins_[256] = {};
};

// ---- post-processors: which tokens come before and after a text

using Frame = Tokenizer::Frame;

int32_t pair_id(const Fields& f, std::string_view name) {  // ["[SEP]", 102]
  const std::vector<Json>& pair = f.list(name);
  if (pair.size() != 2) fail(f.where(name), ": expected a token and its id");
  return Fields::id_of(pair[1], f.where(name));
}

void read_post_processor(const Json& post_processor, const std::string& where, Frame& frame) {
  const Fields f(post_processor, where);
  const std::string& type = f.text("type");
  if (type == "ByteLevel") return;  // it moves offsets
  if (type == "Sequence") {
    const std::vector<Json>& parts = f.list("processors");
    for (size_t i = 0; i < parts.size(); ++i)
      read_post_processor(parts[i], text(f.where("processors"), '[', i, ']'), frame);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    frame.before.insert(frame.before.begin(), pair_id(f, "cls"));
    frame.after.push_back(pair_id(f, "sep"));
  } else if (type == "TemplateProcessing") {
    std::vector<int32_t> before, after;
    bool seen = false;
    for (const Json& piece : f.list("single")) {
      const Fields p(piece, f.where("single"));
      if (p.find("Sequence")) {
        if (seen || p.fields("Sequence").text("id") != "A")
          fail(f.where("single"), ": expected the sequence A once, got ", shown(piece));
        seen = true;
        continue;
      }
      const std::string& name = p.fields("SpecialToken").text("id");
      const Json* token = f.fields("special_tokens").find(name);
      if (!token) fail(f.where("special_tokens"), ": expected ", shown(name), ", missing");
      for (const Json& id : Fields(*token, f.where("special_tokens")).list("ids"))
        (seen ? after : before).push_back(Fields::id_of(id, f.where("special_tokens")));
    }
    if (!seen) fail(f.where("single"), ": expected the sequence A once, got none");
    frame.before.insert(frame.before.begin(), before.begin(), before.end());
    frame.after.insert(frame.after.end(), after.begin(), after.end());
  } else {
    fail(f.where("type"), ": ", shown(type), " is no known post-processor");
  }
}

// ---- words that were encoded before

class WordCache {
 public:
  static constexpr size_t longest = 64;  // of words worth keeping, in bytes

  // The ids of the word, or an empty span with data() == nullptr.
  std::span<const int32_t> find(std::string_view word, uint64_t hash) const {
    for (size_t at = hash & mask; slots_[at].size; at = (at + 1) & mask) {
      const Slot& s = slots_[at];
      if (s.hash == uint32_t(hash >> 32) && std::string_view(text_).substr(s.text, s.size) == word)
        return {ids_.data() + s.ids, s.count};
    }
    return {};
  }
  void add(std::string_view word, uint64_t hash, std::span<const int32_t> ids) {
    if (used_ > mask / 2 || text_.size() > 1 << 24 || ids_.size() > 1 << 24) {  // begin again
      std::fill(slots_.begin(), slots_.end(), Slot());
      text_.clear(), ids_.clear(), used_ = 0;
    }
    size_t at = hash & mask;
    while (slots_[at].size) at = (at + 1) & mask;
    slots_[at] = {uint32_t(hash >> 32), uint32_t(text_.size()), uint32_t(ids_.size()), uint16_t(word.size()),
                  uint16_t(ids.size())};
    text_ += word;
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    ++used_;
  }

  Scratch scratch;  // for words that are not here

 private:
  static constexpr size_t mask = (1 << 16) - 1;
  struct Slot {
    uint32_t hash = 0, text = 0, ids = 0;
    uint16_t size = 0, count = 0;
  };
  std::vector<Slot> slots_ = std::vector<Slot>(mask + 1);
  std::string text_ = "-";  // not empty, as ids_, so that data() is a place
  std::vector<int32_t> ids_ = {0};
  size_t used_ = 0;
};

// Caches wait here between calls; each call has one to itself.
class Caches {
 public:
  std::unique_ptr<WordCache> take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return std::make_unique<WordCache>();
    std::unique_ptr<WordCache> cache = std::move(free_.back());
    free_.pop_back();
    return cache;
  }
  void give(std::unique_ptr<WordCache> cache) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(cache));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<WordCache>> free_;
};

}  // namespace

struct Tokenizer::Parts {
  Normalizer normalizer;       // may be empty
  PreTokenizer pre_tokenizer;  // may be empty
  std::unique_ptr<TokenModel> model;
  std::vector<DecoderStep> decoder;
  Frame frame;

  std::vector<AddedToken> added;  // in the file's order
  AddedTokens raw, normalized;    // found before and after the text is normalized
  Vocabulary added_vocabulary;
  std::vector<bool> is_special;  // of each id
  int32_t size = 0;

  mutable Caches caches;

  const std::string* token(int32_t id) const {
    const std::string* token = added_vocabulary.token(id);
    return token ? token : model->vocabulary.token(id);
  }
  int32_t find(std::string_view token) const {
    const int32_t id = added_vocabulary.find(token);
    return id >= 0 ? id : model->vocabulary.find(token);
  }

  void read_added_tokens(const std::vector<Json>& items, const std::string& where) {
    std::unordered_set<std::string> special;
    for (const Json& item : items) {
      const Fields f(item, where);
      AddedToken t{f.text("content"),
                   -1,
                   f.flag("single_word", false),
                   f.flag("lstrip", false),
                   f.flag("rstrip", false),
                   f.flag("normalized", true),
                   f.flag("special", false)};
      if (t.content.empty()) continue;
      // As in Hugging Face's the id is the token's own where the model has it, and else the next one that is free; the
      // one in the file is the same.
      t.id = find(t.content);
      if (t.id < 0) t.id = std::max(int32_t(model->vocabulary.size()), added_vocabulary.end());
      added_vocabulary.add(t.content, t.id);
      if (t.special) special.insert(t.content);
      added.push_back(std::move(t));
    }
    // Of two that look alike once they are normalized, the special one is found, or the one that came first.
    std::stable_sort(added.begin(), added.end(), [](const auto& a, const auto& b) { return a.special > b.special; });
    for (const AddedToken& t : added) {
      if (!t.normalized) {
        raw.add(t.content, &t);
        continue;
      }
      Text content{t.content, false};
      if (normalizer) normalizer(content);
      normalized.add(content.text, &t);
    }
    size = std::max(model->vocabulary.end(), added_vocabulary.end());
    is_special.resize(size_t(size));
    for (const std::string& token : special) is_special[size_t(find(token))] = true;
  }

  void encode_words(Words& words, WordCache& cache, std::vector<int32_t>& ids) const {
    if (pre_tokenizer) pre_tokenizer(words);
    for (const Words::Word& word : words.words) {
      std::string_view text = words[word];
      while (!text.empty()) {
        const size_t taken = text.size() > WordCache::longest ? model->part(text) : text.size();
        encode_word(text.substr(0, taken), cache, ids);
        text.remove_prefix(taken);
      }
    }
  }

  void encode_word(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const {
    if (word.size() > WordCache::longest) return model->encode(word, cache.scratch, ids);
    const uint64_t hash = hash_of(word);
    const std::span<const int32_t> known = cache.find(word, hash);
    if (known.data()) {
      for (const int32_t id : known) ids.push_back(id);
      return;
    }
    const size_t first = ids.size();
    model->encode(word, cache.scratch, ids);
    if (ids.size() - first <= 1000) cache.add(word, hash, std::span(ids).subspan(first));
  }

  void encode(std::string_view text, WordCache& cache, std::vector<int32_t>& ids) const {
    for (const AddedTokens::Part& part : raw.find(text)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      Text between{std::string(text.substr(part.begin, part.end - part.begin)), part.begin == 0};
      if (normalizer) normalizer(between);
      const std::vector<AddedTokens::Part> parts = normalized.find(between.text);
      for (const AddedTokens::Part& inner : parts) {
        if (inner.id >= 0) {
          ids.push_back(inner.id);
          continue;
        }
        Words words;
        const bool at_start = between.at_start && inner.begin == 0;
        if (parts.size() == 1) words.text.swap(between.text);
        else words.text = between.text.substr(inner.begin, inner.end - inner.begin);
        words.words = {{0, words.text.size(), at_start}};
        encode_words(words, cache, ids);
      }
    }
  }

  void decode(int32_t id, bool skip_special, Decoding& decoding) const {
    const std::string* found = token(id);
    if (!found) fail("decode: expected ids of tokens, from 0 to ", size - 1, ", got ", id);
    if (!skip_special || !is_special[size_t(id)]) decoding.push(*found);
  }
};

// ---- vocab.txt, one token a line: as the tokenizer.json that Hugging Face makes of it

namespace {

Json text_item(std::string name, std::string value) { return {Json::string, std::move(name), std::move(value)}; }
Json flag_item(std::string name, bool value) { return {Json::boolean, std::move(name), value ? "true" : "false"}; }

Json from_vocab_txt(const fs::path& folder) {
  const std::string file = (folder / "vocab.txt").string();
  const std::string text = read_file(file);
  if (const size_t at = utf8_error(text); at != text.npos)
    fail(file, ": expected UTF-8, got something else at byte ", at);
  Json vocab{Json::object, "vocab"};
  std::vector<std::string> tokens;
  for (size_t at = 0; at < text.size();) {
    size_t end = std::min(text.find('\n', at), text.size());
    std::string token = text.substr(at, end - at);
    if (token.ends_with('\r')) token.pop_back();
    vocab.items.push_back({Json::number, token, std::to_string(tokens.size())});
    tokens.push_back(std::move(token));
    at = end + 1;
  }
  const auto id_of = [&](std::string_view token) {
    const auto found = std::ranges::find(tokens, token);
    return found == tokens.end() ? -1 : int32_t(found - tokens.begin());
  };
  const auto object = [](std::string name, std::vector<Json> items) {
    return Json{Json::object, std::move(name), "", std::move(items)};
  };
  const auto list = [](std::string name, std::vector<Json> items) {
    return Json{Json::array, std::move(name), "", std::move(items)};
  };
  const auto frame = [&](const char* cls, const char* sep) {
    const auto pair = [&](const char* name, const char* token) {
      return list(name, {text_item("", token), {Json::number, "", std::to_string(id_of(token))}});
    };
    return object("post_processor", {text_item("type", "BertProcessing"), pair("cls", cls), pair("sep", sep)});
  };
  Json added{Json::array, "added_tokens"};
  const auto add = [&](const std::string& token, bool special) {
    added.items.push_back(
        object("", {text_item("content", token), flag_item("normalized", false), flag_item("special", special)}));
  };

  // BERT's: words, in lower case unless tokenizer_config.json says otherwise, in pieces.
  if (id_of("[UNK]") >= 0 && id_of("[CLS]") >= 0 && id_of("[SEP]") >= 0) {
    bool lowercase = true, chinese = true;
    std::optional<bool> strip_accents;
    if (const fs::path config = folder / "tokenizer_config.json"; fs::exists(config)) {
      const Json json = parse_json(read_file(config), config.string());
      const Fields f(json, config.string());
      lowercase = f.flag("do_lower_case", true), chinese = f.flag("tokenize_chinese_chars", true);
      if (f.find("strip_accents")) strip_accents = f.flag("strip_accents");
    }
    for (const char* token : {"[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"})
      if (id_of(token) >= 0) add(token, true);
    return object("", {added,
                       object("normalizer", {text_item("type", "BertNormalizer"), flag_item("lowercase", lowercase),
                                             flag_item("handle_chinese_chars", chinese),
                                             flag_item("strip_accents", strip_accents.value_or(lowercase))}),
                       object("pre_tokenizer", {text_item("type", "BertPreTokenizer")}), frame("[CLS]", "[SEP]"),
                       object("decoder", {text_item("type", "WordPiece")}),
                       object("model", {text_item("type", "WordPiece"), vocab})});
  }
  // ESM's: the vocabulary's tokens wherever they are in the text; what is between spaces and is none is unknown.
  if (id_of("<unk>") >= 0 && id_of("<cls>") >= 0 && id_of("<eos>") >= 0) {
    static constexpr std::string_view special[] = {"<cls>", "<pad>", "<eos>", "<unk>", "<mask>"};
    for (const std::string& token : tokens) add(token, std::ranges::count(special, token) > 0);
    return object("", {added, object("pre_tokenizer", {text_item("type", "WhitespaceSplit")}), frame("<cls>", "<eos>"),
                       object("model", {text_item("type", "WordLevel"), text_item("unk_token", "<unk>"), vocab})});
  }
  fail(file, ": expected BERT's [UNK], [CLS] and [SEP] or ESM's <unk>, <cls> and <eos> among the tokens");
}

}  // namespace

Tokenizer Tokenizer::from_json(const Json& json, const std::string& name) {
  auto parts = std::make_shared<Parts>();
  const Fields f(json, name);
  const auto at = [&](const char* part) { return name + ": " + part; };
  if (const Json* normalizer = f.find("normalizer")) parts->normalizer = read_normalizer(*normalizer, at("normalizer"));
  if (const Json* p = f.find("pre_tokenizer")) parts->pre_tokenizer = read_pre_tokenizer(*p, at("pre_tokenizer"));
  parts->model = read_model(f.get("model", Json::object), at("model"));
  parts->decoder = read_decoder(f.find("decoder"), at("decoder"));
  if (const Json* p = f.find("post_processor")) read_post_processor(*p, at("post_processor"), parts->frame);
  if (f.find("added_tokens")) parts->read_added_tokens(f.list("added_tokens"), at("added_tokens"));
  else parts->read_added_tokens({}, "");
  return Tokenizer(std::shared_ptr<const Parts>(std::move(parts)));
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& file) {
  return from_json(parse_json(json, file), file);
}

Tokenizer::Tokenizer(const fs::path& path) {
  const fs::path file = fs::is_directory(path) ? path / "tokenizer.json" : path;
  if (file != path && !fs::exists(file) && fs::exists(path / "vocab.txt"))
    *this = from_json(from_vocab_txt(path), (path / "vocab.txt").string());
  else if (file != path && !fs::exists(file)) fail(path.string(), ": expected tokenizer.json or vocab.txt in it");
  else *this = parse(read_file(file), file.string());
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool special) const {
  if (const size_t at = utf8_error(text); at != text.npos) {
    constexpr const char* digits = "0123456789abcdef";
    const uint8_t byte = uint8_t(text[at]);
    fail("encode: expected UTF-8, got byte 0x", digits[byte >> 4], digits[byte & 15], " at byte ", at);
  }
  if (text.size() > size_t(std::numeric_limits<int32_t>::max()) / 16)
    fail("encode: expected a text of at most 134217727 bytes, got ", text.size());
  const Parts& parts = *parts_;
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 16);
  if (special) ids = parts.frame.before;
  std::unique_ptr<WordCache> cache = parts.caches.take();
  parts.encode(text, *cache, ids);
  parts.caches.give(std::move(cache));
  if (special) ids.insert(ids.end(), parts.frame.after.begin(), parts.frame.after.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  Decoding decoding(parts_->decoder);
  for (const int32_t id : ids) parts_->decode(id, skip_special, decoding);
  decoding.finish();
  return std::move(decoding.text);
}

const Tokenizer::Frame& Tokenizer::frame() const { return parts_->frame; }

int32_t Tokenizer::size() const { return parts_->size; }
std::optional<int32_t> Tokenizer::id_of(std::string_view token) const {
  const int32_t id = parts_->find(token);
  return id < 0 ? std::nullopt : std::optional(id);
}
std::optional<std::string> Tokenizer::token_of(int32_t id) const {
  const std::string* token = parts_->token(id);
  return token ? std::optional(*token) : std::nullopt;
}

struct TextStream::State {
  std::shared_ptr<const Tokenizer::Parts> parts;
  bool skip_special;
  Decoding decoding;
  std::string there = {};  // what is still to come of a text that is there already

  std::string take() {
    std::string text = std::exchange(decoding.text, {});
    const size_t size = std::min(text.size(), there.size());
    if (text.compare(0, size, there, 0, size) == 0) text.erase(0, size), there.erase(0, size);
    else there.clear();  // it became another, as characters do that were not whole
    return text;
  }
};

TextStream::TextStream(const Tokenizer& tokenizer, bool skip_special)
    : state_(new State{tokenizer.parts_, skip_special, Decoding(tokenizer.parts_->decoder)}) {}
TextStream::~TextStream() = default;
TextStream::TextStream(TextStream&&) noexcept = default;
TextStream& TextStream::operator=(TextStream&&) noexcept = default;

void TextStream::follow(std::span<const int32_t> ids) {
  for (const int32_t id : ids) push(id);
  Decoding whole = state_->decoding;  // as if it ended here
  whole.finish();
  state_->there = std::move(whole.text);
}
std::string TextStream::push(int32_t id) {
  if (state_->parts->token(id)) state_->parts->decode(id, state_->skip_special, state_->decoding);
  return state_->take();
}
std::string TextStream::finish() {
  state_->decoding.finish();
  std::string text = state_->take();
  state_->decoding = Decoding(state_->parts->decoder);
  state_->there.clear();
  return text;
}

}  // namespace dense
