// Phi-3: Llama whose products that read the same thing are one, of whose heads a part may be turned, and whose
// frequencies have factors found by search, for texts as long as those first trained on and for longer ones.
// Microsoft 2024, arXiv:2404.14219; the factors: Ding et al. 2024, arXiv:2402.13753. Names are those of Hugging Face's
// Phi3ForCausalLM.
#pragma once

#include "dense/dense.h"

namespace phi3 {
using namespace dense;

struct Config {
  int vocab_size = 32064, hidden_size = 3072, intermediate_size = 8192, num_hidden_layers = 32;  // Phi-3 mini
  int num_attention_heads = 32, max_position_embeddings = 4096, original_max_position_embeddings = 4096;
  std::optional<int> num_key_value_heads, sliding_window;  // else num_attention_heads, none
  std::string hidden_act = "silu";
  double rms_norm_eps = 1e-5, rope_theta = 10000, partial_rotary_factor = 1, initializer_range = 0.02;
  double resid_pdrop = 0, embd_pdrop = 0, attention_dropout = 0;
  bool tie_word_embeddings = false;
  TokenIds bos_token_id{{1}}, eos_token_id{{32000}}, pad_token_id{{32000}};
  std::optional<std::string> rope_type, old_rope_type;  // else default
  std::optional<std::vector<float>> short_factor, long_factor;
  std::optional<double> attention_factor;

  static constexpr const char* model_type = "phi3";
  static constexpr const char* architecture = "Phi3ForCausalLM";
  static constexpr bool causal = true;          // scored on the token that comes next
  static constexpr const char* base = "model";  // the prefix that files may lack
  static constexpr const char* inert[] = {"rope_scaling.factor", "rope_scaling.original_max_position_embeddings"};
  static constexpr const char* inert_tensors[] = {"rotary_emb.inv_freq", "lm_head.weight"};
  int context() const { return max_position_embeddings; }
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("hidden_size", hidden_size, "width", 1);
    f("intermediate_size", intermediate_size, "width inside the MLP", 1);
    f("num_hidden_layers", num_hidden_layers, "blocks", 1);
    f("num_attention_heads", num_attention_heads, "heads of queries; must divide hidden_size", 1);
    f("num_key_value_heads", num_key_value_heads, "heads of keys and values; must divide num_attention_heads", 1);
    f("sliding_window", sliding_window, "tokens that one sees, itself and those before; null: all of them", 1);
    f("max_position_embeddings", max_position_embeddings, "longest sequence", 1);
    f("original_max_position_embeddings", original_max_position_embeddings, "longest sequence first trained on", 1);
    f("hidden_act", hidden_act, "of the MLP's gate");
    f("rms_norm_eps", rms_norm_eps, "added to mean squares", 0);
    f("rope_theta", rope_theta, "the slowest pair turns by about 1 in so many tokens", 0);
    f("partial_rotary_factor", partial_rotary_factor, "share of a head's elements that are turned", 0);
    f("rope_scaling.rope_type", rope_type, "frequencies: default or longrope");
    f("rope_scaling.type", old_rope_type, "the same, as older files name it; su and yarn are longrope here");
    f("rope_scaling.short_factor", short_factor, "longrope: how much slower each pair turns in short texts", 0);
    f("rope_scaling.long_factor", long_factor, "the same in those longer than original_max_position_embeddings", 0);
    f("rope_scaling.attention_factor", attention_factor, "longrope: of what is turned; else found from both lengths");
    f("resid_pdrop", resid_pdrop, "dropout of each sublayer's result, in training");
    f("embd_pdrop", embd_pdrop, "dropout of the embeddings, in training");
    f("attention_dropout", attention_dropout, "dropout of attention weights, in training");
    f("initializer_range", initializer_range, "standard deviation of new weights");
    f("tie_word_embeddings", tie_word_embeddings, "use embed_tokens for the output, too");
    f("bos_token_id", bos_token_id, "token that begins a text");
    f("eos_token_id", eos_token_id, "token, or tokens, that end one");
    f("pad_token_id", pad_token_id, "token after the end of one");
  }
};

