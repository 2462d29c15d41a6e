#include "dense/tensor/quantised.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "dense/scalar/error.h"
#include "dense/tensor/elements.h"
#include "dense/tensor/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dense/tensor/quantised.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#ifndef DENSE_TENSOR_QUANTISED_ONCE
#define DENSE_TENSOR_QUANTISED_ONCE
namespace dense {
namespace {

struct Group {
  uint8_t stored[32];
  uint16_t scale;
};

// What the largest value of a group of q4 may become, to begin with: the one that errs least is taken.
constexpr float largest_as[] = {-8, -7.5f, -8.5f, -7, -9};

}  // namespace
}  // namespace dense
#endif

HWY_BEFORE_NAMESPACE();
namespace dense {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
constexpr D d;
constexpr hn::RebindToSigned<D> di;
constexpr int N = int(hn::MaxLanes(D())), vectors = 32 / N;

// Of 32 values, stored with a scale. Returns the sum of the squares of what that changes; no fused multiply-add, so the
// same everywhere: 32 sums, then 16 sums i + (i + 16), then 8, 4, 2, and one.
HWY_INLINE float store(const V (&x)[vectors], uint16_t scale, int offset, Group& to) {
  const float step = widened_half(scale);
  const V by = hn::Set(d, step), inverse = hn::Set(d, step == 0 ? 0 : 1 / step);
  const auto least = hn::Set(di, 1 - offset - (offset == 8)), most = hn::Set(di, offset - 1);
  const hn::Rebind<uint8_t, D> bytes;
  alignas(64) float error[32];
  for (int i = 0; i < vectors; ++i) {
    const auto q = hn::Min(hn::Max(hn::NearestInt(hn::Mul(x[i], inverse)), least), most);
    hn::StoreU(hn::DemoteTo(bytes, hn::Add(q, hn::Set(di, offset))), bytes, to.stored + i * N);
    const V wrong = hn::Sub(x[i], hn::Mul(by, hn::ConvertTo(d, q)));
    hn::Store(hn::Mul(wrong, wrong), d, error + i * N);
  }
  to.scale = scale;
  if (offset != 8) return 0;  // nobody asks
  for (int half = 16; half >= N; half /= 2)
    for (int i = 0; i < half; i += N)
      hn::Store(hn::Add(hn::Load(d, error + i), hn::Load(d, error + i + half)), d, error + i);
  for (int half = std::min(N, 32) / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) error[i] += error[i + half];
  return error[0];
}

bool quantise_group(const float* values, bool q4, Group& to) {
  V x[vectors], high = hn::Set(d, 0), low = hn::Set(d, 0), nan = hn::Set(d, 0);
  for (int i = 0; i < vectors; ++i) {
    x[i] = hn::LoadU(d, values + i * N);
    high = hn::Max(high, x[i]), low = hn::Min(low, x[i]);
    nan = hn::Add(nan, hn::Mul(x[i], hn::Zero(d)));  // NaN once x was, or infinite
  }
  if (!hn::AllTrue(d, hn::Eq(nan, hn::Zero(d)))) return false;
  const float up = hn::GetLane(hn::MaxOfLanes(d, high)), down = hn::GetLane(hn::MinOfLanes(d, low));
  const float largest = up >= -down ? up : down;
  const auto scale = [](float s) { return narrowed_half(std::clamp(s, -65504.0f, 65504.0f)); };
  if (!q4) {
    store(x, scale(std::abs(largest) / 127), 128, to);
    return true;
  }
  float least = store(x, scale(largest / largest_as[0]), 8, to);
  for (size_t i = 1; i < std::size(largest_as) && least > 0; ++i) {
    Group other;
    const float error = store(x, scale(largest / largest_as[i]), 8, other);
    if (error < least) least = error, to = other;
  }
  return true;
}

}  // namespace

