// libFuzzer: any bytes are a tokenizer.json and a text, with a byte 0 between them, or are refused with an Error of one
// short line. What is a tokenizer encodes the text and decodes all it knows.
//   clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -I. tests/fuzz/tokenizer_fuzz.cpp
//     dense/io/{tokenizer,token_models,normalize,decode,regex,unicode,json,files}.cpp -lpcre2-8 -lutf8proc -o fuzz
//   ./fuzz -max_total_time=60 FOLDER...
#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>

#include "dense/io/tokenizer.h"
#include "dense/scalar/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const std::string json(all.substr(0, all.find('\0')));  // copies of just their size, for AddressSanitizer
  const std::string text(all.substr(std::min(json.size() + 1, size)));
  try {
    const dense::Tokenizer t = dense::Tokenizer::parse(json, "f");
    std::vector<int32_t> ids = t.encode(text, true);
    for (const int32_t id : ids)
      if (id < 0) std::abort();
    for (int32_t id = 0; id < std::min(t.size(), 300); ++id)
      if (t.token_of(id)) ids.push_back(id);
    std::erase_if(ids, [&](int32_t id) { return !t.token_of(id); });  // a post-processor may name any
    dense::TextStream stream(t);
    std::string streamed;
    for (const int32_t id : ids) streamed += stream.push(id);
    if (streamed + stream.finish() != t.decode(ids)) std::abort();
  } catch (const dense::Error& error) {
    const std::string_view line = error.what();
    if (line.find('\n') != line.npos || line.size() > 1000) std::abort();
  }
  return 0;
}
