#include "cli/pages.h"
#include "dense/scalar/error.h"

dense::Page dense::cli::page_of(const std::string& model_type) {
  std::string known;
  for (Page& page : pages()) {
    if (model_type.empty() || page.model_type == model_type) return std::move(page);
    known += (known.empty() ? "" : ", ") + page.model_type;
  }
  fail("model_type: expected one of ", known, ", got ", model_type);
}
