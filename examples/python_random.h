// The random numbers of Python: random.Random(seed) of CPython 3.11, for an int seed, bit for bit.
//
// Python and C++ share the generator, MT19937; what is written here is Python's own: how an int becomes the 624 words
// of state, and how words become floats, normal deviates, shuffles and choices. gauss() is exact as far as the C
// library's log, sin and cos are those that Python calls.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <numeric>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "dense/dense.h"

namespace microgpt_scalar {

// A seed sequence for std::mt19937: init_by_array of Matsumoto and Nishimura's mt19937ar.c.
struct InitByArray {
  using result_type = uint32_t;
  std::vector<uint32_t> key;

  void generate(uint32_t* state, uint32_t* end) const {
    const uint32_t n = static_cast<uint32_t>(end - state);
    auto mixed = [&](uint32_t i) { return state[i - 1] ^ (state[i - 1] >> 30); };
    auto next = [&](uint32_t i) { return i + 1 < n ? i + 1 : (state[0] = state[n - 1], 1); };
    state[0] = 19650218;
    for (uint32_t i = 1; i < n; ++i) state[i] = 1812433253 * mixed(i) + i;
    uint32_t i = 1;
    for (uint32_t k = 0; k < n; ++k, i = next(i)) {  // n rounds because no key here is longer than the state
      const uint32_t j = k % static_cast<uint32_t>(key.size());
      state[i] = (state[i] ^ (mixed(i) * 1664525)) + key[j] + j;
    }
    for (uint32_t k = 1; k < n; ++k, i = next(i)) state[i] = (state[i] ^ (mixed(i) * 1566083941)) - i;
    state[0] = 0x80000000;
  }
};

struct PythonRandom {
  std::mt19937 twister;
  std::optional<double> gauss_next;  // gauss() makes two deviates at a time and keeps the second

  explicit PythonRandom(int64_t value) { seed(value); }

  void seed(int64_t value) {  // the key is |value| in 32-bit words, lowest first
    const uint64_t size = value < 0 ? -static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
    InitByArray words{{static_cast<uint32_t>(size)}};
    if (size >> 32) words.key.push_back(static_cast<uint32_t>(size >> 32));
    twister.seed(words);
    gauss_next.reset();
  }

  uint32_t word() { return static_cast<uint32_t>(twister()); }

  double random() {  // 53 bits in [0, 1)
    const uint32_t high = word() >> 5, low = word() >> 6;
    return (high * 0x1p26 + low) * 0x1p-53;
  }

  double gauss(double mu, double sigma) {
    double z;
    if (gauss_next) {
      z = *std::exchange(gauss_next, std::nullopt);
    } else {
      const double angle = random() * (2 * std::numbers::pi), radius = std::sqrt(-2 * std::log(1 - random()));
      z = std::cos(angle) * radius;
      gauss_next = std::sin(angle) * radius;
    }
    return mu + z * sigma;
  }

  uint32_t below(uint32_t n) {  // uniform in [0, n), n > 0
    uint32_t r;
    do r = word() >> (32 - std::bit_width(n));
    while (r >= n);
    return r;
  }

  template <class T>
  void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i-- > 1;) std::swap(items[i], items[below(static_cast<uint32_t>(i + 1))]);
  }

  // The index of one choice, with probability in proportion to its weight: choices(range(n), weights)[0].
  size_t choices(const std::vector<double>& weights) {
    std::vector<double> cumulative(weights.size());
    std::partial_sum(weights.begin(), weights.end(), cumulative.begin());
    const double total = cumulative.empty() ? 0 : cumulative.back();
    if (!(total > 0) || std::isinf(total)) dense::fail("choices: the weights add up to ", total);
    // The last index is not searched: it is what remains when rounding takes random() * total up to the total.
    auto place = std::upper_bound(cumulative.begin(), cumulative.end() - 1, random() * total);
    return static_cast<size_t>(place - cumulative.begin());
  }
};

}  // namespace microgpt_scalar
