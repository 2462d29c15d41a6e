#include "cli/pages.h"
#include "dense/io/hub.h"
#include "dense/scalar/error.h"
#include "dense/train/trainer.h"

dense::Page dense::cli::page_of(const std::string& model_type) {
  std::string known;
  for (Page& page : pages()) {
    if (model_type.empty() || page.model_type == model_type) return std::move(page);
    known += (known.empty() ? "" : ", ") + page.model_type;
  }
  fail("model_type: expected one of ", known, ", got ", model_type);
}

dense::Page dense::cli::page_of_run(const Json& config, std::string model_type, std::string from) {
  const auto text_in = [&](const char* name) {
    const Json* value = config.find(name);
    return value && value->kind == Json::string ? value->text : "";
  };
  if (model_type.empty()) model_type = text_in("model_type");
  if (from.empty()) from = text_in("from");
  if (model_type.empty() && !from.empty()) model_type = dense::model_type(find_model(from));
  Page page = page_of(model_type);
  make_small(page);
  return page;
}
