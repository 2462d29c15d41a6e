// Errors: one line that says where, what was expected and what was found.
#pragma once

#include <sstream>
#include <stdexcept>

namespace dense {

// Bad input or a wrong call. Commands print what() as one line and exit with code 2.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws Error with all arguments written one after the other.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace dense
