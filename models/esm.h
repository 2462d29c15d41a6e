// ESM-2, and ESM-1b: an encoder of proteins that sees them from both sides, with rotary or learned positions, a
// LayerNorm before each sublayer, and masked residues that count as dropped out. Lin et al. 2023,
// doi:10.1126/science.ade2574; Rives et al. 2021, doi:10.1073/pnas.2016239118. Names are those of Hugging Face's
// EsmForMaskedLM.
#pragma once

#include "dense/dense.h"

namespace esm {
using namespace dense;

struct Config {  // where a file lacks a field, what Hugging Face takes; ESM-2 is rotary, with token_dropout and 1e-5
  int vocab_size = 33, hidden_size = 768, intermediate_size = 3072, num_hidden_layers = 12, num_attention_heads = 12;
  int max_position_embeddings = 1026, mask_token_id = 32, pad_token_id = 1;
  std::string position_embedding_type = "absolute";
  double hidden_dropout_prob = 0.1, attention_probs_dropout_prob = 0, layer_norm_eps = 1e-12, initializer_range = 0.02;
  bool emb_layer_norm_before = false, token_dropout = false, is_decoder = false, tie_word_embeddings = true;

  static constexpr const char* model_type = "esm";
  static constexpr const char* architecture = "EsmForMaskedLM";
  static constexpr bool causal = false;       // scored on each label where it stands
  static constexpr const char* base = "esm";  // the prefix that files may lack
  // Fields without an effect here: hidden_act, too, since the activation is always gelu.
  static constexpr const char* inert[] = {"hidden_act", "vocab_list", "esmfold_config"};
  static constexpr const char* inert_tensors[] = {"embeddings.position_ids", "rotary_embeddings.inv_freq",
                                                  "pooler.dense.weight",     "pooler.dense.bias",
                                                  "lm_head.decoder.weight",  "lm_head.decoder.bias"};
  // Parameters that the logits do not depend on, which files may hold; the first is one where positions are rotary.
  static constexpr const char* unreached[] = {"esm.embeddings.position_embeddings.weight",
                                              "esm.contact_head.regression.weight", "esm.contact_head.regression.bias"};
  int context() const {  // absolute positions begin behind pad_token_id
    return position_embedding_type == "absolute" ? max_position_embeddings - pad_token_id - 1 : max_position_embeddings;
  }
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary: residues and some more", 1);
    f("hidden_size", hidden_size, "width", 1);
    f("intermediate_size", intermediate_size, "width inside the MLP", 1);
    f("num_hidden_layers", num_hidden_layers, "blocks", 1);
    f("num_attention_heads", num_attention_heads, "heads; must divide hidden_size", 1);
    f("max_position_embeddings", max_position_embeddings, "longest sequence, and pad_token_id + 1 more if absolute", 1);
    f("position_embedding_type", position_embedding_type, "rotary or absolute");
    f("emb_layer_norm_before", emb_layer_norm_before, "a norm of the embeddings");
    f("token_dropout", token_dropout, "masks are zeros, and other tokens as large as they were on average in training");
    f("mask_token_id", mask_token_id, "token in place of one to be guessed", 0);
    f("pad_token_id", pad_token_id, "token after the end of a text, which absolute positions leave out", 0);
    f("hidden_dropout_prob", hidden_dropout_prob, "dropout of each sublayer's result, in training");
    f("attention_probs_dropout_prob", attention_probs_dropout_prob, "dropout of attention weights, in training");
    f("layer_norm_eps", layer_norm_eps, "added to variances", 0);
    f("initializer_range", initializer_range, "standard deviation of new weights");
    f("is_decoder", is_decoder, "see only what came before: not supported");
    f("tie_word_embeddings", tie_word_embeddings, "use word_embeddings for the output, too");
  }
};

// copied from bert.h: norm
inline Tensor norm(const Config& c, Weights w, Tensor x) {
  return layer_norm(x, c.layer_norm_eps) * w("weight", {c.hidden_size}, ones) + w("bias", {c.hidden_size}, zeros);
}

// copied from bert.h: linear
inline Tensor linear(const Config& c, Weights w, Tensor x, int64_t out) {  // weights (out, in)
  return matmul(x, w("weight", {out, x.size(-1)}, normal(c.initializer_range)).t()) + w("bias", {out}, zeros);
}

// From both sides: each token sees all real ones of its row. Queries and keys are turned where positions are rotary.
inline Tensor attend(const Config& c, Weights w, Tensor x, Context& ctx, const std::optional<Rotation>& turn) {
  const int64_t C = c.hidden_size, H = c.num_attention_heads;
  const auto heads = [&](const char* name) {  // (B, T, H, D)
    return rearrange<"b t (h d) -> b t h d", "h">(linear(c, w["self"][name], x, C), H);
  };
  Tensor q = heads("query"), k = heads("key");
  if (turn) q = rope(q, *turn), k = rope(k, *turn);
  const Tensor y = ctx.attention(q, k, heads("value"), {.scale = 1 / std::sqrt(float(q.size(3))), .causal = false},
                                 c.attention_probs_dropout_prob);
  return ctx.dropout(linear(c, w["output"]["dense"], rearrange<"b t h d -> b t (h d)">(y), C), c.hidden_dropout_prob);
}

