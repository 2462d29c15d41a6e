// einops: an operation on axes, written as the axes before and after it (Rogozhnikov 2022, openreview.net oapKSVM2bcj).
//   rearrange<"b t (s h d) -> s b h t d", "s", "h">(x, 3, n_head)   names after the pattern, their sizes in the call
//   reduce<"b t c -> b t", Reduction::mean>(x)                      reduces the axes that the right lacks
//   repeat<"t c -> b t c", "b">(x, batch)                           adds axes that the left lacks; or "t c -> 2 t c"
// A bracket is one axis made of several, the last running fastest. 1 and () have size 1; ... is any number of axes.
// A name is an identifier that neither begins nor ends with _. Sizes that the shape says may be left out.
// The compiler parses the pattern, and a broken rule is a compile error that names it. What depends on the shape is
// checked in the call. An array type X joins by two functions beside it: Shape shape_of(const X&), and
// X apply(X, const einops::Transform&), which does the six steps listed there.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "dense/tensor/dtype.h"

namespace dense {

enum class Reduction : uint8_t { sum, mean, max, min, prod };

// A string literal as a template argument.
template <size_t size>
struct Text {
  char chars[size] = {};
  constexpr Text() = default;
  consteval Text(const char (&text)[size]) {
    for (size_t i = 0; i < size; ++i) chars[i] = text[i];
  }
  constexpr std::string_view view() const { return {chars, size - 1}; }
};

namespace einops {

enum class Kind : uint8_t { rearrange, reduce, repeat };

inline constexpr int capacity = 16;  // of axes

// A vector for constant expressions.
template <class T>
struct List {
  T items[capacity] = {};
  int size = 0;
  constexpr T& operator[](int i) { return items[i]; }
  constexpr const T& operator[](int i) const { return items[i]; }
  constexpr const T* begin() const { return items; }
  constexpr const T* end() const { return items + size; }
};

struct Axis {
  std::string_view text;  // as written: a name, a number or ...
  int64_t number = 0;     // the number, else 0
  int given = -1;         // which of the sizes in the call is its size; -1: none
  bool right = false;     // is on the right
  constexpr bool is_name() const { return number == 0 && text != "..."; }
};

// One axis of a whole shape: a bracket, or a word alone. 1 and () have no members.
struct Group {
  std::string_view text;
  int begin = 0, end = 0;  // its axes: in Pattern::axes for the left, in Pattern::order for the right
};

// What breaks a rule, and the rule, as subject and predicate.
struct Problem {
  std::string_view what;
  const char* rule = nullptr;  // null: all rules are kept
};

struct Pattern {
  Kind kind = Kind::rearrange;
  std::string_view text;
  List<Axis> axes;          // those of the left in their order, then those that are new
  List<int> order;          // those of the right, as indices into axes
  List<Group> left, right;  // the shapes before and after
  int n_left = 0;           // how many axes are on the left
  int n_given = 0;          // how many sizes the call gives
  Problem problem;          // the first

