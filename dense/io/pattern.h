// What normalizers replace and pre-tokenizers split at: a string or a regular expression.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "dense/io/fields.h"
#include "dense/io/regex.h"

namespace dense {

// Appends where it matches in UTF-8 text, without overlap.
using Pattern = std::function<void(std::string_view text, std::vector<Regex::Match>& matches)>;

Pattern literal(const std::string& string);  // which is not empty
// From {"String": "..."} or {"Regex": "..."}.
Pattern read_pattern(const Fields& pattern);

void replace_matches(std::string& text, const Pattern& pattern, std::string_view content);

}  // namespace dense
