// What a call complains about.
#pragma once

#include <string>

#include "dense/scalar/error.h"

// The text of the Error that `call` throws, or "no error".
std::string error_of(const auto& call) {
  try {
    call();
  } catch (const dense::Error& error) {
    return error.what();
  }
  return "no error";
}
