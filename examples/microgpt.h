// microgpt: the complete algorithm of a GPT on scalars: documents, tokenizer, autograd, network, Adam, samples.
//
// After Andrej Karpathy's microgpt (2026), a GPT-2 with RMSNorm, ReLU and no biases, in plain Python. Every number here
// equals the original's under CPython to the last bit, so its operations are kept: a / b is a * b ** -1, a sum starts
// from 0, and gradients accumulate in the order of the original's backward(). The arithmetic is recorded once for each
// document length; training replays it.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "dense/dense.h"
#include "examples/python_random.h"

namespace microgpt {

using dense::Program, dense::Tape, dense::Var;
using Row = std::vector<Var>;
using Matrix = std::vector<Row>;

struct Config {
  std::string data;                                           // empty: the built-in names
  int n_layer = 1, n_embd = 16, block_size = 16, n_head = 4;  // 4,192 parameters with 27 tokens
  int steps = 1000, samples = 20;
  int64_t seed = 42;
  double learning_rate = 0.01, beta1 = 0.85, beta2 = 0.99, eps = 1e-8, temperature = 0.5;
  std::string trace;  // empty: none is written

  void fields(auto&& f) {
    f("data", data, "text file, one document per line (default: built-in names)");
    f("steps", steps, "training steps, one document each");
    f("seed", seed, "seed of the order of documents, the initial weights and the samples");
    f("n_layer", n_layer, "transformer blocks");
    f("n_embd", n_embd, "width of the embeddings");
    f("n_head", n_head, "attention heads; must divide n_embd");
    f("block_size", block_size, "longest sequence of tokens");
    f("samples", samples, "new documents to invent after training");
    f("temperature", temperature, "of sampling: low is likely, high is daring");
    f("learning_rate", learning_rate, "of Adam at the first step; falls linearly to 0");
    f("beta1", beta1, "decay of Adam's mean of gradients");
    f("beta2", beta2, "decay of Adam's mean of squared gradients");
    f("eps", eps, "keeps Adam from dividing by 0");
    f("trace", trace, "file for the losses, samples and a hash of the weights, as JSON");
  }
  void check() const {
    const auto expect = [](bool good, auto... what) {
      if (!good) dense::fail("--", what...);
    };
    for (auto [name, size] :
         {std::pair("n_layer", n_layer), {"n_embd", n_embd}, {"n_head", n_head}, {"block_size", block_size}})
      expect(size > 0, name, ": expected 1 or more, got ", size);
    expect(n_embd % n_head == 0, "n_head: expected a divisor of n_embd ", n_embd, ", got ", n_head);
    for (auto [name, count] : {std::pair("steps", steps), {"samples", samples}})
      expect(count >= 0, name, ": expected 0 or more, got ", count);
    for (auto [name, x] : {std::pair("learning_rate", learning_rate), {"eps", eps}, {"temperature", temperature}})
      expect(x > 0 && std::isfinite(x), name, ": expected a number above 0, got ", x);
    for (auto [name, beta] : {std::pair("beta1", beta1), {"beta2", beta2}})
      expect(beta >= 0 && beta < 1, name, ": expected a number from 0 to below 1, got ", beta);
  }
};

// The weights, each matrix a list of rows, in the order of their creation.
struct Weights {
  Matrix wte, wpe, lm_head;  // (V, C), (block_size, C), (V, C)
  struct Layer {
    Matrix attn_wq, attn_wk, attn_wv, attn_wo, mlp_fc1, mlp_fc2;  // (C, C) four times, (4C, C), (C, 4C)
  };
  std::vector<Layer> layers;
  Row all;

