#include "dense/tensor/einops.h"

#include <algorithm>
#include <array>
#include <string>

#include "dense/scalar/error.h"

namespace dense::einops {

namespace {

constexpr const char* kind_names[] = {"rearrange", "reduce", "repeat"};

// One call: what its errors have in common.
struct Call {
  const Pattern& pattern;
  const Shape& x;
  std::span<const int64_t> sizes;

  // rearrange<"b (h d) -> b h d">: shape (2, 7), h = 4: (h d): 7 is no multiple of 4
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::string line = text(kind_names[int(pattern.kind)], "<\"", pattern.text, "\">: shape (");
    for (size_t i = 0; i < x.size(); ++i) line += text(i ? ", " : "", x[i]);
    line += x.size() == 1 ? ",)" : ")";
    for (size_t i = 0; i < sizes.size(); ++i)
      for (const Axis& axis : pattern.axes)
        if (axis.given == int(i)) line += text(", ", axis.text, " = ", sizes[i]);
    dense::fail(line, ": ", parts...);
  }

  int64_t times(int64_t a, int64_t b) const {
    int64_t product;
    if (__builtin_mul_overflow(a, b, &product)) fail(a, " * ", b, " is too large a size");
    return product;
  }
};

}  // namespace

Transform transform(const Pattern& p, const Shape& x, std::span<const int64_t> sizes) {
  const Call call{p, x, sizes};
  if (p.problem.rule) call.fail("\"", p.problem.what, "\" ", p.problem.rule);
  if (int(sizes.size()) != p.n_given) call.fail("expected ", p.n_given, " sizes, got ", sizes.size());

  // The sizes of the axes. The ellipsis counts as one axis: those within it never part.
  constexpr int64_t unknown = -1;
  std::array<int64_t, capacity> size;
  size.fill(unknown);
  for (int i = 0; i < p.axes.size; ++i) {
    const Axis& axis = p.axes[i];
    if (axis.number) size[i] = axis.number;
    if (axis.given < 0) continue;
    size[i] = sizes[axis.given];
    if (size[i] < 0) call.fail(axis.text, ": a size is not negative");
  }
  const int ellipsis = p.find("...", p.n_left);
  const int plain = p.left.size - (ellipsis >= 0), rank = int(x.size());
  if (ellipsis < 0 ? rank != plain : rank < plain)
    call.fail("expected ", ellipsis < 0 ? "" : "at least ", plain, plain == 1 ? " axis" : " axes", ", got ", rank);
  std::span<const int64_t> within;  // the sizes that the ellipsis stands for
  int read = 0;                     // axes of x
  for (const Group& group : p.left) {
    if (group.text == "...") {
      within = {x.data() + read, size_t(rank - plain)};
      size[ellipsis] = 1;
      for (int64_t n : within) size[ellipsis] = call.times(size[ellipsis], n);
      read += rank - plain;
      continue;
    }
    const int64_t whole = x[read++];
    int64_t known = 1;
    int missing = -1;
    for (int i = group.begin; i < group.end; ++i) {
      if (size[i] == unknown) missing = i;
      else known = call.times(known, size[i]);
    }
    if (missing < 0) {
      if (known != whole) call.fail(group.text, ": expected ", known, ", got ", whole);
    } else if (known == 0) {
      call.fail(group.text, ": the size of ", p.axes[missing].text, " cannot be known beside an axis of size 0");
    } else if (whole % known) {
      call.fail(group.text, ": ", whole, " is no multiple of ", known);
    } else {
      size[missing] = whole / known;
    }
  }

  // Where each axis will be on the right; nowhere if it is reduced.
  constexpr int nowhere = -1;
  std::array<int, capacity> place;
  place.fill(nowhere);
  int places = 0;
  for (int axis : p.order)
    if (size[axis] != 1) place[axis] = places++;

  Transform t;
  std::vector<int> start;  // for each axis of split, the place of its first part
  for (int axis = 0, last = nowhere; axis < p.n_left; ++axis) {
    if (size[axis] == 1) continue;
    if (!start.empty() && place[axis] == (last == nowhere ? nowhere : last + 1)) {
      t.split.back() = call.times(t.split.back(), size[axis]);
    } else {
      t.split.push_back(size[axis]);
      start.push_back(place[axis]);
    }
    last = place[axis];
  }
  std::vector<int> kept;  // axes of split
  for (int i = 0; i < int(start.size()); ++i) (start[i] == nowhere ? t.reduced : kept).push_back(i);

  bool after_new = false;
  for (int axis : p.order) {
    if (size[axis] == 1) continue;
    const bool is_new = axis >= p.n_left;
    if (is_new && after_new) {
      t.expanded.back() = call.times(t.expanded.back(), size[axis]);
    } else if (is_new) {
      t.unsqueezed.push_back(1);
      t.expanded.push_back(size[axis]);
    } else {
      const auto first = std::ranges::find(kept, place[axis], [&](int i) { return start[i]; });
      if (first != kept.end()) {  // else the axis is part of the one before
        t.order.push_back(int(first - kept.begin()));
        t.unsqueezed.push_back(t.split[*first]);
        t.expanded.push_back(t.split[*first]);
      }
    }
    after_new = is_new;
  }

  for (const Group& group : p.right) {
    if (group.text == "...") {
      t.merged.insert(t.merged.end(), within.begin(), within.end());
      continue;
    }
    int64_t whole = 1;
    for (int i = group.begin; i < group.end; ++i) whole = call.times(whole, size[p.order[i]]);
    t.merged.push_back(whole);
  }
  return t;
}

}  // namespace dense::einops
