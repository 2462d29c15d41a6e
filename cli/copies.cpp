// dense copies: what pages share is copied, marked, and held equal to its source.
//
//   // copied from llama.h: norm                             the definition on the next line is llama.h's norm
//   // copied from llama.h: attend with llama -> gemma       the same after renaming
//   // copied from llama.h: turns                            these lines are those of llama.h between
//   ...                                                      // region turns
//   // end of copy                                           // end of region
//   // differs from llama.h: attend because ...              looks like a copy and is none; the reason is required
//
// A name is that of a function, type, variable or named lambda, X::name where several have it, or name#2, the second in
// the file. Renames apply all at once, to parts of words: llama -> gemma turns llama_mlp, LlamaMLP and LLAMA into
// gemma_mlp, GemmaMLP and GEMMA, in code, strings and comments. A digit belongs to the part before it: llama3 stays. A
// single letter is renamed as it is written: q -> k leaves Q. Compared are tokens and comments, not spaces and lines.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/progress.h"
#include "dense/io/files.h"
#include "dense/scalar/error.h"

namespace dense::cli {
namespace {

namespace fs = std::filesystem;
using std::string;
using std::string_view;

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_letter(char c) { return is_upper(c) || is_lower(c) || c == '_' || (c & 0x80); }  // bytes of UTF-8, too
bool is_word(char c) { return is_letter(c) || is_digit(c); }

string lower(string_view text) {
  string result(text);
  for (char& c : result) c = char(is_upper(c) ? c - 'A' + 'a' : c);
  return result;
}
string upper(string_view text) {
  string result(text);
  for (char& c : result) c = char(is_lower(c) ? c - 'a' + 'A' : c);
  return result;
}
string_view trimmed(string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}
string one_line(string_view text) {  // words with one space between them
  string result;
  for (char c : trimmed(text))
    if (!is_space(c)) result += c;
    else if (result.back() != ' ') result += ' ';
  return result;
}
std::vector<string_view> lines_of(string_view text) {
  std::vector<string_view> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    string_view line = text.substr(begin, end - begin);
    while (!line.empty() && is_space(line.back())) line.remove_suffix(1);
    lines.push_back(line);
    begin = end + 1;
  }
  return lines;
}

// ---- Tokens of C++

struct Token {
  enum Kind { word, number, quoted, comment, mark, rest, punctuation, line_end };
  Kind kind;  // rest: of an #include or #error
  size_t begin, end;
  int line;
  bool code;  // braces count: no comment, no directive, no #else
};

struct Named {
  string path;  // llama::attend::heads
  size_t first, last;
  bool constructor = false;
};

struct File {
  string name;  // from the folder
  fs::path path;
  string text;
  std::vector<Token> tokens;
  std::vector<Named> named;

  string_view operator[](const Token& t) const { return string_view(text).substr(t.begin, t.end - t.begin); }
  template <class... Parts>
  [[noreturn]] void fail_at(int line, const Parts&... parts) const {
    fail(path.string(), ':', line, ": ", parts...);
  }
};

class Lexer {
 public:
  explicit Lexer(File& file) : file_(file), s_(file.text) {}
  void run() {
    while (at_ < s_.size()) {
      const char c = s_[at_];
      if (c == '\n') {
        if (directive_) add(Token::line_end, at_), directive_ = false;
        ++line_, ++at_, fresh_ = true;
      } else if (const size_t splice = spliced(at_)) {
        ++line_, at_ += splice;
      } else if (is_space(c)) {
        ++at_;
      } else {
        const bool first = fresh_;
        fresh_ = false;
        if (c == '#' && first) directive();
        else token();
      }
    }
    if (directive_) add(Token::line_end, at_);
  }

 private:
  char peek(size_t i) const { return i < s_.size() ? s_[i] : '\0'; }
  size_t spliced(size_t i) const {  // the length of a backslash at the end of a line, with that end
    if (peek(i) != '\\') return 0;
    return peek(i + 1) == '\n' ? 2 : peek(i + 1) == '\r' && peek(i + 2) == '\n' ? 3 : 0;
  }
  void add(Token::Kind kind, size_t end) {
    const bool code = !directive_ && kind != Token::comment && std::ranges::find(in_else_, true) == in_else_.end();
    file_.tokens.push_back({kind, at_, end, line_, code});
    line_ += int(std::count(s_.begin() + std::ptrdiff_t(at_), s_.begin() + std::ptrdiff_t(end), '\n'));
    at_ = end;
  }
  size_t word_end(size_t i) const {
    while (is_word(peek(i))) ++i;
    return i;
  }
  size_t end_of_line(size_t i) const {
    while (i < s_.size() && s_[i] != '\n') i += std::max<size_t>(spliced(i), 1);
    return i;
  }

  void directive() {
    directive_ = true;
    add(Token::punctuation, at_ + 1);
    while (peek(at_) == ' ' || peek(at_) == '\t') ++at_;
    const string name = s_.substr(at_, word_end(at_) - at_);
    if (name.starts_with("if")) in_else_.push_back(false);
    if (name.starts_with("el") && !in_else_.empty()) in_else_.back() = true;
    if (name == "endif" && !in_else_.empty()) in_else_.pop_back();
    if (name.empty()) return;
    add(Token::word, at_ + name.size());
    if (name != "include" && name != "error" && name != "warning" && name != "pragma") return;
    while (peek(at_) == ' ' || peek(at_) == '\t') ++at_;
    size_t end = end_of_line(at_);
    if (name == "include") end = std::min(end, s_.find("//", at_));
    while (end > at_ && is_space(s_[end - 1])) --end;
    if (end > at_) add(Token::rest, end);
  }

