// DeBERTa-v2 and v3: an encoder whose attention looks apart at what two tokens are and at how far from each other they
// stand, in the largest ones with a convolution beside the first block. He et al. 2021, arXiv:2006.03654; v3: He et al.
// 2023, arXiv:2111.09543. Names are those of Hugging Face's DebertaV2ForMaskedLM.
#pragma once

#include "dense/dense.h"

namespace deberta_v2 {
using namespace dense;

struct Config {  // where a file lacks a field, what Hugging Face takes; published ones have relative_attention
  int vocab_size = 128100, hidden_size = 1536, intermediate_size = 6144, num_hidden_layers = 24;
  int num_attention_heads = 24, max_position_embeddings = 512, type_vocab_size = 0, position_buckets = -1;
  int max_relative_positions = -1, conv_kernel_size = 0, conv_groups = 1;
  std::string hidden_act = "gelu", norm_rel_ebd = "none", conv_act = "tanh";
  std::vector<std::string> pos_att_type;
  double hidden_dropout_prob = 0.1, attention_probs_dropout_prob = 0.1, layer_norm_eps = 1e-7, initializer_range = 0.02;
  bool relative_attention = false, position_biased_input = true, share_att_key = false, legacy = true;
  bool tie_word_embeddings = true;
  TokenIds pad_token_id{{0}};

