// Attention: every query takes a weighted mean of the values, softmax(scale * q . k) over the keys it sees being the
// weights.
//
//   out[t] = sum_s P[t, s] v[s],   P[t, s] = exp(score[t, s] - lse[t]),   lse[t] = log sum_s exp(score[t, s])
//
// Never with a (T, S) matrix in memory: FlashAttention (Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691).
// Keys come in blocks. A row of queries keeps, over the blocks so far, its largest score m, its sum of exp(score - m)
// and its sum of exp(score - m) v; where a block has a larger score both sums are first multiplied by exp(m - new m).
// The backward pass computes the scores once more, and P from them and lse. With delta = rowsum(dout * out) it is
//
//   dv = P' dout,   dP = dout v',   dS = P (dP - delta),   dk = scale dS' q,   dq = scale dS k
//
// Same bits for a query at a position with given visible keys, whatever else is computed and by however many threads:
// blocks of keys lie at multiples of 64 of the key's position, and every sum (over head_dim, over the keys, over the
// queries of a key) is one chain of multiply-adds in rising order, to which whatever is masked adds 0. So nothing
// depends on which queries share a block, nor on whether queries (many), keys (few queries: decoding) or heads (small
// ones) fill the lanes of vectors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dense/scalar/kernels.h"
#include "dense/tensor/dtype.h"

namespace dense {

class Threads;

struct AttentionSpec {
  int64_t batch, queries, keys, heads, kv_heads, head_dim;  // B, T, S, H, H_kv (divides H: grouped queries), D
  float scale;                                              // scores = scale * q . k
  float soft_cap = 0;                                       // not 0: scores = cap * tanh(scores / cap), before masking
  // A query at position p sees the keys max(0, p - window + 1) .. p, with window 0 all up to p. Not causal: all keys,
  // or with a window those at most window - 1 away.
  bool causal = true;
  int64_t window = 0;
  Dtype type = Dtype::f32;  // or f64, for gradient checks
  struct Strides {
    int64_t batch, time, head;
  } q, k, v, out, dq, dk, dv, dout;  // in elements; head_dim is adjacent
};

// Keys are at positions 0 .. S - 1. lengths (B): row b has so many keys only, from firsts[b] on, and the others are not
// read; null: all that follow. firsts (B); null: 0. starts (B): the position of row b's first query; null: 0. A query
// that sees no key gives zeros and zero gradients. lse (B, H, T) is -infinity there. Positions are below 2 ** 24.
class Attention {
 public:
  Attention(const AttentionSpec& spec, Isa isa, int threads);  // throws Error for what cannot be

  // Bytes of 64-byte aligned memory to be given to forward and backward, which allocate nothing. `threads` are at most
  // as many as said above.
  size_t scratch_bytes() const;
  void forward(const void* q, const void* k, const void* v, const int32_t* lengths, const int32_t* starts,
               const int32_t* firsts, void* out, void* lse, std::byte* scratch, Threads& threads) const;
  void backward(const void* q, const void* k, const void* v, const void* out, const void* lse, const void* dout,
                const int32_t* lengths, const int32_t* starts, const int32_t* firsts, void* dq, void* dk, void* dv,
                std::byte* scratch, Threads& threads) const;

  struct Call;                                                                             // one forward or backward
  using Run = void (*)(const Call& call, int64_t begin, int64_t end, std::byte* scratch);  // some of its items of work
  struct Kernels {
    Run forward, delta, backward;
    int lanes;       // of a vector
    bool in_blocks;  // there are kernels for many small heads at once
  };

 private:
  void run(Run kernel, const Call& call, int64_t items, int64_t cost, std::byte* scratch, Threads& threads) const;

  AttentionSpec spec_;
  Kernels kernels_;
  int threads_;
  bool brief_;           // many small heads at once
  size_t thread_bytes_;  // of scratch, for each thread
};

}  // namespace dense
