// What tests of programs share: numbers compared bit by bit, instruction sets, how long to fuzz.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "dense/dense.h"
#include "tests/errors.h"

using Row = std::vector<dense::Var>;
using Numbers = std::vector<double>;

inline uint64_t bits(double x) {
  return std::isnan(x) ? ~uint64_t{0} : std::bit_cast<uint64_t>(x);
}  // any NaN is as good
inline ::testing::AssertionResult same_bits(const Numbers& a, const Numbers& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << " and " << b.size() << " numbers";
  for (size_t i = 0; i < a.size(); ++i)
    if (bits(a[i]) != bits(b[i]))
      return ::testing::AssertionFailure() << "number " << i << ": " << std::hexfloat << a[i] << " and " << b[i];
  return ::testing::AssertionSuccess();
}

// Programs compiled in its scope use these instructions.
struct Isa {
  std::string before;
  explicit Isa(const char* name) : before(std::getenv("DENSE_ISA") ? std::getenv("DENSE_ISA") : "") {
    setenv("DENSE_ISA", name, 1);
  }
  ~Isa() { setenv("DENSE_ISA", before.c_str(), 1); }
};

inline std::vector<const char*> isas() {
  std::vector<const char*> result;
  for (const char* name : {"avx512", "avx2", "portable"}) {
    const Isa isa(name);
    dense::Tape tape;
    if (error_of([&] { tape.compile({tape.input()}); }) == "no error") result.push_back(name);
  }
  return result;
}

inline int fuzz_rounds(int usual) {  // 20,000 are usual
  const char* rounds = std::getenv("DENSE_FUZZ_ROUNDS");
  return rounds ? std::max(1, int(usual * (std::atof(rounds) / 20'000))) : usual;
}
