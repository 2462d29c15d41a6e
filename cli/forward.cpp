// dense forward: a checkpoint and its inputs in, logits, loss and gradients out.
#include <fmt/core.h>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/pages.h"
#include "cli/progress.h"
#include "cli/whole_file.h"
#include "dense/io/hub.h"
#include "dense/io/safetensors.h"

namespace dense::cli {
namespace {

struct Config {
  bool grads = false, float64 = false, profile = false;
  int threads = 0;

  void fields(auto&& f) {
    f("grads", grads, "gradients of the loss, too");
    f("float64", float64, "compute in float64, slowly, and write that: what rounding to float32 is measured by");
    f("profile", profile, "at the end say how long each kernel took");
    f("threads", threads, "0: as many as the machine has", 0);
  }
};

}  // namespace

int forward_command(const Call& call) {
  Config config;
  std::string model_name, inputs, outputs_path;
  if (!parse_flags(config, call,
                   "Runs a Hugging Face model on given tokens.\n\n"
                   "MODEL    a folder with config.json and model.safetensors, or a name in the local cache\n"
                   "INPUTS   input_ids (B, T); if present also attention_mask, position_ids, token_type_ids, labels;\n"
                   "         of an encoder-decoder decoder_input_ids and labels (B, T'), or one of them\n"
                   "OUTPUTS  logits, last_hidden_state, with labels loss, with --grads grad.NAME of every parameter",
                   call.program + " gpt2/ inputs.safetensors outputs.safetensors --grads",
                   {{"MODEL", &model_name}, {"INPUTS", &inputs}, {"OUTPUTS", &outputs_path}}))
    return 0;
  check_writable(outputs_path);

  const StoredTensors given = read_safetensors(inputs);
  const auto ids_at = given.find("input_ids");
  if (ids_at == given.end()) fail(inputs, ": input_ids: expected (B, T), missing");
  const Shape shape = ids_at->second.shape;
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1)
    fail(inputs, ": input_ids: expected (B, T), got ", to_string(shape));
  const auto ints = [&](const char* name, const Shape& want) {
    const auto found = given.find(name);
    if (found == given.end()) return std::vector<int32_t>();
    if (found->second.shape != want)
      fail(inputs, ": ", name, ": expected ", to_string(want), ", got ", to_string(found->second.shape));
    return to_i32(found->second);
  };
  const std::filesystem::path folder = find_model(model_name);
  const Page page = page_of(model_type(folder));
  Shape scored = shape;  // what labels are for: all that an encoder-decoder's decoder is given, whatever its length
  for (const char* name : {"labels", "decoder_input_ids"})
    if (const auto found = given.find(name); page.decoder && found != given.end() && found->second.shape.size() == 2)
      scored[1] = found->second.shape[1];
  const std::vector<int32_t> ids = ints("input_ids", shape), labels = ints("labels", scored);
  const std::vector<int32_t> mask = ints("attention_mask", shape), types = ints("token_type_ids", shape);
  const std::vector<int32_t> decoder_ids = ints("decoder_input_ids", scored);
  const std::vector<int32_t> positions = ints("position_ids", shape);
  RealTokens real;
  try {
    real = real_tokens(mask, shape[1]);
  } catch (const Error& error) {
    fail(inputs, ": ", error.what());
  }
  for (const auto& [name, tensor] : given)
    if (name != "input_ids" && name != "labels" && name != "attention_mask" && name != "token_type_ids" &&
        name != "position_ids" && name != "decoder_input_ids")
      fail(inputs, ": ", name,
           ": expected input_ids, attention_mask, position_ids, token_type_ids, decoder_input_ids and labels alone");

  Model model(page, folder, config.threads, [](const std::string& line) { say("{}\n", line); });
  const Model::Inputs all{shape[0], shape[1], ids,         labels,    real.lengths,
                          {},       types,    real.firsts, positions, decoder_ids};
  const auto write = [&](auto results, const char* dtype) {
    std::vector<StoredTensor> outputs;
    for (auto& [name, result] : results)
      outputs.push_back({name, dtype, result.shape, std::as_writable_bytes(std::span(result.values)), nullptr, {}});
    write_safetensors(outputs_path, outputs);
  };
  std::string profile;
  if (config.float64) write(model.run_float64(all, config.grads, &profile), "F64");
  else write(model.run(all, config.grads, &profile), "F32");
  if (config.profile) say("{}", profile);
  return 0;
}

}  // namespace dense::cli