  Weights(const Config& c, int vocab_size, Tape& tape) {
    const auto matrix = [&](int rows, int columns) {
      Matrix w(rows, Row(columns));
      for (Row& row : w)
        for (Var& v : row) all.push_back(v = tape.shared());
      return w;
    };
    const int C = c.n_embd;
    wte = matrix(vocab_size, C), wpe = matrix(c.block_size, C), lm_head = matrix(vocab_size, C);
    for (int i = 0; i < c.n_layer; ++i)  // braces keep the order
      layers.push_back({matrix(C, C), matrix(C, C), matrix(C, C), matrix(C, C), matrix(4 * C, C), matrix(C, 4 * C)});
  }
};

inline Row add(const Row& a, const Row& b) {
  Row y;
  for (size_t i = 0; i < a.size(); ++i) y.push_back(a[i] + b[i]);
  return y;
}

inline Row scale(const Row& x, Var factor) {
  Row y;
  for (Var v : x) y.push_back(v * factor);
  return y;
}

inline Row linear(const Row& x, const Matrix& w) {
  Row y;
  for (const Row& row : w) y.push_back(dot(row, x));
  return y;
}

inline Row column(const Matrix& w, int j) {
  Row y;
  for (const Row& row : w) y.push_back(row[j]);
  return y;
}

inline Row row_at(const Matrix& w, Var index) {  // the row of a token known only when the program runs
  Row y;
  for (size_t j = 0; j < w[0].size(); ++j) y.push_back(at(column(w, int(j)), index));
  return y;
}

inline Row rmsnorm(const Row& x) {
  const Var mean_square = dot(x, x) * pow(Var(x.size()), -1);
  return scale(x, pow(mean_square + 1e-5, -0.5));
}

// The network, recorded on one tape as far as the longest document so far needs it: position by position.
class Recorder {
 public:
  Recorder(const Config& config, int vocab_size)
      : c(config), w(config, vocab_size, tape), keys(config.n_layer), values(config.n_layer) {
    for (int t = 0; t <= c.block_size; ++t) tokens.push_back(tape.input());
  }

  size_t num_params() const { return w.all.size(); }

  // The mean loss over n tokens of a document, with the gradient of the weights. Inputs: block_size + 1 tokens, of which
  // n + 1 are read.
  Program loss(int n) {
    record(n);
    return tape.compile({sum(std::span(losses).first(n)) * (1.0 / n)}, w.all);
  }
  // The probabilities of what follows n tokens.
  Program next(int n) {
    record(n);
    return tape.compile(softmax(scale(linear(hidden[n - 1], w.lm_head), pow(Var(c.temperature), -1))));
  }

 private:
  void record(int n) {
    for (int t = int(hidden.size()); t < n; ++t) {
      hidden.push_back(gpt(tokens[t], t));
      const Var target = tokens[t + 1];
      Row logits = linear(hidden[t], w.lm_head);  // (V)
      // The original's backward() reaches the target's logit first and the others after it. Here the target is known
      // only when the program runs: its logit is computed from the row looked up, and takes its place among the others.
      const Var logit = dot(row_at(w.lm_head, target), hidden[t]);
      for (size_t i = 0; i < logits.size(); ++i) logits[i] = where(equal(target, double(i)), logit, logits[i]);
      losses.push_back(-log(at(softmax(logits), target)));
    }
  }

  // The network on one token: its vector before lm_head. keys and values of each layer grow by a row.
  Row gpt(Var token, int position) {
    const int D = c.n_embd / c.n_head;
    Row x = rmsnorm(add(row_at(w.wte, token), w.wpe[position]));  // (C)
    for (int i = 0; i < c.n_layer; ++i) {
      const Weights::Layer& layer = w.layers[i];
      // 1. attention: each head looks back at all positions so far
      Row h = rmsnorm(x), heads;
      const Row q = linear(h, layer.attn_wq);         // (C)
      keys[i].push_back(linear(h, layer.attn_wk));    // (T, C)
      values[i].push_back(linear(h, layer.attn_wv));  // (T, C)
      for (int head = 0; head < c.n_head; ++head) {
        const auto slice = [&](const Row& row) { return std::span(row).subspan(head * D, D); };
        Row att;
        for (const Row& k : keys[i]) att.push_back(dot(slice(q), slice(k)) * pow(pow(Var(D), 0.5), -1));
        att = softmax(att);  // (T)
        for (int j = head * D; j < (head + 1) * D; ++j) heads.push_back(dot(att, column(values[i], j)));
      }
      x = add(linear(heads, layer.attn_wo), x);
      // 2. a network of its own for each position
      h = linear(rmsnorm(x), layer.mlp_fc1);  // (4C)
      for (Var& v : h) v = relu(v);
      x = add(linear(h, layer.mlp_fc2), x);
    }
    return x;
  }

