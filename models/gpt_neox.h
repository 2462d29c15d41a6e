// GPT-NeoX: a decoder-only transformer with a LayerNorm before each sublayer, rotary positions in part of a head, and
// attention and MLP side by side. Black et al. 2022, arXiv:2204.06745; Pythia: arXiv:2304.01373. Names are those of
// Hugging Face's GPTNeoXForCausalLM.
#pragma once

#include "dense/dense.h"

namespace gpt_neox {
using namespace dense;

struct Config {
  int vocab_size = 50432, hidden_size = 6144, intermediate_size = 24576, num_hidden_layers = 44;  // GPT-NeoX 20B
  int num_attention_heads = 64, max_position_embeddings = 2048;
  std::string hidden_act = "gelu";
  double rotary_pct = 0.25, rope_theta = 10000, layer_norm_eps = 1e-5, initializer_range = 0.02;
  double hidden_dropout = 0, attention_dropout = 0;
  bool use_parallel_residual = true, attention_bias = true, tie_word_embeddings = false;
  TokenIds bos_token_id{{0}}, eos_token_id{{2}}, pad_token_id;
  std::optional<std::string> rope_type, old_rope_type;  // else default
  std::optional<double> rope_factor, low_freq_factor, high_freq_factor;
  std::optional<int> original_max_position_embeddings;

  static constexpr const char* model_type = "gpt_neox";
  static constexpr const char* architecture = "GPTNeoXForCausalLM";
  static constexpr bool causal = true;             // scored on the token that comes next
  static constexpr const char* base = "gpt_neox";  // the prefix that files may lack
  static constexpr const char* inert[] = {"attention_probs_dropout_prob", "hidden_dropout_prob"};
  static constexpr const char* inert_tensors[] = {"attention.bias", "attention.masked_bias", "rotary_emb.inv_freq",
                                                  "embed_out.weight"};
  int context() const { return max_position_embeddings; }
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("hidden_size", hidden_size, "width", 1);
    f("intermediate_size", intermediate_size, "width inside the MLP", 1);
    f("num_hidden_layers", num_hidden_layers, "blocks", 1);
    f("num_attention_heads", num_attention_heads, "heads; must divide hidden_size", 1);
    f("max_position_embeddings", max_position_embeddings, "longest sequence trained on", 1);
    f("hidden_act", hidden_act, "of the MLP");
    f("layer_norm_eps", layer_norm_eps, "added to variances", 0);
    f("use_parallel_residual", use_parallel_residual, "add attention and MLP of the same x, not one after the other");
    f("partial_rotary_factor", rotary_pct, "the same as rotary_pct, which counts where a file has both", 0);
    f("rotary_pct", rotary_pct, "share of a head's elements that are turned", 0);
    f("rope_theta", rope_theta, "the same as rotary_emb_base, which counts where a file has both", 0);
    f("rotary_emb_base", rope_theta, "the slowest pair turns by about 1 in so many tokens", 0);
    f("rope_scaling.rope_type", rope_type, "frequencies: default, linear, dynamic or llama3");
    f("rope_scaling.type", old_rope_type, "the same, as older files name it");
    f("rope_scaling.factor", rope_factor, "how much slower linear and llama3 turn", 0);
    f("rope_scaling.low_freq_factor", low_freq_factor, "llama3: slow are pairs of fewer turns than this", 0);
    f("rope_scaling.high_freq_factor", high_freq_factor, "llama3: fast ones, kept, are those of more turns", 0);
    f("rope_scaling.original_max_position_embeddings", original_max_position_embeddings, "llama3: in texts so long", 1);
    f("attention_bias", attention_bias, "biases in attention");
    f("hidden_dropout", hidden_dropout, "dropout of the embeddings and of each sublayer's result, in training");
    f("attention_dropout", attention_dropout, "dropout of attention weights, in training");
    f("initializer_range", initializer_range, "standard deviation of new weights");
    f("tie_word_embeddings", tie_word_embeddings, "use embed_in for the output, too");
    f("bos_token_id", bos_token_id, "token that begins a text");
    f("eos_token_id", eos_token_id, "token, or tokens, that end one");
    f("pad_token_id", pad_token_id, "token after the end of one");
  }
};

