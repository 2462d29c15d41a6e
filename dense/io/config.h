// Configs: structs that list their fields, for flags, files and printing.
//
// A page's config has Hugging Face's names for its fields, so that a config.json is read and written by the field list:
//   struct Config {
//     int n_layer = 12;
//     std::optional<int> n_inner;                               // null in the file is no value here
//     std::optional<float> rope_factor;
//     void fields(auto&& f) {
//       f("n_layer", n_layer, "transformer blocks", 1);         // 1: the least it may be
//       f("n_inner", n_inner, "width of the MLP; 4 n_embd if none");
//       f("rope_scaling.factor", rope_factor, "...");           // "factor" in the object "rope_scaling"
//     }
//     static constexpr const char* inert[] = {"attn_pdrop"};    // fields of such files that change nothing here
//   };
#pragma once

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "dense/scalar/error.h"

namespace dense {

struct Json;

// The tokens that have a meaning, such as the end of a text: none, one, or several; null, a number or a list in files.
struct TokenIds {
  std::vector<int> ids = {};
  int first() const { return ids.empty() ? -1 : ids[0]; }  // -1: none
  bool operator==(const TokenIds&) const = default;
};

// Throws Error, starting with `where`, unless `value` is `least` or more, or for a floating-point number above it. No
// value is right, and of a list every value must be.
template <class T, class Least>
void check_least(const std::string& where, const T& value, Least least) {
  if constexpr (std::is_arithmetic_v<T>) {
    if (std::integral<T> && value < T(least)) fail(where, ": expected ", least, " or more, got ", value);
    if (std::floating_point<T> && !(value > T(least)))
      fail(where, ": expected a number above ", least, ", got ", value);
  } else if constexpr (requires { value.has_value(); }) {
    if (value) check_least(where, *value, least);
  } else {
    for (const auto& each : value) check_least(where, each, least);
  }
}

// The same for a flag.
template <class T, class Least>
void check_field(const std::string& name, const T& value, Least least) {
  check_least("--" + name, value, least);
}

// A field of any config, for code that is compiled once.
template <class... T>
using PointerToAny = std::variant<TokenIds*, T*..., std::optional<T>*...>;
struct ConfigField {
  std::string name;
  PointerToAny<bool, int, int64_t, float, double, std::string, std::vector<int>, std::vector<float>,
               std::vector<std::string>>
      value;
  std::function<void(const std::string& where)> check;  // throws Error where the value is too small; may be empty
  std::string text = {};                                // what it is
};

template <class Config>
std::vector<ConfigField> config_fields(Config& config) {
  std::vector<ConfigField> fields;
  config.fields([&](const std::string& name, auto& value, const std::string& text, auto... least) {
    fields.push_back({name, &value, nullptr, text});
    if constexpr (sizeof...(least) > 0)
      fields.back().check = [&value, least...](const std::string& where) { (check_least(where, value, least), ...); };
  });
  return fields;
}

using Warn = std::function<void(const std::string& line)>;

// config.json read, its fields set: see read_config.
void set_fields(const std::filesystem::path& config_json, const std::vector<ConfigField>& fields,
                const std::vector<std::string>& inert, const Warn& warn);
// The same from an object of JSON; `where` is its name in errors.
void set_fields(Json object, const std::string& where, const std::vector<ConfigField>& fields,
                const std::vector<std::string>& inert, const Warn& warn);

// Sets the fields that are in the file. A null leaves the default. Fields that are neither the config's nor inert, nor
// among those that no model's outputs depend on, are named in one warning. Throws Error where a value does not fit.
template <class Config>
void read_config(const std::filesystem::path& config_json, Config& config, const Warn& warn) {
  std::vector<std::string> inert;
  if constexpr (requires { Config::inert; }) inert.assign(std::begin(Config::inert), std::end(Config::inert));
  set_fields(config_json, config_fields(config), inert, warn);
}

// See write_config.
void write_fields(const std::filesystem::path& config_json, const std::vector<ConfigField>& fields,
                  const std::string& model_type, const std::filesystem::path& original);

// An object of JSON with these fields and model_type set in it; `where` is the name of what it is for in errors.
Json with_fields(Json object, const std::string& where, const std::vector<ConfigField>& fields,
                 const std::string& model_type);

// Writes a config.json with these fields and model_type. What `original`, a config.json, holds besides is kept; it may
// be the file that is written. No value is written as null, but an object is not made for nulls.
template <class Config>
void write_config(const std::filesystem::path& config_json, Config config, const std::string& model_type,
                  const std::filesystem::path& original = {}) {
  write_fields(config_json, config_fields(config), model_type, original);
}

// The object in a config.json.
Json read_object(const std::filesystem::path& config_json);

// Which family of models a Hugging Face folder holds: "model_type" in its config.json.
std::string model_type(const std::filesystem::path& folder);

}  // namespace dense
