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

// Throws Error with all arguments written one after the other, floating-point numbers with as many digits as they need.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  const auto write = [&]<class Part>(const Part& part) {
    if constexpr (std::floating_point<Part>) {
      char digits[32];
      text << (std::isnan(part) ? "nan" : std::string(digits, std::to_chars(digits, digits + 32, part).ptr));
    } else {
      text << part;
    }
  };
  (write(parts), ...);
  throw Error(text.str());
}

}  // namespace dense
