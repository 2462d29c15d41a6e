// What a page's forward function is told beside its input, and what it leaves for others to see.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "dense/scalar/error.h"
#include "dense/tensor/nn.h"

namespace dense {

// Keys and values of the tokens so far, in the order in which a page asks for them. Graphs for other numbers of new tokens
// share it.
struct KvCache {
  int64_t batch = 0, capacity = 0;  // rows, and the tokens that each can have
  struct Entry {
    Memory memory;  // f32
    Shape shape;
    bool grows;  // axis 1 is the capacity
  };
  std::vector<Entry> entries = {};
  bool filled = true;  // else entries get no memory: a plan is looked at, not run
};

struct Context {
  Tensor lengths = {};       // (B) i32: how many tokens of each row are real; none: all of them
  Tensor firsts = {};        // (B) i32, with lengths: which of each row's tokens is the first real one; none: 0
  Tensor position_ids = {};  // (B, T) i32: where each token stands; none: where it is in its row
  Tensor token_types = {};   // (B, T) i32: which of a page's kinds of text each token is of; none: 0, the first
  Tensor decoder_ids = {};   // (B, T) i32: what the decoder of an encoder-decoder sees, whose encoder sees the ids
  Tensor dropout_key = {};   // two i32 that change with each step, while training; none: no dropout
  bool recompute = false;    // of blocks, keep their results alone for the gradient
  // In generation: the position of each row's first token (B) i32, what came before, and of the B T tokens those (B) i32
  // whose logits are wanted.
  Tensor starts = {};
  KvCache* cache = nullptr;
  Tensor wanted = {};
  std::vector<Tensor> writes = {};          // to the cache, which a plan must have among its outputs
  std::map<std::string, Tensor> kept = {};  // by name

  // x, to be found under this name afterwards.
  Tensor keep(const std::string& name, Tensor x) { return kept[name] = x; }
  // Dropout in training, with other elements at each call.
  Tensor dropout(Tensor x, double p) {
    return dropout_key ? dense::dropout(x, p, uint64_t(++dropouts), dropout_key) : x;
  }
  // One of a page's equal blocks, from here to the end of the scope.
  Checkpoint block(Tensor x) const { return Checkpoint(x.graph(), recompute); }
  // The positions of tokens (B, T), i32: (T), or (B, T) in generation and where they are given.
  Tensor positions(Tensor ids) const {
    if (position_ids) return position_ids;
    const Tensor here = ids.graph().counter({ids.size(1)}, Dtype::i32);
    return starts ? cast(here + reshape(starts, {-1, 1}), Dtype::i32) : here;
  }
  // Rows of a table of learned positions, to be added to (B, T, C). What lies behind its end is for no token.
  Tensor at_positions(Tensor table, Tensor ids) const {
    if (position_ids) return gather(table, position_ids);
    if (!starts) return slice(table, 0, 0, ids.size(1));
    return gather(table, cast(min(positions(ids), double(table.size(0) - 1)), Dtype::i32));
  }
  // Rows of a table of token types, to be added to (B, T, C).
  Tensor at_types(Tensor table) const { return token_types ? gather(table, token_types) : slice(table, 0, 0, 1); }
  // For pages with masks of their own: 1 for the real ones of tokens (B, T), 0 for others. None where all are real.
  Tensor real(Tensor ids) const {
    if (!lengths) return {};
    Tensor t = ids.graph().counter({ids.size(1)}, Dtype::i32);  // from each row's first real token
    if (firsts) t = t - reshape(firsts, {-1, 1});
    const Tensor before_end = less(t, reshape(lengths, {-1, 1}));
    return firsts ? where(less(t, 0), 0, before_end) : before_end;
  }
  // Attention to real tokens, in generation to those that came before, too. In training each of its weights is dropped
  // with probability p, for which they are all in memory, (B, H, T, T).
  Tensor attention(Tensor q, Tensor k, Tensor v, const AttentionOptions& options, double p = 0) {
    if (dropout_key && p > 0) return dropped_attention(q, k, v, options, p);
    return dense::attention(q, k, v, options, lengths, starts, cache ? next_layer(k) : KeyValues(), firsts);
  }

