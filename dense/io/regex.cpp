#define PCRE2_CODE_UNIT_WIDTH 8
#include "dense/io/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "dense/io/json.h"
#include "dense/scalar/error.h"

namespace dense {

namespace {

template <auto free>
struct Free {
  void operator()(auto* p) const { free(p); }
};
template <class T, auto free>
using Owned = std::unique_ptr<T, Free<free>>;

// ---- From Ruby's syntax to PCRE2's. What differs in meaning is written out, what cannot be is refused.
//   \s \w \d \h   Unicode's White_Space, word characters and digits (PCRE2: nearly so); \h is a hexadecimal digit
//   \p{Han}       a script (PCRE2: script extensions), \p{Alpha} and others have short names
//   x{1,3}+       repeats the repetition (PCRE2: takes no step back)
//   (?m:.)        the dot matches line breaks, and ^ and $ are always those of lines
class Translation {
 public:
  Translation(const std::string& pattern, const std::string& where) : in_(pattern), where_(where) {
    while (at_ < in_.size()) part();
  }
  std::string text;

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail(where_, ": ", what, " is not supported in the regular expression ", shown(in_));
  }
  bool next_is(std::string_view s) const { return in_.compare(at_, s.size(), s) == 0; }

  void part() {
    const char c = in_[at_];
    const size_t begin = text.size();
    if (c == '\\') {
      escape(false);
    } else if (c == '[') {
      set();
    } else if (c == '(') {
      groups_.push_back(begin);
      text += c, ++at_;
      if (!next_is("?")) return;
      // (?<name>, (?:, (?=, (?!, (?>, (?<=, (?<!, or options such as (?i: with m for what PCRE2 calls s
      for (; at_ < in_.size() && (in_[at_] == '?' || in_[at_] == '-' || isalpha(uint8_t(in_[at_]))); ++at_)
        text += in_[at_] == 'm' ? 's' : in_[at_];
      return;
    } else if (c == ')') {
      text += c, ++at_;
      if (!groups_.empty()) atom_ = groups_.back(), groups_.pop_back();
      return;
    } else if (c == '{') {
      repeat();
      return;
    } else {
      text += c, ++at_;
      if (c == '*' || c == '+' || c == '?' || c == '|' || c == '^') return;
      while (at_ < in_.size() && (uint8_t(in_[at_]) & 0xc0) == 0x80) text += in_[at_++];  // the rest of a character
    }
    atom_ = begin;
  }

  void repeat() {
    const size_t end = in_.find('}', at_);
    const std::string_view inside = std::string_view(in_).substr(at_ + 1, end == in_.npos ? 0 : end - at_ - 1);
    if (inside.empty() || inside.find_first_not_of("0123456789,") != inside.npos) {
      atom_ = text.size();
      text += "\\{", ++at_;
      return;
    }
    if (inside[0] == ',') text += "{0", text += inside;
    else text += '{', text += inside;
    text += '}';
    at_ = end + 1;
    if (next_is("+")) text.insert(atom_, "(?:"), text += ")+", ++at_;
  }

  // In a set: the property itself; outside: as a set.
  void escape(bool in_set) {
    if (++at_ == in_.size()) refuse("a backslash at the end");
    const char c = in_[at_++];
    const std::string word = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
    const std::string hex = "0-9a-fA-F";
    if (c == 's') text += "\\p{White_Space}";
    else if (c == 'S') text += "\\P{White_Space}";
    else if (c == 'd') text += "\\p{Nd}";
    else if (c == 'D') text += "\\P{Nd}";
    else if (c == 'w') text += in_set ? word : "[" + word + "]";
    else if (c == 'h') text += in_set ? hex : "[" + hex + "]";
    else if ((c == 'W' || c == 'H') && in_set) refuse(c == 'W' ? "\\W in a set" : "\\H in a set");
    else if (c == 'W') text += "[^" + word + "]";
    else if (c == 'H') text += "[^" + hex + "]";
    else if (c == 'b' && !in_set)
      text += "(?:(?<=[" + word + "])(?![" + word + "])|(?<![" + word + "])(?=[" + word + "]))";
    else if (c == 'B' && !in_set)
      text += "(?:(?<=[" + word + "])(?=[" + word + "])|(?<![" + word + "])(?![" + word + "]))";
    else if (c == 'p' || c == 'P') property(c);
    else if (c == 'u') code_point();
    else if (c == 'x' && next_is("{")) text += "\\x";
    else if (std::string_view("XRKNOGkgyYMC").find(c) != std::string_view::npos) refuse(std::string("\\") + c);
    else text += '\\', text += c;
  }

  void code_point() {  // \u0041
    if (in_.size() - at_ < 4) refuse("\\u without four digits");
    text += "\\x{" + in_.substr(at_, 4) + "}";
    at_ += 4;
  }

