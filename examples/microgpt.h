// microgpt: the complete algorithm of a GPT on scalars: tokenizer, network, autograd, Adam, samples.
//
// After Andrej Karpathy's microgpt (2026), a GPT-2 with RMSNorm, ReLU and no biases, in plain Python. Every number here
// equals the original's under CPython to the last bit, so its operations are kept: a / b is a * b ** -1, a sum starts
// from 0, and gradients accumulate in the order of the original's backward(). The arithmetic is recorded once, compiled
// once for each document length, and replayed. T counts positions, C is n_embd, V the number of tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "dense/dense.h"
#include "examples/python_random.h"

namespace microgpt_scalar {

using dense::Program, dense::Tape, dense::Var;
using Row = std::vector<Var>;
using Matrix = std::vector<Row>;

struct Config {
  int n_layer = 1, n_embd = 16, n_head = 4, block_size = 16;  // 4,192 parameters when there are 27 tokens
  int steps = 1000, samples = 20;
  int64_t seed = 42;
  double learning_rate = 0.01, temperature = 0.5;

  void fields(auto&& f) {  // name, field, what it is, the smallest it may be (a floating-point number must be larger)
    f("steps", steps, "training steps, one document each", 0);
    f("seed", seed, "seed of the order of documents, the initial weights and the samples", INT64_MIN);
    f("n_layer", n_layer, "transformer blocks", 1);
    f("n_embd", n_embd, "width of the embeddings", 1);
    f("n_head", n_head, "attention heads; must divide n_embd", 1);
    f("block_size", block_size, "longest sequence of tokens", 1);
    f("learning_rate", learning_rate, "of Adam at the first step; falls linearly to 0", 0);
    f("samples", samples, "new documents to invent after training", 0);
    f("temperature", temperature, "of sampling: low is likely, high is daring", 1e-100);
  }
};

template <class F>
Row row(size_t n, const F& f) {
  Row y;
  for (size_t i = 0; i < n; ++i) y.push_back(f(i));
  return y;
}
// clang-format off
inline Row add(const Row& a, const Row& b)       { return row(a.size(),    [&](size_t i) { return a[i] + b[i]; }); }
inline Row scale(const Row& x, Var s)            { return row(x.size(),    [&](size_t i) { return x[i] * s; }); }
inline Row linear(const Row& x, const Matrix& w) { return row(w.size(),    [&](size_t i) { return dot(w[i], x); }); }
inline Row column(const Matrix& w, size_t j)     { return row(w.size(),    [&](size_t i) { return w[i][j]; }); }
inline Row lookup(const Matrix& w, Var token)    { return row(w[0].size(), [&](size_t j) { return at(column(w, j), token); }); }
// clang-format on
inline Row rmsnorm(const Row& x) { return scale(x, pow(dot(x, x) * pow(Var(x.size()), -1) + 1e-5, -0.5)); }

// The network, recorded position by position as far as the longest document so far needs it.
struct Network {
  Row params;  // in the order of their creation

  Network(const Config& config, int vocab_size) : c(config), keys(c.n_layer), values(c.n_layer) {
    const auto matrix = [&](int rows, int columns) {
      Matrix w(rows);
      for (Row& r : w) r = row(columns, [&](size_t) { return params.emplace_back(tape.shared()); });
      return w;
    };
    const int C = c.n_embd;
    wte = matrix(vocab_size, C), wpe = matrix(c.block_size, C), lm_head = matrix(vocab_size, C);
    for (int i = 0; i < c.n_layer; ++i)  // in braces they are created in this order
      layers.push_back({matrix(C, C), matrix(C, C), matrix(C, C), matrix(C, C), matrix(4 * C, C), matrix(C, 4 * C)});
    tokens = row(c.block_size + 1, [&](size_t) { return tape.input(); });
  }

