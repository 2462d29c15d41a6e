// Mixtral: Mistral with several MLPs in a block, experts, of which a router chooses a few for each token: only these are
// computed. Jiang et al. 2024, arXiv:2401.04088. Names are those of Hugging Face's MixtralForCausalLM.
#pragma once

#include "dense/dense.h"

namespace mixtral {
using namespace dense;

struct Config {
  int vocab_size = 32000, hidden_size = 4096, intermediate_size = 14336, num_hidden_layers = 32;  // Mixtral 8x7B
  int num_attention_heads = 32, max_position_embeddings = 131072;
  std::optional<int> num_key_value_heads = 8, head_dim;  // else num_attention_heads, hidden_size / num_attention_heads
  std::optional<int> sliding_window;                     // else everything is seen
  int num_local_experts = 8, num_experts_per_tok = 2;
  std::string hidden_act = "silu";
  double rms_norm_eps = 1e-5, rope_theta = 1e6, initializer_range = 0.02, attention_dropout = 0;
  double router_jitter_noise = 0;
  bool tie_word_embeddings = false, output_router_logits = false;
  TokenIds bos_token_id{{1}}, eos_token_id{{2}}, pad_token_id;
  std::optional<std::string> rope_type, old_rope_type;  // else default

  static constexpr const char* model_type = "mixtral";
  static constexpr const char* architecture = "MixtralForCausalLM";
  static constexpr bool causal = true;          // scored on the token that comes next
  static constexpr const char* base = "model";  // the prefix that files may lack
  static constexpr const char* inert_tensors[] = {"rotary_emb.inv_freq", "lm_head.weight"};
  static constexpr const char* inert[] = {"router_aux_loss_coef"};  // weighs a loss that output_router_logits adds
  int context() const { return max_position_embeddings; }
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("hidden_size", hidden_size, "width", 1);
    f("intermediate_size", intermediate_size, "width inside an expert", 1);
    f("num_hidden_layers", num_hidden_layers, "blocks", 1);
    f("num_attention_heads", num_attention_heads, "heads of queries", 1);
    f("num_key_value_heads", num_key_value_heads, "heads of keys and values; must divide num_attention_heads", 1);
    f("head_dim", head_dim, "width of a head; hidden_size / num_attention_heads when it is not given", 2);
    f("sliding_window", sliding_window, "tokens that one sees, itself and those before; null: all of them", 1);
    f("num_local_experts", num_local_experts, "experts of a block", 1);
    f("num_experts_per_tok", num_experts_per_tok, "experts that each token goes through", 1);
    f("max_position_embeddings", max_position_embeddings, "longest sequence trained on", 1);
    f("hidden_act", hidden_act, "of an expert's gate");
    f("rms_norm_eps", rms_norm_eps, "added to mean squares", 0);
    f("rope_theta", rope_theta, "the slowest pair turns by about 1 in so many tokens", 0);
    f("rope_scaling.rope_type", rope_type, "frequencies: only default is supported");
    f("rope_scaling.type", old_rope_type, "the same, as older files name it");
    f("attention_dropout", attention_dropout, "dropout of attention weights, in training");
    f("router_jitter_noise", router_jitter_noise, "noise of routers, in training: only 0 is supported there");
    f("output_router_logits", output_router_logits, "add a loss that balances experts: only false is supported");
    f("initializer_range", initializer_range, "standard deviation of new weights");
    f("tie_word_embeddings", tie_word_embeddings, "use embed_tokens for the output, too");
    f("bos_token_id", bos_token_id, "token that begins a text");
    f("eos_token_id", eos_token_id, "token, or tokens, that end one");
    f("pad_token_id", pad_token_id, "token after the end of one");
  }
};

// copied from llama.h: norm
inline Tensor norm(const Config& c, Weights w, Tensor x) {
  return rms_norm(x, c.rms_norm_eps) * w("weight", {c.hidden_size}, ones);
}

// copied from mistral.h: linear
inline Tensor linear(const Config& c, Weights w, Tensor x, int64_t out) {  // weights (out, in)
  return matmul(x, w("weight", {out, x.size(-1)}, normal(c.initializer_range)).t());
}

