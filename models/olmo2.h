// OLMo 2: Llama with the norm of each sublayer after it instead of before, and one each on a token's queries and keys.
// Team OLMo 2024, arXiv:2501.00656. Names are those of Hugging Face's Olmo2ForCausalLM.
#pragma once

#include "dense/dense.h"

namespace olmo2 {
using namespace dense;

struct Config {
  int vocab_size = 50304, hidden_size = 4096, intermediate_size = 11008, num_hidden_layers = 32;  // OLMo 2 7B
  int num_attention_heads = 32, max_position_embeddings = 2048;
  std::optional<int> num_key_value_heads;  // else num_attention_heads
  std::string hidden_act = "silu";
  double rms_norm_eps = 1e-5, rope_theta = 10000, initializer_range = 0.02, attention_dropout = 0;
  bool attention_bias = false, tie_word_embeddings = false;
  TokenIds bos_token_id, eos_token_id{{50279}}, pad_token_id{{1}};
  std::optional<std::string> rope_type, old_rope_type;  // else default
  std::optional<double> rope_factor, low_freq_factor, high_freq_factor;
  std::optional<int> original_max_position_embeddings;

  static constexpr const char* model_type = "olmo2";
  static constexpr const char* architecture = "Olmo2ForCausalLM";
  static constexpr bool causal = true;          // scored on the token that comes next
  static constexpr const char* base = "model";  // the prefix that files may lack
  static constexpr const char* inert_tensors[] = {"rotary_emb.inv_freq", "lm_head.weight"};
  int context() const { return max_position_embeddings; }
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("hidden_size", hidden_size, "width", 1);
    f("intermediate_size", intermediate_size, "width inside the MLP", 1);
    f("num_hidden_layers", num_hidden_layers, "blocks", 1);
    f("num_attention_heads", num_attention_heads, "heads of queries; must divide hidden_size", 1);
    f("num_key_value_heads", num_key_value_heads, "heads of keys and values; must divide num_attention_heads", 1);
    f("max_position_embeddings", max_position_embeddings, "longest sequence trained on", 1);
    f("hidden_act", hidden_act, "of the MLP's gate");
    f("rms_norm_eps", rms_norm_eps, "added to mean squares", 0);
    f("rope_theta", rope_theta, "the slowest pair turns by about 1 in so many tokens", 0);
    f("rope_scaling.rope_type", rope_type, "frequencies: default, linear, dynamic or llama3");
    f("rope_scaling.type", old_rope_type, "the same, as older files name it");
    f("rope_scaling.factor", rope_factor, "how much slower linear and llama3 turn", 0);
    f("rope_scaling.low_freq_factor", low_freq_factor, "llama3: slow are pairs of fewer turns than this", 0);
    f("rope_scaling.high_freq_factor", high_freq_factor, "llama3: fast ones, kept, are those of more turns", 0);
    f("rope_scaling.original_max_position_embeddings", original_max_position_embeddings, "llama3: in texts so long", 1);
    f("attention_bias", attention_bias, "biases in attention");
    f("attention_dropout", attention_dropout, "dropout of attention weights, in training");
    f("initializer_range", initializer_range, "standard deviation of new weights");
    f("tie_word_embeddings", tie_word_embeddings, "use embed_tokens for the output, too");
    f("bos_token_id", bos_token_id, "token that begins a text");
    f("eos_token_id", eos_token_id, "token, or tokens, that end one");
    f("pad_token_id", pad_token_id, "token after the end of one");
  }
};

// How far each pair of a head's elements turns from one token to the next.
// copied from llama.h: frequencies with llama -> olmo2
inline std::vector<float> frequencies(const Config& c, int64_t D) {
  std::vector<float> f = rope_frequencies(D, c.rope_theta);
  const std::string type = c.old_rope_type.value_or(c.rope_type.value_or("default"));
  if (type == "default" || type == "dynamic") return f;  // dynamic: see forward
  if (type != "linear" && type != "llama3")
    fail("olmo2: rope_scaling.rope_type: expected default, linear, dynamic or llama3, got ", type);
  const auto given = [](const char* name, const auto& value) {
    if (!value) fail("olmo2: rope_scaling.", name, ": expected a number, missing");
    return float(*value);
  };
  const float factor = given("factor", c.rope_factor);
  if (type == "linear") {
    for (float& x : f) x /= factor;
    return f;
  }
  const float low = given("low_freq_factor", c.low_freq_factor), high = given("high_freq_factor", c.high_freq_factor);
  const float length = given("original_max_position_embeddings", c.original_max_position_embeddings);
  for (float& x : f) {
    const float wave = float(2 * std::numbers::pi) / x, share = (length / wave - low) / (high - low);
    if (wave > length / low) x /= factor;
    else if (wave >= length / high) x = (1 - share) * x / factor + share * x;
  }
  return f;
}

