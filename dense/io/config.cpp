#include "dense/io/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "dense/io/files.h"
#include "dense/io/json.h"

namespace dense {
namespace {

namespace fs = std::filesystem;

// Fields of many families' config.json that say how a model was made, is named or decodes, not what it computes.
// A page whose model does compute with one (ESM with mask_token_id) has it among its fields.
constexpr std::string_view never_matter[] = {
    // clang-format off
    "architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version", "torchscript",
    "use_bfloat16", "use_cache", "return_dict", "output_attentions", "output_hidden_states", "output_past",
    "gradient_checkpointing", "chunk_size_feed_forward", "is_decoder",
    "initializer_range", "initializer_factor", "pretraining_tp", "tokenizer_class", "prefix",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id",
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "classifier_dropout",
    "task_specific_params",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "temperature", "top_k", "top_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "num_return_sequences",
    // clang-format on
};

// Fields that ask for what only some models compute, with the value that asks for nothing: JSON, or the value of another
// field, maybe divided by a third. A page that has none of them refuses other values, which are no less known than those
// of its own fields. Several are for pages with different fields.
struct Asking {
  std::string_view name, nothing, as = {}, by = {};
};
constexpr Asking asking[] = {
    {"attention_bias", "false"},
    {"mlp_bias", "false"},
    {"lm_head_bias", "false"},
    {"add_cross_attention", "false"},
    {"is_encoder_decoder", "false"},
    {"tie_encoder_decoder", "false"},
    {"is_folding_model", "false"},
    {"use_bidirectional_attention", "false"},
    {"use_mrope", "false"},
    {"pruned_heads", "{}"},
    {"partial_rotary_factor", "1"},
    {"full_attn_mod", "1"},
    {"interpolate_factor", "1"},
    {"attention_head_size", {}, "hidden_size", "num_attention_heads"},
    {"embedding_size", {}, "hidden_size"},
    // the names that families have in common, which Hugging Face takes in place of their own
    {"head_dim", {}, "d_kv"},
    {"head_dim", {}, "hidden_size", "num_attention_heads"},
    {"hidden_size", {}, "n_embd"},
    {"hidden_size", {}, "d_model"},
    {"max_position_embeddings", {}, "n_positions"},
    {"num_attention_heads", {}, "n_head"},
    {"num_attention_heads", {}, "num_heads"},
    {"num_hidden_layers", {}, "n_layer"},
    {"num_hidden_layers", {}, "num_layers"},
    {"num_experts", {}, "num_local_experts"},
};

bool same(const Json& a, const Json& b) {
  const auto value = [](const Json& json) { return std::strtod(json.text.c_str(), nullptr); };
  return a.kind == Json::number && b.kind == Json::number ? value(a) == value(b) : to_text(a) == to_text(b);
}

// Since its version 5 transformers writes rope_theta, partial_rotary_factor and rope_scaling as one object,
// rope_parameters. (Where that holds more objects, a page must know what they are.) Throws Error where the file says
// otherwise in the old place.
void split_rope_parameters(Json& root, const std::string& file) {
  const auto is = [](const Json& item) { return item.name == "rope_parameters" && item.kind == Json::object; };
  const auto found = std::ranges::find_if(root.items, is);
  const auto is_object = [](const Json& item) { return item.kind == Json::object; };
  if (found == root.items.end() || std::ranges::any_of(found->items, is_object)) return;
  Json scaling = std::move(*found);
  root.items.erase(found);
  const auto add = [&](Json item) {
    Json* const old = root.find(item.name);
    if (!old) return root.items.push_back(std::move(item));
    if (old->kind == Json::null) return void(*old = std::move(item));
    if (!same(item, *old))
      fail(file, ": ", item.name, ": expected ", shown(item), " as in rope_parameters, got ", shown(*old));
  };
  const auto apart = [](const Json& item) { return item.name == "rope_theta" || item.name == "partial_rotary_factor"; };
  for (const Json& item : scaling.items)
    if (apart(item)) add(item);
  std::erase_if(scaling.items, apart);
  scaling.name = "rope_scaling";
  if (!scaling.items.empty()) add(std::move(scaling));
}

// read(json, value) sets the value, or gives what was expected instead of this JSON.
using Expected = std::string;

Expected read(const Json& json, bool& value) {
  value = json.text == "true";
  return json.kind == Json::boolean ? "" : "true or false";
}
Expected read(const Json& json, std::string& value) {
  value = json.text;
  return json.kind == Json::string ? "" : "a string";
}
template <std::integral T>
Expected read(const Json& json, T& value) {
  if (json.kind != Json::number || json.text.find_first_of(".eE") != json.text.npos) return "a whole number";
  const auto [stop, error] = std::from_chars(json.text.data(), json.text.data() + json.text.size(), value);
  if (error == std::errc{}) return "";
  return text("a whole number from ", std::numeric_limits<T>::min(), " to ", std::numeric_limits<T>::max());
}
template <std::floating_point T>
Expected read(const Json& json, T& value) {
  if (json.kind != Json::number) return "a number";
  double number = 0;  // first, since Python holds a double and rounds it when it meets a float
  std::from_chars(json.text.data(), json.text.data() + json.text.size(), number);
  value = T(number);
  return std::isfinite(value) ? "" : text("a number that a float of ", 8 * sizeof(T), " bits can hold");
}
template <class T>
Expected read(const Json& json, std::vector<T>& value) {
  if (json.kind != Json::array) return "a list";
  value.clear();
  for (const Json& item : json.items) {
    if (Expected expected = read(item, value.emplace_back()); !expected.empty()) return "a list, each item " + expected;
  }
  return "";
}
// One text may hold what would be a list: "c2p|p2c" is how files of DeBERTa have it.
Expected read(const Json& json, std::vector<std::string>& value) {
  if (json.kind != Json::string) return read<std::string>(json, value);
  value = {""};
  for (char c : json.text) {
    if (c == '|') value.emplace_back();
    else if (c != ' ') value.back() += c;
  }
  return "";
}
template <class T>
Expected read(const Json& json, std::optional<T>& value) {
  if (json.kind == Json::null) return value.reset(), "";
  return read(json, value.emplace());
}

Expected read(const Json& json, TokenIds& value) {
  value.ids.clear();
  if (json.kind == Json::null) return "";
  const Expected expected = json.kind == Json::array ? read(json, value.ids) : read(json, value.ids.emplace_back());
  return expected.empty() ? "" : "a token or a list of tokens";
}

// The value as JSON.
Json to_json(bool value) { return {Json::boolean, "", value ? "true" : "false"}; }
Json to_json(const std::string& value) { return {Json::string, "", value}; }
Json to_json(std::integral auto value) { return {Json::number, "", std::to_string(value)}; }
Json to_json(std::floating_point auto value) {
  std::string digits = text(value);
  if (!std::isfinite(value)) fail("expected a finite number, got ", digits);
  if (digits.find_first_of(".e") == digits.npos) digits += ".0";  // stays a float in Python
  return {Json::number, "", digits};
}
template <class T>
Json to_json(const std::vector<T>& value) {
  Json list{Json::array};
  for (const T& item : value) list.items.push_back(to_json(item));
  return list;
}
Json to_json(const TokenIds& value) {
  return value.ids.empty() ? Json{} : value.ids.size() == 1 ? to_json(value.ids[0]) : to_json(value.ids);
}
template <class T>
Json to_json(const std::optional<T>& value) {
  return value ? to_json(*value) : Json{};
}

template <class T>
constexpr bool is_optional = std::same_as<T, TokenIds>;
template <class T>
constexpr bool is_optional<std::optional<T>> = true;

// The value named a.b.c in an object. Where there is none: null, or with `make` a new one.
Json* reach(Json& root, std::string_view name, bool make) {
  Json* here = &root;
  while (here && !name.empty()) {
    const std::string_view item = name.substr(0, name.find('.'));
    name.remove_prefix(std::min(name.size(), item.size() + 1));
    if (make && here->kind == Json::null) here->kind = Json::object;
    Json* next = here->find(item);
    if (!next && make && here->kind == Json::object)
      next = &here->items.emplace_back(Json{Json::null, std::string(item)});
    here = next;
  }
  return here;
}

// The value of the page's field of this name, if it is a whole number.
std::optional<int> whole(const std::vector<ConfigField>& fields, std::string_view name) {
  for (const ConfigField& field : fields)
    if (int* const* value = std::get_if<int*>(&field.value); value && field.name == name) return **value;
  return {};
}

// Of a field that no page's is: whether it is known to ask for nothing. Throws Error where it asks for something.
bool asks_for_nothing(const Json& item, const std::string& name, const std::vector<ConfigField>& fields,
                      const std::string& file) {
  const auto expect = [&](const Json& nothing) {
    if (!same(item, nothing)) fail(file, ": ", name, ": expected ", shown(nothing), ", got ", shown(item));
    return true;
  };
  if (name == "layer_types") {  // what the page does in every block
    const auto window = std::ranges::find(fields, "sliding_window", &ConfigField::name);
    const auto* size = window == fields.end() ? nullptr : std::get_if<std::optional<int>*>(&window->value);
    const bool slides = size && **size;
    const Json type = to_json(std::string(slides ? "sliding_attention" : "full_attention"));
    if (item.kind != Json::array ||
        !std::ranges::all_of(item.items, [&](const Json& each) { return same(each, type); }))
      fail(file, ": layer_types: expected ", type.text, " alone, got ", shown(item));
    return true;
  }
  for (const Asking& a : asking) {
    if (a.name != name) continue;
    if (!a.nothing.empty()) return expect(parse_json(std::string(a.nothing), std::string(a.name)));
    const std::optional<int> as = whole(fields, a.as), by = a.by.empty() ? 1 : whole(fields, a.by);
    if (as && by) return expect(to_json(*as / *by));
  }
  return false;
}

// Adds the names of fields in `object` that no field claims.
void find_unknown(const Json& object, const std::string& prefix, const std::vector<ConfigField>& fields,
                  const std::vector<std::string>& inert, const std::string& file, std::vector<std::string>& unknown) {
  for (const Json& item : object.items) {
    const std::string name = prefix + item.name;
    const auto begins = [&](const ConfigField& field) { return field.name.starts_with(name + "."); };
    const auto is = [&](const ConfigField& field) { return field.name == name; };
    if (item.name.find('.') != item.name.npos) {  // an object is expected there
      unknown.push_back(shown(name));
      continue;
    }
    if (item.kind == Json::null || std::any_of(fields.begin(), fields.end(), is)) continue;
    if (std::any_of(fields.begin(), fields.end(), begins)) {
      if (item.kind != Json::object) fail(file, ": ", shown(name), ": expected an object, got ", shown(item));
      find_unknown(item, name + ".", fields, inert, file, unknown);
      continue;
    }
    const bool known = name.starts_with("_") || name.starts_with("summary_") ||
                       std::find(inert.begin(), inert.end(), name) != inert.end() ||
                       std::find(std::begin(never_matter), std::end(never_matter), name) != std::end(never_matter) ||
                       asks_for_nothing(item, name, fields, file);
    if (!known) unknown.push_back(shown(name));
  }
}

}  // namespace

Json read_object(const fs::path& file) {
  Json root = parse_json(read_file(file), file.string());
  if (root.kind != Json::object) fail(file.string(), ": expected an object, got ", shown(root));
  split_rope_parameters(root, file.string());
  return root;
}

void set_fields(const fs::path& config_json, const std::vector<ConfigField>& fields,
                const std::vector<std::string>& inert, const Warn& warn) {
  set_fields(read_object(config_json), config_json.string(), fields, inert, warn);
}

void set_fields(Json object, const std::string& file, const std::vector<ConfigField>& fields,
                const std::vector<std::string>& inert, const Warn& warn) {
  for (const ConfigField& field : fields) {
    const Json* json = reach(object, field.name, false);
    if (!json) continue;
    const std::string where = file + ": " + field.name;
    const auto set = [&]<class T>(T* value) {
      if (json->kind == Json::null && !is_optional<T>) return;
      const Expected expected = read(*json, *value);
      if (!expected.empty()) fail(where, ": expected ", expected, ", got ", shown(*json));
      if (field.check) field.check(where);
    };
    std::visit(set, field.value);
  }
  std::vector<std::string> unknown;
  find_unknown(object, "", fields, inert, file, unknown);
  if (unknown.empty() || !warn) return;
  std::string names;
  for (const std::string& name : unknown) names += (names.empty() ? "" : ", ") + name;
  warn(file + ": ignored, being unknown here: " + names);
}

Json with_fields(Json root, const std::string& file, const std::vector<ConfigField>& fields,
                 const std::string& model_type) {
  const auto put = [&]<class T>(const std::string& name, const T& value) {
    const std::string where = file + ": " + name;
    Json json;
    try {
      json = to_json(value);
    } catch (const Error& error) {
      fail(where, ": ", error.what());
    }
    Json* place = reach(root, name, json.kind != Json::null || name.find('.') == name.npos);
    if (!place && json.kind == Json::null) return;
    if (!place) fail(where, ": expected objects around it");
    T old{};
    if (read(*place, old).empty() && old == value) return;  // stays as it is written there
    json.name = place->name;
    *place = std::move(json);
  };
  put("model_type", model_type);
  for (const ConfigField& field : fields) std::visit([&](const auto* value) { put(field.name, *value); }, field.value);
  return root;
}

void write_fields(const fs::path& config_json, const std::vector<ConfigField>& fields, const std::string& model_type,
                  const fs::path& original) {
  Json root = original.empty() ? Json{Json::object} : read_object(original);
  root = with_fields(std::move(root), (original.empty() ? config_json : original).string(), fields, model_type);
  write_file(config_json, to_text(root, 2) + "\n");
}

std::string model_type(const fs::path& folder) {
  const std::string file = (folder / "config.json").string();
  const Json root = read_object(file);
  const Json* type = root.find("model_type");
  if (!type || type->kind != Json::string)
    fail(file, ": model_type: expected a string, got ", type ? shown(*type) : "nothing");
  return type->text;
}

}  // namespace dense
