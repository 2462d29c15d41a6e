// One block of a model's recorded graph, to be looked at: what reads what, in which shape.
#pragma once

#include <string>
#include <vector>

#include "dense/tensor/tensor.h"

namespace dense::cli {

struct Block {
  struct Node {
    int32_t id;                           // in the graph
    std::string what;                     // matmul, layer_norm, attention ...
    std::vector<std::string> parameters;  // those it reads, by name
    std::vector<int32_t> reads;           // nodes; none where it comes from outside of the block
    Shape shape;
    bool outside = false;
  };
  std::string name;         // what the names of its parameters begin with
  std::vector<Node> nodes;  // each after those it reads; the last one is what comes out
};

// The first of a model's repeated blocks. It begins and ends where one tensor holds all that later ones get to know of
// the ids. Throws Error for a model whose parameters' names count no blocks.
Block block_of(Tensor ids, Tensor logits);

std::string as_text(const Block& block);  // one line per node
std::string as_dot(const Block& block);   // a digraph in Graphviz's language

// Names that differ in numbers alone as one, h.{0..11}.ln_1.weight, if there is one for each choice of numbers.
struct Folded {
  std::string name;
  size_t count;
};
std::vector<Folded> folded(const std::vector<std::string>& names);
std::string without_numbers(const std::string& name);  // h.#.ln_1.weight

}  // namespace dense::cli
