// The pages that commands know.
#pragma once

#include "dense/io/json.h"
#include "dense/train/model.h"

namespace dense::cli {

std::vector<Page> pages();  // cli/pages.cpp, or the one page of ./run --page

// By Hugging Face's model_type; the first one by no name. Throws Error that lists them all for one that is not there.
Page page_of(const std::string& model_type);
// The page of a run's config, small enough to be tried at once: of its model_type, or where it has none of that of the
// Hugging Face model in `from`. What is given beside the config counts first.
Page page_of_run(const Json& config, std::string model_type = {}, std::string from = {});

}  // namespace dense::cli
