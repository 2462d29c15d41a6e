// float16, bit by bit, for where there is but one value to convert.
#pragma once

#include <bit>
#include <cstdint>

namespace dense {

inline float widened_half(uint16_t f16) {
  const uint32_t sign = uint32_t(f16 & 0x8000) << 16, rest = f16 & 0x7fffu;
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | rest << 13);
  const uint32_t size = rest < 0x400 ? std::bit_cast<uint32_t>(float(rest) * 0x1p-24f) : (rest << 13) + (112u << 23);
  return std::bit_cast<float>(sign | size);
}

// To the nearest, of ties to the even one.
inline uint16_t narrowed_half(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000, u = bits & 0x7fffffff;
  if (u > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (u >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and more round to infinity
  if (u < 0x38800000)                                   // the last bit of 0.5 counts what that of the small ones does
    return uint16_t(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(u) + 0.5f) - 0x3f000000));
  return uint16_t(sign | (u + 0xfff + (u >> 13 & 1) - (112u << 23)) >> 13);
}

}  // namespace dense
