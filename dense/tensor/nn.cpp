#include "dense/tensor/nn.h"

#include <cmath>
#include <numbers>

#include "dense/scalar/error.h"
#include "dense/tensor/formula.h"

namespace dense {

namespace {
using X = std::span<const Var>;

Var normal_gelu(Var x) { return 0.5 * x * (1 + erf(x * std::numbers::sqrt2 / 2)); }
Var tanh_gelu(Var x) { return 0.5 * x * (1 + tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x))); }
}  // namespace

Tensor layer_norm(Tensor x, double eps) {
  return map("layer_norm", {x}, [eps](Row row, X v) {
    const Var centred = v[0] - row.mean(v[0]);
    return centred * rsqrt(row.mean(centred * centred) + eps);
  });
}

Tensor rms_norm(Tensor x, double eps) {
  return map("rms_norm", {x}, [eps](Row row, X v) { return v[0] * rsqrt(row.mean(v[0] * v[0]) + eps); });
}

Tensor softmax(Tensor x) {
  return map("softmax", {x}, [](Row row, X v) {
    const Var e = exp(v[0] - row.max(v[0]));
    return e * (1 / row.sum(e));
  });
}

Tensor log_softmax(Tensor x) {
  return map("log_softmax", {x}, [](Row row, X v) {
    const Var shifted = v[0] - row.max(v[0]);
    return shifted - log(row.sum(exp(shifted)));
  });
}

Tensor gelu(Tensor x) {
  return map("gelu", {x}, [](Row, X v) { return normal_gelu(v[0]); });
}
Tensor gelu_tanh(Tensor x) {
  return map("gelu_tanh", {x}, [](Row, X v) { return tanh_gelu(v[0]); });
}
Tensor silu(Tensor x) {
  return map("silu", {x}, [](Row, X v) { return v[0] * sigmoid(v[0]); });
}

Tensor activation(const std::string& name, Tensor x) {
  struct Named {
    const char* name;
    Var (*f)(Var);
  };
  static constexpr auto silu_of = [](Var v) { return v * sigmoid(v); };
  static constexpr Named all[] = {
      {"gelu", normal_gelu},
      {"gelu_python", normal_gelu},
      {"gelu_new", tanh_gelu},
      {"gelu_fast", tanh_gelu},
      {"gelu_accurate", tanh_gelu},
      {"gelu_pytorch_tanh", tanh_gelu},
      {"gelu_10", [](Var v) { return max(min(normal_gelu(v), 10), -10); }},
      {"quick_gelu", [](Var v) { return v * sigmoid(1.702 * v); }},
      {"relu", [](Var v) { return relu(v); }},
      {"relu2", [](Var v) { return relu(v) * relu(v); }},
      {"relu6", [](Var v) { return min(relu(v), 6); }},
      {"leaky_relu", [](Var v) { return max(v, 0.01 * v); }},
      {"silu", silu_of},
      {"swish", silu_of},
      {"mish", [](Var v) { return v * tanh(softplus(v)); }},
      {"tanh", [](Var v) { return tanh(v); }},
      {"sigmoid", [](Var v) { return sigmoid(v); }},
      {"linear", [](Var v) { return v; }},
  };
  std::string known;
  for (const Named& a : all) {
    if (name == a.name) return map(a.name, {x}, [&a](Row, X v) { return a.f(v[0]); });
    known += (known.empty() ? "" : ", ") + std::string(a.name);
  }
  fail("activation: expected one of ", known, ", got ", name);
}

Tensor swiglu(Tensor gate, Tensor up) {
  return map("swiglu", {gate, up}, [](Row, X v) { return v[0] * sigmoid(v[0]) * v[1]; });
}
Tensor soft_cap(Tensor x, double cap) {
  return map("soft_cap", {x}, [cap](Row, X v) { return cap * tanh(v[0] * (1 / cap)); });
}

Tensor take_along(Tensor x, Tensor ids) {
  Shape rows = x.shape(), given = ids.shape(), each = given;
  if (!rows.empty()) rows.insert(rows.end() - 1, 1);
  each.push_back(1);
  if (x.rank() < 1 || ids.rank() != x.rank() || ids.dtype() != Dtype::i32 ||
      !std::equal(given.begin(), given.end() - 1, x.shape().begin()))
    fail("take_along: ", to_string(x.shape()), " and ", to_string(given), ": expected (..., V) and i32 ids (..., k)");
  const Tensor taken = map(
      "take_along", {reshape(x, rows), reshape(ids, each), x.graph().counter({x.size(-1)})},
      [](Row row, X v) { return row.sum(where(equal(v[1], v[2]), v[0], 0)); }, Keep::rows);
  return reshape(taken, given);
}

