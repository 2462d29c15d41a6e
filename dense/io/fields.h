// The fields of a JSON object, each of the type that is asked for.
#pragma once

#include <charconv>
#include <string>
#include <string_view>

#include "dense/io/json.h"
#include "dense/scalar/error.h"

namespace dense {

class Fields {
 public:
  // `where` names the object in errors: "tokenizer.json: model".
  Fields(const Json& object, std::string where) : object_(&object), where_(std::move(where)) {
    if (object.kind != Json::object) fail(where_, ": expected an object, got ", shown(object));
  }
  const std::string& where() const { return where_; }
  std::string where(std::string_view name) const { return where_ + "." + std::string(name); }

  // nullptr where there is none, or null.
  const Json* find(std::string_view name) const {
    const Json* value = object_->find(name);
    return value && value->kind != Json::null ? value : nullptr;
  }
  const Json& get(std::string_view name, Json::Kind kind) const {
    static constexpr const char* names[] = {"null", "true or false", "a number", "a string", "an array", "an object"};
    const Json* value = find(name);
    if (!value) fail(where(name), ": expected ", names[kind], ", got nothing");
    if (value->kind != kind) fail(where(name), ": expected ", names[kind], ", got ", shown(*value));
    return *value;
  }
  const std::string& text(std::string_view name) const { return get(name, Json::string).text; }
  std::string text(std::string_view name, std::string_view fallback) const {
    return find(name) ? text(name) : std::string(fallback);
  }
  bool flag(std::string_view name) const { return get(name, Json::boolean).text == "true"; }
  bool flag(std::string_view name, bool fallback) const { return find(name) ? flag(name) : fallback; }
  const std::vector<Json>& list(std::string_view name) const { return get(name, Json::array).items; }
  Fields fields(std::string_view name) const { return {get(name, Json::object), where(name)}; }
  int32_t id(std::string_view name) const { return id_of(get(name, Json::number), where(name)); }

  // Vocabularies have ids below 2^24, so that arrays by id stay small.
  static int32_t id_of(const Json& value, const std::string& where) {
    int32_t id = -1;
    const char *begin = value.text.data(), *end = begin + value.text.size();
    const bool whole = value.kind == Json::number && std::from_chars(begin, end, id).ptr == end;
    if (!whole || id < 0 || id >= 1 << 24) fail(where, ": expected an id from 0 to 16777215, got ", shown(value));
    return id;
  }

 private:
  const Json* object_;
  std::string where_;
};

}  // namespace dense