  void token() {
    const char c = s_[at_], next = peek(at_ + 1);
    if (c == '/' && next == '/') {
      size_t end = end_of_line(at_);
      while (is_space(s_[end - 1])) --end;
      return add(Token::comment, end);
    }
    if (c == '/' && next == '*') {
      const size_t end = s_.find("*/", at_ + 2);
      if (end == s_.npos) file_.fail_at(line_, "a comment without an end: expected */");
      return add(Token::comment, end + 2);
    }
    if (is_digit(c) || (c == '.' && is_digit(next))) {
      size_t end = at_ + 1;
      while (is_word(peek(end)) || peek(end) == '.' || (peek(end) == '\'' && is_word(peek(end + 1))) ||
             ((peek(end) == '+' || peek(end) == '-') && string_view("eEpP").find(s_[end - 1]) != string_view::npos))
        ++end;
      return add(Token::number, end);
    }
    if (is_letter(c)) {
      const size_t end = word_end(at_);
      const string_view word = string_view(s_).substr(at_, end - at_);
      if (peek(end) == '"' && (word == "R" || word == "u8R" || word == "uR" || word == "UR" || word == "LR"))
        return raw_string(end);
      return add(Token::word, end);
    }
    if (c == '"' || c == '\'') {
      size_t end = at_ + 1;
      while (end < s_.size() && s_[end] != c && s_[end] != '\n')
        end += spliced(end) ? spliced(end) : s_[end] == '\\' ? 2 : 1;
      if (peek(end) != c) file_.fail_at(line_, "expected a closing ", c, ", got the end of the line");
      return add(Token::quoted, end + 1);
    }
    // Without >>, which ends two templates as well as > > does.
    constexpr std::array<string_view, 26> longer = {"<=>", "...", "->*", "<<=", ">>=", "::", "->", "++", "--",
                                                    "<<",  "<=",  ">=",  "==",  "!=",  "&&", "||", "+=", "-=",
                                                    "*=",  "/=",  "%=",  "&=",  "|=",  "^=", ".*", "##"};
    for (const string_view p : longer)
      if (string_view(s_).substr(at_).starts_with(p)) return add(Token::punctuation, at_ + p.size());
    add(Token::punctuation, at_ + 1);
  }

  void raw_string(size_t quote) {
    const size_t open = s_.find('(', quote);
    const string close = ")" + s_.substr(quote + 1, std::min(open, s_.size()) - quote - 1) + "\"";
    const size_t end = open == s_.npos ? open : s_.find(close, open);
    if (end == s_.npos) file_.fail_at(line_, "a raw string without an end");
    add(Token::quoted, end + close.size());
  }

  File& file_;
  const string& s_;
  size_t at_ = 0;
  int line_ = 1;
  bool fresh_ = true, directive_ = false;  // nothing but spaces so far on this line; inside of a directive
  std::vector<bool> in_else_;              // for each #if around
};

// ---- Definitions

// Finds what has a name and a body: namespaces and types are entered, functions for the lambdas and types in them.
class Parser {
 public:
  explicit Parser(File& file) : file_(file) {
    for (size_t i = 0; i < file.tokens.size(); ++i)
      if (file.tokens[i].code) code_.push_back(i);
    partner_.resize(code_.size());
    std::vector<size_t> open;
    for (size_t i = 0; i < code_.size(); ++i) {
      const string_view t = text(i);
      if (t == "(" || t == "[" || t == "{") open.push_back(i);
      if (t != ")" && t != "]" && t != "}") continue;
      const char opening = t == ")" ? '(' : t == "]" ? '[' : '{';
      if (open.empty() || text(open.back())[0] != opening)
        file.fail_at(token(i).line, "expected ", opening, " before ", t, ", got none");
      partner_[i] = open.back(), partner_[open.back()] = i;
      open.pop_back();
    }
    if (!open.empty()) file.fail_at(token(open.back()).line, text(open.back()), " is never closed");
  }
  void run() { scope(0, code_.size(), "", space); }

 private:
  enum Kind { space, type, local };

  const Token& token(size_t i) const { return file_.tokens[code_[i]]; }
  string_view text(size_t i) const { return i < code_.size() ? file_[token(i)] : string_view(); }
  bool is_name(size_t i) const {
    static const std::set<string_view> keywords = {
        "alignas",  "auto",     "bool",          "char",          "const",  "constexpr", "decltype", "default",
        "delete",   "double",   "else",          "enum",          "extern", "explicit",  "float",    "final",
        "if",       "inline",   "int",           "long",          "new",    "not",       "noexcept", "operator",
        "override", "requires", "return",        "short",         "signed", "sizeof",    "static",   "throw",
        "typedef",  "unsigned", "static_assert", "__attribute__", "using",  "virtual",   "void",     "while",
        "for",      "switch",   "catch",         "volatile",      "goto"};
    return i < code_.size() && token(i).kind == Token::word && !keywords.contains(text(i));
  }
  static string join(const string& path, const string& name) { return path.empty() ? name : path + "::" + name; }

  void scope(size_t i, size_t end, const string& path, Kind kind) {
    while (i < end) {
      const string_view t = text(i);
      if (t == ";" || t == "else" || t == "do" || t == "try") {
        ++i;
      } else if (t == "{") {
        scope(i + 1, partner_[i], path, kind);
        i = partner_[i] + 1;
      } else if ((t == "public" || t == "private" || t == "protected") && text(i + 1) == ":") {
        i += 2;
      } else if (kind == local && (t == "case" || t == "default")) {
        while (i < end && text(i) != ":") ++i;
        ++i;
      } else if (const size_t brace = namespace_brace(i)) {
        string inside = path;
        for (size_t j = i; j < brace; ++j)
          if (is_name(j) && text(j) != "namespace") inside = join(inside, string(text(j)));
        scope(brace + 1, partner_[brace], inside, space);
        i = partner_[brace] + 1;
      } else {
        i = declaration(i, end, path, kind);
      }
    }
  }

  size_t namespace_brace(size_t i) const {  // 0: none begins here
    if (text(i) == "inline") ++i;
    const bool linkage = text(i) == "extern" && text(i + 1).starts_with('"');
    if (text(i) != "namespace" && !linkage) return 0;
    for (++i; is_name(i) || text(i) == "::" || text(i) == "inline" || text(i).starts_with('"'); ++i) continue;
    return text(i) == "{" ? i : 0;
  }

  size_t after_angles(size_t i) const {  // i: of <
    for (int depth = 0; i < code_.size(); ++i) {
      const string_view t = text(i);
      if (t == "(" || t == "[" || t == "{") i = partner_[i];
      depth += t == "<" ? 1 : t == ">" ? -1 : 0;
      if (depth <= 0) return i + 1;
    }
    return i;
  }

