// Gemma: Llama with a gate of GELU, embeddings times sqrt(width), norms that multiply by 1 + weight, and heads whose
// width is a number of its own. Gemma Team 2024, arXiv:2403.08295. Names are those of Hugging Face's GemmaForCausalLM.
#pragma once

#include "dense/dense.h"

namespace gemma {
using namespace dense;

struct Config {
  int vocab_size = 256000, hidden_size = 3072, intermediate_size = 24576, num_hidden_layers = 28;  // Gemma 7B
  int num_attention_heads = 16, head_dim = 256, max_position_embeddings = 8192;
  std::optional<int> num_key_value_heads = 16;   // else num_attention_heads
  std::optional<std::string> hidden_activation;  // else gelu_pytorch_tanh
  double rms_norm_eps = 1e-6, rope_theta = 10000, initializer_range = 0.02, attention_dropout = 0;
  bool attention_bias = false, tie_word_embeddings = true, use_bidirectional_attention = false;
  TokenIds bos_token_id{{2}}, eos_token_id{{1}}, pad_token_id{{0}};
  std::optional<std::string> rope_type, old_rope_type;  // else default

  static constexpr const char* model_type = "gemma";
  static constexpr const char* architecture = "GemmaForCausalLM";
  static constexpr bool causal = true;                    // scored on the token that comes next
  static constexpr const char* base = "model";            // the prefix that files may lack
  static constexpr const char* inert[] = {"hidden_act"};  // gelu in the first files, which meant gelu_pytorch_tanh
  static constexpr const char* inert_tensors[] = {"rotary_emb.inv_freq", "lm_head.weight"};
  int context() const { return max_position_embeddings; }
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("hidden_size", hidden_size, "width", 1);
    f("intermediate_size", intermediate_size, "width inside the MLP", 1);
    f("num_hidden_layers", num_hidden_layers, "blocks", 1);
    f("num_attention_heads", num_attention_heads, "heads of queries", 1);
    f("num_key_value_heads", num_key_value_heads, "heads of keys and values; must divide num_attention_heads", 1);
    f("head_dim", head_dim, "width of a head", 2);
    f("max_position_embeddings", max_position_embeddings, "longest sequence trained on", 1);
    f("hidden_activation", hidden_activation, "of the MLP's gate; gelu_pytorch_tanh when it is not given");
    f("rms_norm_eps", rms_norm_eps, "added to mean squares", 0);
    f("rope_theta", rope_theta, "the slowest pair turns by about 1 in so many tokens", 0);
    f("rope_scaling.rope_type", rope_type, "frequencies: only default is supported");
    f("rope_scaling.type", old_rope_type, "the same, as older files name it");
    f("attention_bias", attention_bias, "biases in attention");
    f("use_bidirectional_attention", use_bidirectional_attention, "see what comes later: only false is supported");
    f("attention_dropout", attention_dropout, "dropout of attention weights, in training");
    f("initializer_range", initializer_range, "standard deviation of new weights");
    f("tie_word_embeddings", tie_word_embeddings, "use embed_tokens for the output, too");
    f("bos_token_id", bos_token_id, "token that begins a text");
    f("eos_token_id", eos_token_id, "token, or tokens, that end one");
    f("pad_token_id", pad_token_id, "token after the end of one");
  }
};

inline Tensor norm(const Config& c, Weights w, Tensor x) {
  return rms_norm(x, c.rms_norm_eps) * (1 + w("weight", {c.hidden_size}, zeros));
}

// copied from llama.h: linear
inline Tensor linear(const Config& c, Weights w, Tensor x, int64_t out, bool bias) {  // weights (out, in)
  const Tensor y = matmul(x, w("weight", {out, x.size(-1)}, normal(c.initializer_range)).t());
  return bias ? y + w("bias", {out}, zeros) : y;
}

// copied from llama.h: attend with llama -> gemma
inline Tensor attend(const Config& c, Weights w, Tensor x, Context& ctx, const Rotation& turn, int64_t D) {
  const int64_t H = c.num_attention_heads, H_kv = c.num_key_value_heads.value_or(c.num_attention_heads);
  if (H % H_kv) fail("gemma: num_key_value_heads: expected a divisor of num_attention_heads = ", H, ", got ", H_kv);
  const auto heads = [&](const char* name, int64_t n) {  // (B, T, n, D)
    return rearrange<"b t (h d) -> b t h d", "h">(linear(c, w[name], x, n * D, c.attention_bias), n);
  };
  const Tensor q = rope(heads("q_proj", H), turn), k = rope(heads("k_proj", H_kv), turn), v = heads("v_proj", H_kv);
  const Tensor y = ctx.attention(q, k, v, {.scale = 1 / std::sqrt(float(D))}, c.attention_dropout);  // (B, T, H, D)
  return linear(c, w["o_proj"], rearrange<"b t h d -> b t (h d)">(y), c.hidden_size, c.attention_bias);
}

inline Tensor mlp(const Config& c, Weights w, Tensor x) {  // (B, T, C)
  const Tensor gate = activation(c.hidden_activation.value_or("gelu_pytorch_tanh"),
                                 linear(c, w["gate_proj"], x, c.intermediate_size, false));
  const Tensor up = linear(c, w["up_proj"], x, c.intermediate_size, false);
  return linear(c, w["down_proj"], gate * up, c.hidden_size, false);
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, T) -> (B, T, V)
  const int64_t V = c.vocab_size, C = c.hidden_size, D = c.head_dim;
  if (D % 2) fail("gemma: head_dim: expected an even number, got ", D);
  const std::string scaling = c.old_rope_type.value_or(c.rope_type.value_or("default"));
  if (scaling != "default") fail("gemma: rope_scaling.rope_type: expected default, got ", scaling);
  if (c.use_bidirectional_attention) fail("gemma: use_bidirectional_attention: expected false, got true");
  const Rotation turn = rotation(ctx.positions(ids), rope_frequencies(D, c.rope_theta));
  const Weights base = w["model"];
  const Tensor embed_tokens = base["embed_tokens"]("weight", {V, C}, normal(c.initializer_range));
  Tensor x = gather(embed_tokens, ids, c.pad_token_id.first()) * std::sqrt(double(C));  // (B, T, C)
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights layer = base["layers"][i];
    x = x + attend(c, layer["self_attn"], norm(c, layer["input_layernorm"], x), ctx, turn, D);
    x = x + mlp(c, layer["mlp"], norm(c, layer["post_attention_layernorm"], x));
  }
  x = ctx.last(ctx.keep("last_hidden_state", norm(c, base["norm"], x)));
  return matmul(
      x, (c.tie_word_embeddings ? embed_tokens : w["lm_head"]("weight", {V, C}, normal(c.initializer_range))).t());
}

}  // namespace gemma
