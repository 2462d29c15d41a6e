// dense quantize: a model's folder again, in fewer bits.
#include <fmt/format.h>

#include <filesystem>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/pages.h"
#include "cli/progress.h"
#include "cli/whole_file.h"
#include "dense/io/files.h"
#include "dense/io/hub.h"
#include "dense/io/safetensors.h"

namespace dense::cli {
namespace {

struct Config {
  std::string dtype = "int8";
  bool force = false;
  int threads = 0;

  void fields(auto&& f) {
    f("dtype", dtype, "int8 or int4: in groups of 32 with a float16 scale; or bf16, f32");
    f("force", force, "in place of a model that is in OUT");
    f("threads", threads, "0: as many as the machine has", 0);
  }
};

}  // namespace

int quantize_command(const Call& call) {
  Config config;
  std::string model_name, out;
  if (!parse_flags(config, call,
                   "Writes a model's folder with the weights of its matrix products in fewer bits. generate, eval and\n"
                   "forward read it like any other.",
                   call.program + " gpt2/ gpt2-int4/ --dtype int4", {{"MODEL", &model_name}, {"OUT", &out}}))
    return 0;
  const std::optional<Dtype> type = weight_type(config.dtype, "--");
  if (!type) fail("--dtype: expected f32, bf16, int8 or int4, got ", config.dtype);
  const std::filesystem::path folder = find_model(model_name);
  std::error_code error;
  if (std::filesystem::equivalent(folder, out, error)) fail(out, ": expected another folder than the model's");
  if (!config.force && (has_weights(out) || std::filesystem::exists(std::filesystem::path(out) / "config.json")))
    fail(out, ": holds a model already; --force writes a new one in its place");
  Model model(page_of(model_type(folder)), folder, config.threads, [](const std::string& line) { say("{}\n", line); });
  model.convert(*type);
  std::filesystem::create_directories(out, error);
  if (error) fail(out, ": ", error.message());
  check_writable((std::filesystem::path(out) / "config.json").string());
  model.save(out);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {  // tokenizer and generation settings
    const std::string name = entry.path().filename().string();
    const bool text = name.ends_with(".json") || name.ends_with(".txt") || name.ends_with(".jinja");
    if (text && name != "config.json" && name != "model.safetensors.index.json" && entry.is_regular_file())
      write_file(std::filesystem::path(out) / name, read_file(entry.path()));
  }
  int64_t bytes = 0, parameters = model.parameters().count();
  for (const Parameter* p : model.parameters().declared()) bytes += int64_t(p->bytes().size());
  say("saved {}: {} parameters in {} bytes\n", out, with_commas(parameters), with_commas(bytes));
  return 0;
}

}  // namespace dense::cli