  // requires(T x) { ... } or requires { ... }, not the body after a clause requires (...)
  bool is_requirement(size_t brace) const {
    if (brace == 0) return false;
    if (text(brace - 1) == "requires") return true;
    if (text(brace - 1) != ")") return false;
    const size_t open = partner_[brace - 1];
    if (open < 2 || text(open - 1) != "requires") return false;
    const string_view before = text(open - 2);
    return before == "requires" || before == "&&" || before == "||" || before == "(" || before == "!" || before == "=";
  }

  // Reads the declaration or statement at i, records what it defines, and returns what comes after it.
  size_t declaration(const size_t i, const size_t end, const string& path, const Kind kind) {
    string name;
    bool parameters = false, assigned = false, lambda = false, type_seen = false, initializers = false;
    size_t body = 0, j = i;
    for (; j < end; ++j) {
      const string_view t = text(j);
      const bool head = !parameters && !assigned && !type_seen;
      if (t == ";") {
        ++j;
        break;
      } else if (t == "template" && text(j + 1) == "<") {
        j = after_angles(j + 1) - 1;
      } else if (t == "operator" && head) {
        name = t;
        if (text(j + 1) == "(") name += "()", j += 2;
        else
          for (; j + 1 < end && text(j + 1) != "("; ++j)
            name += (is_letter(text(j + 1)[0]) ? " " : "") + string(text(j + 1));
        parameters = true;
      } else if (head && (t == "struct" || t == "class" || t == "union" || t == "enum")) {
        type_seen = true;
        while (text(j + 1) == "class" || text(j + 1) == "struct" || text(j + 1) == "[" ||
               (text(j + 1) == "alignas" && text(j + 2) == "("))
          j = text(j + 1) == "[" ? partner_[j + 1] : text(j + 1) == "alignas" ? partner_[j + 2] : j + 1;
        if (is_name(j + 1)) name = text(j + 1);
        for (size_t k = j + 2; text(k) == "::" && is_name(k + 1); k += 2) name += "::" + string(text(k + 1));
      } else if (t == "(") {
        const string_view before = j > i ? text(j - 1) : "";
        if (head && is_name(j - 1) && j > i) {
          parameters = true;
          name = (j > i + 1 && text(j - 2) == "~" ? "~" : "") + string(before);
          for (size_t k = j - 1; k > i + 1 && text(k - 1) == "::" && is_name(k - 2); k -= 2)
            name = string(text(k - 2)) + "::" + name;
        }
        if (head && kind == local &&
            (before == "if" || before == "for" || before == "while" || before == "switch" || before == "catch" ||
             before == "constexpr"))
          parameters = true;
        j = partner_[j];
      } else if (t == "[") {
        j = partner_[j];
      } else if (t == "=" && !assigned) {
        assigned = true;
        const string_view value = text(j + 1);
        if (value == "default" || value == "delete" || (parameters && value == "0")) continue;
        size_t k = j;
        while (k > i && text(k - 1) == "]") k = partner_[k - 1];
        name = k > i && is_name(k - 1) ? string(text(k - 1)) : "";
        parameters = false, lambda = value == "[";
      } else if (t == ":" && parameters) {
        initializers = true;
      } else if (t == "{") {
        const size_t close = partner_[j];
        if (is_requirement(j)) {
          j = close;
        } else if (parameters && !assigned) {  // a function's body, or the first value of a member
          const string_view next = close + 1 < end ? text(close + 1) : "";
          if (!initializers || (next != "," && next != "{")) body = j;
          j = close;
          if (!body || next == "catch") continue;
          ++j;
          break;
        } else {
          if (!type_seen && !assigned && name.empty() && is_name(j - 1) && j > i) name = text(j - 1);
          if (!body) body = j;
          j = close;
        }
      }
    }
    const bool function = parameters && !assigned && !type_seen;
    if (!body && !assigned && head_of_variable(i, j, kind, parameters || type_seen)) name = text(j - 2);
    else if (!body && !assigned) name.clear();
    if (kind == local && !lambda && !(type_seen && body)) name.clear();
    if (text(i) == "friend" && !body) name.clear();
    const string inside = name.empty() ? path : join(path, name);
    if (!name.empty()) {
      size_t last = code_[j - 1] + 1;
      while (last < file_.tokens.size() && file_.tokens[last].kind == Token::comment &&
             file_.text.find('\n', token(j - 1).end) > file_.tokens[last].begin)
        ++last;
      file_.named.push_back({inside, code_[i], last, function && path.ends_with(name) && kind == type});
    }
    if (body && (function || lambda)) scope(body + 1, partner_[body], inside, local);
    else if (body && type_seen) scope(body + 1, partner_[body], inside, type);
    return j;
  }

  bool head_of_variable(size_t i, size_t j, Kind kind, bool other) const {  // such as int x;
    return !other && kind != local && j >= i + 3 && text(j - 1) == ";" && is_name(j - 2) && text(i) != "using" &&
           text(i) != "extern" && text(i) != "typedef" && text(i) != "friend";
  }