  void property(char p) {
    const size_t end = in_.find('}', at_);
    if (!next_is("{") || end == in_.npos) refuse("\\p without {}");
    std::string name = in_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    const bool negated = name.starts_with("^");
    if (negated) name.erase(0, 1);
    static constexpr const char* names[][2] = {{"Letter", "L"},
                                               {"Mark", "M"},
                                               {"Number", "N"},
                                               {"Punctuation", "P"},
                                               {"Symbol", "S"},
                                               {"Separator", "Z"},
                                               {"Other", "C"},
                                               {"Alpha", "Alphabetic"},
                                               {"Digit", "Nd"},
                                               {"Punct", "P"},
                                               {"Space", "White_Space"},
                                               {"Lower", "Lowercase"},
                                               {"Any", "Any"},
                                               {"Emoji", "Emoji"},
                                               {"Upper", "Uppercase"},
                                               {"Alphabetic", "Alphabetic"},
                                               {"White_Space", "White_Space"},
                                               {"Uppercase", "Uppercase"},
                                               {"Lowercase", "Lowercase"}};
    const auto known = std::ranges::find_if(names, [&](const auto& n) { return name == n[0]; });
    if (known != std::end(names)) name = (*known)[1];
    else if (name.size() > 2) name = "sc:" + name;
    text += '\\', text += p, text += negated ? "{^" : "{", text += name, text += '}';
  }

  void set() {
    text += '[', ++at_;
    if (next_is("^")) text += '^', ++at_;
    if (next_is("]")) text += "\\]", ++at_;
    while (at_ < in_.size() && in_[at_] != ']') {
      if (next_is("[:")) {
        const size_t end = in_.find(":]", at_);
        if (end == in_.npos) refuse("[: without :]");
        text.append(in_, at_, end + 2 - at_);
        at_ = end + 2;
      } else if (in_[at_] == '[') {
        refuse("a set in a set");
      } else if (next_is("&&")) {
        refuse("&& in a set");
      } else if (in_[at_] == '\\') {
        escape(true);
      } else {
        text += in_[at_++];
      }
    }
    if (at_ == in_.size()) refuse("[ without ]");
    text += ']', ++at_;
  }

  const std::string& in_;
  const std::string& where_;
  size_t at_ = 0;               // what of in_ comes next
  size_t atom_ = 0;             // where in text what a repetition repeats begins
  std::vector<size_t> groups_;  // where in text the open groups begin
};

std::string message(int error) {
  PCRE2_UCHAR text[200] = "";
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct Regex::Code {
  Owned<pcre2_code, pcre2_code_free> code;
  Owned<pcre2_match_context, pcre2_match_context_free> context;
  bool jit = false;
};

Regex::Regex(const std::string& pattern, const std::string& where) : where_(where) {
  if (pattern.size() > 100'000) fail(where, ": expected a regular expression of at most 100000 bytes, got more");
  const std::string own = Translation(pattern, where).text;
  auto code = std::make_shared<Code>();
  int error = 0;
  size_t at = 0;
  const Owned<pcre2_compile_context, pcre2_compile_context_free> context(pcre2_compile_context_create(nullptr));
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(own.data()), own.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &at,
                                 context.get()));
  if (!code->code) fail(where, ": ", message(error), " in the regular expression ", shown(pattern));
  code->context.reset(pcre2_match_context_create(nullptr));
  if (!code->context) throw std::bad_alloc();
  code->jit = pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE) == 0;
  code_ = std::move(code);
}

void Regex::find_all(std::string_view text, std::vector<Match>& matches) const {
  const auto* const subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const Owned<pcre2_match_data, pcre2_match_data_free> data(pcre2_match_data_create(1, nullptr));
  if (!data) throw std::bad_alloc();
  const size_t* const found = pcre2_get_ovector_pointer(data.get());
  // Beyond the 32 KiB of stack that the machine code begins with, it gets one of its own, and then a context with it.
  Owned<pcre2_match_context, pcre2_match_context_free> own_context;
  Owned<pcre2_jit_stack, pcre2_jit_stack_free> stack;
  pcre2_match_context* context = code_->context.get();
  size_t last = size_t(-1);  // where the last match ended
  for (size_t at = 0; at <= text.size();) {
    const auto match = code_->jit ? pcre2_jit_match : pcre2_match;
    const int count = match(code_->code.get(), subject, text.size(), at, PCRE2_NO_UTF_CHECK, data.get(), context);
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count == PCRE2_ERROR_JIT_STACKLIMIT && !stack) {
      stack.reset(pcre2_jit_stack_create(32 << 10, 64 << 20, nullptr));
      own_context.reset(pcre2_match_context_copy(context));
      if (!stack || !own_context) throw std::bad_alloc();
      pcre2_jit_stack_assign(own_context.get(), nullptr, stack.get());
      context = own_context.get();
      continue;
    }
    if (count < 0) fail(where_, ": ", message(count), ", at byte ", at, " of a text of ", text.size());
    const auto [begin, end] = Match{found[0], found[1]};
    if (begin > end) fail(where_, ": a match ends before it begins");  // \K in a look-ahead; refused above
    if (begin == end && end == last) {
      at = end + 1;
      while (at < text.size() && (uint8_t(text[at]) & 0xc0) == 0x80) ++at;
      continue;
    }
    matches.push_back({begin, end});
    at = last = end;
  }
}

}  // namespace dense
