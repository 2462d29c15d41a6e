// libFuzzer: any bytes are a safetensors file, or are refused with an Error of one short line.
//   clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -I. tests/fuzz/safetensors_fuzz.cpp
//     dense/io/safetensors.cpp dense/io/json.cpp dense/io/files.cpp -o fuzz && ./fuzz -max_total_time=60 FOLDER...
#include <cstdlib>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "dense/io/safetensors.h"
#include "dense/scalar/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A copy of just this size, so that AddressSanitizer sees every byte read beside it.
  const auto memory = std::make_shared<std::vector<uint8_t>>(data, data + size);
  try {
    unsigned sum = 0;
    for (const auto& [name, tensor] :
         dense::parse_safetensors(std::as_writable_bytes(std::span(*memory)), memory, "f")) {
      for (std::byte& byte : tensor.bytes) sum += unsigned(byte), byte = std::byte{0};
      if (name != tensor.name) std::abort();
      const bool is_integer = tensor.dtype == "I32" || tensor.dtype == "U8" || tensor.dtype == "BOOL";
      if (is_integer) sum += unsigned(to_i32(tensor).size());
      if (tensor.dtype == "F16" || tensor.dtype == "BF16") sum += unsigned(to_f32(tensor).size());
    }
    [[maybe_unused]] volatile unsigned used = sum;
  } catch (const dense::Error& error) {
    const std::string_view line = error.what();
    if (line.find('\n') != line.npos || line.size() > 500) std::abort();
  }
  return 0;
}