  const Config c;
  Tape tape;
  Weights w;
  Row tokens, losses;                // (block_size + 1), (T)
  Matrix hidden;                     // (T, C)
  std::vector<Matrix> keys, values;  // (L, T, C)
};

// Records one step of Adam on one parameter; a lane each runs it for all. Kingma & Ba 2014, arXiv:1412.6980
inline Program adam_program(const Config& c) {
  Tape tape;
  const Var p = tape.input(), m = tape.input(), v = tape.input(), grad = tape.input();
  const Var lr = tape.shared(), correct1 = tape.shared(), correct2 = tape.shared();  // 1 - beta ** step
  const Var m_next = c.beta1 * m + (1 - c.beta1) * grad;
  const Var v_next = c.beta2 * v + (1 - c.beta2) * pow(grad, 2);
  const Var p_next = p - lr * (m_next / correct1) / (pow(v_next / correct2, 0.5) + c.eps);
  return tape.compile({p_next, m_next, v_next});
}

struct Result {
  int num_docs = 0, vocab_size = 0, num_params = 0;
  std::vector<double> losses;
  std::vector<std::u32string> samples;
  std::vector<double> params;
};

// Trains and samples. on_step(step, loss) after each step, counted from 1; when it returns false training ends early.
// Throws Error for a config that cannot be and for a loss that is no number.
inline Result run(const Config& c, std::vector<std::u32string> docs, const std::function<bool(int, double)>& on_step) {
  c.check();
  PythonRandom random(c.seed);
  random.shuffle(docs);

  std::vector<char> used(0x110000);  // by code point
  for (const std::u32string& doc : docs)
    for (char32_t letter : doc) used[letter] = true;
  std::u32string uchars;  // token id -> character
  for (char32_t letter = 0; letter < used.size(); ++letter)
    if (used[letter]) uchars += letter;
  const int BOS = int(uchars.size()), vocab_size = BOS + 1;

  Recorder recorder(c, vocab_size);
  const size_t P = recorder.num_params();
  std::vector<double> state(4 * P, 0.0);  // parameters, m, v, gradients
  const auto params = std::span(state).first(P), moments = std::span(state).first(3 * P),
             grads = std::span(state).last(P);
  for (double& p : params) p = random.gauss(0, 0.08);

  Result result{int(docs.size()), vocab_size, int(P), {}, {}, {}};
  const Program adam = adam_program(c);
  std::map<int, Program> programs;  // by number of tokens
  for (int step = 0; step < c.steps; ++step) {
    const std::u32string& doc = docs[step % docs.size()];
    const int n = std::min(c.block_size, int(doc.size()) + 1);
    std::vector<double> tokens(c.block_size + 1, BOS);  // BOS, the document, BOS ...
    for (int t = 1; t <= std::min(c.block_size, int(doc.size())); ++t) tokens[t] = double(uchars.find(doc[t - 1]));
    if (!programs.contains(n)) programs.emplace(n, recorder.loss(n));

    double loss;
    programs.at(n).run({.inputs = tokens, .shared = params, .values = {&loss, 1}, .shared_grads = grads});
    if (!std::isfinite(loss)) dense::fail("step ", step + 1, ": the loss is ", loss, "; try a smaller learning_rate");
    const double schedule[] = {c.learning_rate * (1 - double(step) / c.steps), 1 - std::pow(c.beta1, step + 1),
                               1 - std::pow(c.beta2, step + 1)};
    adam.run({.inputs = state, .shared = schedule, .values = moments, .lanes = int(P)});
    result.losses.push_back(loss);
    if (!on_step(step + 1, loss)) break;
  }

  programs.clear();
  for (int sample = 0; sample < c.samples; ++sample) {
    std::vector<double> tokens(c.block_size + 1, BOS), probs(vocab_size);
    std::u32string text;
    for (int n = 1; n <= c.block_size; ++n) {
      if (!programs.contains(n)) programs.emplace(n, recorder.next(n));
      programs.at(n).run({.inputs = tokens, .shared = params, .values = probs});
      const int token = random.choices(probs);
      if (token == BOS) break;
      text += uchars[token];
      tokens[n] = token;
    }
    result.samples.push_back(text);
  }
  result.params.assign(params.begin(), params.end());
  return result;
}

}  // namespace microgpt