  // The mean loss over the first n tokens and its gradient. Inputs: block_size + 1 tokens, of which n + 1 are read.
  Program loss(int n) {
    record(n);
    return tape.compile({sum(std::span(losses).first(n)) * (1.0 / n)}, params);
  }
  // The probabilities (V) of what follows the first n tokens.
  Program next(int n) {
    record(n);
    return tape.compile(softmax(scale(linear(hidden[n - 1], lm_head), pow(Var(c.temperature), -1))));
  }

  void record(int n) {
    for (int t = int(hidden.size()); t < n; ++t) {
      hidden.push_back(gpt(tokens[t], t));
      losses.push_back(cross_entropy(hidden[t], tokens[t + 1]));
    }
  }

  // The original's backward() reaches the target's logit first and the others after it. Here the target is known only
  // when the program runs: its logit is computed from the row looked up, and takes its place among the others.
  Var cross_entropy(const Row& x, Var target) {
    const Var logit = dot(lookup(lm_head, target), x);
    Row logits = linear(x, lm_head);  // (V)
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = where(equal(target, double(i)), logit, logits[i]);
    return -log(at(softmax(logits), target));
  }

  Row gpt(Var token, int position) {  // one token, to its vector before lm_head
    const int D = c.n_embd / c.n_head;
    Row x = rmsnorm(add(lookup(wte, token), wpe[position]));  // (C)
    for (int i = 0; i < c.n_layer; ++i) {
      const auto& [attn_wq, attn_wk, attn_wv, attn_wo, mlp_fc1, mlp_fc2] = layers[i];
      // 1. attention: each head looks back at all positions so far
      Row h = rmsnorm(x), heads;
      const Row q = linear(h, attn_wq);         // (C)
      keys[i].push_back(linear(h, attn_wk));    // (T, C)
      values[i].push_back(linear(h, attn_wv));  // (T, C)
      for (int start = 0; start < c.n_embd; start += D) {
        const auto head = [&](const Row& r) { return std::span(r).subspan(start, D); };
        Row att;
        for (const Row& k : keys[i]) att.push_back(dot(head(q), head(k)) * pow(pow(Var(D), 0.5), -1));
        att = softmax(att);  // (T)
        for (int j = start; j < start + D; ++j) heads.push_back(dot(att, column(values[i], j)));
      }
      x = add(linear(heads, attn_wo), x);
      // 2. a network of its own for each position
      h = linear(rmsnorm(x), mlp_fc1);  // (4C)
      for (Var& v : h) v = relu(v);
      x = add(linear(h, mlp_fc2), x);
    }
    return x;
  }

