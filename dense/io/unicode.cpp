#include "dense/io/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace dense {
namespace {

// Of the bytes from `p` on: how many belong together, and whether they are a character, a part of one that is cut off
// by the end, or neither (then those that could have begun one, at least one).
enum class Sequence { whole, cut, wrong };
std::pair<Sequence, size_t> sequence_at(std::string_view text) {
  const auto byte = [&](size_t i) { return uint8_t(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return {Sequence::whole, 1};
  if (first < 0xc2 || first > 0xf4) return {Sequence::wrong, 1};
  const size_t size = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  // No longer forms than needed, no surrogates, nothing above U+10FFFF.
  const uint8_t least = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const uint8_t most = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  for (size_t i = 1; i < size; ++i) {
    if (i == text.size()) return {Sequence::cut, i};
    if (byte(i) < (i == 1 ? least : 0x80) || byte(i) > (i == 1 ? most : 0xbf)) return {Sequence::wrong, i};
  }
  return {Sequence::whole, size};
}

utf8proc_category_t category(char32_t c) { return utf8proc_category(utf8proc_int32_t(c)); }
bool between(char32_t c, utf8proc_category_t first, utf8proc_category_t last) {
  const utf8proc_category_t own = category(c);
  return first <= own && own <= last;
}

}  // namespace

size_t utf8_error(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    if (uint64_t eight; at + 8 <= text.size()) {
      std::memcpy(&eight, text.data() + at, 8);
      if (!(eight & 0x8080808080808080)) {
        at += 8;
        continue;
      }
    }
    const auto [kind, size] = sequence_at(text.substr(at));
    if (kind != Sequence::whole) return at;
    at += size;
  }
  return text.npos;
}

void append_char(std::string& text, char32_t c) {
  if (c < 0x80) return text.push_back(char(c));
  char bytes[4];
  text.append(bytes, size_t(utf8proc_encode_char(utf8proc_int32_t(c), reinterpret_cast<utf8proc_uint8_t*>(bytes))));
}

bool is_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
  return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
         c == 0x202f || c == 0x205f || c == 0x3000;
}
bool is_word(char32_t c) {
  if (c < 0x80) return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_';
  const utf8proc_category_t own = category(c);
  // Alphabetic beyond letters and marks: letter-like numbers and circled letters.
  return between(c, UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_ME) || own == UTF8PROC_CATEGORY_ND ||
         own == UTF8PROC_CATEGORY_NL || own == UTF8PROC_CATEGORY_PC || c == 0x200c || c == 0x200d ||
         (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
         (c >= 0x1f170 && c <= 0x1f189);
}
bool is_number(char32_t c) { return between(c, UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO); }
bool is_mark(char32_t c) { return between(c, UTF8PROC_CATEGORY_MN, UTF8PROC_CATEGORY_ME); }
bool is_nonspacing_mark(char32_t c) { return category(c) == UTF8PROC_CATEGORY_MN; }
bool is_punctuation(char32_t c) {
  if (c < 0x80) return c > ' ' && c < 0x7f && (!is_word(c) || c == '_');
  return between(c, UTF8PROC_CATEGORY_PC, UTF8PROC_CATEGORY_PO);
}
bool is_cleaned_control(char32_t c) {
  if (c == '\t' || c == '\n' || c == '\r') return false;
  const utf8proc_category_t own = category(c);
  // Of the private characters Hugging Face's tables hold only the first and the last of each range.
  if (own == UTF8PROC_CATEGORY_CO) {
    return c == 0xe000 || c == 0xf8ff || c == 0xf0000 || c == 0xffffd || c == 0x100000 || c == 0x10fffd;
  }
  return own == UTF8PROC_CATEGORY_CC || own == UTF8PROC_CATEGORY_CF;
}

void append_lower(std::string& text, char32_t c) {
  if (c < 0x80) return text.push_back(char(c >= 'A' && c <= 'Z' ? c + 32 : c));
  if (c == 0x130) return void(text += "i\u0307");
  append_char(text, char32_t(utf8proc_tolower(utf8proc_int32_t(c))));
}

void normalize(std::string& text, NormalForm form) {
  const auto is_ascii = [](char c) { return uint8_t(c) < 0x80; };
  const bool compose = form == NormalForm::nfc || form == NormalForm::nfkc;
  const bool compatible = form == NormalForm::nfkc || form == NormalForm::nfkd;
  const int options =
      UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) | (compatible ? UTF8PROC_COMPAT : 0);
  // ASCII stays what it is, but for one character before others, with which they may combine.
  std::string out;
  for (auto at = text.begin(); at != text.end();) {
    auto begin = std::find_if_not(at, text.end(), is_ascii);
    if (begin == text.end() && at == text.begin()) return;
    if (begin != text.end() && begin != at) --begin;
    out.append(at, begin);
    if (begin == text.end()) break;
    at = std::find_if(begin + 1, text.end(), is_ascii);
    utf8proc_uint8_t* result = nullptr;
    const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(&*begin), at - begin, &result,
                                               utf8proc_option_t(options));
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, std::free);
    if (size < 0) throw std::bad_alloc();  // of UTF-8 nothing else can go wrong
    out.append(reinterpret_cast<const char*>(result), size_t(size));
  }
  text = std::move(out);
}

bool Graphemes::next(size_t& begin, size_t& end) {
  if (at_ >= text_.size()) return false;
  begin = at_;
  const char *p = text_.data() + at_, *const stop = text_.data() + text_.size();
  utf8proc_int32_t state = 0, c = utf8proc_int32_t(next_char(p));
  while (p < stop) {
    const char* after = p;
    const utf8proc_int32_t other = utf8proc_int32_t(next_char(after));
    if (utf8proc_grapheme_break_stateful(c, other, &state)) break;
    c = other, p = after;
  }
  at_ = end = size_t(p - text_.data());
  return true;
}

std::string take_utf8(std::string& bytes, bool last) {
  std::string out;
  size_t at = 0;
  while (at < bytes.size()) {
    const auto [kind, size] = sequence_at(std::string_view(bytes).substr(at));
    if (kind == Sequence::cut && !last) break;
    if (kind == Sequence::whole) out.append(bytes, at, size);
    else out += "\ufffd";
    at += size;
  }
  bytes.erase(0, at);
  return out;
}

}  // namespace dense
