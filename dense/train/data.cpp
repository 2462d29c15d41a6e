#include "dense/train/data.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <charconv>
#include <cstdio>

#include "dense/io/files.h"
#include "dense/io/json.h"
#include "dense/io/safetensors.h"
#include "dense/io/unicode.h"
#include "dense/scalar/error.h"
#include "dense/tensor/elements.h"
#include "dense/tensor/tensor.h"
#include "dense/tensor/threads.h"

namespace dense {

namespace fs = std::filesystem;

uint64_t shuffled(uint64_t i, uint64_t n, uint64_t seed) {
  const int half = (std::bit_width(n - 1) + 1) / 2;
  const uint64_t mask = (uint64_t(1) << half) - 1;
  do {
    for (uint64_t round = 0; round < 4; ++round)
      i = (i & mask) << half | ((i >> half) ^ (mixed(mixed(seed + round) + (i & mask)) & mask));
  } while (i >= n);
  return i;
}

// ---- Tokens

void Tokens::add(Part part) {
  size_ += part.size();
  if (part.size()) parts_.push_back(std::move(part));
}

void Tokens::add(std::vector<uint32_t> ids, std::vector<int64_t> documents) {
  for (int64_t begin : documents) documents_.push_back(size_ + begin);
  const auto owner = std::make_shared<const std::vector<uint32_t>>(std::move(ids));
  add({{}, *owner, owner});
}

void Tokens::add_file(const fs::path& file, int64_t vocabulary) {
  StoredTensors stored = read_safetensors(file);
  const auto take = [&](const char* name, std::initializer_list<const char*> types) {
    const auto found = stored.find(name);
    if (found == stored.end()) fail(file.string(), ": ", name, ": expected a list of whole numbers, missing");
    const StoredTensor& tensor = found->second;
    if (tensor.shape.size() != 1 || std::ranges::find(types, tensor.dtype) == types.end())
      fail(file.string(), ": ", name, ": expected a list of ", *types.begin(), ", got ", tensor.dtype, " ",
           to_string(tensor.shape));
    return tensor;
  };
  const StoredTensor tokens = take("tokens", {"U16", "U32"}), documents = take("documents", {"I64"});
  const auto count = size_t(tokens.shape[0]);
  const std::span begins(reinterpret_cast<const int64_t*>(documents.bytes.data()), size_t(documents.shape[0]));
  for (int64_t last = -1; int64_t begin : begins) {
    if (begin <= last || begin >= int64_t(count))
      fail(file.string(), ": documents: expected rising places below ", count, ", got ", begin);
    documents_.push_back(size_ + (last = begin));
  }
  Part part{{}, {}, tokens.owner, file.string(), vocabulary};
  if (tokens.dtype == "U16") part.narrow = {reinterpret_cast<const uint16_t*>(tokens.bytes.data()), count};
  else part.wide = {reinterpret_cast<const uint32_t*>(tokens.bytes.data()), count};
  add(std::move(part));
}

int64_t Tokens::windows(int64_t length) const {
  int64_t total = 0;
  for (const Part& part : parts_) total += (part.size() - 1) / length;
  return total;
}

void Tokens::window(int64_t number, int64_t length, std::span<int32_t> to) const {
  for (const Part& part : parts_) {
    const int64_t here = (part.size() - 1) / length;
    if (number < here) {
      for (size_t i = 0; i < to.size(); ++i) {
        const size_t at = size_t(number * length) + i;
        const uint32_t id = part.narrow.empty() ? part.wide[at] : part.narrow[at];
        if (id >= part.vocabulary)
          fail(part.file, ": tokens: expected ids below ", part.vocabulary, ", as the tokenizer has them, got ", id);
        to[i] = int32_t(id);
      }
      return;
    }
    number -= here;
  }
  fail("tokens: expected a window that there is");
}

Tokens::Part Tokens::Part::slice(int64_t begin, int64_t end) const {
  const auto at = size_t(begin), n = size_t(end - begin);
  Part part = *this;
  if (narrow.empty()) part.wide = wide.subspan(at, n);
  else part.narrow = narrow.subspan(at, n);
  return part;
}

std::pair<Tokens, Tokens> Tokens::split(double share) const {
  int64_t place = size_ - int64_t(double(size_) * share);
  const auto next = std::ranges::lower_bound(documents_, place);
  if (next != documents_.end() && place < size_) place = *next;
  std::pair<Tokens, Tokens> both;
  int64_t begin = 0;
  for (const Part& part : parts_) {
    const int64_t end = begin + part.size(), cut = std::clamp(place, begin, end);
    both.first.add(part.slice(0, cut - begin));
    both.second.add(part.slice(cut - begin, end - begin));
    begin = end;
  }
  return both;
}

int64_t Tokens::largest() const {
  int64_t most = -1;
  for (const Part& part : parts_) {
    for (uint16_t id : part.narrow) most = std::max<int64_t>(most, id);
    for (uint32_t id : part.wide) most = std::max<int64_t>(most, id);
  }
  return most;
}

void write_tokens(const fs::path& file, std::span<const uint32_t> ids, std::span<const int64_t> documents) {
  const bool fits = std::ranges::all_of(ids, [](uint32_t id) { return id < 1 << 16; });
  const std::vector<uint16_t> narrow = fits ? std::vector<uint16_t>(ids.begin(), ids.end()) : std::vector<uint16_t>();
  const auto bytes = fits ? std::as_bytes(std::span(narrow)) : std::as_bytes(ids);
  const auto tensor = [](const char* name, const char* dtype, size_t count, std::span<const std::byte> from) {
    return StoredTensor{name, dtype, {int64_t(count)}, {const_cast<std::byte*>(from.data()), from.size()}, nullptr, {}};
  };
  write_safetensors(file, std::array{tensor("tokens", fits ? "U16" : "U32", ids.size(), bytes),
                                     tensor("documents", "I64", documents.size(), std::as_bytes(documents))});
}

std::string shard_name(int64_t number, int64_t count) {
  char name[96];
  std::snprintf(name, sizeof name, "tokens-%05lld-of-%05lld.safetensors", number + 1LL, count + 0LL);
  return name;
}

// ---- documents

namespace {

// A tokenizer.json whose tokens are bytes, each under the letter that GPT-2's files have for it: printable ones stand for
// themselves, the others for 256 and so on.
std::string byte_tokenizer() {
  std::string vocabulary;
  for (int byte = 0, others = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    std::string letter;
    append_char(letter, char32_t(printable ? byte : 256 + others++));
    vocabulary += (byte ? ", " : "") + json_string(letter) + ": " + std::to_string(byte);
  }
  const std::string level = R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": )";
  return R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
"pre_tokenizer": )" +
         level + R"(false}, "post_processor": null, "decoder": )" + level + R"(true},
"model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
"fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "merges": [], "vocab": {)" +
         vocabulary + "}}}\n";
}

// One whose tokens are these characters.
std::string character_tokenizer(std::span<const char32_t> characters) {
  std::string vocabulary;
  for (size_t i = 0; i < characters.size(); ++i) {
    std::string letter;
    append_char(letter, characters[i]);
    vocabulary += (i ? ", " : "") + json_string(letter) + ": " + std::to_string(i);
  }
  return R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
"pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
"model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
"fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "merges": [], "vocab": {)" +
         vocabulary + "}}}\n";
}

bool holds_tokens(const fs::path& file) {
  return file.filename().string().starts_with("tokens-") && file.extension() == ".safetensors";
}

std::vector<fs::path> files_in(const fs::path& path) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(path, error), end; !error && entry != end; entry.increment(error))
    if (entry->is_regular_file(error) && entry->file_size(error) > 0) files.push_back(entry->path());
  if (error) fail(path.string(), ": cannot read: ", error.message());
  if (files.empty()) fail(path.string(), ": expected files, got an empty folder");
  std::ranges::sort(files);
  return files;
}

