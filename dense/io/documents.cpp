#include "dense/io/documents.h"

#include <utf8proc.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "dense/scalar/error.h"

namespace dense {

// What Python's str.isspace() says yes to, and so str.strip() removes.
constexpr std::u32string_view white_space =
    U"\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    U"\u2028\u2029\u202f\u205f\u3000";

std::vector<std::u32string> documents(std::string_view text, const std::string& name) {
  std::vector<std::u32string> docs;
  std::u32string line;
  auto end_line = [&] {
    const size_t first = line.find_first_not_of(white_space), last = line.find_last_not_of(white_space);
    if (first != line.npos) docs.push_back(line.substr(first, last + 1 - first));
    line.clear();
  };
  auto bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  int64_t line_number = 1;
  for (size_t i = 0; i < text.size();) {
    utf8proc_int32_t c = 0;
    const utf8proc_ssize_t used = utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &c);
    if (used < 0) {
      char byte[8];
      std::snprintf(byte, sizeof byte, "0x%02x", bytes[i]);
      fail(name, ": line ", line_number, ": not UTF-8: byte ", byte);
    }
    i += static_cast<size_t>(used);
    if (c == '\r' && i < text.size() && text[i] == '\n') continue;  // \r\n is one end of line: the \n's
    if (c == '\n' || c == '\r') {
      end_line();
      ++line_number;
    } else {
      line += static_cast<char32_t>(c);
    }
  }
  end_line();
  if (docs.empty()) fail(name, ": no documents: every line is empty");
  return docs;
}

std::vector<std::u32string> read_documents(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) fail(path, ": is a folder");
  auto close = [](std::FILE* file) { std::fclose(file); };
  std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(path.c_str(), "rb"));
  if (!file) fail(path, ": cannot open: ", std::strerror(errno));
  std::string text;
  char block[1 << 16];
  while (size_t size = std::fread(block, 1, sizeof block, file.get())) text.append(block, size);
  if (std::ferror(file.get())) fail(path, ": cannot read: ", std::strerror(errno));
  return documents(text, path);
}

std::string to_utf8(std::u32string_view text) {
  std::string utf8;
  for (char32_t c : text) {
    utf8proc_uint8_t bytes[4];
    const utf8proc_ssize_t size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
    utf8.append(bytes, bytes + size);
  }
  return utf8;
}

}  // namespace dense
