// Flags from a config's own field list: no flag, default or help text is written twice.
//
// A config is a struct with defaults and a member `void fields(auto&& f)` that calls f(name, field, text, least) for each
// field; `least` is the smallest whole number allowed, or what a floating-point number must be above, and text has none.
// Field `n_layer` is flag --n_layer, given as `--n_layer 2` or `--n_layer=2`, at most once; of true or false, `--json` is
// `--json true`.
#pragma once

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <concepts>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "cli/commands.h"
#include "dense/io/config.h"

namespace dense::cli {

struct Flag {
  std::string name, type, fallback, text;
  std::function<void(std::string_view given)> set;  // throws Error if `given` is no such value
};

// Sets the flags given in call.args, and `places`, what is given without a name: each has a name for --help and must be
// given; the last one may be any number of values. --help prints `about`, the flags and `example`, and returns false.
struct Place {
  std::string name, *value;
  std::vector<std::string>* values = nullptr;
};
bool set_flags(const std::vector<Flag>& flags, const Call& call, const std::string& about, const std::string& example,
               const std::vector<Place>& places = {});

// What a flag, such as --model, is given, where that decides which flags there are: read before they are set.
std::string value_of(const std::string& flag, const Call& call);

// As one word for a shell, in quotes where it needs them; and the call as one would type it.
std::string shell_word(const std::string& text);
std::string typed(const Call& call);

// "; did you mean NAME?" with the name closest to `word`, or "" when none is close.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& names);

// The whole text must be a number in base 10 that T can hold: no sign +, no spaces, no inf or nan.
template <class T>
T parse_number(const std::string& name, std::string_view given) {
  T value{};
  const char* end = given.data() + given.size();
  const auto [stop, error] = std::from_chars(given.data(), end, value);
  const bool malformed = error == std::errc::invalid_argument || stop != end;
  if constexpr (std::integral<T>) {
    if (malformed) fail("--", name, ": expected a whole number, got \"", given, '"');
    if (error != std::errc{}) {
      fail("--", name, ": expected a whole number from ", std::numeric_limits<T>::min(), " to ",
           std::numeric_limits<T>::max(), ", got \"", given, '"');
    }
  } else {
    if (malformed) fail("--", name, ": expected a number, got \"", given, '"');
    if (error != std::errc{} || !std::isfinite(value)) {
      fail("--", name, ": expected a number that a float of ", 8 * sizeof(T), " bits can hold, got \"", given, '"');
    }
  }
  return value;
}

// One for each field; names get `prefix` in front.
std::vector<Flag> flags_of(const std::vector<ConfigField>& fields, const std::string& prefix = {});

template <class Config>
bool parse_flags(Config& config, const Call& call, const std::string& about, const std::string& example,
                 const std::vector<Place>& places = {}) {
  return set_flags(flags_of(config_fields(config)), call, about, example, places);
}

}  // namespace dense::cli