std::vector<float> rope_frequencies(int64_t head, double theta) {
  if (head < 2 || head % 2) fail("rope_frequencies: expected an even head size, got ", head);
  std::vector<float> frequencies;
  for (int64_t i = 0; i < head; i += 2)  // rounded where PyTorch rounds
    frequencies.push_back(1 / float(std::pow(theta, double(float(i) / float(head)))));
  return frequencies;
}

Rotation rotation(Tensor positions, std::span<const float> frequencies) {
  Shape at = positions.shape();
  at.insert(at.end(), {1, 1});
  const Tensor frequency = positions.graph().input({int64_t(frequencies.size())});
  frequency.set(frequencies);
  const Tensor angle = reshape(positions, at) * frequency;
  return {cos(angle), sin(angle)};
}

Tensor rope(Tensor x, const Rotation& rotation) {
  const auto [c, s] = rotation;
  if (x.rank() != 4 || x.size(3) != 2 * c.size(-1))
    fail("rope: ", to_string(x.shape()), ": expected (B, T, H, ", 2 * c.size(-1), ")");
  const int64_t half = c.size(-1);
  const Tensor a = slice(x, 3, 0, half), b = slice(x, 3, half, 2 * half);
  return concat(std::array{a * c - b * s, b * c + a * s}, 3);
}

Tensor conv1d(Tensor x, Tensor weight) {
  if (x.rank() != 3 || weight.rank() != 3 || x.size(2) % weight.size(1) || weight.size(2) % 2 == 0 ||
      weight.size(0) % (x.size(2) / weight.size(1)))
    fail("conv1d: ", to_string(x.shape()), " and ", to_string(weight.shape()),
         ": expected (B, T, C) and (O, C / groups, an odd K), groups dividing O");
  const int64_t B = x.size(0), T = x.size(1), C = x.size(2), K = weight.size(2), groups = C / weight.size(1);
  if (K > 1) {
    const Tensor side = cast(x.graph().input({B, K / 2, C}), x.dtype());
    x = concat(std::array{side, x, side}, 1);
  }
  Tensor y;
  for (int64_t k = 0; k < K; ++k) {
    const Tensor seen = rearrange<"b t (g i) -> g (b t) i", "g">(slice(x, 1, k, k + T), groups);
    const Tensor tap = rearrange<"(g o) i 1 -> g i o", "g">(slice(weight, 2, k, k + 1), groups);
    const Tensor part = matmul(seen, tap);  // (g, B T, O / g)
    y = y ? y + part : part;
  }
  return rearrange<"g (b t) o -> b t (g o)", "t">(y, T);
}

Tensor dropout(Tensor x, double p, uint64_t seed, Tensor key) {
  if (!(p >= 0 && p < 1)) fail("dropout: expected a probability of 0 or more, below 1, got ", p);
  if (p == 0) return x;
  return map("dropout", {x, x.graph().random(x.shape(), seed, key)},
             [p](Row, X v) { return where(v[1] >= p, v[0] * (1 / (1 - p)), 0); });
}

Tensor cross_entropy(Tensor logits, Tensor labels, int ignore) {
  Shape rows = logits.shape();
  if (!rows.empty()) rows.back() = 1;
  Shape given = labels.shape();
  given.push_back(1);
  if (rows != given || labels.dtype() != Dtype::i32)
    fail("cross_entropy: ", to_string(logits.shape()), " and ", to_string(labels.shape()),
         ": expected logits (..., V) and i32 labels (...)");
  const Tensor label = reshape(labels, given), column = logits.graph().counter({logits.size(-1)});
  const Tensor loss = map(
      "cross_entropy", {logits, label, column},
      [ignore](Row row, X v) {
        const Var shifted = v[0] - row.max(v[0]);
        const Var chosen = row.sum(where(equal(v[1], v[2]), shifted, 0));
        return where(equal(v[1], ignore), 0, log(row.sum(exp(shifted))) - chosen);
      },
      Keep::rows);
  const Tensor counts = map("cross_entropy", {label}, [ignore](Row, X v) { return 1 - equal(v[0], ignore); });
  return sum(loss) / sum(counts);
}

std::array<Tensor, 3> adamw(Tensor p, Tensor g, Tensor m, Tensor v, Tensor lr, Tensor rate, Tensor scale,
                            const AdamW& o) {
  const Tensor next_m = map("adamw", {m, g}, [&](Row, X x) { return o.beta1 * x[0] + (1 - o.beta1) * x[1]; });
  const Tensor next_v = map("adamw", {v, g}, [&](Row, X x) { return o.beta2 * x[0] + (1 - o.beta2) * x[1] * x[1]; });
  const Tensor kept = o.weight_decay == 0 ? p : p * (1 - lr * o.weight_decay);
  const Tensor next_p = map("adamw", {kept, next_m, next_v, rate, scale},
                            [&](Row, X x) { return x[0] - x[3] * x[1] / (sqrt(x[2] * x[4]) + o.eps); });
  return {next_p, next_m, next_v};
}

}  // namespace dense
