// dense generate: prompts in, text out.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <optional>
#include <sstream>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "cli/pages.h"
#include "cli/progress.h"
#include "dense/io/files.h"
#include "dense/io/hub.h"
#include "dense/io/json.h"
#include "dense/io/tokenizer.h"
#include "dense/train/generate.h"

namespace dense::cli {
namespace {

struct Config {
  std::string prompt, prompts, dtype = "as-stored";
  std::vector<int> ids;
  int64_t tokens = 128, seed = 0;
  bool ignore_eos = false, json = false, profile = false;
  SamplingChanges changes;
  int threads = 0;

  void fields(auto&& f) {
    f("prompt", prompt, "text to continue (default: standard input, where that is no terminal)");
    f("prompts", prompts, "file with a prompt in each line, all continued at once");
    f("ids", ids, "prompt as token ids");
    f("tokens", tokens, "new tokens, at most", 0);
    f("greedy", changes.greedy, "take the likeliest token each time");
    f("temperature", changes.temperature,
      "logits are divided by it; smaller is safer, larger is stranger; 0: the likeliest token");
    f("top_k", changes.top_k, "choose among the k likeliest tokens; 0: all");
    f("top_p", changes.top_p, "among the fewest that have this probability together");
    f("min_p", changes.min_p, "among those that have this share of the likeliest one's probability");
    f("repetition_penalty", changes.repetition_penalty,
      "how much less likely tokens become that were there; 1: no less");
    f("seed", seed, "of the choices", INT64_MIN);
    f("ignore-eos", ignore_eos, "go on after tokens that end a text");
    f("json", json, "print ids, text and timings of each prompt as a line of JSON");
    f("profile", profile, "at the end say how long each kernel of a step took");
    f("dtype", dtype, "weights as-stored, or f32, bf16, int8, int4");
    f("threads", threads, "0: as many as the machine has", 0);
  }
};

std::vector<std::string> lines_of(const std::string& file) {
  std::istringstream in(read_file(file));
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    if (line.ends_with('\r')) line.pop_back();
    lines.push_back(line);
  }
  if (lines.empty()) fail("--prompts: ", file, ": expected a line or more");
  return lines;
}

double seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

void write(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

}  // namespace

int generate_command(const Call& call) {
  const auto begin = std::chrono::steady_clock::now();
  Config config;
  std::string model_name;
  if (!parse_flags(
          config, call,
          "Continues a text with a model: a Hugging Face folder as it is, or a name found in the local cache.\n"
          "How tokens are chosen is what the model's generation_config.json says, unless flags say otherwise.",
          call.program + " gpt2/ --prompt \"Once upon a time\" --temperature 0.8 --tokens 200",
          {{"MODEL", &model_name}}))
    return 0;
  const int given = !config.prompt.empty() + !config.prompts.empty() + !config.ids.empty();
  if (given > 1) fail("expected one of --prompt, --prompts and --ids, got ", given);
  const std::optional<Dtype> type = weight_type(config.dtype, "--");
  const std::filesystem::path folder = find_model(model_name);
  Generation generation = read_generation(folder);
  generation.sampling = changed(generation.sampling, config.changes, "--");
  generation.sampling.seed = uint64_t(config.seed);
  generation.tokens = config.tokens;
  if (config.ignore_eos) generation.stops.clear();
  generation.profile = config.profile;

  std::optional<Tokenizer> tokenizer;
  const auto has = [&](const char* file) { return std::filesystem::exists(folder / file); };
  if (has("tokenizer.json") || has("vocab.txt") || config.ids.empty()) tokenizer.emplace(folder);
  std::vector<std::string> texts;
  std::vector<std::vector<int32_t>> prompts;
  if (!config.ids.empty()) {
    prompts.emplace_back(config.ids.begin(), config.ids.end());
  } else {
    if (!config.prompts.empty()) texts = lines_of(config.prompts);
    else if (!config.prompt.empty()) texts = {config.prompt};
    else if (isatty(STDIN_FILENO)) fail("expected --prompt, --prompts, --ids or a text on standard input");
    else texts = {std::string(std::istreambuf_iterator<char>(std::cin), {})};
    for (size_t i = 0; i < texts.size(); ++i) {
      try {
        prompts.push_back(tokenizer->encode(texts[i], true));
      } catch (const Error& error) {
        fail(texts.size() > 1 ? text("prompt ", i + 1) : std::string("prompt"), ": ", error.what());
      }
    }
  }

  Model model(page_of(model_type(folder)), folder, config.threads, [](const std::string& line) { say("{}\n", line); });
  if (!model.page().generates())
    fail(folder.string(), ": expected a model that continues texts, got ", model.page().model_type);
  if (tokenizer) check_vocabulary(*tokenizer, model);
  check_prompts(model, prompts);  // before the first of them is printed
  if (type) model.convert(*type);
  const double load_seconds = seconds(begin);

  catch_stop_signals();
  // An answer stands alone.
  const auto before = [&](size_t row) { return model.page().causal ? prompts[row] : std::vector<int32_t>(); };
  const bool streams = !config.json && prompts.size() == 1 && tokenizer;
  std::optional<TextStream> stream;
  if (streams) {
    stream.emplace(*tokenizer, true);
    stream->follow(before(0));
    if (!texts.empty() && model.page().causal) write(texts[0]);
  }
  double first_seconds = 0;
  const Generated out = generate(model, prompts, generation, [&](int64_t, int32_t id) {
    if (first_seconds == 0) first_seconds = seconds(begin);
    if (streams) write(stream->push(id));
    return !stop_signal();
  });
  if (streams) write(stream->finish() + "\n");

  int64_t tokens = 0;
  for (const auto& row : out.ids) tokens += int64_t(row.size());
  const double rate = out.decode_seconds > 0 ? double(out.steps) * double(prompts.size()) / out.decode_seconds : 0;
  const double prompt_rate = out.prefill_seconds > 0 ? double(out.prompt_tokens) / out.prefill_seconds : 0;
  for (size_t row = 0; row < prompts.size() && !streams; ++row) {
    std::string shown_ids = fmt::format("{}", fmt::join(out.ids[row], config.json ? ", " : " "));
    if (config.json) {
      const std::string shown_text =
          tokenizer ? json_string(continuation(*tokenizer, before(row), out.ids[row])) : "null";
      write(fmt::format(
          "{{\"ids\": [{}], \"text\": {}, \"timings\": {{\"load_seconds\": {:.4f}, \"first_token_seconds\": {:.4f}, "
          "\"prompt_tokens\": {}, \"prefill_seconds\": {:.4f}, \"prefill_tokens_per_second\": {:.1f}, \"tokens\": {}, "
          "\"decode_seconds\": {:.4f}, \"decode_tokens_per_second\": {:.1f}}}}}\n",
          shown_ids, shown_text, load_seconds, first_seconds, out.prompt_tokens, out.prefill_seconds, prompt_rate,
          tokens, out.decode_seconds, rate));
    } else if (tokenizer) {
      write((model.page().causal ? texts[row] : "") + continuation(*tokenizer, before(row), out.ids[row]) + "\n");
    } else {
      write(shown_ids + "\n");
    }
  }
  if (!config.json)
    say("{} prompt tokens, {:.0f} a second; {} new ones, {:.1f} a second; the first after {:.2f} s\n",
        with_commas(out.prompt_tokens), prompt_rate, with_commas(tokens), rate, first_seconds);
  if (config.profile) say("{}", out.profile);
  return stop_signal() ? 128 + stop_signal() : 0;
}

}  // namespace dense::cli
