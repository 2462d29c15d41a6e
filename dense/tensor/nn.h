// The formulas that models are made of. Each is written once, as arithmetic on a row; its gradient and its kernel follow.
// Rows are the last axis. Learned gains and biases are the page's own.
#pragma once

#include "dense/tensor/tensor.h"

namespace dense {

// (x - mean) / sqrt(variance + eps), over the row.                                     Ba et al. 2016, arXiv:1607.06450
Tensor layer_norm(Tensor x, double eps);
// x / sqrt(mean(x^2) + eps), over the row.                                     Zhang & Sennrich 2019, arXiv:1910.07467
Tensor rms_norm(Tensor x, double eps);
Tensor softmax(Tensor x);      // exp(x) / sum(exp(x)), over the row
Tensor log_softmax(Tensor x);  // x - log(sum(exp(x)))
// 0.5 x (1 + erf(x / sqrt(2))); and the form with tanh that GPT-2 has.        Hendrycks & Gimpel 2016, arXiv:1606.08415
Tensor gelu(Tensor x);
Tensor gelu_tanh(Tensor x);
Tensor silu(Tensor x);                  // x sigmoid(x)
Tensor swiglu(Tensor gate, Tensor up);  // silu(gate) up                            Shazeer 2020, arXiv:2002.05202
Tensor soft_cap(Tensor x, double cap);  // cap tanh(x / cap)
// Of each row of x (..., V) the elements whose numbers ids (..., k) has: (..., k).
Tensor take_along(Tensor x, Tensor ids);
// By the name that Hugging Face configs have for it. Throws Error for one that is not known.
Tensor activation(const std::string& name, Tensor x);
// Rotary positions: pairs (i, i + D / 2) of a head's elements are turned by position * frequency[i].
//                                                                                        Su et al. 2021, arXiv:2104.09864
// The cosines and sines, once for all heads and layers, (T, 1, D / 2) or (B, T, 1, D / 2); positions f32 or i32, (T) or
// (B, T). Angles are products in f32, as elsewhere: far from 0 their rounding is part of a model.
struct Rotation {
  Tensor cos, sin;
};
Rotation rotation(Tensor positions, std::span<const float> frequencies);
Tensor rope(Tensor x, const Rotation& rotation);                  // x (B, T, H, D)
std::vector<float> rope_frequencies(int64_t head, double theta);  // theta^(-2 i / head), for each pair of a head's
// A convolution: each token and its K - 1 neighbours, zeros around a row. x (B, T, C), weight (O, C / groups, K) with an
// odd K -> (B, T, O).
Tensor conv1d(Tensor x, Tensor weight);
// Each element is kept with probability 1 - p and then divided by it. Which ones: a function of the seed and the key
// (two i32, such as the number of the step).
Tensor dropout(Tensor x, double p, uint64_t seed, Tensor key);
// Mean of -log softmax(logits)[label] over the rows whose label is not `ignore`; NaN where there is none. logits
// (..., V), labels i32 (...).
Tensor cross_entropy(Tensor logits, Tensor labels, int ignore = -100);
// One step of AdamW on parameter p with gradient g and moments m and v, all of one shape. Of one element each: the
// learning rate lr, rate = lr / (1 - beta1^t) and scale = 1 / (1 - beta2^t). Returns new p, m, v.
//                                                                          Loshchilov & Hutter 2017, arXiv:1711.05101
struct AdamW {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01;
  bool operator==(const AdamW&) const = default;
};
std::array<Tensor, 3> adamw(Tensor p, Tensor g, Tensor m, Tensor v, Tensor lr, Tensor rate, Tensor scale,
                            const AdamW& options);

}  // namespace dense
