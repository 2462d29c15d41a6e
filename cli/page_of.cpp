#include "cli/pages.h"
#include "dense/io/hub.h"
#include "dense/scalar/error.h"
#include "dense/train/trainer.h"

std::string dense::cli::page_names() {
  std::string names;
  for (const Page& page : pages()) names += (names.empty() ? "" : ", ") + page.model_type;
  return names;
}

dense::Page dense::cli::page_of(const std::string& model_type) {
  for (Page& page : pages())
    if (model_type.empty() || page.model_type == model_type) return std::move(page);
  fail("model_type: expected one of ", page_names(), ", got ", model_type);
}

dense::Page dense::cli::page_of_run(std::string model_type, const std::string& from, const Warn& warn) {
  const std::filesystem::path folder = from.empty() ? std::filesystem::path() : find_model(from);
  const std::string found = from.empty() ? model_type : dense::model_type(folder);
  if (!model_type.empty() && model_type != found) fail("from: ", from, ": expected a ", model_type, ", got a ", found);
  model_type = found;
  Page page = page_of(model_type);
  if (from.empty()) {
    make_small(page);
  } else {
    set_fields(folder / "config.json", page.fields, page.inert, warn);
    page.configured = true;
  }
  return page;
}
