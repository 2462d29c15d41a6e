// einops against loops over all axes, its errors at run time, and its errors from the compiler.
#include "dense/tensor/einops.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "dense/scalar/error.h"

namespace {

using namespace dense;
using einops::Kind;
using einops::Transform;

// The smallest array that a Transform can be applied to.
struct Array {
  Shape shape;
  std::vector<float> data;
  bool operator==(const Array&) const = default;
};

int64_t product(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t(1), std::multiplies<>());
}

Array counting(const Shape& shape) {
  Array x{shape, std::vector<float>(product(shape))};
  std::iota(x.data.begin(), x.data.end(), 1.0f);
  return x;
}

// Calls f(index) for each index of the shape, in the order of memory.
void each_index(const Shape& shape, auto f) {
  Shape index(shape.size());
  for (int64_t i = 0, n = product(shape); i < n; ++i) {
    f(index);
    for (size_t d = shape.size(); d-- && ++index[d] == shape[d];) index[d] = 0;
  }
}

int64_t offset(const Shape& shape, const Shape& index) {
  int64_t at = 0;
  for (size_t d = 0; d < shape.size(); ++d) at = at * shape[d] + index[d];
  return at;
}

float combine(Reduction reduction, float a, float b) {
  switch (reduction) {
    case Reduction::max: return std::max(a, b);
    case Reduction::min: return std::min(a, b);
    case Reduction::prod: return a * b;
    default: return a + b;
  }
}

Array reshape(Array x, const Shape& shape) {
  EXPECT_EQ(product(x.shape), product(shape));
  x.shape = shape;
  return x;
}

// y[index] = x[g(index)] for all indices of y
Array gather(const Array& x, const Shape& shape, auto g) {
  Array y{shape, {}};
  each_index(shape, [&](const Shape& index) { y.data.push_back(x.data[offset(x.shape, g(index))]); });
  return y;
}

Array permute(const Array& x, const std::vector<int>& order) {
  EXPECT_EQ(order.size(), x.shape.size());
  Shape shape;
  for (int axis : order) shape.push_back(x.shape.at(axis));
  return gather(x, shape, [&](const Shape& index) {
    Shape from(index.size());
    for (size_t i = 0; i < index.size(); ++i) from[order[i]] = index[i];
    return from;
  });
}

Array broadcast(const Array& x, const Shape& shape) {
  EXPECT_EQ(shape.size(), x.shape.size());
  return gather(x, shape, [&](Shape index) {
    for (size_t i = 0; i < index.size(); ++i) {
      EXPECT_TRUE(x.shape[i] == 1 || x.shape[i] == shape[i]);
      if (x.shape[i] == 1) index[i] = 0;
    }
    return index;
  });
}

Array reduce_axes(const Array& x, const std::vector<int>& axes, Reduction reduction) {
  std::vector<int> kept;
  Shape shape;
  for (int i = 0; i < int(x.shape.size()); ++i)
    if (std::ranges::find(axes, i) == axes.end()) kept.push_back(i), shape.push_back(x.shape[i]);
  Array y{shape, std::vector<float>(product(shape))};
  std::vector<bool> begun(y.data.size());
  each_index(x.shape, [&](const Shape& index) {
    Shape to;
    for (int axis : kept) to.push_back(index[axis]);
    const int64_t i = offset(shape, to);
    const float value = x.data[offset(x.shape, index)];
    y.data[i] = begun[i] ? combine(reduction, y.data[i], value) : value;
    begun[i] = true;
  });
  if (reduction == Reduction::mean)
    for (float& value : y.data) value /= float(x.data.size()) / float(y.data.size());
  return y;
}

Shape shape_of(const Array& x) { return x.shape; }

Array apply(Array x, const Transform& t) {
  x = reshape(std::move(x), t.split);
  if (!t.reduced.empty()) x = reduce_axes(x, t.reduced, t.reduction);
  x = permute(x, t.order);
  x = broadcast(reshape(std::move(x), t.unsqueezed), t.expanded);
  return reshape(std::move(x), t.merged);
}

using Sizes = std::vector<std::pair<std::string, int64_t>>;

// The pattern parsed here instead of by the compiler.
Transform transform(Kind kind, const std::string& pattern, const Shape& x, const Sizes& sizes = {}) {
  std::vector<std::string_view> names;
  std::vector<int64_t> values;
  for (const auto& [name, value] : sizes) names.push_back(name), values.push_back(value);
  return einops::transform(einops::parse(kind, pattern, names), x, values);
}

