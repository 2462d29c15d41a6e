#include "dense/io/normalize.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>

#include "dense/io/fields.h"
#include "dense/io/pattern.h"
#include "dense/io/unicode.h"
#include "dense/scalar/error.h"

namespace dense {

Pattern literal(const std::string& string) {
  return [string](std::string_view text, std::vector<Regex::Match>& matches) {
    for (size_t at = text.find(string); at != text.npos; at = text.find(string, at + string.size()))
      matches.push_back({at, at + string.size()});
  };
}
Pattern read_pattern(const Fields& f) {
  const bool is_regex = f.find("Regex");
  const std::string& text = f.text(is_regex ? "Regex" : "String");
  if (!is_regex && !text.empty()) return literal(text);
  const Regex regex(text, f.where("Regex"));  // an empty string, too: it matches between all characters
  return [regex](std::string_view in, std::vector<Regex::Match>& matches) { regex.find_all(in, matches); };
}

void replace_matches(std::string& text, const Pattern& pattern, std::string_view content) {
  std::vector<Regex::Match> matches;
  pattern(text, matches);
  if (matches.empty()) return;
  std::string out;
  size_t at = 0;
  for (const auto [begin, end] : matches) {
    out.append(text, at, begin - at).append(content);
    at = end;
  }
  text = std::move(out.append(text, at));
}

// Printable characters of Latin-1 are themselves; the others, in order, are those from U+0100 on.
ByteCharacters::ByteCharacters() {
  std::fill(std::begin(byte_of), std::end(byte_of), int16_t(-1));
  char32_t other = 0x100;
  for (char32_t b = 0; b < 256; ++b) {
    const bool shown = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    const char32_t c = shown ? b : other++;
    std::string text;
    append_char(text, c);
    for_byte[b][0] = text[0], for_byte[b][1] = text.size() > 1 ? text[1] : '\0';
    byte_of[c] = int16_t(b);
  }
}

namespace {

// Each character replaced by what f(character, out) appends.
Normalizer by_character(void (*f)(char32_t, std::string&)) {
  return [f](Text& t) {
    std::string out;
    out.reserve(t.text.size());
    for_chars(t.text, [&](char32_t c, size_t begin, size_t end) {
      f(c, out);
      if (begin == 0 && end > 0 && out.empty()) t.at_start = false;
    });
    t.text = std::move(out);
  };
}
Normalizer form(NormalForm which) {
  return [which](Text& t) { normalize(t.text, which); };
}

void lower(char32_t c, std::string& out) { append_lower(out, c); }
void without_marks(char32_t c, std::string& out) {
  if (!is_mark(c)) append_char(out, c);
}
void without_nonspacing_marks(char32_t c, std::string& out) {
  if (!is_nonspacing_mark(c)) append_char(out, c);
}
void clean(char32_t c, std::string& out) {
  if (c == 0 || c == 0xfffd || is_cleaned_control(c)) return;
  append_char(out, is_space(c) ? U' ' : c);
}
void space_around_chinese(char32_t c, std::string& out) {
  static constexpr char32_t blocks[][2] = {{0x4e00, 0x9fff},   {0x3400, 0x4dbf},   {0x20000, 0x2a6df},
                                           {0x2a700, 0x2b73f}, {0x2b740, 0x2b81f}, {0x2b920, 0x2ceaf},
                                           {0xf900, 0xfaff},   {0x2f800, 0x2fa1f}};
  const bool is_chinese =
      c >= 0x3400 && std::ranges::any_of(blocks, [&](const auto& b) { return b[0] <= c && c <= b[1]; });
  if (is_chinese) out += ' ';
  append_char(out, c);
  if (is_chinese) out += ' ';
}
void nmt(char32_t c, std::string& out) {
  if ((c >= 1 && c <= 8) || c == 0xb || (c >= 0xe && c <= 0x1f) || c == 0x7f || c == 0x8f || c == 0x9f) return;
  const bool space = c == 9 || c == 0xa || c == 0xc || c == 0xd || c == 0x1680 || (c >= 0x200b && c <= 0x200f) ||
                     c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xfeff || c == 0xfffd;
  append_char(out, space ? U' ' : c);
}

Normalizer sequence(std::vector<Normalizer> parts) {
  return [parts = std::move(parts)](Text& t) {
    for (const Normalizer& part : parts) part(t);
  };
}

Normalizer bert(const Fields& f) {
  std::vector<Normalizer> parts;
  const bool lowercase = f.flag("lowercase", true);
  if (f.flag("clean_text", true)) parts.push_back(by_character(clean));
  if (f.flag("handle_chinese_chars", true)) parts.push_back(by_character(space_around_chinese));
  if (f.flag("strip_accents", lowercase)) {  // null: where text is put in lower case
    parts.push_back(form(NormalForm::nfd));
    parts.push_back(by_character(without_nonspacing_marks));
  }
  if (lowercase) parts.push_back(by_character(lower));
  return sequence(std::move(parts));
}

Normalizer strip(bool left, bool right) {
  return [left, right](Text& t) {
    size_t begin = t.text.size(), end = 0;
    for_chars(t.text, [&](char32_t c, size_t from, size_t to) {
      if (!is_space(c)) begin = std::min(begin, from), end = to;
    });
    if (end == 0) return t.text.clear();
    if (right) t.text.resize(end);
    if (left && begin > 0) t.text.erase(0, begin), t.at_start = false;
  };
}

// ---- SentencePiece's map of characters: a double-array trie, whose values are places in a text of replacements, each
// of which ends with a byte 0.

std::optional<std::string> from_base64(std::string_view text) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  if (text.size() % 4) return {};
  for (int pads = 0; pads < 2 && text.ends_with('='); ++pads) text.remove_suffix(1);
  for (const char c : text) {
    const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (value < 0) return {};
    bits = bits << 6 | uint32_t(value);
    if ((count += 6) >= 8) out += char(bits >> (count -= 8) & 255);
  }
  return out;
}

struct CharacterMap {
  std::vector<uint32_t> trie;
  std::string replacements;