  File& file_;
  std::vector<size_t> code_, partner_;  // the tokens that count; for each bracket the other one
};

// ---- Renames

struct Rename {
  string from, to;
  std::vector<string> from_parts, to_parts;  // lower case
};

struct Part {
  size_t begin, end;
};
// llama_mlp, LlamaMLP, LLAMA_MLP: llama and mlp.
std::vector<Part> parts_of(string_view word) {
  std::vector<Part> parts;
  for (size_t i = 0; i < word.size(); ++i) {
    if (word[i] == '_') continue;
    const char before = i ? word[i - 1] : '_';
    const bool ends_capitals = is_upper(before) && i + 1 < word.size() && is_lower(word[i + 1]);
    if (before == '_' || (is_upper(word[i]) && (!is_upper(before) || ends_capitals))) parts.push_back({i, i});
    parts.back().end = i + 1;
  }
  return parts;
}
std::vector<string> lower_parts(const string& word) {
  std::vector<string> result;
  for (const Part& part : parts_of(word)) result.push_back(lower(word.substr(part.begin, part.end - part.begin)));
  return result;
}

// `to` in the casing of `found`.
string cased(const Rename& rename, string_view found) {
  string result;
  const bool is_lower_case = lower(found) == found, is_upper_case = upper(found) == found;
  for (const string& part : rename.to_parts) {
    if (is_lower_case || is_upper_case) result += result.empty() ? "" : "_";
    result += is_lower_case ? part : is_upper_case ? upper(part) : upper(part.substr(0, 1)) + part.substr(1);
  }
  return result;
}

string rename_word(string_view word, const std::vector<Rename>& renames, std::vector<int>& hits) {
  const std::vector<Part> parts = parts_of(word);
  string result;
  size_t copied = 0;
  for (size_t p = 0; p < parts.size();) {
    const Rename* best = nullptr;
    string_view best_found;
    for (const Rename& rename : renames) {
      const size_t n = rename.from_parts.size();
      if (p + n > parts.size() || (best && n < best->from_parts.size())) continue;
      const string_view found = word.substr(parts[p].begin, parts[p + n - 1].end - parts[p].begin);
      if (lower_parts(string(found)) != rename.from_parts) continue;
      const bool exact = found == rename.from;
      if (!exact && (rename.from.size() == 1 || (best && n == best->from_parts.size()))) continue;
      best = &rename, best_found = found;
    }
    if (!best) {
      ++p;
      continue;
    }
    ++hits[size_t(best - renames.data())];
    result += word.substr(copied, parts[p].begin - copied);
    result += best_found == best->from ? best->to : cased(*best, best_found);
    p += best->from_parts.size();
    copied = parts[p - 1].end;
  }
  return result += word.substr(copied);
}

string rename(string_view text, bool escapes, const std::vector<Rename>& renames, std::vector<int>& hits) {
  if (renames.empty()) return string(text);
  string result;
  for (size_t i = 0; i < text.size();) {
    size_t end = i + 1;
    if (escapes && text[i] == '\\' && i + 1 < text.size()) {
      end = i + 2;
    } else if (is_word(text[i])) {
      while (end < text.size() && is_word(text[end])) ++end;
      if (is_letter(text[i])) {
        result += rename_word(text.substr(i, end - i), renames, hits);
        i = end;
        continue;
      }
    }
    result += text.substr(i, end - i);
    i = end;
  }
  return result;
}

string rename(const File& file, const Token& t, const std::vector<Rename>& renames, std::vector<int>& hits) {
  const string_view text = file[t];
  switch (t.kind) {
    case Token::quoted: {
      const size_t quote = text.find_first_of("\"'");  // a raw string's delimiters may be renamed: both of them
      return string(text.substr(0, quote)) +
             rename(text.substr(quote), !text.substr(0, quote).ends_with('R'), renames, hits);
    }
    case Token::word:
    case Token::comment:
    case Token::rest: return rename(text, false, renames, hits);
    default: return string(text);
  }
}

// ---- Marks

struct Copy {
  size_t file = 0, mark = 0;   // its token
  size_t first = 0, last = 0;  // tokens; of a region that is still empty first = last
  bool region = false;
  string source_file, source_name, reason;  // a reason: differs
  std::vector<Rename> renames;
  size_t source = 0, source_first = 0, source_last = 0;
};

string quoted(string_view text) { return '"' + string(text) + '"'; }

std::vector<Rename> parse_renames(string_view text) {
  std::vector<Rename> renames;
  while (true) {
    const size_t comma = text.find(',');
    const string_view pair = trimmed(text.substr(0, comma));
    const size_t arrow = pair.find("->");
    const auto is_plain = [](string_view s) {
      return !s.empty() && std::ranges::all_of(s, is_word) && s.front() != '_' && s.back() != '_';
    };
    const string from(arrow == pair.npos ? "" : trimmed(pair.substr(0, arrow)));
    const string to(arrow == pair.npos ? "" : trimmed(pair.substr(arrow + 2)));
    if (!is_plain(from) || !is_plain(to))
      fail("expected A -> B, letters and digits with _ between them, got ", quoted(pair));
    if (from == to) fail("rename ", from, " -> ", to, ": expected two names, got one");
    for (const Rename& r : renames)
      if (r.from == from) fail("rename ", from, ": given twice");
    renames.push_back({from, to, lower_parts(from), lower_parts(to)});
    if (comma == text.npos) return renames;
    text.remove_prefix(comma + 1);
  }
}

// What follows "// copied from " or "// differs from ".
void parse_mark(string_view text, bool differs, Copy& copy) {
  const auto malformed = [&, whole = text] {
    if (differs)
      fail("expected // differs from FILE: NAME because REASON, got ", quoted("// differs from " + string(whole)));
    fail("expected // copied from FILE: NAME, or ... NAME with A -> B, C -> D, got ",
         quoted("// copied from " + string(whole)));
  };
  if (differs) {
    const size_t because = text.find(" because ");
    if (because == text.npos) malformed();
    copy.reason = trimmed(text.substr(because + 9));
    text = text.substr(0, because);
  }
  const size_t colon = text.find(": ");
  if (colon == text.npos) malformed();
  copy.source_file = text.substr(0, colon);
  text = text.substr(colon + 2);
  if (text == "with" || text.ends_with(" with")) malformed();
  const size_t with = text.find(" with ");
  copy.source_name = trimmed(text.substr(0, with));
  if (with != text.npos) copy.renames = parse_renames(text.substr(with + 6));
  if (copy.source_name.empty() || copy.source_file.find(' ') != string::npos || copy.source_file.empty()) malformed();
  if (copy.source_name.find(' ') != string::npos && !copy.source_name.starts_with("operator")) malformed();
}

// ---- A folder of pages

class Pages {
 public:
  std::vector<File> files;
  std::vector<Copy> copies;  // in an order in which sources come before their copies
  std::vector<Copy> differs;
  std::vector<string> errors;