// copied from mistral.h: attend with mistral -> mixtral
inline Tensor attend(const Config& c, Weights w, Tensor x, Context& ctx, const Rotation& turn, int64_t D) {
  const int64_t H = c.num_attention_heads, H_kv = c.num_key_value_heads.value_or(c.num_attention_heads);
  if (H % H_kv) fail("mixtral: num_key_value_heads: expected a divisor of num_attention_heads = ", H, ", got ", H_kv);
  const auto heads = [&](const char* name, int64_t n) {  // (B, T, n, D)
    return rearrange<"b t (h d) -> b t h d", "h">(linear(c, w[name], x, n * D), n);
  };
  const Tensor q = rope(heads("q_proj", H), turn), k = rope(heads("k_proj", H_kv), turn), v = heads("v_proj", H_kv);
  const Tensor y = ctx.attention(q, k, v, {.scale = 1 / std::sqrt(float(D)), .window = c.sliding_window.value_or(0)},
                                 c.attention_dropout);
  return linear(c, w["o_proj"], rearrange<"b t h d -> b t (h d)">(y), c.hidden_size);  // y (B, T, H, D)
}

// Each token's row goes through its own num_experts_per_tok experts; what these give is weighted by how much the router
// prefers them.
inline Tensor moe(const Config& c, Weights w, Tensor x) {  // (B, T, C)
  const int64_t E = c.num_local_experts, k = c.num_experts_per_tok;
  const Tensor preference = linear(c, w["gate"], x, E);                   // (B, T, E)
  const Tensor chosen = top_k(preference, k);                             // (B, T, k)
  const Tensor share = softmax(take_along(preference, chosen));           // (B, T, k)
  const auto experts = [&](const char* name, Tensor rows, int64_t out) {  // (B, T, k, in) -> (B, T, k, out)
    std::vector<Tensor> weights;
    for (int e = 0; e < E; ++e)
      weights.push_back(w["experts"][e][name]("weight", {out, rows.size(-1)}, normal(c.initializer_range)).t());
    return expert_matmul(rows, chosen, weights);
  };
  const Tensor rows = repeat<"b t c -> b t k c", "k">(x, k);
  const Tensor gate = activation(c.hidden_act, experts("w1", rows, c.intermediate_size));
  const Tensor y = experts("w2", gate * experts("w3", rows, c.intermediate_size), c.hidden_size);  // (B, T, k, C)
  return sum(y * reshape(share, {x.size(0), x.size(1), k, 1}), {2});
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, T) -> (B, T, V)
  const int64_t V = c.vocab_size, C = c.hidden_size, H = c.num_attention_heads;
  if (!c.head_dim && C % H) fail("mixtral: num_attention_heads: expected a divisor of hidden_size = ", C, ", got ", H);
  const int64_t D = c.head_dim ? *c.head_dim : C / H;
  if (D % 2) fail("mixtral: head_dim: expected an even number, got ", D);
  const std::string scaling = c.old_rope_type.value_or(c.rope_type.value_or("default"));
  if (scaling != "default") fail("mixtral: rope_scaling.rope_type: expected default, got ", scaling);
  if (ctx.dropout_key && c.router_jitter_noise > 0)
    fail("mixtral: router_jitter_noise: expected 0 in training, got ", c.router_jitter_noise);
  if (c.output_router_logits) fail("mixtral: output_router_logits: expected false, got true");
  if (c.num_experts_per_tok > c.num_local_experts)
    fail("mixtral: num_experts_per_tok: expected at most num_local_experts = ", c.num_local_experts, ", got ",
         c.num_experts_per_tok);
  const Rotation turn = rotation(ctx.positions(ids), rope_frequencies(D, c.rope_theta));
  const Weights base = w["model"];
  const Tensor embed_tokens = base["embed_tokens"]("weight", {V, C}, normal(c.initializer_range));
  Tensor x = gather(embed_tokens, ids, c.pad_token_id.first());  // (B, T, C)
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights layer = base["layers"][i];
    x = x + attend(c, layer["self_attn"], norm(c, layer["input_layernorm"], x), ctx, turn, D);
    x = x + moe(c, layer["block_sparse_moe"], norm(c, layer["post_attention_layernorm"], x));
  }
  x = ctx.last(ctx.keep("last_hidden_state", norm(c, base["norm"], x)));
  return matmul(
      x, (c.tie_word_embeddings ? embed_tokens : w["lm_head"]("weight", {V, C}, normal(c.initializer_range))).t());
}

}  // namespace mixtral
