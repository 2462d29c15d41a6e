// The dense program: finds the command, runs it, and turns errors into one line and an exit code.
#include <fmt/core.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/progress.h"
#include "dense/scalar/error.h"

namespace dense::cli {
namespace {

constexpr const char* version = "0.1.0";

struct Command {
  const char* name;
  const char* text;
  int (*run)(const Call& call);
};
constexpr Command commands[] = {
    {"microgpt", "train Karpathy's microgpt, a GPT on scalars, with Python's numbers", microgpt_command},
    {"init", "write a Hugging Face folder with new weights", init_command},
    {"train", "train a model on a text: new weights, or those of a folder", train_command},
    {"report", "runs of train as a page: curves, samples, configs", report_command},
    {"twin", "train several models on the same batches, and how they differ", twin_command},
    {"sweep", "train once for each of some values of a config's fields", sweep_command},
    {"show", "what a model is made of: parameters, FLOPs, memory, its graph", show_command},
    {"generate", "continue a text with a Hugging Face model", generate_command},
    {"eval", "how well a model predicts a text: perplexity, nats per byte", eval_command},
    {"quantize", "write a model's folder again, in 8 or 4 bits", quantize_command},
    {"forward", "run a Hugging Face model on given tokens: logits, loss, gradients", forward_command},
    {"tokenize", "turn text into the ids of a Hugging Face tokenizer, and back", tokenize_command},
    {"tokens", "write a text as tokens, to be trained on", tokens_command},
    {"models", "the pages: what each of them does, how long it is, its paper", models_command},
    {"copies", "hold copies between pages equal: check, fix, diff, list", copies_command},
    {"bench microgpt", "how fast microgpt trains", bench_microgpt_command},
    {"bench train", "how fast GPT-2 trains, beside oneDNN's matmul", bench_train_command},
    {"bench decode", "how fast a model generates, beside the bandwidth of memory", bench_decode_command},
    {"bench scalar", "how fast recorded graphs run, beside a C interpreter", bench_scalar_command},
};

int help() {
  fmt::print(
      "Language models you can read in one sitting and run at the speed of the machine.\n\n"
      "Usage: dense COMMAND [FLAGS]\n\n");
  for (const Command& command : commands) fmt::print("  dense {:<18}{}\n", command.name, command.text);
  fmt::print("\n  dense COMMAND --help   the command's flags\n  dense --version\n");
  return 0;
}

// The words of the command's name, as many as it has, or 0 when the arguments do not start with them.
size_t match(const Command& command, const std::vector<std::string>& args) {
  std::string typed;
  for (size_t words = 1; words <= args.size(); ++words) {
    typed += args[words - 1];
    if (typed == command.name) return words;
    typed += ' ';
  }
  return 0;
}

// `call` is filled in as far as it is understood, for the name in front of an error.
int run(const std::vector<std::string>& args, Call& call) {
  if (args.empty() || args[0] == "--help" || args[0] == "-h" || args[0] == "help") return help();
  if (args[0] == "--version") return fmt::print("dense {}\n", version), 0;
  std::vector<std::string> names;
  for (const Command& command : commands) {
    if (const size_t words = match(command, args)) {
      call.program += std::string(" ") + command.name;
      call.args.assign(args.begin() + static_cast<std::ptrdiff_t>(words), args.end());
      return command.run(call);
    }
    names.push_back(command.name);
  }
  fail("unknown command ", args[0], did_you_mean(args[0], names), " (see dense --help)");
}

// Arguments and paths may hold line breaks; an error is one line.
int report(const Call& call, std::string text, int exit_code) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < ' ' || c == 0x7f; }, '?');
  std::fflush(stdout);
  say("{}: {}\n", call.program, text);
  return exit_code;
}

}  // namespace
}  // namespace dense::cli

int main(int argc, char** argv) {
  using namespace dense::cli;
  std::signal(SIGPIPE, SIG_DFL);  // `dense ... | head` ends quietly, whatever the parent process had set
  Call call{"dense", {}};
  try {
    const int exit_code = run(std::vector<std::string>(argv + std::min(argc, 1), argv + argc), call);
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) return report(call, "cannot write to standard output", 1);
    return exit_code;
  } catch (const dense::Error& error) {
    return report(call, error.what(), 2);
  } catch (const std::filesystem::filesystem_error& error) {
    return report(call, error.path1().string() + ": " + error.code().message(), 2);
  } catch (const std::bad_alloc&) {
    return report(call, "out of memory", 1);
  } catch (const std::exception& error) {
    return report(call, error.what(), 1);
  }
}
