// What a page's forward function is told beside its input, and what it leaves for others to see.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "dense/scalar/error.h"
#include "dense/tensor/nn.h"

namespace dense {

// Keys and values of the tokens so far, for each attention of a page in the order of its calls. Graphs for other numbers
// of new tokens share it.
struct KvCache {
  int64_t batch = 0, capacity = 0;  // rows, and the tokens that each can have
  struct Layer {
    Memory keys, values;  // (batch, H_kv, capacity, D) in f32
    Shape shape;
  };
  std::vector<Layer> layers = {};
};

struct Context {
  Tensor lengths = {};      // (B) i32: how many tokens of each row are real; none: all of them
  Tensor token_types = {};  // (B, T) i32: which of a page's kinds of text each token is of; none: 0, the first
  Tensor dropout_key = {};  // two i32 that change with each step, while training; none: no dropout
  // In generation: the position of each row's first token (B) i32, what came before, and of the B T tokens those (B) i32
  // whose logits are wanted.
  Tensor starts = {};
  KvCache* cache = nullptr;
  Tensor wanted = {};
  std::map<std::string, Tensor> kept = {};  // by name

  // x, to be found under this name afterwards.
  Tensor keep(const std::string& name, Tensor x) { return kept[name] = x; }
  // Dropout in training, with other elements at each call.
  Tensor dropout(Tensor x, double p) {
    return dropout_key ? dense::dropout(x, p, uint64_t(++dropouts), dropout_key) : x;
  }
  // The positions of tokens (B, T), i32: (T), or in generation (B, T).
  Tensor positions(Tensor ids) const {
    const Tensor here = ids.graph().counter({ids.size(1)}, Dtype::i32);
    return starts ? cast(here + reshape(starts, {-1, 1}), Dtype::i32) : here;
  }
  // Rows of a table of learned positions, to be added to (B, T, C). What lies behind its end is for no token.
  Tensor at_positions(Tensor table, Tensor ids) const {
    if (!starts) return slice(table, 0, 0, ids.size(1));
    return gather(table, cast(min(positions(ids), double(table.size(0) - 1)), Dtype::i32));
  }
  // Attention to real tokens, in generation to those that came before, too.
  Tensor attention(Tensor q, Tensor k, Tensor v, const AttentionOptions& options) {
    return dense::attention(q, k, v, options, lengths, starts, cache ? next_layer(k) : KeyValues());
  }
  // Of x (B, T, C) what the head is to see: all of it, or in generation each row's last token (B, 1, C).
  Tensor last(Tensor x) const {
    if (!wanted) return x;
    x.graph().streams_weights = true;  // for few rows
    return reshape(gather(reshape(x, {-1, x.size(2)}), wanted), {-1, 1, x.size(2)});
  }

  int dropouts = 0, attentions = 0;

 private:
  KeyValues next_layer(Tensor k);
};

inline KeyValues Context::next_layer(Tensor k) {
  const Shape shape{cache->batch, k.size(2), cache->capacity, k.size(3)};
  const auto n = size_t(attentions++);
  if (n == cache->layers.size()) {
    const size_t bytes = size_t(count_of(shape)) * sizeof(float);
    cache->layers.push_back({zero_memory(bytes), zero_memory(bytes), shape});
  }
  const KvCache::Layer& layer = cache->layers[n];
  if (layer.shape != shape)
    fail("attention ", n, ": expected a cache ", to_string(layer.shape), ", got ", to_string(shape));
  const std::string name = "attention " + std::to_string(n);
  return {k.graph().external(shape, Dtype::f32, layer.keys, name + " keys"),
          k.graph().external(shape, Dtype::f32, layer.values, name + " values")};
}

}  // namespace dense