inline Tensor mlp(const Config& c, Weights w, Tensor x, Context& ctx) {  // (B, T, C)
  const Tensor h = gelu(linear(c, w["intermediate"]["dense"], x, c.intermediate_size));
  return ctx.dropout(linear(c, w["output"]["dense"], h, c.hidden_size), c.hidden_dropout_prob);
}

// By what token_dropout multiplies each embedding. In training 15 % of the tokens were to be guessed and 80 % of those
// were masks: so much was missing there, and a row with more or fewer masks is to be as large.
inline Tensor rescale(const Config& c, Tensor ids, const Context& ctx) {  // (B, T, 1)
  const int64_t B = ids.size(0), T = ids.size(1);
  const Tensor masked = equal(ids, c.mask_token_id), masks = sum(masked, {1});  // (B, T), (B)
  const Tensor share = ctx.lengths ? masks / max(ctx.lengths, 1) : masks / double(T);
  return reshape(where(masked, 0, (1 - 0.15 * 0.8) / (1 - reshape(share, {B, 1}))), {B, T, 1});
}

// Where absolute positions, unless they are given, are counted from 1 in tokens other than padding, above pad_token_id,
// which padding has.
inline Tensor absolute_positions(const Config& c, Tensor ids, const Context& ctx) {  // (B, T) i32
  if (ctx.position_ids) return ctx.position_ids;
  const int64_t B = ids.size(0), T = ids.size(1);
  const Tensor real = 1 - equal(ids, c.pad_token_id), t = ids.graph().counter({T});
  const Tensor before = where(less(reshape(t, {T, 1}), t), 0, reshape(real, {B, 1, T}));  // (B, T, T)
  return cast(sum(before, {2}) * real + double(c.pad_token_id), Dtype::i32);
}

inline Tensor embed(const Config& c, Weights w, Tensor words, Tensor ids, const Context& ctx) {  // (B, T, C)
  Tensor x = gather(words, ids, c.pad_token_id);
  if (c.token_dropout) x = x * rescale(c, ids, ctx);
  if (c.position_embedding_type == "absolute")
    x = x + gather(w["position_embeddings"]("weight", {c.max_position_embeddings, c.hidden_size},
                                            normal(c.initializer_range)),
                   absolute_positions(c, ids, ctx), c.pad_token_id);
  return c.emb_layer_norm_before ? norm(c, w["layer_norm"], x) : x;
}

inline void check(const Config& c, Tensor ids) {
  const int64_t T = ids.size(1), C = c.hidden_size, H = c.num_attention_heads;
  const bool absolute = c.position_embedding_type == "absolute";
  if (!absolute && c.position_embedding_type != "rotary")
    fail("esm: position_embedding_type: expected rotary or absolute, got ", c.position_embedding_type);
  if (absolute && T > c.context())
    fail("esm: expected at most max_position_embeddings - pad_token_id - 1 = ", c.context(), " tokens, got ", T);
  if (C % H) fail("esm: num_attention_heads: expected a divisor of hidden_size = ", C, ", got ", H);
  if (!absolute && C / H % 2) fail("esm: num_attention_heads: expected heads of even size, got ", C / H);
  if (c.is_decoder) fail("esm: is_decoder: expected false, got true");
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, T) -> (B, T, V)
  check(c, ids);
  const int64_t V = c.vocab_size, C = c.hidden_size;
  const Weights base = w["esm"], head = w["lm_head"];
  const Tensor words = base["embeddings"]["word_embeddings"]("weight", {V, C}, normal(c.initializer_range));
  std::optional<Rotation> turn;
  if (c.position_embedding_type == "rotary")  // Hugging Face's know of no position_ids
    turn = rotation(ids.graph().counter({ids.size(1)}), rope_frequencies(C / c.num_attention_heads, 10000));
  Tensor x = embed(c, base["embeddings"], words, ids, ctx);  // (B, T, C)
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights layer = base["encoder"]["layer"][i], attention = layer["attention"];
    x = x + attend(c, attention, norm(c, attention["LayerNorm"], x), ctx, turn);
    x = x + mlp(c, layer, norm(c, layer["LayerNorm"], x), ctx);
  }
  x = ctx.last(ctx.keep("last_hidden_state", norm(c, base["encoder"]["emb_layer_norm_after"], x)));
  const Tensor h = norm(c, head["layer_norm"], gelu(linear(c, head["dense"], x, C)));
  const Tensor decoder = c.tie_word_embeddings ? words : head["decoder"]("weight", {V, C}, normal(c.initializer_range));
  return matmul(h, decoder.t()) + head("bias", {V}, zeros);
}

}  // namespace esm