Array run(Kind kind, const std::string& pattern, const Array& x, const Sizes& sizes = {},
          Reduction reduction = Reduction::sum) {
  Transform t = transform(kind, pattern, x.shape, sizes);
  t.reduction = reduction;
  return apply(x, t);
}

Array rearranged(const std::string& pattern, const Array& x, const Sizes& sizes = {}) {
  return run(Kind::rearrange, pattern, x, sizes);
}

using Names = std::vector<std::string>;

// What any pattern means: a loop over all axes. left and right name them in the order of memory.
std::vector<float> reference(const Names& left, const Names& right, std::map<std::string, int64_t> size, const Array& x,
                             Reduction reduction) {
  Names all = left;
  for (const std::string& name : right)
    if (std::ranges::find(left, name) == left.end()) all.push_back(name);
  Shape shape;
  for (const std::string& name : all) shape.push_back(size[name]);
  int64_t n = 1;
  for (const std::string& name : right) n *= size[name];
  std::vector<float> y(n);
  std::vector<int> count(n);
  each_index(shape, [&](const Shape& index) {
    const auto at = [&](const Names& names) {
      int64_t i = 0;
      for (const std::string& name : names) i = i * size[name] + index[std::ranges::find(all, name) - all.begin()];
      return i;
    };
    const int64_t to = at(right);
    const float value = x.data[at(left)];
    y[to] = count[to]++ ? combine(reduction, y[to], value) : value;
  });
  if (reduction == Reduction::mean)
    for (int64_t i = 0; i < n; ++i) y[i] /= float(count[i]);
  return y;
}

