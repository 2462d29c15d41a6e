// From tokens back to text: "decoder" of a tokenizer.json. A chain of steps, through which tokens flow one by one, so
// that a text can be shown while it is generated; a whole text goes the same way.
#pragma once

#include <string>
#include <vector>

#include "dense/io/json.h"
#include "dense/io/pattern.h"

namespace dense {

struct DecoderStep {
  enum Kind { join, byte_level, byte_fallback, fuse, replace, strip, metaspace, word_piece, bpe } kind;
  std::string text = {};  // replace: with what; metaspace: the sign; word_piece: the prefix; bpe: the suffix; strip
  Pattern pattern = {};   // replace
  bool flag = false;      // metaspace: no space first; word_piece: clean up
  size_t left = 0, right = 0;  // strip: how many at most
  // Tokens come as parts of a single one, since a step before made them one.
  bool fused = false;
};

// Without a decoder tokens are joined by spaces. Throws Error, starting with `where`.
std::vector<DecoderStep> read_decoder(const Json* decoder, const std::string& where);

class Decoding {
 public:
  explicit Decoding(const std::vector<DecoderStep>& steps) : steps_(&steps), states_(steps.size()) {}
  void push(std::string token) { step(0, std::move(token)); }
  void finish();
  std::string text;  // what is complete; may be taken away

 private:
  struct State {
    bool first = true;   // nothing came yet
    bool ended = false;  // the end has been reached: what was held as a whole comes now
    std::string held;
    size_t cut = 0;
  };
  void step(size_t i, std::string token);
  void end(size_t i);

  const std::vector<DecoderStep>* steps_;
  std::vector<State> states_;
};

}  // namespace dense