// The files of tokens in a folder, as many as their names say there are.
std::vector<fs::path> shards_in(const fs::path& folder) {
  std::vector<fs::path> found, all;
  for (const auto& entry : fs::directory_iterator(folder))
    if (holds_tokens(entry.path())) found.push_back(entry.path());
  std::ranges::sort(found);
  const std::string last = found.back().filename().string();
  int64_t count = 0;
  if (const size_t of = last.find("-of-"); of != last.npos) std::from_chars(&last[of + 4], &last.back(), count);
  if (count < 1)
    fail(found.back().string(), ": expected a name that says how many files there are, such as ", shard_name(0, 1));
  for (int64_t i = 0; i < count; ++i)
    if (!fs::exists(all.emplace_back(folder / shard_name(i, count)))) fail(all.back().string(), ": missing");
  if (found.size() != all.size())
    fail(folder.string(), ": expected ", all.size(), " files of tokens, got ", found.size());
  return all;
}

constexpr size_t megabyte = 1 << 20;

// How much of a document becomes tokens at once: all, or a megabyte and what is left of its last line. A tokenizer that
// cuts at spaces, as most do, cuts between a letter and the end of a line whatever comes next, so the tokens are those
// of the whole. One that puts a space before a text, as Llama 2's does, puts one before each piece.
size_t piece_of(std::string_view text) {
  if (text.size() <= 2 * megabyte) return text.size();
  for (size_t i = megabyte; i < 2 * megabyte; ++i)
    if (text[i] == '\n' && (std::isalnum(uint8_t(text[i - 1])) || uint8_t(text[i - 1]) >= 0x80)) return i;
  size_t end = 2 * megabyte;
  while ((uint8_t(text[end]) & 0xc0) == 0x80 && end > megabyte) --end;  // characters stay whole
  return end;
}

}  // namespace

