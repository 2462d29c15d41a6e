// Safetensors, the format of weights on the Hugging Face Hub: https://github.com/huggingface/safetensors
//   8 bytes     N, the size of the header, little-endian
//   N bytes     the header, JSON: {"wte.weight": {"dtype": "F32", "shape": [160, 64], "data_offsets": [0, 40960]}, ...}
//   the rest    the tensors' elements, little-endian, rows first, without gaps; offsets count from here
// A model is one such file, or several ("shards") and an index that says which tensor is in which.
//
// Whatever does not follow the format is refused, as by the reference implementation, with one line that says where,
// what was expected and what was found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "dense/tensor/dtype.h"

namespace dense {

struct StoredTensor {
  std::string name, dtype;  // as in the file: F32, BF16, F16, F64, I64, I32, U8, BOOL and others
  Shape shape;
  std::span<std::byte> bytes;   // aligned for its elements; writing changes memory, never the file
  std::shared_ptr<void> owner;  // keeps `bytes`; may be empty for tensors that are to be written
  std::string file;             // where it comes from
};
using StoredTensors = std::map<std::string, StoredTensor, std::less<>>;  // by name

// The tensors of a file, or of a folder's model.safetensors, or of the shards in its model.safetensors.index.json.
// Files are mapped (see load_file) unless `map` is false, and stay so while any of their tensors lives. A tensor that
// is not aligned in its file is copied.
StoredTensors read_safetensors(const std::filesystem::path& file_or_folder, bool map = true);

// The same from a file in memory; `file` is its name in errors.
StoredTensors parse_safetensors(std::span<std::byte> bytes, const std::shared_ptr<void>& owner,
                                const std::string& file);

// The elements as numbers. to_f32 takes F32, F16, BF16, F64, which is rounded; to_i32 takes I64, I32, U8, BOOL and
// refuses what does not fit.
std::vector<float> to_f32(const StoredTensor& tensor);
std::vector<int32_t> to_i32(const StoredTensor& tensor);

using Metadata = std::map<std::string, std::string>;

// Gives the bytes of a tensor when it is their turn to be written; they must stay until the next one is asked for. Not
// all of a model need be in memory then.
using Supply = std::function<std::span<const std::byte>(const StoredTensor&)>;

// Writes a file, complete or not at all, in the reference implementation's order: largest elements first, then by name.
// Tensors that were read from the same file may be among those written. With a supply their own bytes do not count.
void write_safetensors(const std::filesystem::path& file, std::span<const StoredTensor> tensors,
                       const Metadata& metadata = {{"format", "pt"}}, const Supply& supply = {});

inline constexpr uint64_t most_shard_bytes = 5'000'000'000;  // unless other limits are asked for, as in transformers 4
// Writes a model as Hugging Face does: model.safetensors if its tensors have at most `max_shard_bytes` together, else
// shards, filled in the order given, and their index; then removes what an earlier model of another number of shards
// left. Each file is replaced as a whole, the model is not: a folder that must never hold half of one should be new.
void write_sharded(const std::filesystem::path& folder, std::span<const StoredTensor> tensors,
                   uint64_t max_shard_bytes = most_shard_bytes, const Metadata& metadata = {{"format", "pt"}},
                   const Supply& supply = {});

// Whether a folder holds weights of a model, and their removal but for the files named.
bool has_weights(const std::filesystem::path& folder);
void remove_weights(const std::filesystem::path& folder, const std::set<std::string>& but = {});

}  // namespace dense