  // For attention that is put together on a page, as that of an encoder-decoder. Its text is seen first, with a cache
  // and without starts; then its decoder sees one token at a time, with both.
  //
  // How many keys the decoder's queries have, those of tokens that are still to come included.
  int64_t keys(Tensor ids) const { return starts ? cache->capacity : ids.size(1); }
  // Keys or values (B, 1, H, D) of the newest token among those of all before it, (B, capacity, H, D).
  Tensor with_earlier(Tensor x);
  // What depends on the text alone: computed with it, and known to all steps.
  Tensor once(Tensor x);

  // Of x (B, T, C) what the head is to see: all of it, or in generation each row's last token (B, 1, C), for which alone
  // the last block's MLP is computed.
  Tensor last(Tensor x) const {
    if (!wanted) return x;
    const Tensor rows = only_rows(x, wanted);
    x.graph().streams_weights = true;  // for few rows
    return reshape(rows, {-1, 1, x.size(2)});
  }

  int dropouts = 0, entries = 0;

 private:
  Tensor dropped_attention(Tensor q, Tensor k, Tensor v, const AttentionOptions& options, double p);
  Tensor cached(Graph& graph, const Shape& shape, bool grows = false);
  KeyValues next_layer(Tensor k);
};

// The plain formula. The queries that share a head of keys are the rows of one product.
inline Tensor Context::dropped_attention(Tensor q, Tensor k, Tensor v, const AttentionOptions& options, double p) {
  const int64_t B = q.size(0), T = q.size(1), G = q.size(2) / k.size(2);
  const Tensor rows = rearrange<"b t (n g) d -> b n (g t) d", "g">(q, G);
  Tensor scores = matmul(rows, rearrange<"b s n d -> b n d s">(k)) * options.scale;  // (B, N, G T, T)
  if (options.soft_cap > 0) scores = soft_cap(scores, options.soft_cap);
  scores = reshape(scores, {B, k.size(2), G, T, T});
  constexpr double unseen = -1e30;
  const Tensor behind = q.graph().counter({T, 1}) - q.graph().counter({T});  // by how much, (T, T)
  if (options.causal) scores = where(less(behind, 0), unseen, scores);
  if (options.window > 0) scores = where(less(behind, double(options.window)), scores, unseen);
  if (const Tensor is_real = real(q)) scores = where(reshape(is_real, {B, 1, 1, 1, T}), scores, unseen);
  const Tensor weights = reshape(dropout(softmax(scores), p), {B, k.size(2), G * T, T});
  return rearrange<"b n (g t) d -> b t (n g) d", "g">(matmul(weights, rearrange<"b s n d -> b n s d">(v)), G);
}

// The next entry of the cache.
inline Tensor Context::cached(Graph& graph, const Shape& shape, bool grows) {
  const auto n = size_t(entries++);
  if (n == cache->entries.size()) {
    const size_t bytes = size_t(count_of(shape)) * sizeof(float);
    cache->entries.push_back({cache->filled ? zero_memory(bytes) : Memory(), shape, grows});
  }
  const KvCache::Entry& entry = cache->entries[n];
  const std::string name = "cache " + std::to_string(n);
  if (entry.shape != shape) fail(name, ": expected ", to_string(entry.shape), ", got ", to_string(shape));
  return graph.external(shape, Dtype::f32, entry.memory, name);
}

inline KeyValues Context::next_layer(Tensor k) {
  const Shape shape{cache->batch, k.size(2), cache->capacity, k.size(3)};
  const Tensor keys = cached(k.graph(), shape);
  return {keys, cached(k.graph(), shape)};
}

inline Tensor Context::with_earlier(Tensor x) {
  if (!cache) return x;
  if (x.rank() != 4 || x.size(1) != 1)
    fail("with_earlier: expected one token (B, 1, H, D), got ", to_string(x.shape()));
  const Tensor earlier = cached(x.graph(), {x.size(0), cache->capacity, x.size(2), x.size(3)}, true);
  if (!starts) return x;
  const Tensor place = x.graph().counter({cache->capacity, 1, 1}, Dtype::i32);
  const Tensor all = where(equal(place, reshape(starts, {-1, 1, 1, 1})), x, earlier);
  writes.push_back(assign(earlier, all));
  return all;
}

inline Tensor Context::once(Tensor x) {
  if (!cache) return x;
  const Tensor known = cached(x.graph(), x.shape());
  if (starts) return known;
  writes.push_back(assign(known, x));
  return x;
}

}  // namespace dense
