// What is done to text before it is cut into words: "normalizer" of a tokenizer.json.
#pragma once

#include <functional>
#include <string>

#include "dense/io/json.h"

namespace dense {

struct Text {
  std::string text;
  bool at_start;  // it begins with what the whole text begins with
};

using Normalizer = std::function<void(Text&)>;

// Throws Error, starting with `where`.
Normalizer read_normalizer(const Json& normalizer, const std::string& where);

// The 256 characters that stand for bytes in byte-level vocabularies.
struct ByteCharacters {
  char for_byte[256][2];   // in UTF-8; for ASCII one byte, and then 0
  int16_t byte_of[0x180];  // of a character, or -1

  ByteCharacters();
  void append(std::string& out, std::string_view bytes) const {
    for (const char byte : bytes) {
      out += for_byte[uint8_t(byte)][0];
      if (for_byte[uint8_t(byte)][1]) out += for_byte[uint8_t(byte)][1];
    }
  }
};

}  // namespace dense
