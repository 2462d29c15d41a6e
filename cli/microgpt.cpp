// dense microgpt: data, training, samples, trace.
#include "examples/microgpt.h"

#include <fmt/core.h>
#include <openssl/evp.h>

#include <bit>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/builtin_names.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/trace.h"
#include "cli/whole_file.h"
#include "dense/dense.h"

namespace dense::cli {
namespace {

struct Config : ::microgpt_scalar::Config {
  std::string data, trace;

  void fields(auto&& f) {
    f("data", data, "text file, one document per line (default: built-in names)");
    ::microgpt_scalar::Config::fields(f);
    f("trace", trace, "file for the losses, samples and a hash of the weights, as JSON");
  }
};

std::string sha256(const std::vector<double>& values) {
  static_assert(std::endian::native == std::endian::little, "the hash is of little-endian numbers");
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  if (!EVP_Digest(values.data(), values.size() * sizeof(double), digest, &size, EVP_sha256(), nullptr)) {
    throw std::runtime_error("SHA-256 is not available");
  }
  return fmt::format("{:02x}", fmt::join(digest, digest + size, ""));
}

std::string trace(Config& config, const ::microgpt_scalar::Result& result, bool interrupted) {
  nlohmann::ordered_json json;
  config.fields([&](const char* name, auto& value, auto...) { json["config"][name] = value; });
  json["num_docs"] = result.num_docs;
  json["vocab_size"] = result.vocab_size;
  json["num_params"] = result.num_params;
  json["losses"] = nlohmann::json::array();
  for (double loss : result.losses) json["losses"].push_back(float_hex(loss));
  json["samples"] = nlohmann::json::array();
  for (const std::u32string& sample : result.samples) json["samples"].push_back(to_utf8(sample));
  json["params_sha256_le_f64"] = sha256(result.params);
  if (interrupted) json["interrupted"] = true;
  // A path need not be UTF-8, JSON must.
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace

// What is said about the run goes to stderr; stdout gets the samples, ready for a pipe.
int microgpt_command(const Call& call) {
  Config config;
  if (!parse_flags(config, call,
                   "Trains microgpt, a small GPT on scalars, on the lines of a text, and invents new lines.\n"
                   "Every number is the one that Karpathy's Python program computes, to the last bit.",
                   call.program + " --data names.txt --steps 2000 --temperature 0.7")) {
    return 0;
  }
  auto docs = config.data.empty() ? documents(builtin_names, "built-in names") : read_documents(config.data);
  if (!config.trace.empty()) {  // better now than after an hour of training
    check_writable(config.trace);
    std::error_code ignored;
    if (std::filesystem::is_regular_file(config.trace, ignored) &&
        std::filesystem::equivalent(config.trace, config.data, ignored)) {
      fail("--trace: ", config.trace, " is the data");
    }
  }

  catch_stop_signals();
  Config untrained = config;
  untrained.steps = untrained.samples = 0;  // a run that does nothing tells the sizes
  const auto sizes = ::microgpt_scalar::run(untrained, docs, nullptr, nullptr);
  say("{} documents from {}, {} tokens, {} parameters\n", with_commas(sizes.num_docs),
      config.data.empty() ? "the built-in names" : config.data, sizes.vocab_size, with_commas(sizes.num_params));
  std::string separator = "config: ";
  config.fields([&](const char* name, auto& value, auto...) {
    if (fmt::to_string(value).empty()) return;
    say("{}{} {}", separator, name, value);
    separator = ", ";
  });
  say("\n");

  Progress progress(config.steps);
  int stopped = 0;  // by a signal that came while training; then samples are still wanted
  const auto on_step = [&](int step, double loss) {
    progress.step(step, loss);
    stopped = stop_signal();
    if (step == config.steps || stopped) progress.finish();
    return !stopped;
  };
  const auto on_sample = [&](int) { return stopped || !stop_signal(); };
  const auto result = ::microgpt_scalar::run(config, std::move(docs), on_step, on_sample);

  const bool whole = int(result.losses.size()) == config.steps && int(result.samples.size()) == config.samples;
  if (!config.trace.empty()) write_whole_file(config.trace, trace(config, result, !whole));
  say("samples:\n");
  for (const std::u32string& sample : result.samples) fmt::print("{}\n", to_utf8(sample));
  return whole ? 0 : 128 + stop_signal();
}

}  // namespace dense::cli