  struct Layer {
    Matrix attn_wq, attn_wk, attn_wv, attn_wo, mlp_fc1, mlp_fc2;  // (C, C) four times, (4C, C), (C, 4C)
  };
  const Config c;
  Tape tape;
  Matrix wte, wpe, lm_head;  // (V, C), (block_size, C), (V, C)
  std::vector<Layer> layers;
  Row tokens, losses;                // (block_size + 1), (T)
  Matrix hidden;                     // (T, C)
  std::vector<Matrix> keys, values;  // (n_layer, T, C)
};

// One step of Adam on one parameter; run with a lane for each. Kingma & Ba 2014, arXiv:1412.6980
inline Program adam_program(double beta1, double beta2) {
  Tape tape;
  const Var p = tape.input(), m = tape.input(), v = tape.input(), grad = tape.input();
  const Var lr = tape.shared(), correct1 = tape.shared(), correct2 = tape.shared();  // 1 - beta ** step
  const Var m_next = beta1 * m + (1 - beta1) * grad, v_next = beta2 * v + (1 - beta2) * pow(grad, 2);
  const Var p_next = p - lr * (m_next / correct1) / (pow(v_next / correct2, 0.5) + 1e-8);
  return tape.compile({p_next, m_next, v_next});
}

struct Result {
  int num_docs, vocab_size, num_params;
  std::vector<double> losses;           // of each step
  std::vector<std::u32string> samples;  // new documents
  std::vector<double> params;           // in the order of their creation
};

// Trains on the documents and samples. on_step(step, loss) follows each step and on_sample(sample) each sample, counted
// from 1; when one returns false that part ends early. Throws Error for a config that cannot be, more parameters than
// scalars are good for, no documents, and a loss that is no number.
inline Result run(Config c, std::vector<std::u32string> docs, const std::function<bool(int, double)>& on_step,
                  const std::function<bool(int)>& on_sample) {
  c.fields([](const char* name, auto value, const char*, auto least) { dense::check_field(name, value, least); });
  if (docs.empty()) dense::fail("expected documents, got none");
  if (c.n_embd % c.n_head != 0) dense::fail("--n_head: expected a divisor of n_embd ", c.n_embd, ", got ", c.n_head);
  PythonRandom random(c.seed);
  random.shuffle(docs);

  std::set<char32_t> letters;
  for (const std::u32string& doc : docs) letters.insert(doc.begin(), doc.end());
  const std::u32string uchars(letters.begin(), letters.end());  // token id -> character
  const int BOS = int(uchars.size()), vocab_size = BOS + 1;     // BOS begins and ends every document

  const double size = (2.0 * vocab_size + c.block_size + 12.0 * c.n_layer * c.n_embd) * c.n_embd;
  if (size > 1 << 22) dense::fail("expected sizes that make at most ", 1 << 22, " parameters, got ", size);
  Network network(c, vocab_size);
  const size_t P = network.params.size();
  std::vector<double> state(4 * P);  // parameters, m, v, gradients: (4, P)
  const std::span params(state.data(), P), moved(state.data(), 3 * P), grads(state.data() + 3 * P, P);
  for (double& p : params) p = random.gauss(0, 0.08);
  Result result{int(docs.size()), vocab_size, int(P), {}, {}, {}};

  const double beta1 = 0.85, beta2 = 0.99;
  const Program adam = adam_program(beta1, beta2);
  std::map<int, Program> programs, samplers;  // by number of tokens
  for (int step = 0; step < c.steps; ++step) {
    const std::u32string& doc = docs[step % docs.size()];
    const int n = int(std::min(size_t(c.block_size), doc.size() + 1));
    std::vector<double> tokens(c.block_size + 1, BOS);  // BOS, the document, BOS
    for (int t = 1; t <= n && t <= int(doc.size()); ++t) tokens[t] = double(uchars.find(doc[t - 1]));

    if (!programs.contains(n)) programs.emplace(n, network.loss(n));
    double loss;
    programs.at(n).run({.inputs = tokens, .shared = params, .values = {&loss, 1}, .shared_grads = grads});
    if (!std::isfinite(loss)) dense::fail("step ", step + 1, ": the loss is ", loss, "; try a smaller learning_rate");
    const double lr = c.learning_rate * (1 - double(step) / c.steps);
    const double shared[] = {lr, 1 - std::pow(beta1, step + 1), 1 - std::pow(beta2, step + 1)};
    adam.run({.inputs = state, .shared = shared, .values = moved, .lanes = int(P)});
    result.losses.push_back(loss);
    if (!on_step(step + 1, loss)) break;
  }

  for (int sample = 0; sample < c.samples; ++sample) {
    std::vector<double> tokens(c.block_size + 1, BOS), probs(vocab_size);
    std::u32string text;
    for (int n = 1; n <= c.block_size; ++n) {
      if (!samplers.contains(n)) samplers.emplace(n, network.next(n));
      samplers.at(n).run({.inputs = tokens, .shared = params, .values = probs});
      const int token = int(random.choices(probs));
      if (token == BOS) break;
      text += uchars[token];
      tokens[n] = token;
    }
    result.samples.push_back(text);
    if (!on_sample(sample + 1)) break;
  }
  result.params.assign(params.begin(), params.end());
  return result;
}

}  // namespace microgpt_scalar
