#include "dense/io/decode.h"

#include <algorithm>
#include <charconv>

#include "dense/io/normalize.h"
#include "dense/io/unicode.h"
#include "dense/scalar/error.h"

namespace dense {
namespace {

// <0x0A>: the byte, or -1.
int byte_of(std::string_view token) {
  uint8_t byte = 0;
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  return std::from_chars(token.data() + 3, token.data() + 5, byte, 16).ptr == token.data() + 5 ? byte : -1;
}

const ByteCharacters& byte_characters() {
  static const ByteCharacters characters;
  return characters;
}
// The bytes that a token's characters stand for; the token itself where one stands for none.
std::string bytes_of(const std::string& token) {
  std::string out;
  const char *p = token.data(), *end = p + token.size();
  while (p < end) {
    const char32_t c = next_char(p);
    const int byte = c < std::size(byte_characters().byte_of) ? byte_characters().byte_of[c] : -1;
    if (byte < 0) return token;
    out += char(byte);
  }
  return out;
}

void replace_all(std::string& text, std::string_view what, std::string_view with) {
  if (what.empty()) return;
  for (size_t at = text.find(what); at != text.npos; at = text.find(what, at + with.size()))
    text.replace(at, what.size(), with);
}
void clean_up(std::string& text) {
  static constexpr std::string_view rules[][2] = {{" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
                                                  {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
                                                  {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [what, with] : rules) replace_all(text, what, with);
}

// How many times `sign` comes in a row at the beginning, at most `most`; its size is that of one.
size_t leading(std::string_view text, std::string_view sign, size_t most) {
  size_t count = 0;
  while (count < most && text.substr(count * sign.size()).starts_with(sign)) ++count;
  return count;
}
size_t trailing(std::string_view text, std::string_view sign, size_t most) {
  size_t count = 0;
  while (count < most && text.substr(0, text.size() - count * sign.size()).ends_with(sign)) ++count;
  return count;
}

std::string one_character(const Fields& f, std::string_view name, std::string_view fallback) {
  std::string c = f.text(name, fallback);
  const char* p = c.data();
  if (c.empty() || (next_char(p), p != c.data() + c.size()))
    fail(f.where(name), ": expected one character, got \"", shown(c), '"');
  return c;
}

void read_step(const Json& decoder, const std::string& where, std::vector<DecoderStep>& steps) {
  using Step = DecoderStep;
  const Fields f(decoder, where);
  const std::string& type = f.text("type");
  if (type == "Sequence") {
    const std::vector<Json>& parts = f.list("decoders");
    for (size_t i = 0; i < parts.size(); ++i) read_step(parts[i], text(f.where("decoders"), '[', i, ']'), steps);
  } else if (type == "ByteLevel") {
    steps.push_back({Step::byte_level});
  } else if (type == "ByteFallback") {
    steps.push_back({Step::byte_fallback});
  } else if (type == "Fuse") {
    steps.push_back({Step::fuse});
  } else if (type == "Replace") {
    steps.push_back({Step::replace, f.text("content"), read_pattern(f.fields("pattern"))});
  } else if (type == "Strip") {
    Step& step = steps.emplace_back(Step{Step::strip, one_character(f, "content", " ")});
    step.left = size_t(f.id("start")), step.right = size_t(f.id("stop"));
  } else if (type == "Metaspace") {
    Step& step = steps.emplace_back(Step{Step::metaspace, one_character(f, "replacement", "\u2581")});
    step.flag = f.flag("add_prefix_space", true) && f.text("prepend_scheme", "always") != "never";
  } else if (type == "WordPiece") {
    Step& step = steps.emplace_back(Step{Step::word_piece, f.text("prefix", "##")});
    step.flag = f.flag("cleanup", true);
  } else if (type == "BPEDecoder") {
    steps.push_back({Step::bpe, f.text("suffix", "</w>")});
  } else {
    fail(f.where("type"), ": ", shown(type), " is no known decoder");
  }
}

}  // namespace

std::vector<DecoderStep> read_decoder(const Json* decoder, const std::string& where) {
  std::vector<DecoderStep> steps;
  if (decoder) read_step(*decoder, where, steps);
  else steps.push_back({DecoderStep::join});
  for (size_t i = 1; i < steps.size(); ++i)
    steps[i].fused =
        steps[i - 1].fused || steps[i - 1].kind == DecoderStep::fuse || steps[i - 1].kind == DecoderStep::byte_level;
  return steps;
}

void Decoding::step(size_t i, std::string token) {
  if (i == steps_->size()) return void(text += token);
  const DecoderStep& s = (*steps_)[i];
  State& state = states_[i];
  const auto pass = [&](std::string t) { step(i + 1, std::move(t)); };

  // Parts of one token: some steps can do with them, the others wait for the whole.
  if (s.fused && !state.ended) {
    if (s.kind == DecoderStep::fuse) return pass(std::move(token));
    if (s.kind != DecoderStep::strip) return void(state.held += token);
    state.held += token;
    if (state.first) {
      // Not past the signs to be cut, as long as there may come more of them.
      const size_t found = leading(state.held, s.text, s.left - state.cut);
      state.cut += found;
      state.held.erase(0, found * s.text.size());
      const bool may_go_on = state.cut < s.left && std::string_view(s.text).starts_with(state.held);
      if (may_go_on) return;
      state.first = false;
    }
    const size_t kept = trailing(state.held, s.text, s.right) * s.text.size();
    std::string ready = state.held.substr(0, state.held.size() - kept);
    state.held.erase(0, ready.size());
    return pass(std::move(ready));
  }

  const bool first = std::exchange(state.first, false);
  switch (s.kind) {
    case DecoderStep::join:
      if (!first) token.insert(0, " ");
      break;
    case DecoderStep::byte_level:
      state.held += bytes_of(token);
      token = take_utf8(state.held, false);
      break;
    case DecoderStep::byte_fallback: {
      const int byte = byte_of(token);
      if (byte >= 0) return void(state.held += char(byte));
      end(i);
      break;
    }
    case DecoderStep::fuse: break;
    case DecoderStep::replace: replace_matches(token, s.pattern, s.text); break;
    case DecoderStep::strip: {
      const size_t cut = leading(token, s.text, s.left);
      token.erase(0, cut * s.text.size());
      token.resize(token.size() - trailing(token, s.text, s.right) * s.text.size());
      break;
    }
    case DecoderStep::metaspace: replace_all(token, s.text, first && s.flag ? "" : " "); break;
    case DecoderStep::word_piece:
      if (!first && token.starts_with(s.text)) token.erase(0, s.text.size());
      else if (!first) token.insert(0, " ");
      if (s.flag) clean_up(token);
      break;
    case DecoderStep::bpe: {  // the suffix is a space, but for the last token's
      std::string before = std::exchange(state.held, std::move(token));
      if (first) return;
      replace_all(before, s.text, " ");
      token = std::move(before);
      break;
    }
  }
  pass(std::move(token));
}

// What step i holds goes on. byte_fallback calls it for each run of bytes.
void Decoding::end(size_t i) {
  const DecoderStep& s = (*steps_)[i];
  State& state = states_[i];
  std::string held = std::exchange(state.held, {});
  if (s.fused && !state.ended && s.kind != DecoderStep::fuse && s.kind != DecoderStep::strip) {
    state.ended = true;
    step(i, std::move(held));
    return end(i);
  }
  if (s.kind == DecoderStep::byte_fallback && !held.empty()) {
    // All bytes of a run are characters together, or none of them is.
    const bool valid = utf8_error(held) == held.npos;
    for (size_t n = valid ? 1 : held.size(); n > 0; --n) step(i + 1, valid ? held : "\ufffd");
  } else if (s.kind == DecoderStep::byte_level && !held.empty()) {
    step(i + 1, take_utf8(held, true));
  } else if (s.kind == DecoderStep::bpe && !state.first) {
    replace_all(held, s.text, "");
    step(i + 1, std::move(held));
  } else if (s.kind == DecoderStep::strip && s.fused) {
    const size_t cut = state.first ? leading(held, s.text, s.left - state.cut) : 0;
    held.erase(0, cut * s.text.size());
    held.resize(held.size() - trailing(held, s.text, s.right) * s.text.size());
    step(i + 1, std::move(held));
  }
}

void Decoding::finish() {
  for (size_t i = 0; i < steps_->size(); ++i) end(i);
}

}  // namespace dense
