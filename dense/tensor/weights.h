// Parameters, declared where a page uses them: by checkpoint name, shape and initial value.
//
//   Tensor wte = w["wte"]("weight", {c.vocab_size, c.n_embd}, normal(0.02));
//
// The same line makes a new parameter, takes one from a checkpoint, and names it when it is saved, counted or decayed.
// Parameters live outside any graph: training, evaluation and decoding share them.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>

#include "dense/tensor/tensor.h"

namespace dense {

// Initial values: normal of mean 0, or all the same.
struct Init {
  double deviation = 0, value = 0;
};
inline Init normal(double deviation) { return {deviation, 0}; }
inline constexpr Init zeros{0, 0}, ones{0, 1};

struct Parameter {
  std::string name;  // the page's
  Dtype dtype = Dtype::f32;
  Shape shape;
  Memory memory;
  bool declared = false;  // by a page; else it came with a checkpoint
  Init init = {};
  std::string stored = {};  // the checkpoint's name, where that is another
  Shape packed = {};        // of q8 and q4: strips, blocks of a strip, bytes of a block
  std::span<std::byte> bytes() const {
    return {memory.data, is_quantised(dtype) ? size_t(count_of(packed)) : size_t(count_of(shape)) * size_of(dtype)};
  }
};

// The parameters of one model, in the order of their names.
class Parameters {
 public:
  // base: a prefix of names that a checkpoint may lack. Without `filled` parameters have no memory: a page
  // is recorded to learn which there are, and initial() makes the values of new ones when they are wanted.
  explicit Parameters(uint64_t seed = 0, std::string base = {}, bool filled = true)
      : seed_(seed), base_(std::move(base)), filled_(filled) {}
  Parameters(const Parameters&) = delete;  // graphs point to the memory
  Parameters& operator=(const Parameters&) = delete;

  // A tensor of a checkpoint. From the first one on a name that the checkpoint lacks is an error, not a new parameter.
  void load(Parameter parameter);
  // The parameter of this name. A new one's values depend on the seed, the name and the shape alone. What does not fit
  // the checkpoint is remembered for check().
  const Parameter& declare(const std::string& name, const Shape& shape, Init init);
  // Has a tensor of the checkpoint, if there is one, under the name that declare would give it; it stays undeclared.
  void adopt(const std::string& name) { find(name); }
  // The values of a parameter that is new, computed in f32 and rounded to this type.
  Memory initial(const Parameter& parameter, Dtype dtype = Dtype::f32) const;
  // Throws Error that names every tensor that is missing, misshapen or surplus; `inert` says which surplus ones are not
  // minded: names that end so, or begin so where it ends with a dot.
  void check(std::span<const std::string> inert = {}) const;

  const std::map<std::string, Parameter>& all() const { return all_; }
  std::vector<const Parameter*> declared() const;
  int64_t count() const;  // of elements, declared ones
  bool loaded() const { return loaded_; }
  bool filled() const { return filled_; }
  // Drops tensors of the checkpoint that no page has declared and that are copies of declared ones: older files hold
  // tied weights twice, and the second one would not be trained.
  void forget_copies();
  // Has every parameter in f32, to be trained. Throws Error for quantised ones.
  void widen();
  // Has one parameter in another type. To q8 and q4: by_row says whether each of its rows, or else each column, is what
  // sums run along.
  void convert(const std::string& name, Dtype type, bool by_row, Threads& threads);

 private:
  std::map<std::string, Parameter>::iterator find(const std::string& name);
  uint64_t seed_;
  std::string base_;
  bool filled_ = true, loaded_ = false;
  std::map<std::string, Parameter> all_;
  std::vector<std::string> problems_;
};

// Where in a model's tree of names we are, on which graph.
class Weights {
 public:
  Weights(Graph& graph, Parameters& parameters, std::string prefix = {})
      : graph_(&graph), parameters_(&parameters), prefix_(std::move(prefix)) {}
  Weights operator[](std::string_view name) const { return {*graph_, *parameters_, join(name)}; }
  Weights operator[](int i) const { return {*graph_, *parameters_, join(std::to_string(i))}; }
  Tensor operator()(std::string_view name, const Shape& shape, Init init) const;
  Graph& graph() const { return *graph_; }

 private:
  std::string join(std::string_view name) const {
    return prefix_.empty() ? std::string(name) : prefix_ + "." + std::string(name);
  }
  Graph* graph_;
  Parameters* parameters_;
  std::string prefix_;
};

}  // namespace dense
