// dense forward: a checkpoint and its inputs in, logits, loss and gradients out.
#include <fmt/core.h>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/pages.h"
#include "cli/progress.h"
#include "cli/whole_file.h"
#include "dense/io/safetensors.h"

namespace dense::cli {
namespace {

const char* const about =
    "Usage: dense forward MODEL INPUTS.safetensors OUTPUTS.safetensors [--grads] [--threads N]\n\n"
    "Runs a Hugging Face model on given tokens.\n\n"
    "MODEL    a folder with config.json and model.safetensors\n"
    "INPUTS   input_ids (B, T); if present also attention_mask (B, T) and labels (B, T)\n"
    "OUTPUTS  logits, last_hidden_state, with labels loss, with --grads grad.NAME of every parameter; float32\n\n"
    "  --grads      gradients of the loss\n"
    "  --threads N  at most so many (default: as many as the machine has)\n\n"
    "Example: dense forward gpt2/ inputs.safetensors outputs.safetensors --grads\n";

// Ones and then zeros in each row: how many ones. Other masks are refused.
std::vector<int32_t> lengths_of(const std::vector<int32_t>& mask, int64_t time) {
  std::vector<int32_t> lengths;
  for (size_t begin = 0; begin < mask.size(); begin += size_t(time)) {
    int32_t length = 0;
    for (int64_t t = 0; t < time; ++t) {
      const int32_t m = mask[begin + size_t(t)];
      if (m != 0 && m != 1) fail("attention_mask: expected 0 and 1, got ", m);
      if (m == 1 && length != t)
        fail("attention_mask: row ", lengths.size(), ": expected ones before zeros, got a 1 at ", t, " after a 0");
      length += m;
    }
    lengths.push_back(length);
  }
  return lengths;
}

int number_of_threads(const std::string& given) {
  if (given.empty()) fail("--threads: expected a value, got \"\"");
  const int threads = parse_number<int>("threads", given);
  if (threads < 1) fail("--threads: expected 1 or more, got ", threads);
  return threads;
}

}  // namespace

int forward_command(const Call& call) {
  std::vector<std::string> paths;
  bool gradients = false;
  int threads = 0;
  for (size_t i = 0; i < call.args.size(); ++i) {
    const std::string& arg = call.args[i];
    if (arg == "--help" || arg == "-h") return fmt::print("{}", about), 0;
    if (arg == "--grads") gradients = true;
    else if (arg == "--threads" && i + 1 == call.args.size()) fail("--threads: expected a value, got nothing");
    else if (arg == "--threads") threads = number_of_threads(call.args[++i]);
    else if (arg.starts_with("--threads=")) threads = number_of_threads(arg.substr(10));
    else if (arg.size() > 1 && arg.starts_with("-"))
      fail("unknown flag ", arg, did_you_mean(arg, {"--grads", "--threads", "--help"}));
    else paths.push_back(arg);
  }
  if (paths.size() != 3) fail("expected MODEL INPUTS OUTPUTS, got ", paths.size(), " of them (see --help)");
  check_writable(paths[2]);

  const StoredTensors given = read_safetensors(paths[1]);
  const auto ids_at = given.find("input_ids");
  if (ids_at == given.end()) fail(paths[1], ": input_ids: expected (B, T), missing");
  const Shape shape = ids_at->second.shape;
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1)
    fail(paths[1], ": input_ids: expected (B, T), got ", to_string(shape));
  const auto ints = [&](const char* name) {
    const auto found = given.find(name);
    if (found == given.end()) return std::vector<int32_t>();
    if (found->second.shape != shape)
      fail(paths[1], ": ", name, ": expected ", to_string(shape), ", got ", to_string(found->second.shape));
    return to_i32(found->second);
  };
  const std::vector<int32_t> ids = ints("input_ids"), labels = ints("labels"), mask = ints("attention_mask");
  std::vector<int32_t> lengths;
  try {
    lengths = lengths_of(mask, shape[1]);
  } catch (const Error& error) {
    fail(paths[1], ": ", error.what());
  }
  for (const auto& [name, tensor] : given)
    if (name != "input_ids" && name != "labels" && name != "attention_mask")
      fail(paths[1], ": ", name, ": expected input_ids, attention_mask and labels alone");

  Model model(page_of(model_type(paths[0])), paths[0], threads, [](const std::string& line) { say("{}\n", line); });
  std::map<std::string, Model::Result> results = model.run({shape[0], shape[1], ids, labels, lengths, {}}, gradients);
  std::vector<StoredTensor> outputs;
  for (auto& [name, result] : results)
    outputs.push_back({name, "F32", result.shape, std::as_writable_bytes(std::span(result.values)), nullptr, {}});
  write_safetensors(paths[2], outputs);
  return 0;
}

}  // namespace dense::cli
