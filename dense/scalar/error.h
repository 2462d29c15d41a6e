// Errors: one line that says where, what was expected and what was found.
#pragma once

#include <charconv>
#include <cmath>
#include <concepts>
#include <sstream>
#include <stdexcept>
#include <string>

namespace dense {

// Bad input or a wrong call. Commands print what() as one line and exit with code 2.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// All arguments written one after the other, floating-point numbers with as many digits as they need.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  const auto write = [&]<class Part>(const Part& part) {
    if constexpr (std::floating_point<Part>) {
      char digits[32];
      out << (std::isnan(part) ? "nan" : std::string(digits, std::to_chars(digits, digits + 32, part).ptr));
    } else {
      out << part;
    }
  };
  (write(parts), ...);
  return out.str();
}

// Throws Error with this text.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(text(parts...));
}

}  // namespace dense
