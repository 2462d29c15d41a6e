// Text as documents: one per line, as sequences of Unicode code points.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dense {

// The documents of a UTF-8 text: its lines as Python's text mode splits them (\n, \r\n, \r), stripped of
// Unicode white space at both ends; empty ones dropped. Throws Error at bytes that are not UTF-8 or when no
// document is left; `name` is the text's name in the error, e.g. its path.
std::vector<std::u32string> documents(std::string_view text, const std::string& name);

// The documents of a file. Throws Error when the file is missing, a folder, or cannot be read.
std::vector<std::u32string> read_documents(const std::string& path);

// UTF-8 of code points.
std::string to_utf8(std::u32string_view text);

}  // namespace dense
