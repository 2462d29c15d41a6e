// Characters of UTF-8 text and their properties, as tokenizers need them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dense {

// Where `text` stops being UTF-8, or npos where it is UTF-8 throughout.
size_t utf8_error(std::string_view text);

// The character at `p`, in text that is UTF-8; `p` moves behind it.
inline char32_t next_char(const char*& p) {
  const auto byte = [&] { return char32_t(uint8_t(*p++)); };
  const char32_t first = byte();
  if (first < 0x80) return first;
  char32_t c = first < 0xe0 ? first & 0x1f : first < 0xf0 ? first & 0xf : first & 7;
  for (int rest = first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3; rest > 0; --rest) c = c << 6 | (byte() & 0x3f);
  return c;
}
void append_char(std::string& text, char32_t c);

// f(character, where it begins, where it ends) for every character of UTF-8 text.
void for_chars(std::string_view text, const auto& f) {
  const char* const begin = text.data();
  for (const char *p = begin, *end = begin + text.size(); p < end;) {
    const size_t at = size_t(p - begin);
    const char32_t c = next_char(p);
    f(c, at, size_t(p - begin));
  }
}

bool is_space(char32_t c);            // White_Space
bool is_word(char32_t c);             // what \w is in Rust: letters, marks, digits, connectors, joiners
bool is_number(char32_t c);           // categories N*
bool is_mark(char32_t c);             // M*
bool is_nonspacing_mark(char32_t c);  // Mn
bool is_punctuation(char32_t c);      // P*, and all of ASCII that is neither letter, digit, space nor control
bool is_cleaned_control(char32_t c);  // what BERT's cleaning drops as control character
void append_lower(std::string& text, char32_t c);  // its lower case: one character, or two for U+0130

enum class NormalForm { nfc, nfd, nfkc, nfkd };
void normalize(std::string& text, NormalForm form);

// Where the user-perceived character (extended grapheme cluster) that begins at `at` ends.
class Graphemes {
 public:
  explicit Graphemes(std::string_view text) : text_(text) {}
  bool next(size_t& begin, size_t& end);  // false at the end of the text

 private:
  std::string_view text_;
  size_t at_ = 0;
};

// `bytes` with U+FFFD for each longest run that cannot begin a character, as in Rust's from_utf8_lossy. What a
// character at the end lacks may still come: unless `last`, its beginning stays in `bytes`; all else is taken out.
std::string take_utf8(std::string& bytes, bool last);

}  // namespace dense
