// Element types and shapes of tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dense {

enum class Dtype : uint8_t { f32, f64, bf16, f16, i32, q8, q4 };  // q8, q4: weights in groups, see quantised.h
inline constexpr const char* dtype_names[] = {"f32", "f64", "bf16", "f16", "i32", "int8", "int4"};
inline constexpr size_t dtype_sizes[] = {4, 8, 2, 2, 4, 0, 0};
inline bool is_quantised(Dtype type) { return type == Dtype::q8 || type == Dtype::q4; }
inline const char* name(Dtype type) { return dtype_names[int(type)]; }
inline size_t size_of(Dtype type) { return dtype_sizes[int(type)]; }  // bytes

using Shape = std::vector<int64_t>;

}  // namespace dense