std::string error(Kind kind, const std::string& pattern, const Shape& x, const Sizes& sizes = {}) {
  try {
    transform(kind, pattern, x, sizes);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST(Einops, AsUsersWriteIt) {
  const Array x = counting({2, 3, 24});
  const Array y = rearrange<"b t (s h d) -> s b h t d", "s", "h">(x, 3, 2);
  EXPECT_EQ(y.shape, (Shape{3, 2, 2, 3, 4}));
  EXPECT_EQ(y.data[offset(y.shape, {2, 1, 0, 1, 3})], x.data[offset(x.shape, {1, 1, (2 * 2 + 0) * 4 + 3})]);
  EXPECT_EQ((rearrange<"s b h t d -> b t (s h d)">(y)), x);

  const Array mean = reduce<"b t c -> b t", Reduction::mean>(counting({2, 1, 3}));
  EXPECT_EQ(mean, (Array{{2, 1}, {2, 5}}));
  EXPECT_EQ((reduce<"b (t pair) -> b t", Reduction::max, "pair">(counting({2, 4}), 2)), (Array{{2, 2}, {2, 4, 6, 8}}));

  const Array row{{2}, {1, 2}};
  EXPECT_EQ((repeat<"c -> b c", "b">(row, size_t(2))), (Array{{2, 2}, {1, 2, 1, 2}}));
  EXPECT_EQ((repeat<"c -> 2 c">(row)), (Array{{2, 2}, {1, 2, 1, 2}}));
  EXPECT_EQ((repeat<"c -> (c 2)">(row)), (Array{{4}, {1, 1, 2, 2}}));
}

TEST(Einops, IdentityPatternsChangeNothing) {
  const Array x = counting({2, 3, 4, 5, 6});
  const Names patterns = {"... -> ...",
                          "a b c d e->a b c d e",
                          "a b c d e ... -> ... a b c d e",
                          "a b c d e ... -> a b ... c d e",
                          "... a b c d e -> ... a b c d e",
                          "a ... e -> a ... e",
                          "a ... -> a ...",
                          "a ... c d e -> a (...) c d e"};
  for (const std::string& pattern : patterns) EXPECT_EQ(rearranged(pattern, x), x) << pattern;
}

TEST(Einops, AnEllipsisStandsForTheAxesItReplaces) {
  const Array x = counting({2, 3, 4, 5, 6});
  const std::pair<const char*, const char*> rearrangements[] = {
      {"a b c d e -> (a b) c d e", "a b ... -> (a b) ..."},
      {"a b c d e -> a b (c d) e", "... c d e -> ... (c d) e"},
      {"a b c d e -> a b c d e", "...->..."},
      {"a b c d e -> (a b c d e)", "... -> ( ... )"},
      {"a b c d e -> b (c d e) a", "a b ... -> b (...) a"},
      {"a b c d e -> b (a c d) e", "a b ... e -> b (a ...) e"}};
  for (const auto& [plain, ellipsis] : rearrangements)
    EXPECT_EQ(rearranged(plain, x), rearranged(ellipsis, x)) << plain;

  const std::pair<const char*, const char*> reductions[] = {{"a b c d e ->", " ... ->  "},
                                                            {"a b c d e -> (e a)", "a ... e -> (e a)"},
                                                            {"a b c d e -> d (a e)", "a b c d e ... -> d (a e)"},
                                                            {"a b c d e -> (a b)", "... c d e -> (...)"}};
  for (const auto& [plain, ellipsis] : reductions)
    for (Reduction r : {Reduction::sum, Reduction::mean, Reduction::max, Reduction::min, Reduction::prod})
      EXPECT_EQ(run(Kind::reduce, plain, x, {}, r), run(Kind::reduce, ellipsis, x, {}, r)) << plain;
}

TEST(Einops, AxesOfSizeOneComeAndGo) {
  const Array x = counting({1, 2, 1, 3});
  EXPECT_EQ(rearranged("1 a () b -> a b", x).shape, (Shape{2, 3}));
  EXPECT_EQ(rearranged("1 a (1 1) b -> () a (b 1) ( ) 1", x).shape, (Shape{1, 2, 3, 1, 1}));
  EXPECT_EQ(rearranged("z a y b -> (a 1 b) z y", x).shape, (Shape{6, 1, 1}));
  EXPECT_EQ(run(Kind::reduce, "1 a z b -> 1 b 1", x).shape, (Shape{1, 3, 1}));
  EXPECT_EQ(run(Kind::repeat, "1 a z b -> b 2 a z", x).shape, (Shape{3, 2, 2, 1}));
  EXPECT_EQ(rearranged("->1 () 1", counting({})), counting({1, 1, 1}));
  EXPECT_EQ(rearranged(" -> ", counting({})), counting({}));
  EXPECT_EQ(run(Kind::repeat, "-> 2", counting({})), (Array{{2}, {1, 1}}));
}

TEST(Einops, AxesOfSizeZero) {
  EXPECT_EQ(rearranged("a (b c) -> c a b", counting({0, 6}), {{"b", 2}}).shape, (Shape{3, 0, 2}));
  EXPECT_EQ(rearranged("(a b) -> b a", counting({0}), {{"b", 2}}).shape, (Shape{2, 0}));
  EXPECT_EQ(run(Kind::reduce, "a b -> b", counting({0, 2})), (Array{{2}, {0, 0}}));
  EXPECT_EQ(run(Kind::repeat, "a -> n a", counting({3}), {{"n", 0}}).shape, (Shape{0, 3}));
}

TEST(Einops, BracketsRoundTrip) {
  const Array x = counting({1, 2, 3, 5, 2, 4});
  const Array y = rearrange<"a b c d e f -> (f d) c (e b) a">(x);
  EXPECT_EQ(y.shape, (Shape{20, 3, 4, 1}));
  EXPECT_EQ((rearrange<"(f d) c (e b) a -> a b c d e f", "b", "d">(y, 2, 5)), x);
  EXPECT_EQ((rearrange<"(f d) c (e b) a -> a b c d e f", "e", "f">(y, 2, 4)), x);
  EXPECT_EQ((rearrange<"a b c d e f -> a b (c d e) f">(x)), (rearrange<"a b ... f -> a b (...) f">(x)));
  EXPECT_EQ((rearrange<"(a1 a_2) Ab aB -> aB Ab a1 a_2", "a1">(counting({6, 2, 3}), 3)).shape, (Shape{3, 2, 3, 2}));
}

TEST(Einops, RandomPermutationsOfUpToNineAxes) {
  std::mt19937 random(1);
  const Names letters = {"a", "b", "c", "d", "e", "f", "g", "h", "i"};
  for (size_t n = 1; n <= letters.size(); ++n) {
    Names right(letters.begin(), letters.begin() + n);
    std::shuffle(right.begin(), right.end(), random);
    std::string left_text, right_text;
    Shape shape, expected(n);
    for (size_t i = 0; i < n; ++i) {
      left_text += letters[i] + " ";
      right_text += right[i] + " ";
      shape.push_back(1 + random() % 3);
    }
    for (size_t i = 0; i < n; ++i) expected[i] = shape[right[i][0] - 'a'];
    const Array x = counting(shape), y = rearranged(left_text + "->" + right_text, x);
    EXPECT_EQ(y.shape, expected);
    for (int trial = 0; trial < 20; ++trial) {
      Shape from(n), to(n);
      for (size_t i = 0; i < n; ++i) from[i] = random() % shape[i];
      for (size_t i = 0; i < n; ++i) to[i] = from[right[i][0] - 'a'];
      EXPECT_EQ(y.data[offset(y.shape, to)], x.data[offset(x.shape, from)]);
    }
    EXPECT_EQ(rearranged(right_text + "->" + left_text, y), x);
  }
}

// Patterns of up to ten axes with brackets, unit axes, an ellipsis, numbers and sizes left out, against the loops.
TEST(Einops, RandomPatternsAgreeWithLoops) {
  std::mt19937 random(2);
  const auto below = [&](int n) { return int(random() % n); };
  for (int trial = 0; trial < 600; ++trial) {
    const Kind kind = Kind(trial % 3);
    const Names pool = {"a", "bb", "C", "d0", "e_e", "f", "g", "h", "i", "j"};
    std::map<std::string, int64_t> size;
    for (const std::string& name : pool) size[name] = below(4) ? 1 + below(3) : 2;
    const Names dots(size_t(below(3)), "");  // the axes of the ellipsis are named .0 and .1
    for (size_t i = 0; i < dots.size(); ++i) size["." + std::to_string(i)] = 1 + below(3);

    Names left(pool.begin(), pool.begin() + below(11));
    if (below(2)) left.push_back("...");
    std::ranges::shuffle(left, random);
    Names right = left;
    std::ranges::shuffle(right, random);
    Names fresh;
    if (kind == Kind::reduce) right.resize(below(int(right.size()) + 1));
    if (kind == Kind::repeat) {
      for (int i = below(4); i--;) fresh.push_back("new" + std::to_string(i));
      for (const std::string& name : fresh) {
        size[name] = 1 + below(3);
        right.insert(right.begin() + below(int(right.size()) + 1), name);
      }
    }

    Sizes given;
    std::map<std::string, bool> known;
    for (const std::string& name : fresh) {
      known[name] = below(2);  // else a number
      if (known[name]) given.push_back({name, size[name]});
    }
    // The text of a side, its shape, and its axes in the order of memory.
    struct Side {
      std::string text;
      Shape shape;
      Names names;
    };
    const auto write = [&](const Names& axes, bool is_left) {
      Side side;
      if (!below(3)) side.text += below(2) ? "1 " : "( ) ", side.shape.push_back(1);
      for (size_t i = 0; i < axes.size();) {
        const bool bracket = below(2) && !(is_left && axes[i] == "...");  // there it may not be in a bracket
        const size_t end = bracket ? std::min(axes.size(), i + 1 + below(3)) : i + 1;
        int64_t whole = 1;
        bool one_left_out = false;
        if (bracket) side.text += "(";
        for (; i < end; ++i) {
          const std::string& name = axes[i];
          if (name == "...") {
            if (bracket && is_left) break;
            side.text += "... ";
            for (size_t k = 0; k < dots.size(); ++k) {
              side.names.push_back("." + std::to_string(k));
              whole *= size[side.names.back()];
              if (!bracket) side.shape.push_back(size[side.names.back()]);
            }
            continue;
          }
          const bool is_new = std::ranges::find(fresh, name) != fresh.end();
          side.text += (is_new && !known[name] ? std::to_string(size[name]) : name) + " ";
          side.names.push_back(name);
          whole *= size[name];
          if (is_left && bracket && (one_left_out || below(2))) given.push_back({name, size[name]});
          else if (is_left) one_left_out = true;
        }
        if (bracket) side.text += ") ";
        if (bracket || axes[end - 1] != "...") side.shape.push_back(whole);
      }
      return side;
    };
    const Side from = write(left, true), to = write(right, false);
    const std::string pattern = from.text + "-> " + to.text;
    std::ranges::shuffle(given, random);

    Array x = counting(from.shape);
    for (float& value : x.data) value = float(1 + below(2));  // so that sums and products are exact
    const Reduction reduction = Reduction(below(5));
    SCOPED_TRACE(pattern);
    const Array y = run(kind, pattern, x, given, reduction);
    EXPECT_EQ(y.shape, to.shape);
    EXPECT_EQ(y.data, reference(from.names, to.names, size, x, reduction));
    const std::vector<int> order = transform(kind, pattern, x.shape, given).order;
    for (size_t i = 1; kind == Kind::rearrange && i < order.size(); ++i)
      EXPECT_NE(order[i], order[i - 1] + 1) << "neighbours not merged";
  }
}

TEST(Einops, RepetitionsReduceToWhatWasRepeated) {
  const Array x = counting({2, 3, 5});
  struct Case {
    std::string left, right;
    Sizes sizes;
  };
  const std::vector<Case> cases = {{"a b c", "c a b", {}},
                                   {"a b c", "n a b c", {{"n", 2}}},
                                   {"a b c", "a b c n", {{"n", 3}}},
                                   {"a b c", "a (b n) c", {{"n", 2}}},
                                   {"a b c", "a (n b) c", {{"n", 2}}},
                                   {"a b c", "(c n) b m a", {{"n", 2}, {"m", 3}}},
                                   {"a b c", "2 a 2 b 2 c 2", {}},
                                   {"a b c", "(a 2) (3 b) 1 c", {}},
                                   {"a ...", "n a ...", {{"n", 2}}},
                                   {"...", "... n", {{"n", 2}}},
                                   {"a ... c", "(n c) ... a", {{"n", 4}}},
                                   {"... c", "2 ... 3 (c 2)", {}},
                                   {"a ...", "(a n) 2 ... m", {{"n", 2}, {"m", 1}}},
                                   {"a (b one) c", "one a 2 c (b n)", {{"one", 1}, {"n", 3}}},
                                   {"a b c", "(n a m b c)", {{"a", 2}, {"b", 3}, {"n", 2}, {"m", 2}}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.left + " -> " + c.right);
    const Array y = run(Kind::repeat, c.left + " -> " + c.right, x, c.sizes);
    const std::string back = c.right + " -> " + c.left;
    EXPECT_EQ(run(Kind::reduce, back, y, c.sizes, Reduction::min), x);
    EXPECT_EQ(run(Kind::reduce, back, y, c.sizes, Reduction::max), x);
  }
}

TEST(Einops, ReductionsAreLoops) {
  const Array x = counting({2, 3, 4});
  for (Reduction r : {Reduction::sum, Reduction::mean, Reduction::max, Reduction::min, Reduction::prod}) {
    const Array y = run(Kind::reduce, "a b c -> c a", x, {}, r);
    ASSERT_EQ(y.shape, (Shape{4, 2}));
    for (int c = 0; c < 4; ++c) {
      for (int a = 0; a < 2; ++a) {
        float expected = x.data[12 * a + c];
        for (int b = 1; b < 3; ++b) expected = combine(r, expected, x.data[12 * a + 4 * b + c]);
        if (r == Reduction::mean) expected /= 3;
        EXPECT_EQ(y.data[2 * c + a], expected);
      }
    }
  }
  const Array image = counting({2, 4, 6, 3});
  const Array pooled = reduce<"b (h h2) (w w2) c -> b h w c", Reduction::max, "h2", "w2">(image, 2, 2);
  EXPECT_EQ(pooled.shape, (Shape{2, 2, 3, 3}));
  EXPECT_EQ(pooled, (reduce<"b (h 2) (w 2) c -> b h w c", Reduction::max>(image)));
  EXPECT_EQ(pooled.data[offset(pooled.shape, {1, 0, 2, 1})], image.data[offset(image.shape, {1, 1, 5, 1})]);
}

TEST(Einops, NeighboursAreMerged) {
  struct Case {
    Kind kind;
    std::string pattern;
    Shape x, split;
    std::vector<int> reduced, order;
    Shape unsqueezed, expanded, merged;
    Sizes sizes = {};
  };
  const std::vector<Case> cases = {
      {Kind::rearrange, "a b c d -> a b c d", {2, 3, 4, 5}, {120}, {}, {0}, {120}, {120}, {2, 3, 4, 5}},
      {Kind::rearrange, "a b c d -> (c d) a b", {2, 3, 4, 5}, {6, 20}, {}, {1, 0}, {20, 6}, {20, 6}, {20, 2, 3}},
      {Kind::rearrange,
       "a ... d -> d ... a",
       {2, 3, 4, 5},
       {2, 12, 5},
       {},
       {2, 1, 0},
       {5, 12, 2},
       {5, 12, 2},
       {5, 3, 4, 2}},
      {Kind::rearrange, "a one b -> b one a", {2, 1, 3}, {2, 3}, {}, {1, 0}, {3, 2}, {3, 2}, {3, 1, 2}},
      {Kind::rearrange, "a b c -> c a b", {1, 3, 4}, {3, 4}, {}, {1, 0}, {4, 3}, {4, 3}, {4, 1, 3}},
      {Kind::rearrange, "1 () -> ", {1, 1}, {}, {}, {}, {}, {}, {}},
      {Kind::reduce, "a b c d -> a d", {2, 3, 4, 5}, {2, 12, 5}, {1}, {0, 1}, {2, 5}, {2, 5}, {2, 5}},
      {Kind::reduce, "a b c d -> d c", {2, 3, 4, 5}, {6, 4, 5}, {0}, {1, 0}, {5, 4}, {5, 4}, {5, 4}},
      {Kind::reduce, "a b c -> a c", {2, 1, 3}, {6}, {}, {0}, {6}, {6}, {2, 3}},
      {Kind::reduce, "... ->", {2, 3}, {6}, {0}, {}, {}, {}, {}},
      {Kind::repeat, "t c -> b 2 t c", {4, 5}, {20}, {}, {0}, {1, 20}, {6, 20}, {3, 2, 4, 5}, {{"b", 3}}},
      {Kind::repeat, "t c -> (t 2) c", {4, 5}, {4, 5}, {}, {0, 1}, {4, 1, 5}, {4, 2, 5}, {8, 5}},
      {Kind::repeat, "t c -> t b c", {4, 5}, {20}, {}, {0}, {20}, {20}, {4, 1, 5}, {{"b", 1}}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.pattern);
    const Transform t = transform(c.kind, c.pattern, c.x, c.sizes);
    EXPECT_EQ(t.split, c.split);
    EXPECT_EQ(t.reduced, c.reduced);
    EXPECT_EQ(t.order, c.order);
    EXPECT_EQ(t.unsqueezed, c.unsqueezed);
    EXPECT_EQ(t.expanded, c.expanded);
    EXPECT_EQ(t.merged, c.merged);
  }
}

TEST(Einops, SizesThatDoNotFitAreNamed) {
  EXPECT_EQ(error(Kind::rearrange, "b (h d) -> b h d", {2, 7}, {{"h", 4}}),
            "rearrange<\"b (h d) -> b h d\">: shape (2, 7), h = 4: (h d): 7 is no multiple of 4");
  EXPECT_EQ(error(Kind::rearrange, "b (h d) -> b h d", {2, 7}, {{"d", 2}, {"h", 4}}),
            "rearrange<\"b (h d) -> b h d\">: shape (2, 7), d = 2, h = 4: (h d): expected 8, got 7");
  EXPECT_EQ(error(Kind::reduce, "b c -> c", {3}), "reduce<\"b c -> c\">: shape (3,): expected 2 axes, got 1");
  EXPECT_EQ(error(Kind::reduce, "b ... -> b", {}), "reduce<\"b ... -> b\">: shape (): expected at least 1 axis, got 0");
  EXPECT_EQ(error(Kind::repeat, "b -> b n", {3}, {{"b", 4}, {"n", 2}}),
            "repeat<\"b -> b n\">: shape (3,), b = 4, n = 2: b: expected 4, got 3");
  EXPECT_EQ(error(Kind::repeat, "b -> b n", {3}, {{"n", -2}}),
            "repeat<\"b -> b n\">: shape (3,), n = -2: n: a size is not negative");
  EXPECT_EQ(error(Kind::rearrange, "1 a -> a", {2, 3}), "rearrange<\"1 a -> a\">: shape (2, 3): 1: expected 1, got 2");
  EXPECT_EQ(error(Kind::rearrange, "() a -> a", {2, 3}),
            "rearrange<\"() a -> a\">: shape (2, 3): (): expected 1, got 2");
  EXPECT_EQ(
      error(Kind::rearrange, "(a b) -> a b", {0}, {{"a", 0}}),
      "rearrange<\"(a b) -> a b\">: shape (0,), a = 0: (a b): the size of b cannot be known beside an axis of size 0");
  EXPECT_EQ(error(Kind::repeat, "a -> (a m n)", {2}, {{"m", int64_t(1) << 40}, {"n", int64_t(1) << 40}}),
            "repeat<\"a -> (a m n)\">: shape (2,), m = 1099511627776, n = 1099511627776: "
            "1099511627776 * 1099511627776 is too large a size");
  EXPECT_THROW((rearrange<"a b -> b a">(counting({2}))), Error);
}

namespace {

// Patterns that break a rule, and what the error says: what, then the rule.
struct Broken {
  Kind kind;
  const char* pattern;
  Names names;
  const char* what;
  const char* rule;
};

const Broken broken[] = {
    {Kind::rearrange, "a b -> a", {}, "b", "is on the left only"},
    {Kind::rearrange, "a -> a b", {}, "b", "is on the right only"},
    {Kind::rearrange, "a ... -> a", {}, "...", "is on the left only"},
    {Kind::rearrange, "a -> a ...", {}, "...", "is on the right only"},
    {Kind::rearrange, "a -> A", {}, "a", "is on the left only"},
    {Kind::rearrange, "a 2 -> a", {}, "2", "is a number: rearrange takes none but 1"},
    {Kind::rearrange, "b t (s h d) -> s b h t d", {"h"}, "(s h d)", "has more than one axis of unknown size"},
    {Kind::rearrange, "a b", {}, "a b", "has not exactly one ->"},
    {Kind::rearrange, "a -> a -> a", {}, "a -> a -> a", "has not exactly one ->"},
    {Kind::rearrange, "a a -> a", {}, "a", "is twice on one side"},
    {Kind::rearrange, "a b -> a b a", {}, "a", "is twice on one side"},
    {Kind::rearrange, "... a ... -> ... a", {}, "...", "is twice on one side"},
    {Kind::rearrange, "(a ...) -> a ...", {}, "...", "may be in a bracket on the right only"},
    {Kind::rearrange, "(a (b c)) -> a b c", {}, "(a (", "has a bracket in a bracket"},
    {Kind::rearrange, "(a b -> a b", {}, "(a b ", "has a bracket that is not closed"},
    {Kind::rearrange, "a) b -> a b", {}, "a)", "closes a bracket that is not open"},
    {Kind::rearrange, "a .. -> .. a", {}, "..", "is no ellipsis: ... stands alone"},
    {Kind::rearrange, "_a -> _a", {}, "_a", "is no name: an identifier that neither begins nor ends with _"},
    {Kind::rearrange, "a_ -> a_", {}, "a_", "is no name: an identifier that neither begins nor ends with _"},
    {Kind::rearrange, "2a -> 2a", {}, "2a", "is no name: an identifier that neither begins nor ends with _"},
    {Kind::rearrange, "a+b -> a+b", {}, "a+b", "is no name: an identifier that neither begins nor ends with _"},
    {Kind::rearrange, "a b -> b a", {"c"}, "c", "is given a size but is no name in the pattern"},
    {Kind::rearrange, "a ... -> ... a", {"..."}, "...", "is given a size but is no name in the pattern"},
    {Kind::rearrange, "(a b) -> b a", {"a", "a"}, "a", "is given two sizes"},
    {Kind::rearrange,
     "a b c d e f g h i j k l m n o p q -> q",
     {},
     "q",
     "is one axis too many: a pattern has at most 16"},
    {Kind::rearrange,
     "a -> 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 a",
     {},
     "a",
     "is one axis too many: a pattern has at most 16"},
    {Kind::reduce, "a b -> a c", {}, "c", "is on the right only"},
    {Kind::reduce, "a b -> a 2", {}, "2", "is on the right only"},
    {Kind::reduce, "a 0 -> a", {}, "0", "is no size: numbers begin with 1 to 9"},
    {Kind::repeat, "a b -> a 2", {}, "b", "is on the left only"},
    {Kind::repeat, "a 2 -> a 2", {}, "2", "is on the left only"},
    {Kind::repeat, "a -> a n", {}, "n", "is new, so it needs a size"},
    {Kind::repeat, "a -> a ...", {}, "...", "is on the right only"},
    {Kind::repeat, "a -> a 1234567890123456789", {}, "1234567890123456789", "is too large a number"},
};

std::string call(const Broken& b) {
  const char* kinds[] = {"rearrange<\"", "reduce<\"", "repeat<\""};
  std::string names, sizes;
  for (const std::string& name : b.names) names += ", \"" + name + "\"", sizes += ", 2";
  const char* reduction = b.kind == Kind::reduce ? ", Reduction::sum" : "";
  return text(kinds[int(b.kind)], b.pattern, "\"", reduction, names, ">(x", sizes, ")");
}

// What a compiler, $CXX or c++, does with expressions of an array x, of which number i is on line i + 1 of "calls".
struct Compilation {
  int status;
  std::string output;
};

Compilation compile(const std::vector<std::string>& calls) {
  const std::string path = testing::TempDir() + text("einops_", getpid(), ".cpp");
  std::ofstream file(path);
  file << "#include \"dense/tensor/einops.h\"\n"
          "using namespace dense;\n"
          "struct X {};\n"
          "Shape shape_of(X);\n"
          "X apply(X, const einops::Transform&);\n"
          "#line 1 \"calls\"\n";
  for (size_t i = 0; i < calls.size(); ++i) file << "X call_" << i << "(X x) { return " << calls[i] << "; }\n";
  file.close();
  const char* compiler = std::getenv("CXX");
  const std::string command = text("LC_ALL=C ", compiler && *compiler ? compiler : "c++",
                                   " -std=c++20 -fsyntax-only -I'", DENSE_SOURCE_DIR, "' '", path, "' 2>&1");
  Compilation result;
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) return {-1, "no shell"};
  char buffer[4096];
  while (std::fgets(buffer, sizeof buffer, pipe)) result.output += buffer;
  result.status = pclose(pipe);
  std::remove(path.c_str());
  return result;
}

// What the compiler says of call i, up to where it mentions another.
std::string about(const Compilation& compilation, size_t i) {
  const size_t begin = compilation.output.find(text("calls:", i + 1, ":"));
  if (begin == std::string::npos) return "";
  return compilation.output.substr(begin, compilation.output.find("\ncalls:", begin) - begin);
}

}  // namespace

TEST(Einops, BrokenRulesAreNamed) {  // in full, whatever the compiler prints of it
  for (const Broken& b : broken) {
    const std::vector<std::string_view> names(b.names.begin(), b.names.end());
    const einops::Problem problem = einops::parse(b.kind, b.pattern, names).problem;
    ASSERT_TRUE(problem.rule) << b.pattern;
    EXPECT_EQ(einops::message(problem).chars, text("einops: \"", b.what, "\" ", b.rule)) << b.pattern;
  }
}

TEST(Einops, RightCallsCompile) {
  const Compilation compilation = compile({
      "rearrange<\"b t (s h d) -> s b h t d\", \"s\", \"h\">(x, 3, 12)",
      "reduce<\"b t c->b t\", Reduction::mean>(x)",
      "repeat<\"t c -> b 2 t c\", \"b\">(x, sizeof(int))",
      "rearrange<\"a b c d e f g h i j k l m n o p -> p o n m l k j i h g f e d c b a\">(x)",
  });
  EXPECT_EQ(compilation.status, 0) << compilation.output;
}

// Ten at a time, since starting a compiler takes longer than ten patterns; clang stops after 20 errors.
TEST(Einops, BrokenRulesAreNamedByTheCompiler) {
  const size_t n = std::size(broken);
  for (size_t begin = 0; begin < n; begin += 10) {
    const size_t end = std::min(n, begin + 10);
    std::vector<std::string> calls;
    for (size_t i = begin; i < end; ++i) calls.push_back(call(broken[i]));
    const Compilation compilation = compile(calls);
    EXPECT_NE(compilation.status, 0);
    for (size_t i = begin; i < end; ++i)
      EXPECT_NE(about(compilation, i - begin).find(broken[i].rule), std::string::npos)
          << text(call(broken[i]), "\n", compilation.output);
  }
}

TEST(Einops, EachNameNeedsOneInteger) {
  const std::pair<const char*, const char*> cases[] = {
      {"rearrange<\"a b -> b a\">(x, 2)", "einops: each name after the pattern needs one size in the call"},
      {"rearrange<\"(a b) -> b a\", \"a\">(x)", "einops: each name after the pattern needs one size in the call"},
      {"rearrange<\"(a b) -> b a\", \"a\">(x, 2.0)", "integral"}};
  for (const auto& [expression, message] : cases) {
    const Compilation compilation = compile({expression});
    EXPECT_NE(compilation.status, 0) << expression;
    EXPECT_NE(compilation.output.find(message), std::string::npos) << expression << "\n" << compilation.output;
  }
}
