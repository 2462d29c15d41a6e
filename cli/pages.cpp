#include "cli/pages.h"

#include <algorithm>

#include "models/bert.h"
#include "models/deberta_v2.h"
#include "models/esm.h"
#include "models/gemma.h"
#include "models/gemma2.h"
#include "models/gpt2.h"
#include "models/gpt_neox.h"
#include "models/llama.h"
#include "models/microgpt.h"
#include "models/mistral.h"
#include "models/mixtral.h"
#include "models/olmo2.h"
#include "models/phi3.h"
#include "models/qwen2.h"
#include "models/t5.h"

std::vector<dense::Page> dense::cli::pages() {
  std::vector<Page> all = {page<gpt2::Config>(),     page<bert::Config>(),    page<deberta_v2::Config>(),
                           page<esm::Config>(),      page<gemma::Config>(),   page<gemma2::Config>(),
                           page<gpt_neox::Config>(), page<llama::Config>(),   page<microgpt::Config>(),
                           page<mistral::Config>(),  page<mixtral::Config>(), page<olmo2::Config>(),
                           page<phi3::Config>(),     page<qwen2::Config>(),   page<t5::Config>()};
  for (Page& page : all) {
    std::string file = page.model_type;
    std::ranges::replace(file, '-', '_');
    page.source = page_source(file);
  }
  return all;
}
