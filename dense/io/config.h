// Configs: structs that list their fields, for flags, files and printing.
#pragma once

#include <concepts>
#include <string>

#include "dense/scalar/error.h"

namespace dense {

// Throws Error unless the field of a config is `least` or more, or for a floating-point number above it.
template <class T, class Least>
void check_field(const std::string& name, T value, Least least) {
  if (std::integral<T> && value < T(least)) fail("--", name, ": expected ", least, " or more, got ", value);
  if (std::floating_point<T> && !(value > T(least)))
    fail("--", name, ": expected a number above ", least, ", got ", value);
}

}  // namespace dense
