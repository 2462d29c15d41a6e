// BERT: an encoder that sees texts from both sides, with learned positions, a type for each token and a LayerNorm after
// each sublayer, asked for tokens that were masked. Devlin et al. 2018, arXiv:1810.04805. Names are those of Hugging
// Face's BertForMaskedLM.
#pragma once

#include "dense/dense.h"

namespace bert {
using namespace dense;

struct Config {
  int vocab_size = 30522, hidden_size = 768, intermediate_size = 3072, num_hidden_layers = 12;  // bert-base-uncased
  int num_attention_heads = 12, max_position_embeddings = 512, type_vocab_size = 2;
  std::string hidden_act = "gelu", position_embedding_type = "absolute";
  double hidden_dropout_prob = 0.1, attention_probs_dropout_prob = 0, layer_norm_eps = 1e-12, initializer_range = 0.02;
  bool is_decoder = false, tie_word_embeddings = true;
  TokenIds pad_token_id{{0}};

  static constexpr const char* model_type = "bert";
  static constexpr const char* architecture = "BertForMaskedLM";
  static constexpr bool causal = false;        // scored on each label where it stands
  static constexpr const char* base = "bert";  // the prefix that files may lack
  static constexpr const char* inert[] = {     // fields without an effect here
      "directionality",       "pooler_fc_size",       "pooler_num_attention_heads",
      "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"};
  static constexpr const char* inert_tensors[] = {  // those of other heads, and copies of what is tied
      "embeddings.position_ids",     "pooler.dense.weight",       "pooler.dense.bias",
      "cls.seq_relationship.weight", "cls.seq_relationship.bias", "cls.predictions.decoder.weight",
      "cls.predictions.decoder.bias"};
  int context() const { return max_position_embeddings; }
  void fields(auto&& f) {
    f("vocab_size", vocab_size, "tokens in the vocabulary", 1);
    f("hidden_size", hidden_size, "width", 1);
    f("intermediate_size", intermediate_size, "width inside the MLP", 1);
    f("num_hidden_layers", num_hidden_layers, "blocks", 1);
    f("num_attention_heads", num_attention_heads, "heads; must divide hidden_size", 1);
    f("max_position_embeddings", max_position_embeddings, "longest sequence", 1);
    f("type_vocab_size", type_vocab_size, "types of tokens, such as those of a first and a second sentence", 1);
    f("hidden_act", hidden_act, "of the MLP and of the head");
    f("position_embedding_type", position_embedding_type, "absolute; others are not supported");
    f("hidden_dropout_prob", hidden_dropout_prob,
      "dropout of the embeddings and of each sublayer's result, in training");
    f("attention_probs_dropout_prob", attention_probs_dropout_prob, "dropout of attention weights, in training");
    f("layer_norm_eps", layer_norm_eps, "added to variances", 0);
    f("initializer_range", initializer_range, "standard deviation of new weights");
    f("is_decoder", is_decoder, "see only what came before: not supported");
    f("tie_word_embeddings", tie_word_embeddings, "use word_embeddings for the output, too");
    f("pad_token_id", pad_token_id, "token after the end of a text");
  }
};

inline Tensor norm(const Config& c, Weights w, Tensor x) {
  return layer_norm(x, c.layer_norm_eps) * w("weight", {c.hidden_size}, ones) + w("bias", {c.hidden_size}, zeros);
}

inline Tensor linear(const Config& c, Weights w, Tensor x, int64_t out) {  // weights (out, in)
  return matmul(x, w("weight", {out, x.size(-1)}, normal(c.initializer_range)).t()) + w("bias", {out}, zeros);
}

// From both sides: each token sees all real ones of its row.
inline Tensor attend(const Config& c, Weights w, Tensor x, Context& ctx) {  // (B, T, C)
  const int64_t C = c.hidden_size, H = c.num_attention_heads;
  const auto heads = [&](const char* name) {  // (B, T, H, D)
    return rearrange<"b t (h d) -> b t h d", "h">(linear(c, w["self"][name], x, C), H);
  };
  const Tensor q = heads("query"), k = heads("key"), v = heads("value");
  const Tensor y = ctx.attention(q, k, v, {.scale = 1 / std::sqrt(float(q.size(3))), .causal = false},
                                 c.attention_probs_dropout_prob);
  return ctx.dropout(linear(c, w["output"]["dense"], rearrange<"b t h d -> b t (h d)">(y), C), c.hidden_dropout_prob);
}

inline Tensor mlp(const Config& c, Weights w, Tensor x, Context& ctx) {  // (B, T, C)
  const Tensor h = activation(c.hidden_act, linear(c, w["intermediate"]["dense"], x, c.intermediate_size));
  return ctx.dropout(linear(c, w["output"]["dense"], h, c.hidden_size), c.hidden_dropout_prob);
}

// What a token is, where it stands, and its type.
inline Tensor embed(const Config& c, Weights w, Tensor words, Tensor ids, Context& ctx) {  // (B, T, C)
  const auto table = [&](const char* name, int64_t n) {
    return w[name]("weight", {n, c.hidden_size}, normal(c.initializer_range));
  };
  const Tensor places = table("position_embeddings", c.max_position_embeddings);
  const Tensor types = table("token_type_embeddings", c.type_vocab_size);
  const Tensor x = gather(words, ids, c.pad_token_id.first()) + ctx.at_types(types) + ctx.at_positions(places, ids);
  return ctx.dropout(norm(c, w["LayerNorm"], x), c.hidden_dropout_prob);
}

inline void check(const Config& c, Tensor ids) {
  const int64_t T = ids.size(1), C = c.hidden_size, H = c.num_attention_heads;
  if (T > c.max_position_embeddings)
    fail("bert: expected at most max_position_embeddings = ", c.max_position_embeddings, " tokens, got ", T);
  if (C % H) fail("bert: num_attention_heads: expected a divisor of hidden_size = ", C, ", got ", H);
  if (c.position_embedding_type != "absolute")
    fail("bert: position_embedding_type: expected absolute, got ", c.position_embedding_type);
  if (c.is_decoder) fail("bert: is_decoder: expected false, got true");
}

inline Tensor forward(const Config& c, Weights w, Tensor ids, Context& ctx) {  // (B, T) -> (B, T, V)
  check(c, ids);
  const int64_t V = c.vocab_size, C = c.hidden_size;
  const Weights base = w["bert"], head = w["cls"]["predictions"];
  const Tensor words = base["embeddings"]["word_embeddings"]("weight", {V, C}, normal(c.initializer_range));
  Tensor x = embed(c, base["embeddings"], words, ids, ctx);  // (B, T, C)
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const Checkpoint block = ctx.block(x);
    const Weights layer = base["encoder"]["layer"][i], attention = layer["attention"];
    x = norm(c, attention["output"]["LayerNorm"], x + attend(c, attention, x, ctx));
    x = norm(c, layer["output"]["LayerNorm"], x + mlp(c, layer, x, ctx));
  }
  x = ctx.last(ctx.keep("last_hidden_state", x));
  const Tensor h = activation(c.hidden_act, linear(c, head["transform"]["dense"], x, C));
  const Tensor decoder = c.tie_word_embeddings ? words : head["decoder"]("weight", {V, C}, normal(c.initializer_range));
  return matmul(norm(c, head["transform"]["LayerNorm"], h), decoder.t()) + head("bias", {V}, zeros);
}

}  // namespace bert
