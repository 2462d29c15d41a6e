#include "dense/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
#include <set>
#include <string_view>

#include "dense/io/files.h"
#include "dense/io/json.h"
#include "dense/scalar/error.h"

namespace dense {
namespace {

namespace fs = std::filesystem;
static_assert(std::endian::native == std::endian::little, "tensors are used as the file holds them");

// Element types, in the order of the reference implementation: by size.
constexpr struct {
  std::string_view name;
  uint64_t size;
} element_types[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1},
                     {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},     {"U32", 4},
                     {"F32", 4},  {"C64", 8}, {"F64", 8}, {"I64", 8},     {"U64", 8}};

constexpr uint64_t max_header = 100'000'000;  // the reference implementation's
constexpr const char *single_file = "model.safetensors", *index_file = "model.safetensors.index.json";

// The place of a type in the table. Throws Error, starting with `where`.
size_t element_type(std::string_view dtype, const std::string& where) {
  for (size_t i = 0; i < std::size(element_types); ++i)
    if (element_types[i].name == dtype) return i;
  fail(where, ": unknown dtype \"", shown(dtype), '"');
}

std::string to_string(const Shape& shape) {
  std::string out = "(";
  for (int64_t size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + ")";
}

// The size of a tensor in bytes. Throws Error when there is no such tensor.
uint64_t size_in_bytes(const Shape& shape, std::string_view dtype, const std::string& where) {
  uint64_t bytes = element_types[element_type(dtype, where)].size;
  // Every product must fit, as in the reference implementation, though a 0 may follow.
  for (int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(bytes, uint64_t(size), &bytes) || bytes > INT64_MAX)
      fail(where, ": expected a shape of at most ", INT64_MAX, " bytes, got ", shown(to_string(shape)));
  return bytes;
}

// The member `name` of a header's or index's object, which must be of this kind.
const Json& member(const Json& object, std::string_view name, Json::Kind kind, const std::string& where) {
  const Json* found = object.find(name);
  const char* expected = kind == Json::string ? "a string" : kind == Json::array ? "a list" : "an object";
  if (!found) fail(where, ": ", name, ": expected ", expected, ", got nothing");
  if (found->kind != kind) fail(where, ": ", name, ": expected ", expected, ", got ", shown(*found));
  return *found;
}

std::vector<int64_t> sizes(const Json& list, const std::string& where) {
  std::vector<int64_t> values;
  for (const Json& item : list.items) {
    int64_t& value = values.emplace_back();
    const char* end = item.text.data() + item.text.size();
    const auto [stop, error] = std::from_chars(item.text.data(), end, value);
    if (item.kind != Json::number || error != std::errc{} || stop != end || value < 0)
      fail(where, ": ", list.name, ": expected whole numbers from 0 to ", INT64_MAX, ", got ", shown(item));
  }
  return values;
}

// A copy at an address where its elements may be read.
void align(StoredTensor& tensor) {
  const std::shared_ptr<void> memory(::operator new(tensor.bytes.size()),
                                     [](void* start) { ::operator delete(start); });
  std::memcpy(memory.get(), tensor.bytes.data(), tensor.bytes.size());
  tensor.owner = memory;
  tensor.bytes = {static_cast<std::byte*>(memory.get()), tensor.bytes.size()};
}

StoredTensors read_shards(const fs::path& folder, bool map) {
  const std::string index_path = (folder / index_file).string();
  const Json index = parse_json(read_file(index_path), index_path);
  const Json& weight_map = member(index, "weight_map", Json::object, index_path);
  std::set<std::string> shards;
  for (const Json& item : weight_map.items) {
    const fs::path shard = item.text;
    if (item.kind != Json::string || shard.empty() || shard.filename() != shard || shard.filename() == "..")
      fail(index_path, ": ", shown(item.name), ": expected the name of a file beside the index, got ", shown(item));
    shards.insert(item.text);
  }
  std::map<std::string_view, std::string_view> file_of;
  for (const Json& item : weight_map.items) file_of[item.name] = item.text;
  StoredTensors all;
  for (const std::string& shard : shards) {
    std::error_code ignored;
    if (!fs::exists(folder / shard, ignored)) fail(index_path, ": names ", shown(shard), ", which is missing");
    for (auto& [name, tensor] : read_safetensors(folder / shard, map)) {
      const auto given = file_of.find(name);
      if (given != file_of.end() && given->second != shard)
        fail(tensor.file, ": ", shown(name), ": expected in ", shown(given->second), " by the index, got it here");
      const auto [first, is_new] = all.emplace(name, tensor);
      if (!is_new) fail(tensor.file, ": ", shown(name), ": is also in ", first->second.file);
    }
  }
  for (const auto& [name, shard] : file_of)
    if (!all.contains(name))
      fail(index_path, ": ", shown(name), ": expected in ", shown(shard), ", which has no such tensor");
  return all;
}

float from_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);  // inf, nan
  // As a float with the same exponent bits it is 2^112 times too small; the product is exact, subnormals included.
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f));
}

