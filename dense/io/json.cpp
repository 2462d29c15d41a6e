#include "dense/io/json.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "dense/scalar/error.h"

namespace dense {
namespace {

constexpr size_t max_depth = 64;          // no real file comes near; functions on values may then recurse
constexpr size_t max_values = 5'000'000;  // a header of 600,000 tensors; about 1 GB here

// Builds the value from what nlohmann's parser, which does not recurse, calls in the order of the text.
class Reader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Reader(const std::string& file) : file_(file) {}
  Json root;

  bool null() override { return add(Json::null, "null"); }
  bool boolean(bool value) override { return add(Json::boolean, value ? "true" : "false"); }
  bool number_integer(int64_t value) override { return add(Json::number, std::to_string(value)); }
  bool number_unsigned(uint64_t value) override { return add(Json::number, std::to_string(value)); }
  bool number_float(double, const std::string& text) override { return add(Json::number, text); }
  bool string(std::string& text) override { return add(Json::string, std::move(text)); }
  bool binary(nlohmann::json::binary_t&) override { return false; }  // JSON has none
  bool start_array(size_t) override { return add(Json::array, ""); }
  bool start_object(size_t) override { return add(Json::object, ""); }
  bool key(std::string& name) override {
    name_ = std::move(name);
    return true;
  }
  bool end_array() override {
    open_.pop_back();
    return true;
  }
  bool end_object() override {
    std::vector<std::string_view> names;
    for (const Json& item : open_.back()->items) names.push_back(item.name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) fail(file_, ": ", shown(*twice), ": given twice");
    return end_array();
  }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: the error; last read: 'any bytes'; expected x"
    std::string what = error.what();
    what.erase(0, what.find("] ") + 2);
    const size_t last_read = what.find("; last read: '"), expected = what.rfind("'; expected ");
    if (last_read != what.npos) what.erase(last_read, expected == what.npos ? what.npos : expected + 1 - last_read);
    fail(file_, ": not JSON: ", what.substr(0, 200));
  }

 private:
  bool add(Json::Kind kind, std::string text) {
    if (++values_ > max_values) fail(file_, ": expected at most ", max_values, " JSON values, got more");
    Json& value = open_.empty() ? root : open_.back()->items.emplace_back();
    value = {kind, std::move(name_), std::move(text), {}};
    name_.clear();
    if (kind == Json::array || kind == Json::object) open_.push_back(&value);
    if (open_.size() > max_depth) fail(file_, ": expected JSON nested at most ", max_depth, " deep, got deeper");
    return true;
  }

  const std::string& file_;
  std::vector<Json*>
      open_;          // arrays and objects around what comes next; they stay put, being the last of their parents
  std::string name_;  // of the next value, if it is in an object
  size_t values_ = 0;
};

void write(const Json& value, int indent, int depth, std::string& out) {
  if (value.kind == Json::string) return void(out += json_string(value.text));
  if (value.kind != Json::array && value.kind != Json::object)
    return void(out += value.kind == Json::null ? "null" : value.text);
  const bool is_array = value.kind == Json::array;
  const auto new_line = [&](int level) {
    if (indent && !value.items.empty()) out.append("\n").append(size_t(indent) * size_t(level), ' ');
  };
  out += is_array ? '[' : '{';
  for (const Json& item : value.items) {
    if (&item != &value.items.front()) out += ',';
    new_line(depth + 1);
    if (!is_array) out += json_string(item.name) + (indent ? ": " : ":");
    write(item, indent, depth + 1, out);
  }
  new_line(depth);
  out += is_array ? ']' : '}';
}

std::string shortened(std::string text) {
  constexpr size_t most = 100;  // of ASCII, so that no character is cut
  return text.size() <= most ? text : text.substr(0, most) + "...";
}

}  // namespace

const Json* Json::find(std::string_view item) const {
  const auto found = std::find_if(items.begin(), items.end(), [&](const Json& each) { return each.name == item; });
  return kind == object && found != items.end() ? &*found : nullptr;
}

Json parse_json(std::string_view text, const std::string& file) {
  // nlohmann takes a byte 0 for the end, and drops a byte order mark. Python and Rust take neither.
  if (const size_t zero = text.find('\0'); zero != text.npos) fail(file, ": not JSON: byte ", zero, " is 0");
  if (text.starts_with("\xef\xbb\xbf")) fail(file, ": not JSON: starts with a byte order mark");
  Reader reader(file);
  nlohmann::json::sax_parse(text.begin(), text.end(), &reader);
  return std::move(reader.root);
}

double number_of(const Json& value, const std::string& where) {
  double number = 0;
  const char* const end = value.text.data() + value.text.size();
  if (value.kind != Json::number || std::from_chars(value.text.data(), end, number).ptr != end)
    fail(where, ": expected a number, got ", shown(value));
  return number;
}

std::string to_text(const Json& value, int indent) {
  std::string out;
  write(value, indent, 0, out);
  return out;
}

std::string json_string(std::string_view text) {
  try {
    return nlohmann::json(text).dump(-1, ' ', true);
  } catch (const nlohmann::json::exception&) {
    fail('"', shown(text), "\": expected UTF-8");
  }
}

std::string shown(std::string_view name) {
  const std::string text = nlohmann::json(name).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  return shortened(text.substr(1, text.size() - 2));
}

std::string shown(const Json& value) { return shortened(to_text(value)); }

}  // namespace dense
