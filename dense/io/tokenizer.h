// Tokenizers as Hugging Face stores them: text to ids and back, exactly as its tokenizers library does it.
//
//   Tokenizer t("gpt2/");                                 // tokenizer.json, or vocab.txt where there is none
//   std::vector<int32_t> ids = t.encode("Hello world");   // 15496 995
//   std::string text = t.decode(ids);
//
// How a text becomes ids, and where to read on:
//   tokenizer.cpp      added tokens are taken out, the rest is normalized and cut into words
//   normalize.cpp      the normalizers
//   token_models.cpp   from words to ids: byte pair encoding, unigram, WordPiece
//   decode.cpp         from ids to text, all at once or as they are generated
// Truncation and padding that a tokenizer.json may ask for are left to the caller.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dense {

struct Json;

// May be copied cheaply and used by several threads at once.
class Tokenizer {
 public:
  // A Hugging Face folder, or a tokenizer.json. Throws Error for what is not supported, by its name.
  explicit Tokenizer(const std::filesystem::path& folder_or_file);
  // From the text of a tokenizer.json; `file` is its name in errors.
  static Tokenizer parse(std::string_view json, const std::string& file);

  // `special`: with the tokens that the model expects around a text, such as [CLS] and [SEP]. Special tokens that the
  // text itself contains are recognized either way. Throws Error where the text is not UTF-8.
  std::vector<int32_t> encode(std::string_view text, bool special = false) const;
  // Throws Error for an id that has no token.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  struct Frame {
    std::vector<int32_t> before, after;
  };
  const Frame& frame() const;  // what `special` puts around a text

  int32_t size() const;  // ids are below; not all of them need to have tokens
  std::optional<int32_t> id_of(std::string_view token) const;
  std::optional<std::string> token_of(int32_t id) const;

 private:
  struct Parts;
  explicit Tokenizer(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}
  static Tokenizer from_json(const Json& json, const std::string& name);
  std::shared_ptr<const Parts> parts_;
  friend class TextStream;
};

// Text as its tokens come: all that push and finish return, one after the other, is what decode gives for all ids. Only
// whole characters come out, and nothing that a later token could change.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer, bool skip_special = false);
  ~TextStream();
  TextStream(TextStream&&) noexcept;
  TextStream& operator=(TextStream&&) noexcept;

  // Tokens of a text that is there already: what push and finish return from then on comes after it.
  void follow(std::span<const int32_t> ids);
  std::string push(int32_t id);  // "" for an id that has no token: models may have more of them than tokenizers
  std::string finish();          // what is left; the next push begins a new text

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dense
