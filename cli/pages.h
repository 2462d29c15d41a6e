// The pages that commands know.
#pragma once

#include "dense/train/model.h"

namespace dense::cli {

std::vector<Page> pages();  // cli/pages.cpp, or the one page of ./run --page
// The text of models/FILE.h as it was built; made by CMakeLists.txt.
std::string_view page_source(std::string_view file);

std::string page_names();  // their model_types, with commas

// By Hugging Face's model_type; the first one by no name. Throws Error that lists them all for one that is not there.
Page page_of(const std::string& model_type);
// The page of a run: of this type, configured as the Hugging Face model in `from` is; or without one, small enough to be
// tried at once.
Page page_of_run(std::string model_type, const std::string& from, const Warn& warn = {});

}  // namespace dense::cli
