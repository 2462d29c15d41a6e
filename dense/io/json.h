// JSON, read strictly: UTF-8, no name twice in an object, no deep nesting, finite numbers.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dense {

struct Json {
  enum Kind { null, boolean, number, string, array, object };
  Kind kind = null;
  std::string name = {};         // in the object that this is an item of
  std::string text = {};         // of a string; all else that is no array or object as the file writes it: 1e-05, true
  std::vector<Json> items = {};  // of an array or object, in the order of the file

  const Json* find(std::string_view item) const;  // of an object; null where it has no such item
  Json* find(std::string_view item) { return const_cast<Json*>(std::as_const(*this).find(item)); }
};

// Throws Error, in one line that starts with `file`, the text's name.
Json parse_json(std::string_view text, const std::string& file);

// Throws Error, which starts with `where`, unless it is a number.
double number_of(const Json& value, const std::string& where);

// With an `indent`, as Python's json.dumps(value, indent=indent) writes it; without, on one line without spaces.
std::string to_text(const Json& value, int indent = 0);

// A JSON string, quotes included. Throws Error where the text is not UTF-8.
std::string json_string(std::string_view text);

// For errors, so that whatever was read gives one short line: names, and values as JSON.
std::string shown(std::string_view name);
std::string shown(const Json& value);

}  // namespace dense
