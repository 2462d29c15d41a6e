// The text of data/names.txt, held in the program so that microgpt runs without any file.
#pragma once

#include <string_view>

namespace dense::cli {

extern const std::string_view builtin_names;  // one name per line

}  // namespace dense::cli
