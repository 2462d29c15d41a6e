// The pages that commands know.
#pragma once

#include "dense/train/model.h"

namespace dense::cli {

// By Hugging Face's model_type. Throws Error that lists them all for one that is not there.
Page page_of(const std::string& model_type);

}  // namespace dense::cli
