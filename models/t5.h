// T5: an encoder reads a text from both sides, and a decoder writes another one, attending to it; what attention knows
// of positions is a bias for how far apart two tokens are. Raffel et al. 2020, arXiv:1910.10683; v1.1, gated and untied,
// after Shazeer 2020, arXiv:2002.05202. Names are those of Hugging Face's T5ForConditionalGeneration.
#pragma once

#include "dense/dense.h"

namespace t5 {
using namespace dense;

struct Config {
  int vocab_size = 32128, d_model = 512, d_kv = 64, d_ff = 2048, num_layers = 6, num_heads = 8;  // t5-small
  std::optional<int> num_decoder_layers;                                                         // else num_layers
  int relative_attention_num_buckets = 32, relative_attention_max_distance = 128;
  std::string feed_forward_proj = "relu";
  std::optional<std::string> dense_act_fn;  // these two follow from feed_forward_proj
  std::optional<bool> is_gated_act;
  double dropout_rate = 0.1, layer_norm_epsilon = 1e-6, initializer_factor = 1;
  bool is_encoder_decoder = true, tie_word_embeddings = true;
  int decoder_start_token_id = 0, pad_token_id = 0;
  TokenIds eos_token_id{{1}};

  static constexpr const char* model_type = "t5";
  static constexpr const char* architecture = "T5ForConditionalGeneration";
  static constexpr const char* inert[] = {"n_positions"};  // of the first files: there is no longest text
  static constexpr const char* inert_tensors[] = {         // copies of what is tied; a bias that nothing adds
      "embed_tokens.weight", "lm_head.weight", "EncDecAttention.relative_attention_bias.weight"};
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("d_model", d_model, "width", 1);
    f("d_kv", d_kv, "width of a head", 1);
    f("d_ff", d_ff, "width inside the MLP", 1);
    f("num_layers", num_layers, "blocks of the encoder", 1);
    f("num_decoder_layers", num_decoder_layers, "blocks of the decoder; num_layers when it is not given", 1);
    f("num_heads", num_heads, "heads", 1);
    f("relative_attention_num_buckets", relative_attention_num_buckets, "classes of distances, each with a bias", 4);
    f("relative_attention_max_distance", relative_attention_max_distance, "distances from here on are of one class", 1);
    f("feed_forward_proj", feed_forward_proj, "of the MLP: an activation, or gated- and one");
    f("dense_act_fn", dense_act_fn, "the activation; follows from feed_forward_proj");
    f("is_gated_act", is_gated_act, "whether the MLP is gated; follows from feed_forward_proj");
    f("dropout_rate", dropout_rate, "dropout of embeddings, attention weights and what sublayers give, in training");
    f("layer_norm_epsilon", layer_norm_epsilon, "added to mean squares", 0);
    f("initializer_factor", initializer_factor, "all new weights are multiplied by it");
    f("is_encoder_decoder", is_encoder_decoder, "both; either alone is not supported");
    f("tie_word_embeddings", tie_word_embeddings, "use shared, by d_model^-0.5, for the output, too");
    f("decoder_start_token_id", decoder_start_token_id, "token that the decoder begins with", 0);
    f("pad_token_id", pad_token_id, "token after the end of a text", 0);
    f("eos_token_id", eos_token_id, "token, or tokens, that end a text");
  }
};

inline Tensor norm(const Config& c, Weights w, Tensor x) {
  return rms_norm(x, c.layer_norm_epsilon) * w("weight", {c.d_model}, Init{0, c.initializer_factor});
}

inline Tensor linear(const Config& c, Weights w, Tensor x, int64_t out, double fan) {  // weights (out, in)
  return matmul(x, w("weight", {out, x.size(-1)}, normal(c.initializer_factor / std::sqrt(fan))).t());
}

inline Tensor mlp(const Config& c, Weights layer, Tensor x, Context& ctx) {  // x (B, T, C) and what it makes of x
  const bool gated = c.feed_forward_proj.starts_with("gated-");
  const std::string name = c.feed_forward_proj.substr(gated ? 6 : 0), act = gated && name == "gelu" ? "gelu_new" : name;
  if (c.dense_act_fn.value_or(act) != act) fail("t5: dense_act_fn: expected ", act, ", got ", *c.dense_act_fn);
  if (c.is_gated_act.value_or(gated) != gated)
    fail("t5: is_gated_act: expected ", gated ? "true, got false" : "false, got true");
  const Weights w = layer["DenseReluDense"];
  const Tensor y = norm(c, layer["layer_norm"], x);
  Tensor h = activation(act, linear(c, w[gated ? "wi_0" : "wi"], y, c.d_ff, c.d_model));  // (B, T, d_ff)
  if (gated) h = h * linear(c, w["wi_1"], y, c.d_ff, c.d_model);
  return x + ctx.dropout(linear(c, w["wo"], ctx.dropout(h, c.dropout_rate), c.d_model, c.d_ff), c.dropout_rate);
}