// How far each pair of a head's elements turns from one token to the next.
// copied from llama.h: frequencies with llama -> gpt_neox
inline std::vector<float> frequencies(const Config& c, int64_t D) {
  std::vector<float> f = rope_frequencies(D, c.rope_theta);
  const std::string type = c.old_rope_type.value_or(c.rope_type.value_or("default"));
  if (type == "default" || type == "dynamic") return f;  // dynamic: see forward
  if (type != "linear" && type != "llama3")
    fail("gpt_neox: rope_scaling.rope_type: expected default, linear, dynamic or llama3, got ", type);
  const auto given = [](const char* name, const auto& value) {
    if (!value) fail("gpt_neox: rope_scaling.", name, ": expected a number, missing");
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

// The first elements of each head turned, as many as there are angles for.
// copied from phi3.h: partly_turned
inline Tensor partly_turned(Tensor x, const Rotation& turn) {  // (B, T, H, D)
  const int64_t n = 2 * turn.cos.size(-1), D = x.size(3);
  return n == D ? rope(x, turn) : concat(std::array{rope(slice(x, 3, 0, n), turn), slice(x, 3, n, D)}, 3);
}

inline Tensor norm(const Config& c, Weights w, Tensor x) {
  return layer_norm(x, c.layer_norm_eps) * w("weight", {c.hidden_size}, ones) + w("bias", {c.hidden_size}, zeros);
}

// copied from llama.h: linear
inline Tensor linear(const Config& c, Weights w, Tensor x, int64_t out, bool bias) {  // weights (out, in)
  const Tensor y = matmul(x, w("weight", {out, x.size(-1)}, normal(c.initializer_range)).t());
  return bias ? y + w("bias", {out}, zeros) : y;
}

inline Tensor attend(const Config& c, Weights w, Tensor x, Context& ctx, const Rotation& turn) {
  const int64_t C = c.hidden_size, D = C / c.num_attention_heads;
  const Tensor qkv = linear(c, w["query_key_value"], x, 3 * C, c.attention_bias);               // (B, T, 3C)
  const auto [q, k, v] = split<3>(rearrange<"b t (h s d) -> s b t h d", "s", "d">(qkv, 3, D));  // 3 of (B, T, H, D)
  const Tensor y = ctx.attention(partly_turned(q, turn), partly_turned(k, turn), v, {.scale = 1 / std::sqrt(float(D))},
                                 c.attention_dropout);
  return linear(c, w["dense"], rearrange<"b t h d -> b t (h d)">(y), C, c.attention_bias);
}

inline Tensor mlp(const Config& c, Weights w, Tensor x) {  // (B, T, C)
  const Tensor h = activation(c.hidden_act, linear(c, w["dense_h_to_4h"], x, c.intermediate_size, true));
  return linear(c, w["dense_4h_to_h"], h, c.hidden_size, true);
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, T) -> (B, T, V)
  const int64_t T = ids.size(1), V = c.vocab_size, C = c.hidden_size, H = c.num_attention_heads;
  if (C % H) fail("gpt_neox: num_attention_heads: expected a divisor of hidden_size = ", C, ", got ", H);
  const int64_t D = C / H;
  const auto turned = int64_t(double(D) * c.rotary_pct);  // elements of a head
  if (turned < 2 || turned > D || turned % 2)
    fail("gpt_neox: rotary_pct: expected an even number of a head's ", C / H, " elements, got ", turned);
  if (c.old_rope_type.value_or(c.rope_type.value_or("")) == "dynamic" && T > c.max_position_embeddings)
    fail("gpt_neox: expected at most max_position_embeddings = ", c.max_position_embeddings, " tokens, got ", T,
         ": longer ones are not supported where rope_type is dynamic");
  const Rotation turn = rotation(ctx.positions(ids), frequencies(c, turned));
  const Weights base = w["gpt_neox"];
  const Tensor embed_in = base["embed_in"]("weight", {V, C}, normal(c.initializer_range));
  Tensor x = ctx.dropout(gather(embed_in, ids), c.hidden_dropout);  // (B, T, C)
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights layer = base["layers"][i];
    const Tensor y = attend(c, layer["attention"], norm(c, layer["input_layernorm"], x), ctx, turn);
    const Tensor mid = x + ctx.dropout(y, c.hidden_dropout), seen = c.use_parallel_residual ? x : mid;
    x = mid + ctx.dropout(mlp(c, layer["mlp"], norm(c, layer["post_attention_layernorm"], seen)), c.hidden_dropout);
  }
  x = ctx.last(ctx.keep("last_hidden_state", norm(c, base["final_layer_norm"], x)));
  return matmul(x,
                (c.tie_word_embeddings ? embed_in : w["embed_out"]("weight", {V, C}, normal(c.initializer_range))).t());
}

}  // namespace gpt_neox