  static constexpr const char* model_type = "deberta-v2";
  static constexpr const char* architecture = "DebertaV2ForMaskedLM";
  static constexpr bool causal = false;           // scored on each label where it stands
  static constexpr const char* base = "deberta";  // the prefix that files may lack
  static constexpr const char* inert[] = {"pooler_dropout", "pooler_hidden_act", "pooler_hidden_size", "cls_dropout"};
  // Other heads', and copies of what is tied.
  static constexpr const char* inert_tensors[] = {
      "position_ids",    "position_embeddings.weight", "decoder.weight", "decoder.bias",
      "lm_predictions.", "mask_predictions.",          "pooler."};
  // Parameters that the logits do not depend on, which files may hold, where relative_attention is false.
  static constexpr const char* unreached[] = {"deberta.encoder.LayerNorm.weight", "deberta.encoder.LayerNorm.bias"};
  int context() const { return max_position_embeddings; }
  int farthest() const { return max_relative_positions < 1 ? max_position_embeddings : max_relative_positions; }
  int span() const { return position_buckets > 0 ? position_buckets : farthest(); }  // rows for each direction
  bool has(const char* type) const { return std::ranges::count(pos_att_type, type) > 0; }
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("hidden_size", hidden_size, "width", 1);
    f("intermediate_size", intermediate_size, "width inside the MLP", 1);
    f("num_hidden_layers", num_hidden_layers, "blocks", 1);
    f("num_attention_heads", num_attention_heads, "heads; must divide hidden_size", 1);
    f("max_position_embeddings", max_position_embeddings, "longest sequence", 1);
    f("type_vocab_size", type_vocab_size, "types of tokens; 0: none", 0);
    f("position_biased_input", position_biased_input, "add learned positions to the embeddings");
    f("relative_attention", relative_attention, "attend to distances, too, as pos_att_type says");
    f("pos_att_type", pos_att_type, "c2p: from what a query is to where a key stands; p2c: the reverse; or both");
    f("share_att_key", share_att_key, "project distances like tokens");
    f("position_buckets", position_buckets, "rows of distances for each direction; below 1: one for each distance");
    f("max_relative_positions", max_relative_positions, "the farthest distance; below 1: max_position_embeddings");
    f("norm_rel_ebd", norm_rel_ebd, "of the rows of distances: layer_norm or none");
    f("conv_kernel_size", conv_kernel_size, "tokens that a convolution beside the first block sees; 0: none", 0);
    f("conv_groups", conv_groups, "groups of its channels; must divide hidden_size", 1);
    f("conv_act", conv_act, "its activation");
    f("hidden_act", hidden_act, "of the MLP and of the head");
    f("hidden_dropout_prob", hidden_dropout_prob, "dropout of embeddings and of sublayers' results, in training");
    f("attention_probs_dropout_prob", attention_probs_dropout_prob, "dropout of attention weights, in training");
    f("layer_norm_eps", layer_norm_eps, "added to variances", 0);
    f("initializer_range", initializer_range, "standard deviation of new weights");
    f("legacy", legacy, "the head is cls.predictions; false: lm_predictions.lm_head, always tied");
    f("tie_word_embeddings", tie_word_embeddings, "use word_embeddings for the output, too");
    f("pad_token_id", pad_token_id, "token after the end of a text");
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

// A sublayer's end: its result y, projected, beside what it was given.
inline Tensor add(const Config& c, Weights w, Tensor x, Tensor y, Context& ctx) {  // (B, T, C)
  return norm(c, w["LayerNorm"], x + ctx.dropout(linear(c, w["dense"], y, c.hidden_size), c.hidden_dropout_prob));
}

// Of a table's rows for distances those for -T .. T - 1, or with sign -1 for T .. 1 - T. Near distances have rows of
// their own, far ones share them in steps of equal ratio: in float as in Hugging Face, since ceil makes a step of an ulp.
inline Tensor rows_of_distances(const Config& c, Tensor table, int64_t T, int64_t sign) {  // (1, 2T, C)
  const auto span = float(c.span()), middle = std::floor(float(c.position_buckets) / 2);
  std::vector<int32_t> rows;
  for (int64_t distance = -T; distance < T; ++distance) {
    auto row = float(std::abs(distance));
    if (middle > 0 && row > middle)
      row = middle + std::ceil(std::log(row / middle) / std::log(float(c.farthest() - 1) / middle) * (middle - 1));
    rows.push_back(int32_t(std::min(std::max(0.0f, distance * sign < 0 ? span - row : span + row), 2 * span - 1)));
  }
  const Tensor ids = table.graph().input({1, 2 * T}, Dtype::i32);
  ids.set(std::span<const int32_t>(rows));
  return gather(table, ids);
}

// x[t] . rows[d + T] for d = u - t, at [t, u]. Nothing is copied: behind its first T elements, a row of all distances
// that is taken for one element shorter begins with the one for u = 0.
inline Tensor by_distance(Tensor x, Tensor rows) {  // (B, H, T, D), (1, H, 2T, D) -> (B, H, T, T)
  const int64_t B = x.size(0), H = x.size(1), T = x.size(2);
  const Tensor all = reshape(matmul(x, rows.t()), {B, H, 2 * T * T});
  return slice(reshape(slice(all, 2, T, 2 * T * T), {B, H, T, 2 * T - 1}), 3, 0, T);
}

// Disentangled attention: scores are the products of what a query and a key are, of what a query is and how far away the
// key, and of how far away the query and what a key is. ahead, back (1, 2T, C): rows for these distances, or none.
inline Tensor attend(const Config& c, Weights w, Tensor x, Tensor real, Tensor ahead, Tensor back, Context& ctx) {
  const int64_t T = x.size(1), C = c.hidden_size, H = c.num_attention_heads;
  const auto heads = [&](const std::string& name, Tensor y) {  // (B, T, C) -> (B, H, T, D)
    return rearrange<"b t (h d) -> b h t d", "h">(linear(c, w[name], y, C), H);
  };
  const std::string own = c.share_att_key ? "" : "pos_";
  const Tensor q = heads("query_proj", x), k = heads("key_proj", x), v = heads("value_proj", x);
  Tensor scores = matmul(q, k.t());  // (B, H, T, T)
  if (ahead) scores = scores + by_distance(q, heads(own + "key_proj", ctx.dropout(ahead, c.hidden_dropout_prob)));
  if (back) scores = scores + by_distance(k, heads(own + "query_proj", ctx.dropout(back, c.hidden_dropout_prob))).t();
  scores = scores * (1 / std::sqrt(float(q.size(3)) * float(1 + c.has("c2p") + c.has("p2c"))));
  if (real) scores = where(reshape(real, {-1, 1, 1, T}), scores, -1e30);
  return rearrange<"b h t d -> b t (h d)">(matmul(ctx.dropout(softmax(scores), c.attention_probs_dropout_prob), v));
}

inline void check(const Config& c, int64_t T) {
  const int64_t C = c.hidden_size, H = c.num_attention_heads, most = 2 * c.farthest() - 3, buckets = c.position_buckets;
  const auto expect = [](bool holds, const char* name, const std::string& expected, const auto& got) {
    if (!holds) fail("deberta_v2: ", name, ": expected ", expected, ", got ", got);
  };
  if (c.position_biased_input && T > c.max_position_embeddings)
    fail("deberta_v2: expected at most max_position_embeddings = ", c.max_position_embeddings, " tokens, got ", T);
  expect(C % H == 0, "num_attention_heads", text("a divisor of hidden_size = ", C), H);
  for (const std::string& type : c.pos_att_type)
    expect(type.empty() || type == "c2p" || type == "p2c", "pos_att_type", "c2p and p2c", type);
  const bool known = c.norm_rel_ebd == "none" || c.norm_rel_ebd == "layer_norm";
  expect(known, "norm_rel_ebd", "none or layer_norm", c.norm_rel_ebd);
  const bool fits = buckets != 1 && (buckets <= most || T <= buckets / 2 + 1);
  expect(fits, "position_buckets", text("2 to ", most, ", or 0"), buckets);
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, T) -> (B, T, V)
  const int64_t T = ids.size(1), V = c.vocab_size, C = c.hidden_size;
  check(c, T);
  const Weights base = w["deberta"], embeddings = base["embeddings"], encoder = base["encoder"], conv = encoder["conv"];
  const auto table = [&](Weights at, int64_t n) { return at("weight", {n, C}, normal(c.initializer_range)); };
  const Tensor words = table(embeddings["word_embeddings"], V), real = ctx.real(ids);  // real (B, T)
  Tensor x = gather(words, ids, c.pad_token_id.first());                               // (B, T, C)
  if (c.position_biased_input)
    x = x + ctx.at_positions(table(embeddings["position_embeddings"], c.max_position_embeddings), ids);
  if (c.type_vocab_size > 0) x = x + ctx.at_types(table(embeddings["token_type_embeddings"], c.type_vocab_size));
  x = norm(c, embeddings["LayerNorm"], x);
  x = ctx.dropout(real ? x * reshape(real, {-1, T, 1}) : x, c.hidden_dropout_prob);
  Tensor embedded = x, ahead, back;  // (B, T, C), and (1, 2T, C) or none
  if (c.relative_attention) {
    Tensor distances = table(encoder["rel_embeddings"], 2 * c.span());
    if (c.norm_rel_ebd == "layer_norm") distances = norm(c, encoder["LayerNorm"], distances);
    if (c.has("c2p")) ahead = rows_of_distances(c, distances, T, -1);
    if (c.has("p2c")) back = rows_of_distances(c, distances, T, 1);
  }
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights layer = encoder["layer"][i], attention = layer["attention"];
    x = add(c, attention["output"], x, attend(c, attention["self"], x, real, ahead, back, ctx), ctx);
    const Tensor h = activation(c.hidden_act, linear(c, layer["intermediate"]["dense"], x, c.intermediate_size));
    x = add(c, layer["output"], x, h, ctx);
    if (i > 0 || c.conv_kernel_size == 0) continue;
    const Tensor taps = conv["conv"]("weight", {C, C / c.conv_groups, c.conv_kernel_size}, normal(c.initializer_range));
    const Tensor near = conv1d(embedded, taps) + conv["conv"]("bias", {C}, zeros);
    x = norm(c, conv["LayerNorm"], x + activation(c.conv_act, ctx.dropout(near, c.hidden_dropout_prob)));
  }
  x = ctx.last(ctx.keep("last_hidden_state", x));
  const Weights head = c.legacy ? w["cls"]["predictions"] : w["lm_predictions"]["lm_head"];
  const Weights transform = c.legacy ? head["transform"] : head;
  x = norm(c, transform["LayerNorm"], activation(c.hidden_act, linear(c, transform["dense"], x, C)));
  const Tensor decoder = c.tie_word_embeddings || !c.legacy ? words : table(head["decoder"], V);
  return matmul(x, decoder.t()) + head("bias", {V}, zeros);
}

}  // namespace deberta_v2