bool is_folder_of_tokens(const fs::path& path) {
  std::error_code ignored;
  if (holds_tokens(path)) fail(path.string(), ": expected a text or the folder of tokens that it is in");
  if (!fs::is_directory(path, ignored)) return false;
  return std::ranges::any_of(fs::directory_iterator(path),
                             [](const auto& entry) { return holds_tokens(entry.path()); });
}

Documents::Documents(const DataConfig& config, std::string_view built_in, uint64_t seed, int threads)
    : threads_(threads),
      built_in_(built_in),
      lines_(config.documents == "lines" || config.path.empty()),
      seed_(seed),
      marks_(config.marks) {
  if (config.documents != "files" && config.documents != "lines")
    fail("data.documents: expected files or lines, got ", config.documents);
  if (!config.path.empty()) {
    std::error_code ignored;
    const bool is_folder = fs::is_directory(config.path, ignored);
    const std::vector<fs::path> files = is_folder ? files_in(config.path) : std::vector<fs::path>{config.path};
    for (uint64_t i = 0; i < files.size(); ++i) files_.push_back(files[shuffled(i, files.size(), seed)]);
  }
  bytes_ = files_.empty() ? int64_t(built_in.size()) : 0;
  for (const fs::path& file : files_) {
    std::error_code unknown;  // told where the file is read
    if (const uintmax_t size = fs::file_size(file, unknown); !unknown) bytes_ += int64_t(size);
  }
  if (config.tokenizer.empty() || config.tokenizer == "bytes") {
    json_ = byte_tokenizer();
  } else if (config.tokenizer == "characters") {
    std::vector<bool> seen(0x110000);
    seen[U'\n'] = lines_;
    each_text([&](std::string_view text, const auto&) {
      for_chars(text, [&](char32_t c, size_t, size_t) { seen[c] = true; });
      return true;
    });
    for (char32_t c = 0; c < seen.size(); ++c)
      if (seen[c]) characters_.push_back(c);
    json_ = character_tokenizer(characters_);
  } else {
    const fs::path given = config.tokenizer;
    tokenizer_.emplace(given);
    std::error_code ignored;
    const fs::path file = fs::is_directory(given, ignored) ? given / "tokenizer.json" : given;
    if (fs::exists(file, ignored)) json_ = read_file(file);
    if (marks_ && tokenizer_->encode("", true).empty()) mark_ = tokenizer_->id_of("<|endoftext|>");
  }
}

int64_t Documents::vocabulary() const {
  return tokenizer_ ? tokenizer_->size() : characters_.empty() ? 256 : int64_t(characters_.size());
}

bool Documents::each_text(const std::function<bool(std::string_view, const std::shared_ptr<void>&)>& f) const {
  const auto documents_of = [&](std::string_view text, const std::string& name, const std::shared_ptr<void>& owner) {
    if (tokenizer_ || !characters_.empty() || json_.empty())
      if (const size_t bad = utf8_error(text); bad != text.npos)
        fail(name, ": expected UTF-8, got byte ", int(uint8_t(text[bad])), " at ", bad);
    if (!lines_) return f(text, owner);
    std::vector<std::string_view> lines;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      std::string_view line = text.substr(begin, end - begin);
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (!line.empty()) lines.push_back(line);
      begin = end + 1;
    }
    for (uint64_t i = 0; i < lines.size(); ++i)
      if (!f(lines[shuffled(i, lines.size(), seed_)], owner)) return false;
    return true;
  };
  if (files_.empty()) return documents_of(built_in_, "built-in names", nullptr);
  return std::ranges::all_of(files_, [&](const fs::path& file) {
    const Bytes bytes = load_file(file);
    return documents_of({reinterpret_cast<const char*>(bytes.bytes.data()), bytes.bytes.size()}, file.string(),
                        bytes.owner);
  });
}