// A block of a strip, of 16 x 64 values. False where one is not finite.
bool quantise_block(const float (*values)[64], bool q4, std::byte* to) {
  auto* const scales = reinterpret_cast<uint16_t*>(to);
  uint8_t* const lines = reinterpret_cast<uint8_t*>(to) + 64;
  for (int r = 0; r < strip_rows; ++r) {
    Group g[2];
    if (!quantise_group(values[r], q4, g[0]) || !quantise_group(values[r] + 32, q4, g[1])) return false;
    scales[r] = g[0].scale, scales[16 + r] = g[1].scale;
    for (int q = 0; q < 8; ++q) {
      uint32_t first, second;
      std::memcpy(&first, g[0].stored + 4 * q, 4);
      std::memcpy(&second, g[1].stored + 4 * q, 4);
      if (q4) first |= second << 4;
      std::memcpy(lines + q * 64 + r * 4, &first, 4);
      if (!q4) std::memcpy(lines + 512 + q * 64 + r * 4, &second, 4);
    }
  }
  return true;
}

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dense {

static auto quantise_block_for(Isa isa) {
#if HWY_TARGETS & HWY_AVX3
  if (isa == Isa::avx512) return N_AVX3::quantise_block;
#endif
#if HWY_TARGETS & HWY_AVX2
  if (isa == Isa::avx2) return N_AVX2::quantise_block;
#endif
  (void)isa;
  return HWY_NAMESPACE::quantise_block;
}

static void check(Dtype type) {
  if (!is_quantised(type)) fail("quantised: expected int8 or int4, got ", name(type));
}

size_t quantised_bytes(Dtype type, int64_t n, int64_t k) {
  check(type);
  return size_t((n + strip_rows - 1) / strip_rows * strip_bytes(type, k));
}

void quantise(const StoredMatrix& from, Dtype to_type, std::byte* to, Threads& threads, Isa isa) {
  check(to_type);
  if (from.type != Dtype::f32 && from.type != Dtype::bf16 && from.type != Dtype::f16)
    fail("quantise: expected f32, bf16 or f16, got ", name(from.type));
  if (from.k_stride != 1 && from.n_stride != 1)
    fail("quantise: expected a stride of 1, got ", from.n_stride, " and ", from.k_stride);
  const auto load = elements_f32(isa).load;
  const auto block = quantise_block_for(isa);
  const auto* const data = static_cast<const std::byte*>(from.data);
  const auto size = int64_t(size_of(from.type));
  threads.run(int((from.n + strip_rows - 1) / strip_rows), [&](int strip) {
    const int64_t first = strip * strip_rows, rows = std::min(strip_rows, from.n - first);
    std::byte* out = to + strip * strip_bytes(to_type, from.k);
    for (int64_t k0 = 0; k0 < from.k; k0 += quantised_block, out += block_bytes(to_type)) {
      float values[strip_rows][quantised_block] = {};
      const int64_t n_k = std::min(quantised_block, from.k - k0);
      const std::byte* const here = data + (first * from.n_stride + k0 * from.k_stride) * size;
      if (from.k_stride == 1) {
        for (int64_t r = 0; r < rows; ++r) load(here + r * from.n_stride * size, from.type, 1, n_k, values[r]);
      } else {
        for (int64_t i = 0; i < n_k; ++i) {
          float column[strip_rows];
          load(here + i * from.k_stride * size, from.type, 1, rows, column);
          for (int64_t r = 0; r < rows; ++r) values[r][i] = column[r];
        }
      }
      if (!block(values, to_type == Dtype::q4, out)) fail("quantise: expected finite weights, got NaN or infinity");
    }
  });
}

void dequantise_row(const std::byte* from, Dtype type, int64_t row, int64_t k, float* to) {
  check(type);
  const bool q4 = type == Dtype::q4;
  const int64_t r = row % strip_rows;
  const std::byte* block = from + row / strip_rows * strip_bytes(type, k);
  for (int64_t k0 = 0; k0 < k; k0 += 32) {
    const int64_t group = k0 / 32 % 2;
    uint16_t scale;
    std::memcpy(&scale, block + group * 32 + r * 2, 2);
    const float step = widened_half(scale);
    const auto* lines = reinterpret_cast<const uint8_t*>(block) + 64 + r * 4 + (q4 ? 0 : group * 512);
    const int64_t n = std::min<int64_t>(32, k - k0);
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t byte = lines[i / 4 * 64 + i % 4];
      to[k0 + i] = step * float(q4 ? (byte >> (4 * group) & 15) - 8 : byte - 128);
    }
    if (group == 1) block += block_bytes(type);
  }
}

}  // namespace dense
#endif  // HWY_ONCE
