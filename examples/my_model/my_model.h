// my_model: Llama with two changes. Attention and the MLP read the same norm of x and stand side by side, as in PaLM
// (Chowdhery et al. 2022, arXiv:2204.02311); and the MLP squares a ReLU in place of a gate (So et al. 2021,
// arXiv:2109.08668). A copy of models/llama.h without what this model does not need.
#pragma once

#include "dense/dense.h"

namespace my_model {
using namespace dense;

struct Config {
  int vocab_size = 256, hidden_size = 128, intermediate_size = 512, num_hidden_layers = 4;  // tokens are bytes
  int num_attention_heads = 4, max_position_embeddings = 256;
  double rms_norm_eps = 1e-6, rope_theta = 10000, initializer_range = 0.02;

  static constexpr const char* model_type = "my_model";
  static constexpr bool causal = true;  // scored on the token that comes next
  int context() const { return max_position_embeddings; }
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("hidden_size", hidden_size, "width", 1);
    f("intermediate_size", intermediate_size, "width inside the MLP", 1);
    f("num_hidden_layers", num_hidden_layers, "blocks", 1);
    f("num_attention_heads", num_attention_heads, "attention heads; twice as many must divide hidden_size", 1);
    f("max_position_embeddings", max_position_embeddings, "longest sequence", 1);
    f("rms_norm_eps", rms_norm_eps, "added to mean squares", 0);
    f("rope_theta", rope_theta, "the slowest pair turns by about 1 in so many tokens", 0);
    f("initializer_range", initializer_range, "standard deviation of new weights");
  }
};

inline Tensor norm(const Config& c, Weights w, Tensor x) {
  return rms_norm(x, c.rms_norm_eps) * w("weight", {c.hidden_size}, ones);
}

inline Tensor linear(const Config& c, Weights w, Tensor x, int64_t out) {  // weights (out, in)
  return matmul(x, w("weight", {out, x.size(-1)}, normal(c.initializer_range)).t());
}

inline Tensor attend(const Config& c, Weights w, Tensor x, Context& ctx, const Rotation& turn, int64_t D) {
  const auto heads = [&](const char* name) {  // (B, T, H, D)
    return rearrange<"b t (h d) -> b t h d", "h">(linear(c, w[name], x, c.hidden_size), c.num_attention_heads);
  };
  const Tensor q = rope(heads("q_proj"), turn), k = rope(heads("k_proj"), turn), v = heads("v_proj");
  const Tensor y = ctx.attention(q, k, v, {.scale = 1 / std::sqrt(float(D))});  // (B, T, H, D)
  return linear(c, w["o_proj"], rearrange<"b t h d -> b t (h d)">(y), c.hidden_size);
}

inline Tensor mlp(const Config& c, Weights w, Tensor x) {  // (B, T, C)
  const Tensor up = relu(linear(c, w["up_proj"], x, c.intermediate_size));
  return linear(c, w["down_proj"], up * up, c.hidden_size);
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, T) -> (B, T, V)
  const int64_t V = c.vocab_size, C = c.hidden_size, H = c.num_attention_heads, D = C / H;
  if (C % (2 * H)) fail("my_model: hidden_size: expected a multiple of 2 num_attention_heads = ", 2 * H, ", got ", C);
  const Rotation turn = rotation(ctx.positions(ids), rope_frequencies(D, c.rope_theta));
  const Weights base = w["model"];
  Tensor x = gather(base["embed_tokens"]("weight", {V, C}, normal(c.initializer_range)), ids);  // (B, T, C)
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const Weights layer = base["layers"][i];
    const Tensor h = norm(c, layer["input_layernorm"], x);
    x = x + attend(c, layer["self_attn"], h, ctx, turn, D) + mlp(c, layer["mlp"], h);
  }
  x = ctx.last(ctx.keep("last_hidden_state", norm(c, base["norm"], x)));
  return linear(c, w["lm_head"], x, V);
}

}  // namespace my_model
