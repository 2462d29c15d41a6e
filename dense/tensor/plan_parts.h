// What a plan is made of. plan.cpp chooses kernels, their order and their memory; steps.cpp makes them.
#pragma once

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "dense/scalar/kernels.h"
#include "dense/tensor/formula.h"
#include "dense/tensor/matmul.h"
#include "dense/tensor/plan.h"

namespace dense {

// Where a tensor's elements are: in a buffer, seen through a view.
struct Layout {
  static constexpr int32_t none = -1;
  int32_t buffer = none;
  View view;
};

// Memory that tensors share one after the other, or that belongs to somebody else. An input may lack it: then the plan
// is to be looked at, not run.
struct Buffer {
  size_t bytes = 0;
  bool outside = false;       // an input: its elements belong to somebody else
  int first = -1, last = -1;  // steps between which it is in use
  size_t offset = 0;          // in the arena
  std::byte* data = nullptr;
};

using KernelRun = std::function<void(std::byte* scratch, Threads& threads)>;

struct Kernel {
  int32_t position = 0;  // when it runs
  const char* kind = "";
  std::string what;
  std::vector<int32_t> reads, writes;  // buffers
  double flops = 0, bytes = 0;
  size_t scratch = 0;
  std::vector<std::pair<int32_t, int32_t>> in_place;  // buffers: what is read, and what may be written over it
  std::function<KernelRun()> prepare;                 // makes `run`, once buffers have their memory
  KernelRun run;
  double seconds = 0;
  int runs = 0;
};

// Maps that run as one kernel: the maps whose values it leaves in memory, the roots.
struct MapGroup {
  std::vector<int32_t> roots;
  Shape space;
  bool wide = false;
  std::set<int32_t> leaves;  // what it reads from memory
};

struct Plan::Parts {
  Graph& graph;
  std::vector<Tensor> asked, outputs;  // as asked for; the same side by side in memory
  Isa isa = best_isa();
  std::vector<char> live;
  std::vector<std::vector<int32_t>> readers;  // of each node, live ones
  std::vector<char> root, is_output;
  std::vector<Layout> layout;
  std::vector<Buffer> buffers;
  std::vector<int32_t> owner;  // of each buffer the one in whose memory it lies
  std::vector<Kernel> steps;
  std::shared_ptr<Arena> arena;
  std::byte* prepared = nullptr;  // where the arena was when the steps were made
  size_t arena_bytes = 0, scratch_bytes = 0;
  std::byte* scratch = nullptr;
  bool profiling = false;
  std::vector<char> adds_bias;    // such a map
  std::vector<int32_t> position;  // when a node runs
  std::vector<int32_t> bias_of;   // of a matmul: the map that adds a bias to it and becomes part of it

  explicit Parts(Graph& g) : graph(g) {}
  const TensorNode& node(int32_t id) const { return graph.node(id); }
  int32_t base(int32_t id) const { return node(id).kind == Kind::view ? node(id).operands[0] : id; }

  void find_live();
  void choose_roots();
  std::vector<MapGroup> group_maps();
  std::vector<int32_t> sources_of(int32_t id) const;
  bool waits_for(int32_t id, int32_t g, const std::vector<MapGroup>& groups, const std::vector<int32_t>& group_of,
                 int32_t whole_before) const;
  void order(const std::vector<MapGroup>& groups);
  bool is_bias_sum(int32_t id) const { return adds_bias[size_t(id)]; }
  bool inlined_into(int32_t id, const Map& map) const;
  std::set<int32_t> reads_of(int32_t id) const;
  std::set<int32_t> leaves_of(int32_t id) const;
  void find_biases();

  void lay_out(const std::vector<MapGroup>& groups);
  Layout layout_of(int32_t id) const;
  int32_t new_buffer(int32_t id);

  void plan_group(const MapGroup& group);
  void plan_matmul(int32_t id);
  void plan_matvec(int32_t id, int32_t result, const Layout& a, const Layout& b, const Layout& c, const Layout& bias,
                   const MatmulSpec& spec, Dtype type);
  void plan_attention(int32_t id);
  void plan_attention_grad(int32_t id);
  void plan_gather(int32_t id);
  void plan_scatter(int32_t id);
  void plan_place(int32_t id);
  void plan_assign(int32_t id);
  void plan_top_k(int32_t id);
  void plan_expert_matmul(int32_t id);
  void plan_expert_grad(int32_t id);
  void plan_copy(int32_t when, const Layout& from, const Layout& to, const Shape& shape, Dtype from_type, Dtype to_type,
                 const char* kind);
  void plan_memory();
  void prepare();
  bool has_inputs() const {
    return std::ranges::all_of(buffers, [](const Buffer& b) { return !b.outside || b.data; });
  }
  std::byte* at(const Layout& x, Dtype type) const {
    return buffers[size_t(x.buffer)].data + x.view.offset * int64_t(size_of(type));
  }
};

}  // namespace dense
