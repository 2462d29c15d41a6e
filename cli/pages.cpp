#include "cli/pages.h"

#include "dense/scalar/error.h"
#include "models/gpt2.h"

namespace dense::cli {

Page page_of(const std::string& model_type) {
  static constexpr Page (*pages[])() = {page<gpt2::Config>};
  std::string known;
  for (const auto& make : pages) {
    Page page = make();
    if (page.model_type == model_type) return page;
    known += (known.empty() ? "" : ", ") + page.model_type;
  }
  fail("model_type: expected one of ", known, ", got ", model_type);
}

}  // namespace dense::cli