template <class To, class From>
std::vector<To> convert(const StoredTensor& tensor, To (*one)(From, const StoredTensor&)) {
  std::vector<To> values(tensor.bytes.size() / sizeof(From));
  for (size_t i = 0; i < values.size(); ++i) {
    From value;
    std::memcpy(&value, tensor.bytes.data() + i * sizeof value, sizeof value);
    values[i] = one(value, tensor);
  }
  return values;
}

std::string where(const StoredTensor& tensor) {
  return tensor.file.empty() ? shown(tensor.name) : tensor.file + ": " + shown(tensor.name);
}

}  // namespace

StoredTensors parse_safetensors(std::span<std::byte> bytes, const std::shared_ptr<void>& owner,
                                const std::string& file) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with("version https://git-lfs"))
    fail(file, ": expected tensors, got a Git LFS pointer to them: run git lfs pull");
  uint64_t size = 0;
  if (bytes.size() < sizeof size) fail(file, ": expected the 8 bytes of a header's size, got ", bytes.size(), " bytes");
  std::memcpy(&size, bytes.data(), sizeof size);
  if (size > max_header) fail(file, ": expected a header of at most ", max_header, " bytes, got ", size);
  const uint64_t rest = bytes.size() - sizeof size;
  if (size > rest) fail(file, ": expected a header of ", size, " bytes, got a file with ", rest, " after its first 8");
  const std::string_view header = text.substr(sizeof size, size);
  if (!header.starts_with('{')) fail(file, ": expected a header that starts with {, got ", shown(header.substr(0, 1)));
  const std::span<std::byte> data = bytes.subspan(sizeof size + size);

  StoredTensors tensors;
  struct Range {
    uint64_t begin, end;
    StoredTensor* tensor;
  };
  std::vector<Range> stored;
  const Json root = parse_json(header, file);
  for (const Json& item : root.items) {
    const std::string place = file + ": " + shown(item.name);
    if (item.kind != Json::object) fail(place, ": expected an object, got ", shown(item));
    if (item.name == "__metadata__") {
      for (const Json& entry : item.items)
        if (entry.kind != Json::string) fail(place, ": ", shown(entry.name), ": expected a string, got ", shown(entry));
      continue;
    }
    StoredTensor tensor{item.name, member(item, "dtype", Json::string, place).text, {}, {}, owner, file};
    tensor.shape = sizes(member(item, "shape", Json::array, place), place);
    const Json& offsets = member(item, "data_offsets", Json::array, place);
    const std::vector<int64_t> range = sizes(offsets, place);
    if (range.size() != 2 || range[0] > range[1])
      fail(place, ": data_offsets: expected [begin, end], got ", shown(offsets));
    const uint64_t need = size_in_bytes(tensor.shape, tensor.dtype, place), got = uint64_t(range[1] - range[0]);
    if (need != got)
      fail(place, ": expected ", need, " bytes for ", tensor.dtype, " ", shown(to_string(tensor.shape)), ", got ", got);
    stored.push_back({uint64_t(range[0]), uint64_t(range[1]), &tensors.emplace(item.name, tensor).first->second});
  }

  // The ranges must follow each other from the first byte to the last.
  std::sort(stored.begin(), stored.end(),
            [](const Range& a, const Range& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  uint64_t end = 0;
  for (const Range& range : stored) {
    const std::string place = file + ": " + shown(range.tensor->name);
    if (range.begin != end)
      fail(place, ": expected to begin at byte ", end, " where the tensor before it ends, got ", range.begin);
    end = range.end;
    if (end > data.size()) fail(place, ": expected to end within ", data.size(), " bytes of data, got ", end);
    range.tensor->bytes = data.subspan(range.begin, range.end - range.begin);
    const uint64_t element = element_types[element_type(range.tensor->dtype, place)].size;
    if (reinterpret_cast<uintptr_t>(range.tensor->bytes.data()) % element) align(*range.tensor);
  }
  if (end != data.size()) fail(file, ": expected ", end, " bytes of data, got ", data.size());
  return tensors;
}

StoredTensors read_safetensors(const fs::path& file_or_folder, bool map) {
  std::error_code ignored;
  const auto has = [&](const char* file) { return fs::exists(file_or_folder / file, ignored); };
  if (fs::is_directory(file_or_folder, ignored)) {
    if (has(single_file)) return read_safetensors(file_or_folder / single_file, map);
    if (has(index_file)) return read_shards(file_or_folder, map);
    const bool is_old = has("pytorch_model.bin") || has("pytorch_model.bin.index.json");
    fail(file_or_folder.string(), ": expected ", single_file, " or ", index_file, ", got ",
         is_old ? "only pytorch_model.bin: save the model again with safe_serialization=True" : "neither");
  }
  const Bytes loaded = load_file(file_or_folder, map);
  return parse_safetensors(loaded.bytes, loaded.owner, file_or_folder.string());
}

std::vector<float> to_f32(const StoredTensor& tensor) {
  using T = const StoredTensor&;
  if (tensor.dtype == "F32")
    return convert(
        tensor, +[](float x, T) { return x; });
  if (tensor.dtype == "F64")
    return convert(
        tensor, +[](double x, T) { return float(x); });
  if (tensor.dtype == "F16")
    return convert(
        tensor, +[](uint16_t x, T) { return from_half(x); });
  if (tensor.dtype == "BF16")
    return convert(
        tensor, +[](uint16_t x, T) { return std::bit_cast<float>(uint32_t(x) << 16); });
  fail(where(tensor), ": expected F32, F16, BF16 or F64, got ", tensor.dtype);
}

std::vector<int32_t> to_i32(const StoredTensor& tensor) {
  using T = const StoredTensor&;
  if (tensor.dtype == "I32")
    return convert(
        tensor, +[](int32_t x, T) { return x; });
  if (tensor.dtype == "U8" || tensor.dtype == "BOOL")
    return convert(
        tensor, +[](uint8_t x, T) { return int32_t(x); });
  if (tensor.dtype == "I64") {
    return convert(
        tensor, +[](int64_t x, T from) {
          if (x < INT32_MIN || x > INT32_MAX) fail(where(from), ": expected numbers that 32 bits can hold, got ", x);
          return int32_t(x);
        });
  }
  fail(where(tensor), ": expected I64, I32, U8 or BOOL, got ", tensor.dtype);
}

void write_safetensors(const fs::path& file, std::span<const StoredTensor> tensors, const Metadata& metadata,
                       const Supply& supply) {
  const std::string path = file.string();
  std::vector<const StoredTensor*> order;
  for (const StoredTensor& tensor : tensors) {
    const std::string place = path + ": " + shown(tensor.name);
    const uint64_t need = size_in_bytes(tensor.shape, tensor.dtype, place);
    if (!supply && need != tensor.bytes.size())
      fail(place, ": expected ", need, " bytes for ", tensor.dtype, " ", shown(to_string(tensor.shape)), ", got ",
           tensor.bytes.size());
    if (tensor.name == "__metadata__") fail(place, ": is no name for a tensor");
    order.push_back(&tensor);
  }
  const auto key = [&](const StoredTensor* tensor) {
    return std::pair(-int64_t(element_type(tensor->dtype, path)), std::string_view(tensor->name));
  };
  std::sort(order.begin(), order.end(), [&](auto* a, auto* b) { return key(a) < key(b); });

  std::string header;
  for (const auto& [name, value] : metadata)
    header += (header.empty() ? "{\"__metadata__\":{" : ",") + json_string(name) + ":" + json_string(value);
  header += metadata.empty() ? "{" : "}";
  std::set<std::string_view> names;
  uint64_t end = 0;
  for (const StoredTensor* tensor : order) {
    if (!names.insert(tensor->name).second) fail(path, ": ", shown(tensor->name), ": given twice");
    if (header.size() > 1) header += ',';
    header += json_string(tensor->name) + ":{\"dtype\":\"" + tensor->dtype + "\",\"shape\":[";
    for (size_t i = 0; i < tensor->shape.size(); ++i) header += (i ? "," : "") + std::to_string(tensor->shape[i]);
    const uint64_t bytes = size_in_bytes(tensor->shape, tensor->dtype, path);
    header += text("],\"data_offsets\":[", end, ",", end + bytes, "]}");
    end += bytes;
  }
  header += '}';
  uint64_t size = header.size();
  // The data starts at a multiple of 64, so that a mapped tensor starts a cache line if those before it fill theirs.
  while ((sizeof size + size) % 64) ++size;
  header.resize(size, ' ');
  if (size > max_header) fail(path, ": expected a header of at most ", max_header, " bytes, got ", size);

  write_file(file, 2 + order.size(), [&](size_t i) -> std::span<const std::byte> {
    if (i < 2) return i == 0 ? std::as_bytes(std::span(&size, 1)) : std::as_bytes(std::span(header));
    const StoredTensor& tensor = *order[i - 2];
    if (!supply) return tensor.bytes;
    const std::span<const std::byte> bytes = supply(tensor);
    if (const uint64_t need = size_in_bytes(tensor.shape, tensor.dtype, path); need != bytes.size())
      fail(path, ": ", shown(tensor.name), ": expected ", need, " bytes, got ", bytes.size());
    return bytes;
  });
}

void write_sharded(const fs::path& folder, std::span<const StoredTensor> tensors, uint64_t max_shard_bytes,
                   const Metadata& metadata, const Supply& supply) {
  std::vector<size_t> starts = {0};  // of the shards
  uint64_t total = 0, in_shard = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t bytes = size_in_bytes(tensors[i].shape, tensors[i].dtype, folder.string());
    if (in_shard && in_shard + bytes > max_shard_bytes) starts.push_back(i), in_shard = 0;
    in_shard += bytes;
    total += bytes;
  }
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) fail(folder.string(), ": cannot create: ", error.message());

  std::map<std::string, std::string> weight_map;  // by tensor
  std::set<std::string> written = {starts.size() == 1 ? single_file : index_file};
  if (starts.size() == 1) write_safetensors(folder / single_file, tensors, metadata, supply);
  for (size_t i = 0; starts.size() > 1 && i < starts.size(); ++i) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, starts.size());
    const size_t end = i + 1 < starts.size() ? starts[i + 1] : tensors.size();
    const std::span shard = tensors.subspan(starts[i], end - starts[i]);
    for (const StoredTensor& tensor : shard)
      if (!weight_map.emplace(tensor.name, name).second)
        fail((folder / name).string(), ": ", shown(tensor.name), ": given twice");
    write_safetensors(folder / name, shard, metadata, supply);
    written.insert(name);
  }
  if (starts.size() > 1) {
    Json index{Json::object, "", "", {{Json::object, "metadata"}, {Json::object, "weight_map"}}};
    index.items[0].items.push_back({Json::number, "total_size", std::to_string(total)});
    for (const auto& [name, file] : weight_map) index.items[1].items.push_back({Json::string, name, file});
    write_file(folder / index_file, to_text(index, 2) + "\n");
  }

  remove_weights(folder, written);  // what is left of an earlier model would be read instead, or lie beside
}

namespace {

// Files that hold weights, or say which do, in folders of Hugging Face.
std::vector<fs::path> weights_of(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    const bool is_shard = name.size() == std::string_view("model-00001-of-00002.safetensors").size() &&
                          name.starts_with("model-") && name.substr(11, 4) == "-of-" && name.ends_with(".safetensors");
    if (is_shard || name == single_file || name == index_file) found.push_back(entry.path());
  }
  return found;
}

}  // namespace

bool has_weights(const fs::path& folder) { return !weights_of(folder).empty(); }

void remove_weights(const fs::path& folder, const std::set<std::string>& but) {
  for (const fs::path& file : weights_of(folder)) {
    std::error_code error;
    if (!but.contains(file.filename().string()) && (!fs::remove(file, error) || error))
      fail(file.string(), ": cannot remove: ", error.message());
  }
}

}  // namespace dense
