// GPT-2: a decoder-only transformer with learned positions and a LayerNorm before each sublayer.
// Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Names are those of Hugging Face's GPT2LMHeadModel.
#pragma once

#include "dense/dense.h"

namespace gpt2 {
using namespace dense;

struct Config {
  int vocab_size = 50257, n_positions = 1024, n_embd = 768, n_layer = 12, n_head = 12;  // gpt2 (124M)
  std::optional<int> n_inner;                                                           // else 4 n_embd
  std::string activation_function = "gelu_new";
  double resid_pdrop = 0.1, embd_pdrop = 0.1, attn_pdrop = 0, layer_norm_epsilon = 1e-5, initializer_range = 0.02;
  TokenIds bos_token_id{{50256}}, eos_token_id{{50256}}, pad_token_id;
  bool scale_attn_weights = true, scale_attn_by_inverse_layer_idx = false, tie_word_embeddings = true;

  static constexpr const char* model_type = "gpt2";
  static constexpr const char* architecture = "GPT2LMHeadModel";
  static constexpr bool causal = true;                                          // scored on the token that comes next
  static constexpr const char* base = "transformer";                            // the prefix that files may lack
  static constexpr const char* inert[] = {"reorder_and_upcast_attn", "n_ctx"};  // fields without an effect
  static constexpr const char* inert_tensors[] = {"attn.bias", "attn.masked_bias", "lm_head.weight"};
  int context() const { return n_positions; }
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("n_positions", n_positions, "longest sequence", 1);
    f("n_embd", n_embd, "width", 1);
    f("n_layer", n_layer, "blocks", 1);
    f("n_head", n_head, "attention heads; must divide n_embd", 1);
    f("n_inner", n_inner, "width inside the MLP; 4 n_embd when it is not given");
    f("activation_function", activation_function, "of the MLP");
    f("resid_pdrop", resid_pdrop, "dropout of each sublayer's result, in training");
    f("embd_pdrop", embd_pdrop, "dropout of the embeddings, in training");
    f("attn_pdrop", attn_pdrop, "dropout of attention weights, in training");
    f("layer_norm_epsilon", layer_norm_epsilon, "added to variances", 0);
    f("initializer_range", initializer_range, "standard deviation of new weights");
    f("scale_attn_weights", scale_attn_weights, "divide scores by sqrt(head size)");
    f("scale_attn_by_inverse_layer_idx", scale_attn_by_inverse_layer_idx,
      "divide scores by the number of the block, from 1");
    f("tie_word_embeddings", tie_word_embeddings, "use wte for the output, too");
    f("bos_token_id", bos_token_id, "token that begins a text");
    f("eos_token_id", eos_token_id, "token, or tokens, that end one");
    f("pad_token_id", pad_token_id, "token after the end of one");
  }
};

inline Tensor norm(const Config& c, Weights w, Tensor x) {
  return layer_norm(x, c.layer_norm_epsilon) * w("weight", {c.n_embd}, ones) + w("bias", {c.n_embd}, zeros);
}

inline Tensor linear(Weights w, Tensor x, int64_t out, double deviation) {  // weights (in, out): Conv1D
  return matmul(x, w("weight", {x.size(-1), out}, normal(deviation))) + w("bias", {out}, zeros);
}

inline Tensor attend(const Config& c, Weights w, Tensor x, Context& ctx, int layer) {  // (B, T, C)
  const int64_t C = c.n_embd, D = C / c.n_head;
  const Tensor qkv = linear(w["c_attn"], x, 3 * C, c.initializer_range);                         // (B, T, 3C)
  auto [q, k, v] = split<3>(rearrange<"b t (s h d) -> s b t h d", "s", "h">(qkv, 3, c.n_head));  // 3 of (B, T, H, D)
  AttentionOptions options;
  if (c.scale_attn_weights) options.scale /= std::sqrt(float(D));
  if (c.scale_attn_by_inverse_layer_idx) options.scale /= float(layer + 1);
  const Tensor y = rearrange<"b t h d -> b t (h d)">(ctx.attention(q, k, v, options, c.attn_pdrop));
  return linear(w["c_proj"], y, C, c.initializer_range / std::sqrt(2.0 * c.n_layer));
}

inline Tensor mlp(const Config& c, Weights w, Tensor x) {  // (B, T, C)
  const Tensor h =
      activation(c.activation_function, linear(w["c_fc"], x, c.n_inner.value_or(4 * c.n_embd), c.initializer_range));
  return linear(w["c_proj"], h, c.n_embd, c.initializer_range / std::sqrt(2.0 * c.n_layer));
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, T) -> (B, T, V)
  const int64_t T = ids.size(1), V = c.vocab_size, C = c.n_embd;
  if (T > c.n_positions) fail("gpt2: expected at most n_positions = ", c.n_positions, " tokens, got ", T);
  if (C % c.n_head) fail("gpt2: n_head: expected a divisor of n_embd = ", C, ", got ", c.n_head);
  const Weights base = w["transformer"];
  const Tensor wte = base["wte"]("weight", {V, C}, normal(c.initializer_range));
  const Tensor wpe = base["wpe"]("weight", {c.n_positions, C}, normal(c.initializer_range));
  Tensor x = ctx.dropout(gather(wte, ids) + ctx.at_positions(wpe, ids), c.embd_pdrop);  // (B, T, C)
  for (int i = 0; i < c.n_layer; ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights h = base["h"][i];
    x = x + ctx.dropout(attend(c, h["attn"], norm(c, h["ln_1"], x), ctx, i), c.resid_pdrop);
    x = x + ctx.dropout(mlp(c, h["mlp"], norm(c, h["ln_2"], x)), c.resid_pdrop);
  }
  x = ctx.keep("last_hidden_state", norm(c, base["ln_f"], x));
  const Tensor lm_head = c.tie_word_embeddings ? wte : w["lm_head"]("weight", {V, C}, normal(c.initializer_range));
  return matmul(ctx.last(x), lm_head.t());
}

}  // namespace gpt2