void Documents::encode(const Piece& piece, std::vector<uint32_t>& ids) const {
  if (tokenizer_) {
    const Tokenizer::Frame& frame = tokenizer_->frame();
    if (piece.first && mark_) ids.push_back(*mark_);
    if (piece.first && marks_) ids.insert(ids.end(), frame.before.begin(), frame.before.end());
    for (int32_t id : tokenizer_->encode(piece.text)) ids.push_back(uint32_t(id));
    if (piece.last && marks_) ids.insert(ids.end(), frame.after.begin(), frame.after.end());
    return;
  }
  if (characters_.empty()) {
    const auto* const bytes = reinterpret_cast<const uint8_t*>(piece.text.data());
    ids.insert(ids.end(), bytes, bytes + piece.text.size());
    if (piece.last && lines_) ids.push_back('\n');
    return;
  }
  const auto add = [&](char32_t c) {
    ids.push_back(uint32_t(std::ranges::lower_bound(characters_, c) - characters_.begin()));
  };
  for_chars(piece.text, [&](char32_t c, size_t, size_t) { add(c); });
  if (piece.last && lines_) add(U'\n');
}

bool Documents::each(const std::function<void(std::span<const uint32_t> ids, bool begins)>& f,
                     const Reading& reading) const {
  struct Block {  // what one thread does: pieces of a megabyte or two in all
    size_t bytes = 0;
    std::vector<Piece> pieces = {};
    std::vector<uint32_t> ids = {};
    std::vector<size_t> ends = {};  // of each piece's ids
  };
  const std::shared_ptr<Threads> threads = make_threads(threads_);
  std::vector<Block> blocks(1);
  int64_t done = 0;
  bool begins = false;
  const auto pass_on = [&] {
    threads->run(int(blocks.size()), [&](int i) {
      Block& block = blocks[size_t(i)];
      for (const Piece& piece : block.pieces) encode(piece, block.ids), block.ends.push_back(block.ids.size());
    });
    for (const Block& block : blocks) {
      for (size_t i = 0, begin = 0; i < block.pieces.size(); begin = block.ends[i++]) {
        begins = begins || block.pieces[i].first;
        if (begin < block.ends[i])
          f(std::span(block.ids).subspan(begin, block.ends[i] - begin), begins), begins = false;
      }
      done += int64_t(block.bytes);
    }
    blocks.assign(1, {});
    return !reading || reading(done, bytes_);
  };
  const auto add = [&](std::string_view text, const std::shared_ptr<void>& owner) {
    for (bool first = true; first || !text.empty(); first = false) {
      if (blocks.back().bytes >= megabyte) {
        if (blocks.size() < 8 * size_t(threads->count())) blocks.emplace_back();
        else if (!pass_on()) return false;
      }
      const size_t size = piece_of(text);
      blocks.back().pieces.push_back({text.substr(0, size), first, size == text.size(), owner});
      blocks.back().bytes += size;
      text.remove_prefix(size);
    }
    return true;
  };
  return each_text(add) && pass_on();
}

// ---- both

Data read_data(const DataConfig& config, std::string_view built_in, uint64_t seed, int threads,
               const Reading& reading) {
  if (!(config.validation >= 0 && config.validation < 1))
    fail("data.validation: expected a share of 0 or more, below 1, got ", config.validation);
  Data data;
  Tokens all;
  if (is_folder_of_tokens(config.path)) {
    const auto expect = [&](bool as_usual, const char* field) {
      if (!as_usual) fail("data.", field, ": expected none beside tokens, which ", config.path, " holds");
    };
    expect(config.tokenizer.empty(), "tokenizer");
    expect(config.documents == "files", "documents");
    expect(config.marks, "marks");
    const fs::path tokenizer = fs::path(config.path) / "tokenizer.json";
    if (fs::exists(tokenizer)) {
      data.tokenizer = read_file(tokenizer);
      data.vocabulary = Tokenizer::parse(data.tokenizer, tokenizer.string()).size();
    }
    for (const fs::path& file : shards_in(config.path))
      all.add_file(file, data.tokenizer.empty() ? INT64_MAX : data.vocabulary);
    if (data.tokenizer.empty()) data.vocabulary = all.largest() + 1;
  } else {
    const Documents documents(config, built_in, seed, threads);
    std::vector<uint32_t> ids;
    std::vector<int64_t> begins;
    const auto add = [&](std::span<const uint32_t> piece, bool is_first) {
      if (is_first) begins.push_back(int64_t(ids.size()));
      ids.insert(ids.end(), piece.begin(), piece.end());
    };
    if (!documents.each(add, reading)) fail("data: stopped before all of it was tokens");
    all.add(std::move(ids), std::move(begins));
    data.tokenizer = documents.tokenizer();
    data.vocabulary = documents.vocabulary();
  }
  std::tie(data.training, data.validation) = all.split(config.validation);
  return data;
}

}  // namespace dense
