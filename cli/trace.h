// The spelling of numbers in traces, chosen so that traces of other programs can be compared to the last bit.
#pragma once

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>

namespace dense::cli {

// Python's x.hex(): '0x1.8000000000000p+1', '-0x0.0p+0', 'inf', 'nan'.
inline std::string float_hex(double x) {
  if (std::isnan(x)) return "nan";
  const char* sign = std::signbit(x) ? "-" : "";
  if (std::isinf(x)) return fmt::format("{}inf", sign);
  if (x == 0) return fmt::format("{}0x0.0p+0", sign);
  const uint64_t bits = std::bit_cast<uint64_t>(x), fraction = bits & ((uint64_t{1} << 52) - 1);
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff);  // 0: subnormal, without the leading 1
  return fmt::format("{}0x{}.{:013x}p{:+}", sign, exponent ? 1 : 0, fraction, (exponent ? exponent : 1) - 1023);
}

}  // namespace dense::cli