  constexpr void refuse(std::string_view what, const char* rule) {
    if (!problem.rule) problem = {what, rule};
  }
  template <class T>
  constexpr void add(List<T>& list, const T& item, std::string_view word) {
    if (list.size < capacity) list.items[list.size++] = item;
    else refuse(word, "is one axis too many: a pattern has at most 16");
  }
  // The axis of this name, or the ellipsis, among the first n; -1 if there is none.
  constexpr int find(std::string_view name, int n) const {
    for (int i = 0; i < n; ++i)
      if (!axes[i].number && axes[i].text == name) return i;
    return -1;
  }
};

constexpr bool is_digit(char c) { return '0' <= c && c <= '9'; }

constexpr bool is_name(std::string_view word) {
  for (char c : word)
    if (!(is_digit(c) || ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || c == '_')) return false;
  return !is_digit(word.front()) && word.front() != '_' && word.back() != '_';
}

// The number that a word of digits is; 1 for the unit axis, 0 for a word that is not a number.
constexpr int64_t number(Pattern& p, std::string_view word) {
  int64_t value = 0;
  for (char c : word) {
    if (!is_digit(c)) return 0;
    if (value < 100'000'000'000'000'000) value = 10 * value + (c - '0');
    else p.refuse(word, "is too large a number");
  }
  if (word.front() == '0') p.refuse(word, "is no size: numbers begin with 1 to 9");
  return value;
}

// Adds the axis that a word is, if it is one.
constexpr void read_word(Pattern& p, std::string_view word, bool left, bool in_bracket) {
  const int64_t size = number(p, word);
  if (size == 1) return;
  const bool ellipsis = word == "...";
  if (!size && !ellipsis) {
    if (word.find('.') != word.npos) p.refuse(word, "is no ellipsis: ... stands alone");
    else if (!is_name(word)) p.refuse(word, "is no name: an identifier that neither begins nor ends with _");
  }
  if (left && ellipsis && in_bracket) p.refuse(word, "may be in a bracket on the right only");
  int axis = size ? -1 : p.find(word, p.axes.size);
  if (axis >= 0 && (left || p.axes[axis].right)) p.refuse(word, "is twice on one side");
  if (axis < 0) {
    p.add(p.axes, Axis{word, size}, word);
    axis = p.axes.size - 1;
  }
  if (left) return;
  p.axes[axis].right = true;
  p.add(p.order, axis, word);
}

constexpr void read_side(Pattern& p, std::string_view side, bool left) {
  List<Group>& groups = left ? p.left : p.right;
  const int& n = left ? p.axes.size : p.order.size;
  constexpr size_t none = std::string_view::npos;
  size_t open = none;  // where the bracket began
  int begin = 0;       // n where the group began
  for (size_t i = 0, end; i < side.size(); i = end) {
    const char c = side[i];
    end = i + 1;
    if (c == ' ') continue;
    if (open == none) begin = n;
    if (c == '(') {
      if (open != none) p.refuse(side.substr(open, end - open), "has a bracket in a bracket");
      open = i;
    } else if (c == ')') {
      if (open == none) p.refuse(side.substr(0, end), "closes a bracket that is not open");
      else p.add(groups, Group{side.substr(open, end - open), begin, n}, side.substr(open, end - open));
      open = none;
    } else {
      end = side.find_first_of(" ()", i);
      if (end == none) end = side.size();
      const std::string_view word = side.substr(i, end - i);
      read_word(p, word, left, open != none);
      if (open == none) p.add(groups, Group{word, begin, n}, word);
    }
  }
  if (open != none) p.refuse(side.substr(open), "has a bracket that is not closed");
}

// The pattern as data, or the first rule that it breaks, in problem.
constexpr Pattern parse(Kind kind, std::string_view text, std::span<const std::string_view> given) {
  Pattern p;
  p.kind = kind;
  p.text = text;
  const size_t arrow = text.find("->");
  if (arrow == text.npos || text.find("->", arrow + 2) != text.npos) {
    p.refuse(text, "has not exactly one ->");
    return p;
  }
  read_side(p, text.substr(0, arrow), true);
  p.n_left = p.axes.size;
  read_side(p, text.substr(arrow + 2), false);

  for (std::string_view name : given) {
    const int axis = p.find(name, p.axes.size);
    if (axis < 0 || name == "...") p.refuse(name, "is given a size but is no name in the pattern");
    else if (p.axes[axis].given >= 0) p.refuse(name, "is given two sizes");
    else p.axes[axis].given = p.n_given;
    ++p.n_given;
  }

  for (int i = 0; i < p.axes.size; ++i) {
    const Axis& axis = p.axes[i];
    const bool left = i < p.n_left;
    if (axis.number && kind == Kind::rearrange) p.refuse(axis.text, "is a number: rearrange takes none but 1");
    if (left && !axis.right && kind != Kind::reduce) p.refuse(axis.text, "is on the left only");
    if (!left && (kind != Kind::repeat || axis.text == "...")) p.refuse(axis.text, "is on the right only");
    if (!left && axis.is_name() && axis.given < 0) p.refuse(axis.text, "is new, so it needs a size");
  }

  for (const Group& group : p.left) {
    int unknown = 0;
    for (int i = group.begin; i < group.end; ++i) unknown += p.axes[i].is_name() && p.axes[i].given < 0;
    if (unknown > 1) p.refuse(group.text, "has more than one axis of unknown size");
  }
  return p;
}

// How compilers are made to print a broken rule: gcc shows the message (in "expansion of obeys"), clang the rule (in
// "call to obeys"). This function has no definition; that it is not constexpr is the error.
void this_pattern_breaks_a_rule(const char* rule);

template <Text message>
consteval bool obeys(const char* rule) {
  if (rule) this_pattern_breaks_a_rule(rule);
  return true;
}

// einops: "x" is on the right only
constexpr Text<160> message(const Problem& problem) {
  Text<160> result;
  size_t n = 0;
  if (!problem.rule) return result;
  for (std::string_view part : {std::string_view("einops: \""), problem.what, std::string_view("\" "), {problem.rule}})
    for (char c : part)
      if (n + 1 < sizeof result.chars) result.chars[n++] = c;
  return result;
}

template <Kind kind, Text text, Text... names>
struct Parsed {
  static constexpr std::string_view given[sizeof...(names) + 1] = {names.view()...};
  static constexpr Pattern pattern = parse(kind, text.view(), {given, sizeof...(names)});
  static_assert(obeys<message(pattern.problem)>(pattern.problem.rule), "einops: the pattern breaks a rule");
};

// What a pattern does to an array of one shape, in six steps of which most do nothing:
//   reshape to split; reduce the axes `reduced`; permute by order; reshape to unsqueezed; broadcast to expanded;
//   reshape to merged.
// There are few axes: those of size 1 are left out until merged (from reduced too, as one number reduces to itself);
// neighbours that stay neighbours, are reduced together or are new together are one axis.
struct Transform {
  Shape split;
  std::vector<int> reduced;  // axes of split, ascending; they disappear
  Reduction reduction = Reduction::sum;
  std::vector<int> order;  // axis i of the permuted array is axis order[i] of what the reduction left
  Shape unsqueezed;        // the permuted shape, with 1 for each new axis; the same as expanded where there is none
  Shape expanded;
  Shape merged;
};

// Fails where the pattern does not fit the shape and the given sizes.
Transform transform(const Pattern& pattern, const Shape& x, std::span<const int64_t> sizes);

template <Kind kind, Text text, Text... names>
Transform transform(const Shape& x, std::integral auto... sizes) {
  static_assert(sizeof...(names) == sizeof...(sizes), "einops: each name after the pattern needs one size in the call");
  const int64_t given[] = {int64_t(sizes)..., 0};  // one more, since none is no array
  return transform(Parsed<kind, text, names...>::pattern, x, {given, sizeof...(sizes)});
}

}  // namespace einops

template <Text pattern, Text... names, class X>
X rearrange(X x, std::integral auto... sizes) {
  const auto t = einops::transform<einops::Kind::rearrange, pattern, names...>(shape_of(x), sizes...);
  return apply(std::move(x), t);
}

template <Text pattern, Reduction reduction, Text... names, class X>
X reduce(X x, std::integral auto... sizes) {
  auto t = einops::transform<einops::Kind::reduce, pattern, names...>(shape_of(x), sizes...);
  t.reduction = reduction;
  return apply(std::move(x), t);
}

template <Text pattern, Text... names, class X>
X repeat(X x, std::integral auto... sizes) {
  const auto t = einops::transform<einops::Kind::repeat, pattern, names...>(shape_of(x), sizes...);
  return apply(std::move(x), t);
}

}  // namespace dense