  explicit Pages(const fs::path& folder) {
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      const string ending = entry.path().extension().string();
      if (entry.is_regular_file() && (ending == ".h" || ending == ".hpp" || ending == ".cpp" || ending == ".cc"))
        files.push_back(
            {entry.path().lexically_relative(folder).generic_string(), entry.path(), read_file(entry.path()), {}, {}});
    }
    std::ranges::sort(files, {}, &File::name);
    if (files.empty()) fail(folder.string(), ": expected C++ files, found none");
    analyse();
  }

  // Finds marks and sources again, after a change of text.
  void analyse() {
    copies.clear(), differs.clear(), errors.clear();
    for (File& file : files) {
      file.tokens.clear(), file.named.clear();
      keeping_errors([&] {
        Lexer(file).run();
        Parser(file).run();
      });
    }
    if (!errors.empty()) return;
    for (size_t f = 0; f < files.size(); ++f) find_marks(f);
    for (Copy& copy : copies) keeping_errors([&] { find_source(copy); });
    for (Copy& copy : differs) keeping_errors([&] { find_source(copy); });
    if (errors.empty()) check_overlaps(), sort();
    if (errors.empty()) check_renames();
  }

  string place(const Copy& copy) const {
    return text(files[copy.file].path.string(), ':', files[copy.file].tokens[copy.mark].line);
  }
  string short_place(const Copy& copy) const {
    return text(files[copy.file].name, ':', files[copy.file].tokens[copy.mark].line);
  }

  bool is_equal(const Copy& copy) const {
    std::vector<int> hits(copy.renames.size());
    return compared(copy.source, copy.source_first, copy.source_last, copy.renames, hits) ==
           compared(copy.file, copy.first, copy.last, {}, hits);
  }

  // What the copy should be: its source, renamed, without marks, indented like the copy's mark.
  string expected(const Copy& copy) const {
    const File& source = files[copy.source];
    std::vector<int> hits(copy.renames.size());
    const size_t from = indent(source, copy.source_first), to = indent(files[copy.file], copy.mark);
    string result;
    size_t at = source.tokens[copy.source_first].begin;
    for (size_t i = copy.source_first; i < copy.source_last; ++i) {
      const Token& t = source.tokens[i];
      if (t.kind == Token::line_end) continue;
      const string_view gap = string_view(source.text).substr(at, t.begin - at);
      at = t.end;
      if (t.kind == Token::mark) continue;  // and the spaces before it
      const size_t line = gap.rfind('\n');
      if (line == gap.npos || result.empty()) result += result.empty() ? "" : gap;
      else {
        const size_t spaces = gap.size() - line - 1;
        result += gap.substr(0, line + 1);
        result += string(spaces + to - std::min(from, spaces + to), ' ');
      }
      result += rename(source, t, copy.renames, hits);
    }
    return result;
  }
  string_view actual(const Copy& copy) const {
    const File& file = files[copy.file];
    if (copy.first == copy.last) return {};
    const size_t begin = file.tokens[copy.first].begin;
    return string_view(file.text).substr(begin, file.tokens[copy.last - 1].end - begin);
  }

  void replace(const Copy& copy) {
    File& file = files[copy.file];
    const string text = expected(copy);
    if (copy.first == copy.last) {
      file.text.insert(file.tokens[copy.mark].end, "\n" + string(indent(file, copy.mark), ' ') + text);
    } else {
      file.text.replace(file.tokens[copy.first].begin, actual(copy).size(), text);
    }
    analyse();
  }

 private:
  void keeping_errors(const std::function<void()>& f) {
    try {
      f();
    } catch (const Error& error) {
      errors.push_back(error.what());
    }
  }
  void error(size_t file, int line, const string& what) {
    errors.push_back(text(files[file].path.string(), ':', line, ": ", what));
  }
  void error(const Copy& copy, const string& what) { errors.push_back(place(copy) + ": " + what); }

  static size_t indent(const File& file, size_t token) {
    const size_t begin = file.tokens[token].begin, line = begin ? file.text.rfind('\n', begin - 1) + 1 : 0;
    return std::min(file.text.find_first_not_of(" \t", line), begin) - line;
  }

  std::vector<string> compared(size_t file, size_t first, size_t last, const std::vector<Rename>& renames,
                               std::vector<int>& hits) const {
    std::vector<string> result;
    for (size_t i = first; i < last; ++i) {
      const Token& t = files[file].tokens[i];
      if (t.kind == Token::mark) continue;
      result.push_back(rename(files[file], t, renames, hits));
      if (t.kind != Token::comment) continue;
      string lines;
      for (const string_view line : lines_of(result.back())) lines += string(trimmed(line)) + '\n';
      result.back() = lines;
    }
    return result;
  }