  // For the shortest beginning of `text` that is in the map (sic: so does Hugging Face, for all of `text`).
  std::optional<std::string_view> find(std::string_view text) const {
    const auto offset = [](uint32_t unit) { return unit >> 10 << ((unit & 1 << 9) >> 6); };
    uint32_t node = offset(trie[0]);
    for (const char byte : text) {
      if (byte == 0) return {};
      node ^= uint8_t(byte);
      if (node >= trie.size()) return {};
      const uint32_t unit = trie[node];
      if ((unit & (1u << 31 | 0xff)) != uint8_t(byte)) return {};
      node ^= offset(unit);
      if (!(unit >> 8 & 1)) continue;
      if (node >= trie.size()) return {};
      const uint32_t value = trie[node] & 0x7fffffff;
      if (value > replacements.size()) return {};
      return std::string_view(replacements.c_str() + value);
    }
    return {};
  }
};

Normalizer precompiled(const Fields& f) {
  const std::string where = f.where("precompiled_charsmap");
  const std::optional<std::string> bytes = from_base64(f.text("precompiled_charsmap"));
  if (!bytes) fail(where, ": expected base64");
  uint32_t size = 0;
  if (bytes->size() >= 4) std::memcpy(&size, bytes->data(), 4);
  if (size < 4 || size > bytes->size() - 4)
    fail(where, ": expected a trie of 4 to ", bytes->size(), " bytes, got ", size);
  auto map = std::make_shared<CharacterMap>();
  map->trie.resize(size / 4);
  std::memcpy(map->trie.data(), bytes->data() + 4, map->trie.size() * 4);
  map->replacements = bytes->substr(4 + map->trie.size() * 4);
  if (const size_t at = utf8_error(map->replacements); at != std::string::npos)
    fail(where, ": expected replacements in UTF-8, got something else at byte ", at, " of them");

  return [map = std::shared_ptr<const CharacterMap>(std::move(map))](Text& t) {
    std::string out;
    Graphemes graphemes(t.text);
    for (size_t begin, end; graphemes.next(begin, end);) {
      const std::string_view whole = std::string_view(t.text).substr(begin, end - begin);
      if (const auto found = whole.size() < 6 ? map->find(whole) : std::nullopt) {
        out += *found;
        continue;
      }
      for_chars(whole, [&](char32_t, size_t from, size_t to) {
        const std::string_view c = whole.substr(from, to - from);
        out += map->find(c).value_or(c);
      });
    }
    t.text = std::move(out);
  };
}

// ----

struct Kind {
  const char* type;
  Normalizer (*make)(const Fields& f);
};
const Kind kinds[] = {
    {"NFC", [](const Fields&) { return form(NormalForm::nfc); }},
    {"NFD", [](const Fields&) { return form(NormalForm::nfd); }},
    {"NFKC", [](const Fields&) { return form(NormalForm::nfkc); }},
    {"NFKD", [](const Fields&) { return form(NormalForm::nfkd); }},
    {"Lowercase", [](const Fields&) { return by_character(lower); }},
    {"StripAccents", [](const Fields&) { return by_character(without_marks); }},
    {"Nmt", [](const Fields&) { return by_character(nmt); }},
    {"Strip", [](const Fields& f) { return strip(f.flag("strip_left"), f.flag("strip_right")); }},
    {"BertNormalizer", bert},
    {"Precompiled", precompiled},
    {"Prepend",
     [](const Fields& f) -> Normalizer {
       return [prefix = f.text("prepend")](Text& t) {
         if (!t.text.empty()) t.text.insert(0, prefix);
       };
     }},
    {"Replace",
     [](const Fields& f) -> Normalizer {
       return [pattern = read_pattern(f.fields("pattern")), content = f.text("content")](Text& t) {
         std::vector<Regex::Match> first;
         if (content.empty() && t.at_start) pattern(t.text, first);
         if (!first.empty() && first[0].begin == 0 && first[0].end > 0) t.at_start = false;
         replace_matches(t.text, pattern, content);
       };
     }},
    {"ByteLevel",
     [](const Fields&) -> Normalizer {
       return [bytes = std::make_shared<const ByteCharacters>()](Text& t) {
         std::string out;
         bytes->append(out, t.text);
         t.text = std::move(out);
       };
     }},
    {"Sequence",
     [](const Fields& f) {
       std::vector<Normalizer> parts;
       for (const Json& part : f.list("normalizers"))
         parts.push_back(read_normalizer(part, text(f.where("normalizers"), '[', parts.size(), ']')));
       return sequence(std::move(parts));
     }},
};

}  // namespace

Normalizer read_normalizer(const Json& normalizer, const std::string& where) {
  const Fields f(normalizer, where);
  const std::string& type = f.text("type");
  for (const Kind& kind : kinds)
    if (type == kind.type) return kind.make(f);
  fail(f.where("type"), ": ", shown(type), " is no known normalizer");
}

}  // namespace dense