// x (B, T, C) and what it attends to: itself, or a text (B, S, C). `all` makes new keys and values those that
// there are. Scores are not scaled; instead first weights of q are small.
inline Tensor attend(const Config& c, Weights layer, Tensor x, Tensor text, Tensor bias, Context& ctx, auto all) {
  const int64_t C = c.d_model, H = c.num_heads, D = c.d_kv;
  const Weights w = layer[text ? "EncDecAttention" : "SelfAttention"];
  const Tensor y = norm(c, layer["layer_norm"], x), seen = text ? text : y;
  const auto heads = [&](const char* name, Tensor from, int64_t fan) {  // (B, T, H, D)
    return rearrange<"b t (h d) -> b t h d", "h">(linear(c, w[name], from, H * D, double(fan)), H);
  };
  const Tensor q = heads("q", y, C * D), k = all(heads("k", seen, C)), v = all(heads("v", seen, C));
  Tensor scores = matmul(rearrange<"b t h d -> b h t d">(q), rearrange<"b s h d -> b h d s">(k));  // (B, H, T, S)
  if (bias) scores = scores + bias;
  const Tensor h = matmul(ctx.dropout(softmax(scores), c.dropout_rate), rearrange<"b s h d -> b h s d">(v));
  return x + ctx.dropout(linear(c, w["o"], rearrange<"b h t d -> b t (h d)">(h), C, double(H * D)), c.dropout_rate);
}

constexpr double unseen = -1e30;  // what is added to the scores of keys that are not to be seen

// The class of how far a query is behind a key. Short distances have buckets of their own, longer ones share them, on a
// scale of logarithms. Half of an encoder's are for keys that come later; a decoder sees none of these.
inline int32_t bucket(const Config& c, int64_t distance, bool decodes) {
  const int n = c.relative_attention_num_buckets / (decodes ? 1 : 2), exact = n / 2;
  const int64_t later = distance < 0 && !decodes ? n : 0, far = distance < 0 && decodes ? 0 : std::abs(distance);
  if (far < exact) return int32_t(later + far);
  const float share = std::log(float(far) / float(exact)) /
                      float(std::log(double(c.relative_attention_max_distance) / exact));  // as PyTorch rounds
  return int32_t(later + std::min<int64_t>(exact + int64_t(share * float(n - exact)), n - 1));
}

// Of queries at positions (T) or (B, T) to keys at 0 to S - 1: (H, T, S) or (B, H, T, S).
inline Tensor position_bias(const Config& c, Weights stack, Tensor positions, int64_t S, bool decodes) {
  const Weights w = stack["block"][0]["layer"][0]["SelfAttention"]["relative_attention_bias"];
  std::vector<int32_t> buckets;
  for (int64_t distance = 1 - S; distance < S; ++distance) buckets.push_back(bucket(c, distance, decodes));
  const Tensor classes = w.graph().input({2 * S - 1}, Dtype::i32, "buckets");
  classes.set<int32_t>(buckets);
  const Tensor table = w("weight", {c.relative_attention_num_buckets, c.num_heads},
                         normal(c.initializer_factor / std::sqrt(double(c.d_model))));
  const Tensor distance = rearrange<"... t -> ... t 1">(positions) - w.graph().counter({S}, Dtype::i32);  // (..., T, S)
  const Tensor bias = gather(gather(table, classes), cast(distance + double(S - 1), Dtype::i32));
  const Tensor by_head = rearrange<"... t s h -> ... h t s">(bias);
  return decodes ? by_head + rearrange<"... t s -> ... 1 t s">(where(less(distance, 0), unseen, 0)) : by_head;
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, S) and (B, T) -> (B, T, V)
  if (!c.is_encoder_decoder) fail("t5: is_encoder_decoder: expected true, got false");
  if (c.relative_attention_max_distance <= c.relative_attention_num_buckets / 2)  // where a decoder's shared ones begin
    fail("t5: relative_attention_max_distance: expected more than half of relative_attention_num_buckets = ",
         c.relative_attention_num_buckets, ", got ", c.relative_attention_max_distance);
  const int64_t V = c.vocab_size, C = c.d_model, S = ids.size(1);
  const Weights encoder = w["encoder"], decoder = w["decoder"];
  const Tensor shared = w["shared"]("weight", {V, C}, normal(c.initializer_factor));
  Tensor x = ctx.dropout(gather(shared, ids), c.dropout_rate);  // (B, S, C)
  Tensor bias = position_bias(c, encoder, ctx.positions(ids), S, false), padding;
  if (const Tensor real = ctx.real(ids)) padding = where(reshape(real, {-1, 1, 1, S}), 0, unseen);
  if (padding) bias = bias + padding;  // (B, H, S, S)
  for (int i = 0; i < c.num_layers; ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights layer = encoder["block"][i]["layer"];
    x = mlp(c, layer[1], attend(c, layer[0], x, {}, bias, ctx, std::identity()), ctx);
  }
  x = ctx.dropout(norm(c, encoder["final_layer_norm"], x), c.dropout_rate);
  const Tensor text = ctx.keep("encoder_last_hidden_state", x);

  const auto earlier = [&](Tensor k) { return ctx.with_earlier(k); };
  const auto once = [&](Tensor k) { return ctx.once(k); };
  x = ctx.dropout(gather(shared, ctx.decoder_ids), c.dropout_rate);  // (B, T, C)
  bias = position_bias(c, decoder, ctx.positions(ctx.decoder_ids), ctx.keys(ctx.decoder_ids), true);
  for (int i = 0; i < c.num_decoder_layers.value_or(c.num_layers); ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights layer = decoder["block"][i]["layer"];
    x = attend(c, layer[0], x, {}, bias, ctx, earlier);
    x = mlp(c, layer[2], attend(c, layer[1], x, text, padding, ctx, once), ctx);
  }
  x = ctx.keep("last_hidden_state", ctx.dropout(norm(c, decoder["final_layer_norm"], x), c.dropout_rate));
  if (!c.tie_word_embeddings) return matmul(x, w["lm_head"]("weight", {V, C}, normal(c.initializer_factor)).t());
  return matmul(x * (1 / std::sqrt(double(C))), shared.t());
}

}  // namespace t5