  void find_marks(size_t f) {
    File& file = files[f];
    std::optional<Named> region;
    size_t last_copy = copies.size();  // the mark that an end of copy would belong to
    for (size_t i = 0; i < file.tokens.size(); ++i) {
      Token& t = file.tokens[i];
      if (t.kind != Token::comment) continue;
      const string said = one_line(file[t]), lower_said = lower(said);
      const bool differing =
          lower_said.starts_with("// differs from ") && said.substr(0, said.find(' ', 16)).find('.', 16) != said.npos;
      const bool copied = !differing && lower_said.find("copied from") != said.npos;
      const bool begins = said.starts_with("// region ") && said.find(' ', 10) == said.npos;
      if (!differing && !copied && !begins && said != "// end of region" && said != "// end of copy") continue;
      t.kind = Token::mark;
      const size_t line = t.begin ? file.text.rfind('\n', t.begin - 1) + 1 : 0;
      keeping_errors([&] {
        if (!trimmed(string_view(file.text).substr(line, t.begin - line)).empty())
          file.fail_at(t.line, "expected ", quoted(said), " on a line of its own");
        if (begins) {
          if (region) file.fail_at(t.line, "a region inside of region ", region->path);
          region = Named{said.substr(10), i + 1, 0};
        } else if (said == "// end of region") {
          if (!region) file.fail_at(t.line, "expected // region NAME before // end of region, got none");
          if (region->first == i) file.fail_at(t.line, "region ", region->path, ": expected lines, got none");
          region->last = i;
          file.named.push_back(*region);
          region.reset();
        } else if (said == "// end of copy") {
          if (last_copy == copies.size())
            file.fail_at(t.line, "expected // copied from before // end of copy, got none");
          copies[last_copy].region = true, copies[last_copy].last = i;
          last_copy = copies.size();
        } else {
          const string start = differing ? "// differs from " : "// copied from ";
          Copy copy;
          copy.file = f, copy.mark = i, copy.first = i + 1;
          try {
            if (!said.starts_with(start)) fail("expected // copied from FILE: NAME, got ", quoted(said));
            parse_mark(string_view(said).substr(start.size()), differing, copy);
          } catch (const Error& e) {
            last_copy = copies.size();
            file.fail_at(t.line, e.what());
          }
          (differing ? differs : copies).push_back(copy);
          last_copy = differing ? copies.size() : copies.size() - 1;
        }
      });
    }
    if (region) error(f, file.tokens[region->first - 1].line, "region " + region->path + ": expected // end of region");
    const auto find_end = [&](Copy& copy) {
      if (copy.file != f || copy.region) return;
      const int line = file.tokens[copy.mark].line;
      const auto found = std::ranges::find(file.named, copy.first, &Named::first);
      if (found == file.named.end() || file.tokens[copy.first].line != line + 1)
        return error(copy, "expected a definition on the next line, or // end of copy after other lines");
      copy.last = found->last;
    };
    std::ranges::for_each(copies, find_end);
    std::ranges::for_each(differs, find_end);
    for (const Copy& copy : copies) {
      if (copy.file != f || !copy.region) continue;
      std::vector<int> hits(copy.renames.size());
      const string name = copy.source_name.substr(0, copy.source_name.find('#'));
      if (copy.first < copy.last)
        file.named.push_back({rename(name, false, copy.renames, hits), copy.first, copy.last});
    }
    std::ranges::sort(file.named, {}, &Named::first);
  }

  void find_source(Copy& copy) {
    const auto file = std::ranges::find(files, copy.source_file, &File::name);
    if (file == files.end()) {
      std::vector<string> names;
      for (const File& f : files) names.push_back(f.name);
      fail(place(copy), ": ", copy.source_file, ": no such file", did_you_mean(copy.source_file, names));
    }
    copy.source = size_t(file - files.begin());
    const size_t hash = copy.source_name.find('#');
    const string name = copy.source_name.substr(0, hash);
    std::vector<const Named*> found;
    std::vector<string> names;
    string where;
    for (const Named& named : file->named) {
      const bool same = named.path == name || named.path.ends_with("::" + name);
      names.push_back(named.path.substr(named.path.rfind(':') + 1));
      if (!same || (named.constructor && name.find(':') == string::npos)) continue;
      found.push_back(&named);
      where += (where.empty() ? "" : ", ") + std::to_string(file->tokens[named.first].line);
    }
    if (found.empty())
      fail(place(copy), ": ", copy.source_file, ": expected a definition or region ", name, ", found none",
           did_you_mean(name, names));
    size_t ordinal = 1;
    if (hash != string::npos) {
      const string given = copy.source_name.substr(hash + 1);
      ordinal =
          !given.empty() && given.size() < 4 && std::ranges::all_of(given, is_digit) ? size_t(std::stoi(given)) : 0;
      if (ordinal < 1 || ordinal > found.size())
        fail(place(copy), ": ", copy.source_name, ": expected ", name, "#1 to ", name, '#', found.size(), " (lines ",
             where, " of ", copy.source_file, "), got #", given);
    } else if (found.size() > 1) {
      fail(place(copy), ": ", name, ": expected one in ", copy.source_file, ", or ", name, "#1 to ", name, '#',
           found.size(), ", got those of lines ", where);
    }
    copy.source_first = found[ordinal - 1]->first, copy.source_last = found[ordinal - 1]->last;
  }

  // Of copies whose sources are right, so that `fix` can make a source right first.
  void check_renames() {
    std::vector<bool> right(copies.size());
    for (size_t c = 0; c < copies.size(); ++c) {
      const Copy& copy = copies[c];
      bool source_right = true;
      for (size_t d = 0; d < c; ++d) source_right = source_right && (right[d] || !is_under(copies[d], copy));
      right[c] = source_right && is_equal(copy);
      std::vector<int> hits(copy.renames.size());
      compared(copy.source, copy.source_first, copy.source_last, copy.renames, hits);
      for (size_t i = 0; source_right && i < hits.size(); ++i)
        if (!hits[i])
          error(copy, text("rename ", copy.renames[i].from, " -> ", copy.renames[i].to, ": expected ",
                           copy.renames[i].from, " in ", copy.source_file, ": ", copy.source_name, ", found none"));
    }
    for (const Copy& copy : differs)
      if (is_equal(copy))
        error(copy, text("expected a difference from ", copy.source_file, ": ", copy.source_name,
                         ", found none: say copied"));
  }

  // Whether some of what `copy` is copied from is `source`.
  static bool is_under(const Copy& source, const Copy& copy) {
    return source.file == copy.source && source.first < copy.source_last && copy.source_first < source.last;
  }
  // One source for each token: no mark inside of a copy.
  void check_overlaps() {
    for (const Copy& copy : copies) {
      const std::vector<Token>& tokens = files[copy.file].tokens;
      size_t i = copy.first;
      while (i < copy.last && tokens[i].kind != Token::mark) ++i;
      if (i < copy.last)
        error(copy.file, tokens[i].line,
              text("a mark inside of the copy of line ", tokens[copy.mark].line, ": expected it in its source"));
    }
  }

  // Sources first. What overlaps a copy's source must be right before the copy is.
  void sort() {
    enum State { fresh, open, done };
    std::vector<State> state(copies.size(), fresh);
    std::vector<size_t> path, order;
    const std::function<void(size_t)> visit = [&](size_t c) {
      if (state[c] == done) return;
      if (state[c] == open) {
        string circle;
        const auto begin = std::ranges::find(path, c);
        for (auto i = begin; i != path.end(); ++i) circle += short_place(copies[*i]) + ", copied from ";
        const bool itself = path.end() - begin == 1;
        return error(copies[c], itself ? "a copy of itself" : "a cycle: " + circle + short_place(copies[c]));
      }
      state[c] = open;
      path.push_back(c);
      for (size_t d = 0; d < copies.size(); ++d)
        if (is_under(copies[d], copies[c])) visit(d);
      path.pop_back();
      state[c] = done;
      order.push_back(c);
    };
    for (size_t c = 0; c < copies.size(); ++c) visit(c);
    std::vector<Copy> sorted;
    for (size_t c : order) sorted.push_back(copies[c]);
    copies = std::move(sorted);
  }
};

