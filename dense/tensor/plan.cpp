#include "dense/tensor/plan.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>

#include "dense/scalar/denormals.h"
#include "dense/scalar/error.h"
#include "dense/tensor/plan_parts.h"
#include "dense/tensor/threads.h"

namespace dense {

static constexpr int32_t none = Layout::none;

void Plan::Parts::find_live() {
  const auto n = size_t(graph.nodes());
  live.assign(n, 0);
  is_output.assign(n, 0);
  readers.assign(n, {});
  for (Tensor x : outputs) live[size_t(x.id())] = is_output[size_t(x.id())] = 1;
  for (auto id = int32_t(n); id-- > 0;) {
    if (!live[size_t(id)]) continue;
    for (int32_t x : node(id).operands) {
      live[size_t(x)] = 1;
      auto& r = readers[size_t(x)];
      if (r.empty() || r.back() != id) r.push_back(id);
    }
  }
  for (auto& r : readers) std::ranges::reverse(r);
  for (Tensor x : outputs)  // an output that is a view keeps what it sees
    if (x.node().kind == Kind::view) is_output[size_t(base(x.id()))] = 1;
}

// ---- which maps leave a value in memory

// Whether a map reads a map in the way that it can compute it itself: element for element, or one value a row.
bool Plan::Parts::inlined_into(int32_t id, const Map& map) const {
  if (node(id).kind != Kind::map || root[size_t(id)]) return false;
  const Map& inner = std::get<Map>(node(id).detail);
  return inner.keep != Keep::columns && inner.space == map.space;
}

// The tensors in memory that a map reads when it computes all it can itself.
std::set<int32_t> Plan::Parts::reads_of(int32_t id) const {
  std::set<int32_t> found, inlined;
  std::vector<int32_t> open{id};
  while (!open.empty()) {
    const TensorNode& y = node(open.back());
    open.pop_back();
    for (int32_t x : y.operands) {
      if (!inlined_into(x, std::get<Map>(y.detail))) {
        const TensorNode& from = node(base(x));
        if (from.kind == Kind::random) found.insert(from.operands[0]);  // its key
        else if (from.kind != Kind::counter) found.insert(x);
      } else if (inlined.insert(x).second) {
        open.push_back(x);
      }
    }
  }
  return found;
}

// Of these the large ones, which it takes time and memory to have at hand.
std::set<int32_t> Plan::Parts::leaves_of(int32_t id) const {
  std::set<int32_t> found = reads_of(id);
  const int64_t space = count_of(std::get<Map>(node(id).detail).space);
  std::erase_if(found, [&](int32_t x) { return count_of(node(x).shape) * 4 <= space; });
  return found;
}

void Plan::Parts::choose_roots() {
  const auto n = size_t(graph.nodes());
  root.assign(n, 0);
  for (int32_t id = 0; id < int32_t(n); ++id) {
    if (!live[size_t(id)] || node(id).kind != Kind::map) continue;
    const Map& map = std::get<Map>(node(id).detail);
    bool keep = is_output[size_t(id)] || map.keep == Keep::columns;
    const Dtype computed = node(id).dtype;
    keep = keep || (computed != Dtype::f32 && computed != Dtype::f64);  // rounded
    int maps = 0;
    for (int32_t reader : readers[size_t(id)]) {
      const bool same = node(reader).kind == Kind::map && std::get<Map>(node(reader).detail).space == map.space &&
                        (node(reader).dtype == Dtype::f64) == (computed == Dtype::f64);
      if (same) ++maps;
      else keep = true;
    }
    if (keep) {
      root[size_t(id)] = 1;
    } else if (maps > 1) {
      root[size_t(id)] = leaves_of(id).size() > 1;
    }
  }
}

// What must have run before a node that leaves something in memory: nodes that do so themselves.
std::vector<int32_t> Plan::Parts::sources_of(int32_t id) const {
  std::set<int32_t> reads;
  if (node(id).kind == Kind::map && !is_bias_sum(id)) {
    reads = reads_of(id);
  } else {
    for (int32_t x : node(id).operands) {
      const int32_t from = base(x);
      if (node(from).kind == Kind::matmul && bias_of[size_t(from)] == id) {
        for (int32_t y : node(from).operands) reads.insert(y);
      } else if (node(x).kind == Kind::random || node(x).kind == Kind::counter) {
        continue;
      } else {
        reads.insert(x);
      }
    }
  }
  std::vector<int32_t> sources;
  for (int32_t x : reads) {
    int32_t from = base(x);
    if (node(from).kind == Kind::part) from = node(from).operands[0];
    if (node(from).kind != Kind::input) sources.push_back(from);
  }
  return sources;
}

// Whether a map would have to wait for a group that it is to run in: whether it reads, by way of others, what the group
// leaves in memory. What was recorded before `whole_before` waits for nothing behind it.
bool Plan::Parts::waits_for(int32_t id, int32_t g, const std::vector<MapGroup>& groups,
                            const std::vector<int32_t>& group_of, int32_t whole_before) const {
  std::set<int32_t> seen;  // nodes, and groups as ~group
  std::vector<int32_t> open{id};
  while (!open.empty()) {
    const int32_t x = open.back();
    open.pop_back();
    for (int32_t from : sources_of(x)) {
      const int32_t h = group_of[size_t(from)];
      if (h == g) {
        if (x != id) return true;
        continue;
      }
      if ((h == none ? from : groups[size_t(h)].roots.back()) < whole_before) continue;
      if (!seen.insert(h == none ? from : ~h).second) continue;
      if (h == none) open.push_back(from);
      else open.insert(open.end(), groups[size_t(h)].roots.begin(), groups[size_t(h)].roots.end());
    }
  }
  return false;
}

std::vector<MapGroup> Plan::Parts::group_maps() {
  std::vector<MapGroup> groups;
  std::vector<int32_t> group_of(size_t(graph.nodes()), none);
  // For each node the last one up to it that no group lies around: what is before waits for nothing from there on.
  std::vector<int32_t> whole_before(size_t(graph.nodes()));
  std::iota(whole_before.begin(), whole_before.end(), 0);
  for (int32_t id = 0; id < graph.nodes(); ++id) {
    if (!live[size_t(id)] || node(id).kind != Kind::map || !root[size_t(id)] || is_bias_sum(id)) continue;
    const Map& map = std::get<Map>(node(id).detail);
    const std::set<int32_t> leaves = leaves_of(id);
    const std::set<int32_t> reads = reads_of(id);
    const auto is_integer = [&](int32_t x) { return node(x).dtype == Dtype::i32; };  // which f32 would round
    const bool wide =
        node(id).dtype == Dtype::f64 || (is_integer(id) && std::ranges::all_of(node(id).operands, is_integer));
    int32_t best = none;
    // Single numbers stay alone: together they would make what needs one of them wait for all.
    const bool small = count_of(map.space) < 64;
    for (size_t g = groups.size(), tried = 0; g-- > 0 && best == none && tried < 64 && !small; ++tried) {
      const MapGroup& group = groups[g];
      if (group.space != map.space || group.wide != wide || group.roots.size() >= 12) continue;
      bool related = false, here = true;
      for (int32_t leaf : leaves)
        related = related || group.leaves.contains(leaf) || std::ranges::find(group.roots, leaf) != group.roots.end();
      for (int32_t x : reads) {
        if (group_of[size_t(base(x))] != int32_t(g)) continue;
        // what is summed over rows is there at the end only, what is rounded or seen in another shape in memory only
        here = here && x == base(x) && std::get<Map>(node(x).detail).keep != Keep::columns &&
               (node(x).dtype == Dtype::f32 || node(x).dtype == Dtype::f64);
      }
      const int32_t before = whole_before[size_t(group.roots[0])];
      if (related && here && !waits_for(id, int32_t(g), groups, group_of, before)) best = int32_t(g);
    }
    if (best == none) {
      best = int32_t(groups.size());
      groups.push_back({{}, map.space, wide, {}});
    }
    group_of[size_t(id)] = best;
    groups[size_t(best)].roots.push_back(id);
    for (int32_t i = groups[size_t(best)].roots[0]; i < id; ++i)
      whole_before[size_t(i) + 1] = std::min(whole_before[size_t(i) + 1], whole_before[size_t(i)]);
    groups[size_t(best)].leaves.insert(leaves.begin(), leaves.end());
  }
  return groups;
}

// When each node runs: after its sources, of those that could the one recorded first.
void Plan::Parts::order(const std::vector<MapGroup>& groups) {
  const auto n = graph.nodes();
  std::vector<int32_t> leader(size_t(n), none);  // of those that run together the first
  for (int32_t id = 0; id < n; ++id) {
    const Kind kind = node(id).kind;
    const bool runs = live[size_t(id)] && kind != Kind::view && kind != Kind::input && kind != Kind::counter &&
                      kind != Kind::random && kind != Kind::part && !(kind == Kind::map && !root[size_t(id)]) &&
                      !(kind == Kind::matmul && bias_of[size_t(id)] != none);
    if (runs) leader[size_t(id)] = id;
  }
  for (const MapGroup& group : groups)
    for (int32_t id : group.roots) leader[size_t(id)] = group.roots[0];
  std::vector<std::vector<int32_t>> next(static_cast<size_t>(n));
  std::vector<int32_t> waiting(size_t(n), 0);
  for (int32_t id = 0; id < n; ++id) {
    if (leader[size_t(id)] == none) continue;
    for (int32_t from : sources_of(id)) {
      if (leader[size_t(from)] == leader[size_t(id)]) continue;
      next[size_t(leader[size_t(from)])].push_back(leader[size_t(id)]);
      ++waiting[size_t(leader[size_t(id)])];
    }
  }
  std::set<int32_t> ready;
  for (int32_t id = 0; id < n; ++id)
    if (leader[size_t(id)] == id && waiting[size_t(id)] == 0) ready.insert(id);
  position.assign(size_t(n), none);
  for (int32_t time = 0; !ready.empty(); ++time) {
    const int32_t id = *ready.begin();
    ready.erase(ready.begin());
    position[size_t(id)] = time;
    for (int32_t after : next[size_t(id)])
      if (--waiting[size_t(after)] == 0) ready.insert(after);
  }
  for (int32_t id = 0; id < n; ++id) {
    if (leader[size_t(id)] == none) continue;
    position[size_t(id)] = position[size_t(leader[size_t(id)])];
    if (position[size_t(id)] == none) fail("plan: expected kernels that do not wait for each other");
  }
}

// y = matmul(a, b) + bias, where nobody else reads the product: the product starts from the bias.
void Plan::Parts::find_biases() {
  bias_of.assign(size_t(graph.nodes()), none);
  adds_bias.assign(size_t(graph.nodes()), 0);
  for (int32_t id = 0; id < graph.nodes(); ++id) {
    if (!live[size_t(id)] || node(id).kind != Kind::map || !root[size_t(id)] || node(id).operands.size() != 2) continue;
    const Map& map = std::get<Map>(node(id).detail);
    const Formula& f = *map.formula;
    if (map.keep != Keep::all || !f.output.tape() || node(id).dtype != Dtype::f32) continue;
    const Node& last = f.tape.nodes()[size_t(f.output.id())];
    if (last.op != Op::add) continue;
    const auto terms = f.tape.operands(last);
    const auto is_input = [&](int32_t x) { return f.tape.nodes()[size_t(x)].op == Op::input; };
    if (terms[0] == terms[1] || !is_input(terms[0]) || !is_input(terms[1])) continue;
    for (size_t k = 0; k < 2; ++k) {
      const int32_t product = node(id).operands[k], bias = node(id).operands[1 - k], from = base(product);
      const bool plain =
          product == from || is_row_major(node(product).shape, std::get<View>(node(product).detail).strides);
      const auto only = [&](int32_t x, int32_t reader) {
        return readers[size_t(x)] == std::vector{reader} && !is_output[size_t(x)];
      };
      if (node(from).kind != Kind::matmul || !plain || node(from).shape.size() != 2 || node(product).shape != map.space)
        continue;
      if (!only(from, product == from ? id : product) || (product != from && !only(product, id))) continue;
      if (node(bias).kind != Kind::input || node(bias).dtype != Dtype::f32 ||
          node(bias).shape != Shape{map.space.back()})
        continue;
      bias_of[size_t(from)] = id;
      adds_bias[size_t(id)] = 1;
      break;
    }
  }
}

// ---- where tensors lie

int32_t Plan::Parts::new_buffer(int32_t id) {
  buffers.push_back({size_t(count_of(node(id).shape)) * size_of(node(id).dtype)});
  return int32_t(buffers.size()) - 1;
}

Layout Plan::Parts::layout_of(int32_t id) const {
  if (node(id).kind != Kind::view) return layout[size_t(id)];
  Layout result = layout[size_t(node(id).operands[0])];  // which lies in order where views see it
  const View& view = std::get<View>(node(id).detail);
  return {result.buffer, {result.view.offset + view.offset, view.strides}};
}

void Plan::Parts::lay_out(const std::vector<MapGroup>& groups) {
  const auto n = graph.nodes();
  layout.assign(size_t(n), {});
  std::map<const std::byte*, int32_t> outside;  // buffers, by where they are
  for (int32_t id = 0; id < n; ++id) {
    const TensorNode& x = node(id);
    const bool parts_too = x.kind == Kind::part && live[size_t(x.operands[0])];
    if ((!live[size_t(id)] && !parts_too) || x.kind == Kind::view || x.kind == Kind::counter) continue;
    if (x.kind == Kind::map && !root[size_t(id)]) continue;
    if (x.kind == Kind::assign || x.kind == Kind::random) continue;
    if (x.kind == Kind::matmul && bias_of[size_t(id)] != none) continue;
    layout[size_t(id)] = {none, {0, row_major(x.shape)}};
    if (x.kind == Kind::input) {
      const Memory& memory = std::get<Memory>(x.detail);
      const auto same = memory.data ? outside.find(memory.data) : outside.end();
      layout[size_t(id)].buffer = same != outside.end() ? same->second : new_buffer(id);
      if (same != outside.end()) continue;
      buffers.back().outside = true, buffers.back().data = memory.data;
      outside[memory.data] = layout[size_t(id)].buffer;
    } else {
      layout[size_t(id)].buffer = new_buffer(id);
    }
  }
  // Parts of a tensor that is put together are written where they will be.
  for (int32_t id = n; id-- > 0;) {
    if (!live[size_t(id)] || node(id).kind != Kind::place) continue;
    const Place& place = std::get<Place>(node(id).detail);
    for (size_t k = 0; k < place.views.size() && place.covers; ++k) {
      const int32_t x = node(id).operands[k];
      const Kind kind = node(x).kind;
      const bool writes_anywhere = (kind == Kind::map && root[size_t(x)] &&
                                    std::get<Map>(node(x).detail).keep == Keep::all && !is_bias_sum(x)) ||
                                   kind == Kind::attention_grad ||
                                   (kind == Kind::part && node(node(x).operands[0]).kind == Kind::attention_grad);
      const bool heads = kind == Kind::map || place.views[k].strides.back() == 1 || node(x).shape.back() == 1;
      const bool once = std::ranges::count(node(id).operands, x) == 1;
      bool alone = readers[size_t(x)] == std::vector{id};
      if (kind == Kind::attention_grad)  // its parts read it in name only
        alone =
            std::ranges::all_of(readers[size_t(x)], [&](int32_t r) { return r == id || node(r).kind == Kind::part; });
      if (writes_anywhere && heads && alone && once && !is_output[size_t(x)] && node(x).dtype == node(id).dtype &&
          is_row_major(node(id).shape, layout[size_t(id)].view.strides)) {
        layout[size_t(x)] = {layout[size_t(id)].buffer,
                             {layout[size_t(id)].view.offset + place.views[k].offset, place.views[k].strides}};
      }
    }
  }
  // A new value of an input is written in its place where nobody reads the old one later; rows are added in place.
  std::vector<int32_t> last_reader(buffers.size(), none);
  for (int32_t id = 0; id < n; ++id) {
    if (position[size_t(id)] == none || node(id).kind == Kind::assign) continue;
    std::set<int32_t> reads;
    if (node(id).kind == Kind::map && !is_bias_sum(id)) reads = reads_of(id);
    else reads.insert(node(id).operands.begin(), node(id).operands.end());
    for (int32_t product : std::vector(reads.begin(), reads.end()))
      if (node(base(product)).kind == Kind::matmul && bias_of[size_t(base(product))] == id)
        reads.insert(node(base(product)).operands.begin(), node(base(product)).operands.end());
    for (int32_t x : reads) {
      if (node(base(x)).kind != Kind::input) continue;
      int32_t& last = last_reader[size_t(layout[size_t(base(x))].buffer)];
      last = std::max(last, position[size_t(id)]);
    }
  }
  std::vector<const MapGroup*> group_of(size_t(n), nullptr);  // by root
  for (const MapGroup& group : groups)
    for (int32_t id : group.roots) group_of[size_t(id)] = &group;
  for (int32_t id = 0; id < n; ++id) {
    if (!live[size_t(id)] || node(id).kind != Kind::assign) continue;
    const int32_t to = node(id).operands[0], from = node(id).operands[1];
    const bool plain = node(from).kind == Kind::map && !is_bias_sum(from) &&
                       std::get<Map>(node(from).detail).keep == Keep::all && !is_output[size_t(from)];
    const int32_t buffer = layout[size_t(to)].buffer;
    const bool free = layout[size_t(from)].buffer != none && !buffers[size_t(layout[size_t(from)].buffer)].outside;
    // nor may its kernel read the old one in another order than it writes
    const auto in_order = [&](int32_t x) {
      const Layout where = layout_of(x);
      return where.buffer != buffer ||
             (count_of(node(x).shape) == count_of(node(to).shape) && where.view.offset == 0 &&
              is_row_major(node(x).shape, where.view.strides) && node(x).dtype == node(to).dtype);
    };
    const auto reads_in_order = [&](int32_t r) { return std::ranges::all_of(reads_of(r), in_order); };
    const bool in_place = plain && std::ranges::all_of(group_of[size_t(from)]->roots, reads_in_order);
    if (in_place && free && last_reader[size_t(buffer)] <= position[size_t(from)])
      layout[size_t(from)] = layout[size_t(to)];
  }
}

// ---- memory

// Gives each buffer of the arena a place in which no other one is in use at the same time: the largest first, each as
// low as it fits.
void Plan::Parts::plan_memory() {
  for (int i = 0; i < int(steps.size()); ++i) {
    for (const auto& list : {steps[size_t(i)].reads, steps[size_t(i)].writes}) {
      for (int32_t b : list) {
        Buffer& buffer = buffers[size_t(b)];
        if (buffer.first < 0) buffer.first = i;
        buffer.last = i;
      }
    }
  }
  for (Tensor x : outputs)
    if (x.node().kind != Kind::assign) buffers[size_t(layout_of(x.id()).buffer)].last = int(steps.size());

  // A buffer may take over the memory of one that is read for the last time by the map that writes it first, in the
  // same order.
  owner.resize(buffers.size());
  std::iota(owner.begin(), owner.end(), 0);
  for (int i = 0; i < int(steps.size()); ++i) {
    const Kernel& step = steps[size_t(i)];
    std::vector<int32_t> taken;
    for (int32_t w : step.writes) {
      Buffer& out = buffers[size_t(w)];
      if (out.first != i || out.outside || owner[size_t(w)] != w) continue;
      for (int32_t r : step.reads) {
        Buffer& in = buffers[size_t(r)];
        if (in.last != i || in.first >= i || in.outside || in.bytes != out.bytes || out.bytes < 4096) continue;
        if (std::ranges::find(step.in_place, std::pair(r, w)) == step.in_place.end()) continue;
        if (std::ranges::count(step.reads, r) != 1 || std::ranges::count(taken, r) != 0) continue;
        taken.push_back(r);
        const int32_t top = owner[size_t(r)];
        owner[size_t(w)] = top;
        buffers[size_t(top)].last = out.last;
        if (top != r) in.last = out.last;
        break;
      }
    }
  }
  std::vector<int32_t> order;
  for (int32_t b = 0; b < int32_t(buffers.size()); ++b)
    if (!buffers[size_t(b)].outside && buffers[size_t(b)].first >= 0 && owner[size_t(b)] == b) order.push_back(b);
  std::ranges::stable_sort(order, std::greater(), [&](int32_t b) { return buffers[size_t(b)].bytes; });
  std::vector<int32_t> placed;  // by offset
  for (int32_t b : order) {
    Buffer& buffer = buffers[size_t(b)];
    const size_t bytes = (buffer.bytes + 63) / 64 * 64;
    size_t offset = 0;
    for (int32_t other : placed) {
      const Buffer& p = buffers[size_t(other)];
      if (p.last < buffer.first || buffer.last < p.first) continue;
      if (offset + bytes <= p.offset) break;
      offset = std::max(offset, p.offset + (p.bytes + 63) / 64 * 64);
    }
    buffer.offset = offset;
    arena_bytes = std::max(arena_bytes, offset + bytes);
    placed.insert(std::ranges::upper_bound(placed, offset, {}, [&](int32_t p) { return buffers[size_t(p)].offset; }),
                  b);
  }
  for (const Kernel& step : steps) scratch_bytes = std::max(scratch_bytes, step.scratch);
}

// Steps that know where everything is; again when another plan has made the arena larger.
void Plan::Parts::prepare() {
  if (arena->bytes < arena_bytes + scratch_bytes)
    *arena = {zero_memory(arena_bytes + scratch_bytes), arena_bytes + scratch_bytes};
  prepared = arena->memory.data;
  scratch = prepared + arena_bytes;
  for (size_t b = 0; b < buffers.size(); ++b)
    if (!buffers[b].outside) buffers[b].data = prepared + buffers[size_t(owner[b])].offset;
  for (Kernel& step : steps) step.run = step.prepare();
}

// ---- Plan

Plan::Plan(std::span<const Tensor> outputs, std::shared_ptr<Arena> arena) {
  if (outputs.empty()) fail("plan: expected one output or more");
  for (Tensor x : outputs)
    if (!x || &x.graph() != &outputs[0].graph()) fail("plan: expected tensors of one graph");
  parts_ = std::make_unique<Parts>(outputs[0].graph());
  Parts& p = *parts_;
  p.asked.assign(outputs.begin(), outputs.end());
  for (Tensor x : outputs) p.outputs.push_back(contiguous(x));  // in memory, side by side
  p.find_live();
  p.choose_roots();
  p.find_biases();
  const std::vector<MapGroup> groups = p.group_maps();
  p.order(groups);
  p.lay_out(groups);
  for (const MapGroup& group : groups) p.plan_group(group);
  for (int32_t id = 0; id < p.graph.nodes(); ++id) {
    if (!p.live[size_t(id)]) continue;
    switch (p.node(id).kind) {
      case Kind::matmul: p.plan_matmul(id); break;
      case Kind::attention: p.plan_attention(id); break;
      case Kind::attention_grad: p.plan_attention_grad(id); break;
      case Kind::gather: p.plan_gather(id); break;
      case Kind::scatter: p.plan_scatter(id); break;
      case Kind::place: p.plan_place(id); break;
      case Kind::assign: p.plan_assign(id); break;
      case Kind::top_k: p.plan_top_k(id); break;
      case Kind::expert_matmul: p.plan_expert_matmul(id); break;
      case Kind::expert_grad: p.plan_expert_grad(id); break;
      default: break;
    }
  }
  std::ranges::stable_sort(p.steps, {}, &Kernel::position);
  p.arena = arena ? std::move(arena) : std::make_shared<Arena>();
  p.plan_memory();
  if (p.has_inputs()) p.prepare();
}

Plan::~Plan() = default;
Plan::Plan(Plan&&) noexcept = default;

void Plan::run() {
  Parts& p = *parts_;
  if (!p.has_inputs()) fail("plan: expected inputs that have memory");
  if (p.prepared != p.arena->memory.data) p.prepare();
  Threads& threads = p.graph.threads();
  const DenormalsAsZero scope;
  for (Kernel& step : p.steps) {
    if (!p.profiling) {
      step.run(p.scratch, threads);
      continue;
    }
    const auto start = std::chrono::steady_clock::now();
    step.run(p.scratch, threads);
    step.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ++step.runs;
  }
}

std::span<const std::byte> Plan::bytes(Tensor output, size_t element, bool floating) const {
  const Parts& p = *parts_;
  const auto found =
      std::ranges::find_if(p.asked, [&](Tensor x) { return &x.graph() == &output.graph() && x.id() == output.id(); });
  if (found == p.asked.end() || output.node().kind == Kind::assign) fail("plan: expected one of its outputs");
  const Dtype type = output.dtype();
  if (size_of(type) != element || floating != (type == Dtype::f32 || type == Dtype::f64))
    fail("plan: expected the type of the output, ", name(type));
  const Tensor x = p.outputs[size_t(found - p.asked.begin())];
  return {p.at(p.layout_of(x.id()), type), size_t(x.count()) * element};
}

size_t Plan::arena_bytes() const { return parts_->arena_bytes + parts_->scratch_bytes; }
int Plan::kernels() const { return int(parts_->steps.size()); }
void Plan::profile(bool on) { parts_->profiling = on; }

double Plan::flops() const {
  double total = 0;
  for (const Kernel& step : parts_->steps) total += step.flops;
  return total;
}

namespace {

std::string line(const std::string& what, double flops, double bytes, double seconds, int runs) {
  char numbers[120];
  std::snprintf(numbers, sizeof numbers, "%9.3f GFLOP %9.2f MB", flops * 1e-9, bytes * 1e-6);
  std::string result = numbers;
  if (runs) {
    const double each = seconds / runs;
    std::snprintf(numbers, sizeof numbers, " %11.2f us %7.1f GFLOP/s %6.1f GB/s", each * 1e6, flops / each * 1e-9,
                  bytes / each * 1e-9);
    result += numbers;
  }
  return result + "  " + what + "\n";
}

}  // namespace

std::string Plan::summary() const {
  std::string result;
  for (const Kernel& step : parts_->steps) result += line(step.what, step.flops, step.bytes, step.seconds, step.runs);
  return result + totals();
}

std::string Plan::totals() const {
  struct Total {
    double flops = 0, bytes = 0, seconds = 0;
    int kernels = 0, runs = 0;
  };
  std::map<std::string, Total> kinds;
  for (const Kernel& step : parts_->steps) {
    for (const char* kind : {step.kind, "total"}) {
      Total& total = kinds[kind];
      total.flops += step.flops;
      total.bytes += step.bytes;
      total.seconds += step.seconds;
      total.runs = step.runs;
      ++total.kernels;
    }
  }
  std::string result;
  for (const auto& [kind, t] : kinds)
    result +=
        line(text(kind, ", ", t.kernels, t.kernels == 1 ? " kernel" : " kernels"), t.flops, t.bytes, t.seconds, t.runs);
  return result + text("arena ", parts_->arena_bytes, " bytes, scratch ", parts_->scratch_bytes, " bytes\n");
}

std::ostream& operator<<(std::ostream& out, const Plan& plan) { return out << plan.summary(); }

}  // namespace dense