inline Tensor norm(const Config& c, Weights w, Tensor x) {
  return rms_norm(x, c.rms_norm_eps) * w("weight", {x.size(-1)}, ones);
}

// copied from llama.h: linear
inline Tensor linear(const Config& c, Weights w, Tensor x, int64_t out, bool bias) {  // weights (out, in)
  const Tensor y = matmul(x, w("weight", {out, x.size(-1)}, normal(c.initializer_range)).t());
  return bias ? y + w("bias", {out}, zeros) : y;
}

inline Tensor attend(const Config& c, Weights w, Tensor x, Context& ctx, const Rotation& turn) {
  const int64_t H = c.num_attention_heads, H_kv = c.num_key_value_heads.value_or(c.num_attention_heads);
  if (H % H_kv) fail("olmo2: num_key_value_heads: expected a divisor of num_attention_heads = ", H, ", got ", H_kv);
  const int64_t D = c.hidden_size / H;
  const Tensor q = norm(c, w["q_norm"], linear(c, w["q_proj"], x, H * D, c.attention_bias));
  const Tensor k = norm(c, w["k_norm"], linear(c, w["k_proj"], x, H_kv * D, c.attention_bias));
  const Tensor v = linear(c, w["v_proj"], x, H_kv * D, c.attention_bias);
  const auto heads = [&](Tensor y) { return rearrange<"b t (h d) -> b t h d", "d">(y, D); };
  const Tensor y = ctx.attention(rope(heads(q), turn), rope(heads(k), turn), heads(v),
                                 {.scale = 1 / std::sqrt(float(D))}, c.attention_dropout);
  return linear(c, w["o_proj"], rearrange<"b t h d -> b t (h d)">(y), c.hidden_size, c.attention_bias);
}

inline Tensor mlp(const Config& c, Weights w, Tensor x) {  // (B, T, C)
  const Tensor gate = activation(c.hidden_act, linear(c, w["gate_proj"], x, c.intermediate_size, false));
  const Tensor up = linear(c, w["up_proj"], x, c.intermediate_size, false);
  return linear(c, w["down_proj"], gate * up, c.hidden_size, false);
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, T) -> (B, T, V)
  const int64_t T = ids.size(1), V = c.vocab_size, C = c.hidden_size, H = c.num_attention_heads;
  if (C % H) fail("olmo2: num_attention_heads: expected a divisor of hidden_size = ", C, ", got ", H);
  if (C / H % 2) fail("olmo2: num_attention_heads: expected heads of an even width, got ", C / H);
  if (c.old_rope_type.value_or(c.rope_type.value_or("")) == "dynamic" && T > c.max_position_embeddings)
    fail("olmo2: expected at most max_position_embeddings = ", c.max_position_embeddings, " tokens, got ", T,
         ": longer ones are not supported where rope_type is dynamic");
  const Rotation turn = rotation(ctx.positions(ids), frequencies(c, C / H));
  const Weights base = w["model"];
  const Tensor embed_tokens = base["embed_tokens"]("weight", {V, C}, normal(c.initializer_range));
  Tensor x = gather(embed_tokens, ids, c.pad_token_id.first());  // (B, T, C)
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights layer = base["layers"][i];
    x = x + norm(c, layer["post_attention_layernorm"], attend(c, layer["self_attn"], x, ctx, turn));
    x = x + norm(c, layer["post_feedforward_layernorm"], mlp(c, layer["mlp"], x));
  }
  x = ctx.last(ctx.keep("last_hidden_state", norm(c, base["norm"], x)));
  return matmul(
      x, (c.tie_word_embeddings ? embed_tokens : w["lm_head"]("weight", {V, C}, normal(c.initializer_range))).t());
}

}  // namespace olmo2