// ---- Differences

// Which lines of a and b are the same: pairs, in order. Longest common subsequence.
std::vector<std::pair<size_t, size_t>> common(const std::vector<string>& a, const std::vector<string>& b) {
  const size_t width = b.size() + 1;
  std::vector<int> best((a.size() + 1) * width);  // of what is left of a from i, and of b from j
  for (size_t i = a.size(); i-- > 0;)
    for (size_t j = b.size(); j-- > 0;)
      best[i * width + j] = a[i] == b[j] ? best[(i + 1) * width + j + 1] + 1
                                         : std::max(best[(i + 1) * width + j], best[i * width + j + 1]);
  std::vector<std::pair<size_t, size_t>> pairs;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    if (a[i] == b[j]) pairs.push_back({i++, j++});
    else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) ++i;
    else ++j;
  }
  return pairs;
}

struct Side {
  string title;
  std::vector<string_view> lines;
  size_t first;  // the number of its first line
};

// A unified diff of two texts whose lines are compared as `keys` say.
void print_diff(const Side& a, const Side& b, const std::vector<std::pair<size_t, size_t>>& same) {
  constexpr size_t context = 3;
  struct Line {
    char sign;
    string_view text;
    size_t a, b;  // lines before it
  };
  std::vector<Line> all;
  size_t i = 0, j = 0;
  const auto until = [&](size_t to_a, size_t to_b) {
    for (; i < to_a; ++i) all.push_back({'-', a.lines[i], i, j});
    for (; j < to_b; ++j) all.push_back({'+', b.lines[j], i, j});
  };
  for (const auto& [x, y] : same) {
    until(x, y);
    all.push_back({' ', b.lines[j], i++, j++});
  }
  until(a.lines.size(), b.lines.size());
  fmt::print("--- {}\n+++ {}\n", a.title, b.title);
  const auto changed = [&](size_t n) { return all[n].sign != ' '; };
  for (size_t n = 0; n < all.size();) {
    while (n < all.size() && !changed(n)) ++n;
    if (n == all.size()) break;
    const size_t begin = n - std::min(n, context);
    size_t end = n + 1;  // after the last change
    for (size_t m = end; m < all.size() && m < end + 2 * context + 1; ++m)
      if (changed(m)) end = m + 1;
    n = end, end = std::min(end + context, all.size());
    size_t in_a = 0, in_b = 0;
    for (size_t m = begin; m < end; ++m) in_a += all[m].sign != '+', in_b += all[m].sign != '-';
    fmt::print("@@ -{},{} +{},{} @@\n", a.first + all[begin].a, in_a, b.first + all[begin].b, in_b);
    for (size_t m = begin; m < end; ++m) fmt::print("{}{}\n", all[m].sign, all[m].text);
  }
}

std::vector<string> keys(const std::vector<string_view>& lines) {
  std::vector<string> result;
  for (const string_view line : lines) result.push_back(string(trimmed(line)));
  return result;
}

void print_diff(const Pages& pages, const Copy& copy) {
  const File &source = pages.files[copy.source], &file = pages.files[copy.file];
  const string expected = pages.expected(copy);
  const size_t line = size_t(file.tokens[copy.mark].line) + 1;
  const Side a{text(source.path.string(), ": ", copy.source_name, copy.renames.empty() ? "" : ", renamed"),
               lines_of(expected), size_t(source.tokens[copy.source_first].line)};
  const Side b{text(file.path.string(), ':', line), lines_of(pages.actual(copy)),
               copy.first < copy.last ? size_t(file.tokens[copy.first].line) : line};
  print_diff(a, b, common(keys(a.lines), keys(b.lines)));
}

// ---- Commands

struct Config {
  std::optional<string> folder;
  void fields(auto&& f) { f("folder", folder, "the pages; else models/ here, or that of Dense's source"); }
  fs::path found() const {
    std::error_code ignored;
    fs::path path = folder ? *folder : fs::is_directory("models", ignored) ? "models" : DENSE_SOURCE_DIR "/models";
    if (!fs::is_directory(path, ignored)) fail("--folder: ", path.string(), ": no such folder");
    return path;
  }
};

bool report_errors(const Pages& pages, const Call& call) {
  for (string line : pages.errors) {
    std::ranges::replace_if(
        line, [](unsigned char c) { return c < ' ' || c == 0x7f; }, '?');
    say("{}: {}\n", call.program, line);
  }
  return !pages.errors.empty();
}

string counted(size_t n, const char* one, const char* more) { return text(n, ' ', n == 1 ? one : more); }

int check(const Call& call) {
  Config config;
  if (!parse_flags(config, call,
                   "Compares what is marked as copied with its source, after renaming, and shows what differs.\n\n"
                   "  // copied from llama.h: norm                   the definition on the next line\n"
                   "  // copied from llama.h: norm with llama -> x   renamed: llama_mlp, LlamaMLP and LLAMA, too\n"
                   "  // copied from llama.h: NAME                   or the lines up to // end of copy, where llama.h\n"
                   "                                                 has // region NAME ... // end of region\n"
                   "  // differs from llama.h: norm because ...      is no copy, on purpose\n\n"
                   "dense copies             the same as dense copies check\n"
                   "dense copies fix         writes copies again, from their sources\n"
                   "dense copies diff A B    how two pages differ\n"
                   "dense copies list        what is copied from where\n\n"
                   "Exit code: 0 equal, 1 something differs, 2 a mark that is wrong.",
                   call.program))
    return 0;
  const Pages pages(config.found());
  if (report_errors(pages, call)) return 2;
  size_t different = 0;
  for (const Copy& copy : pages.copies)
    if (!pages.is_equal(copy)) print_diff(pages, copy), ++different;
  const string all = counted(pages.copies.size(), "copy", "copies");
  if (different) fmt::print("{} of {} differ{} from the source\n", different, all, different == 1 ? "s" : "");
  else fmt::print("{} in {}: equal to their sources\n", all, counted(pages.files.size(), "file", "files"));
  return different ? 1 : 0;
}

