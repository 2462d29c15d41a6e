// microgpt: Karpathy's smallest GPT, on tensors. The same network as examples/microgpt.h has on scalars: learned positions,
// RMSNorm without gains, no biases, ReLU. Tokens are characters; token V - 1 begins and ends every document.
#pragma once

#include "dense/dense.h"

namespace microgpt {
using namespace dense;

struct Config {
  int vocab_size = 27, block_size = 16, n_embd = 16, n_layer = 1, n_head = 4;

  static constexpr const char* model_type = "microgpt";
  static constexpr bool causal = true;  // scored on the token that comes next
  int context() const { return block_size; }
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("block_size", block_size, "longest sequence", 1);
    f("n_embd", n_embd, "width", 1);
    f("n_layer", n_layer, "layers", 1);
    f("n_head", n_head, "attention heads; must divide n_embd", 1);
  }
};

inline Tensor linear(Weights w, const char* name, Tensor x, int64_t out) {
  return matmul(x, w(name, {x.size(-1), out}, normal(0.08)));
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, T) -> (B, T, V)
  const int64_t T = ids.size(1), V = c.vocab_size, C = c.n_embd, D = C / c.n_head;
  if (T > c.block_size) fail("microgpt: expected at most block_size = ", c.block_size, " tokens, got ", T);
  if (C % c.n_head) fail("microgpt: n_head: expected a divisor of n_embd = ", C, ", got ", c.n_head);
  const Tensor wte = w("wte", {V, C}, normal(0.08)), wpe = w("wpe", {c.block_size, C}, normal(0.08));
  Tensor x = rms_norm(gather(wte, ids) + ctx.at_positions(wpe, ids), 1e-5);  // (B, T, C)
  for (int i = 0; i < c.n_layer; ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights layer = w["layer"][i];
    const Tensor qkv = linear(layer, "attn_wqkv", rms_norm(x, 1e-5), 3 * C);                       // (B, T, 3C)
    auto [q, k, v] = split<3>(rearrange<"b t (s h d) -> s b t h d", "s", "h">(qkv, 3, c.n_head));  // 3 of (B, T, H, D)
    const Tensor heads = ctx.attention(q, k, v, {.scale = 1 / std::sqrt(float(D))});
    x = x + linear(layer, "attn_wo", rearrange<"b t h d -> b t (h d)">(heads), C);
    x = x + linear(layer, "mlp_fc2", relu(linear(layer, "mlp_fc1", rms_norm(x, 1e-5), 4 * C)), C);
  }
  return linear(w, "lm_head", ctx.last(ctx.keep("last_hidden_state", x)), V);
}

}  // namespace microgpt