// How the first n elements of a head are turned. Which factors: a matter of the whole text's length, which is known but
// where a cache has room for more than one sort of them.
inline Rotation turns(const Config& c, Tensor ids, const Context& ctx, int64_t n) {
  std::vector<float> f = rope_frequencies(n, c.rope_theta);
  const std::string type = c.old_rope_type.value_or(c.rope_type.value_or("default"));
  if (type == "default") return rotation(ctx.positions(ids), f);
  if (type != "longrope" && type != "su" && type != "yarn")
    fail("phi3: rope_scaling.rope_type: expected default, longrope, su or yarn, got ", type);
  if (ctx.position_ids) fail("phi3: position_ids are not supported where rope_type is ", type);
  const double most = c.max_position_embeddings, original = c.original_max_position_embeddings;
  const bool is_long = (ctx.cache ? ctx.cache->capacity : ids.size(1)) > c.original_max_position_embeddings;
  if (ctx.cache && is_long)
    fail("phi3: generation of more than original_max_position_embeddings = ", original,
         " tokens, prompt included, is not supported where rope_type is ", type);
  const char* const name = is_long ? "long_factor" : "short_factor";
  const auto& factors = is_long ? c.long_factor : c.short_factor;
  if (!factors || factors->size() != f.size())
    fail("phi3: rope_scaling.", name, ": expected ", f.size(), " numbers, got ", factors ? factors->size() : 0);
  for (size_t i = 0; i < f.size(); ++i)  // rounded where PyTorch rounds
    f[i] = 1 / ((*factors)[i] * float(std::pow(c.rope_theta, double(float(2 * i) / float(n)))));
  const double found = most > original ? std::sqrt(1 + std::log(most / original) / std::log(original)) : 1;
  const Rotation turn = rotation(ctx.positions(ids), f);
  return {turn.cos * c.attention_factor.value_or(found), turn.sin * c.attention_factor.value_or(found)};
}

// The first elements of each head turned, as many as there are angles for.
inline Tensor partly_turned(Tensor x, const Rotation& turn) {  // (B, T, H, D)
  const int64_t n = 2 * turn.cos.size(-1), D = x.size(3);
  return n == D ? rope(x, turn) : concat(std::array{rope(slice(x, 3, 0, n), turn), slice(x, 3, n, D)}, 3);
}

// copied from llama.h: norm
inline Tensor norm(const Config& c, Weights w, Tensor x) {
  return rms_norm(x, c.rms_norm_eps) * w("weight", {c.hidden_size}, ones);
}

// copied from mistral.h: linear
inline Tensor linear(const Config& c, Weights w, Tensor x, int64_t out) {  // weights (out, in)
  return matmul(x, w("weight", {out, x.size(-1)}, normal(c.initializer_range)).t());
}

inline Tensor attend(const Config& c, Weights w, Tensor x, Context& ctx, const Rotation& turn) {
  const int64_t H = c.num_attention_heads, H_kv = c.num_key_value_heads.value_or(c.num_attention_heads);
  if (H % H_kv) fail("phi3: num_key_value_heads: expected a divisor of num_attention_heads = ", H, ", got ", H_kv);
  const int64_t D = c.hidden_size / H, all = H + 2 * H_kv;
  const Tensor qkv = rearrange<"b t (h d) -> b t h d", "h">(linear(c, w["qkv_proj"], x, all * D), all);
  const Tensor q = partly_turned(slice(qkv, 2, 0, H), turn), k = partly_turned(slice(qkv, 2, H, H + H_kv), turn);
  const Tensor v = slice(qkv, 2, H + H_kv, all);  // (B, T, H_kv, D)
  const Tensor y = ctx.attention(q, k, v, {.scale = 1 / std::sqrt(float(D)), .window = c.sliding_window.value_or(0)},
                                 c.attention_dropout);
  return linear(c, w["o_proj"], rearrange<"b t h d -> b t (h d)">(y), c.hidden_size);  // y (B, T, H, D)
}

inline Tensor mlp(const Config& c, Weights w, Tensor x) {  // (B, T, C)
  const auto [gate, up] =
      split<2>(rearrange<"b t (s i) -> s b t i", "s">(linear(c, w["gate_up_proj"], x, 2 * c.intermediate_size), 2));
  return linear(c, w["down_proj"], activation(c.hidden_act, gate) * up, c.hidden_size);
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, T) -> (B, T, V)
  const int64_t V = c.vocab_size, C = c.hidden_size, H = c.num_attention_heads;
  if (C % H) fail("phi3: num_attention_heads: expected a divisor of hidden_size = ", C, ", got ", H);
  const int64_t D = C / H;
  const auto turned = int64_t(double(D) * c.partial_rotary_factor);  // elements of a head
  if (turned < 2 || turned > D || turned % 2)
    fail("phi3: partial_rotary_factor: expected an even number of a head's ", C / H, " elements, got ", turned);
  const Rotation turn = turns(c, ids, ctx, turned);
  const Weights base = w["model"];
  const Tensor embed_tokens = base["embed_tokens"]("weight", {V, C}, normal(c.initializer_range));
  Tensor x = ctx.dropout(gather(embed_tokens, ids, c.pad_token_id.first()), c.embd_pdrop);  // (B, T, C)
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights layer = base["layers"][i];
    const Tensor y = attend(c, layer["self_attn"], norm(c, layer["input_layernorm"], x), ctx, turn);
    x = x + ctx.dropout(y, c.resid_pdrop);
    x = x + ctx.dropout(mlp(c, layer["mlp"], norm(c, layer["post_attention_layernorm"], x)), c.resid_pdrop);
  }
  x = ctx.last(ctx.keep("last_hidden_state", norm(c, base["norm"], x)));
  return matmul(
      x, (c.tie_word_embeddings ? embed_tokens : w["lm_head"]("weight", {V, C}, normal(c.initializer_range))).t());
}

}  // namespace phi3
