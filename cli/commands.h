// The commands of the dense program: one function and one file each. main.cpp lists them.
#pragma once

#include <string>
#include <vector>

namespace dense::cli {

// How a command was called: its full name, such as "dense microgpt", and the arguments after it.
struct Call {
  std::string program;
  std::vector<std::string> args;
};

// Each returns the exit code. Bad flags or input throw dense::Error, which main() prints as one line.
int microgpt_command(const Call& call);        // cli/microgpt.cpp
int init_command(const Call& call);            // cli/init.cpp
int train_command(const Call& call);           // cli/train.cpp
int report_command(const Call& call);          // cli/report.cpp
int twin_command(const Call& call);            // cli/twin.cpp
int sweep_command(const Call& call);           // cli/sweep.cpp
int forward_command(const Call& call);         // cli/forward.cpp
int show_command(const Call& call);            // cli/show.cpp
int generate_command(const Call& call);        // cli/generate.cpp
int eval_command(const Call& call);            // cli/eval.cpp
int quantize_command(const Call& call);        // cli/quantize.cpp
int tokenize_command(const Call& call);        // cli/tokenize.cpp
int tokens_command(const Call& call);          // cli/tokens.cpp
int models_command(const Call& call);          // cli/models.cpp
int copies_command(const Call& call);          // cli/copies.cpp
int bench_microgpt_command(const Call& call);  // bench/microgpt.cpp
int bench_decode_command(const Call& call);    // bench/decode.cpp
int bench_train_command(const Call& call);     // bench/train.cpp
int bench_scalar_command(const Call& call);    // bench/scalar.cpp

}  // namespace dense::cli