int fix(const Call& call) {
  Config config;
  if (!parse_flags(config, call,
                   "Writes copies that differ again, from their sources, first those that others are copied from.\n"
                   "Line breaks are the source's: clang-format comes after it.",
                   call.program))
    return 0;
  Pages pages(config.found());
  if (report_errors(pages, call)) return 2;
  std::map<string, std::pair<const File*, string>> changed;
  for (size_t rounds = 0;; ++rounds) {
    const auto different = [&](const Copy& copy) { return !pages.is_equal(copy); };
    const auto found = std::ranges::find_if(pages.copies, different);
    if (found == pages.copies.end()) break;
    const Copy copy = *found;
    if (rounds > pages.copies.size()) fail(pages.place(copy), ": expected to become like its source; wrote nothing");
    const File& file = pages.files[copy.file];
    auto& [where, what] = changed[file.path.string()];
    where = &file;
    what += text(what.empty() ? "" : ", ", copy.source_name, " from ", copy.source_file);
    pages.replace(copy);  // what was found before may have moved
    if (report_errors(pages, call)) return 2;
  }
  for (const auto& [path, change] : changed) {
    fmt::print("{}: {}\n", path, change.second);
    write_file(path, change.first->text);
  }
  if (changed.empty()) fmt::print("nothing to do\n");
  return 0;
}

int diff(const Call& call) {
  Config config;
  std::array<string, 2> names;
  if (!parse_flags(config, call,
                   "Shows how two pages differ, but for their names, and how much of each is its own.\n\n"
                   "PAGE  a name in the folder, or a file",
                   call.program + " llama qwen2", {{"PAGE", &names[0]}, {"PAGE", &names[1]}}))
    return 0;
  const fs::path folder = config.found();
  std::array<string, 2> texts, stems;
  std::array<Side, 2> sides;
  for (size_t i = 0; i < 2; ++i) {
    fs::path path = folder / (names[i].ends_with(".h") ? names[i] : names[i] + ".h");
    std::error_code ignored;
    if (!fs::exists(path, ignored) && fs::is_regular_file(names[i], ignored)) path = names[i];
    if (!fs::is_regular_file(path, ignored)) {
      std::vector<string> known;
      for (const auto& entry : fs::directory_iterator(folder)) known.push_back(entry.path().stem().string());
      fail(path.string(), ": no such page", did_you_mean(names[i], known));
    }
    texts[i] = read_file(path), stems[i] = path.stem().string();
    sides[i] = {path.string(), lines_of(texts[i]), 1};
  }
  std::vector<Rename> renames;
  if (stems[0] != stems[1] && !parts_of(stems[0]).empty())
    renames.push_back({stems[0], stems[1], lower_parts(stems[0]), lower_parts(stems[1])});
  std::vector<int> hits(1);
  const string renamed = rename(texts[0], false, renames, hits);
  const std::array<std::vector<string>, 2> lines = {keys(lines_of(renamed)), keys(sides[1].lines)};
  const auto same = common(lines[0], lines[1]);
  print_diff(sides[0], sides[1], same);
  const auto filled = [](const string& line) { return !line.empty() && !line.starts_with("// copied from "); };
  const auto shared = std::ranges::count_if(same, [&](const auto& pair) { return filled(lines[1][pair.second]); });
  for (size_t i = 0; i < 2; ++i) {
    const auto all = std::ranges::count_if(lines[i], filled), own = all - shared;
    fmt::print("{}: {} of {} lines are its own, {:.0f}%\n", sides[i].title, own, all,
               all ? 100.0 * double(own) / double(all) : 0);
  }
  return 0;
}

int list(const Call& call) {
  Config config;
  if (!parse_flags(config, call, "Lists each source, and under it its copies, and theirs.", call.program)) return 0;
  const Pages pages(config.found());
  if (report_errors(pages, call)) return 2;
  const auto is_from = [&](const Copy& copy, size_t file, size_t first) {
    return copy.source == file && copy.source_first == first;
  };
  const auto described = [&](const Copy& copy) {
    string line = pages.short_place(copy);
    for (const Rename& r : copy.renames) line += text(&r == &copy.renames[0] ? " with " : ", ", r.from, " -> ", r.to);
    return copy.reason.empty() ? line : line + " differs because " + copy.reason;
  };
  const std::function<void(size_t, size_t, size_t)> print_copies = [&](size_t file, size_t first, size_t depth) {
    for (const Copy& copy : pages.copies) {
      if (!is_from(copy, file, first)) continue;
      fmt::print("{}{}\n", string(2 * depth, ' '), described(copy));
      print_copies(copy.file, copy.first, depth + 1);
    }
    for (const Copy& copy : pages.differs)
      if (is_from(copy, file, first)) fmt::print("{}{}\n", string(2 * depth, ' '), described(copy));
  };
  std::map<std::pair<size_t, size_t>, string> sources;
  for (const auto* all : {&pages.copies, &pages.differs})
    for (const Copy& copy : *all) sources[{copy.source, copy.source_first}] = copy.source_name;
  for (const Copy& copy : pages.copies) sources.erase({copy.file, copy.first});
  for (const auto& [source, name] : sources) {
    const File& file = pages.files[source.first];
    fmt::print("{}:{} {}\n", file.name, file.tokens[source.second].line, name);
    print_copies(source.first, source.second, 1);
  }
  return 0;
}

}  // namespace

int copies_command(const Call& call) {
  if (call.args.empty() || call.args[0].starts_with("-")) return check(call);
  const string action = call.args[0];
  const Call rest{call.program + " " + action, {call.args.begin() + 1, call.args.end()}};
  if (action == "check") return check(rest);
  if (action == "fix") return fix(rest);
  if (action == "diff") return diff(rest);
  if (action == "list") return list(rest);
  fail("expected check, fix, diff or list, got ", action, did_you_mean(action, {"check", "fix", "diff", "list"}));
}

}  // namespace dense::cli
