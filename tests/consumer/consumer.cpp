// Loads a Llama from a folder as Hugging Face has it and prints a score of the token after 1, 2, 3.
#include <cstdio>

#include "dense/train/model.h"
#include "models/llama.h"

int main(int, char** argv) {
  dense::Model model(dense::page<llama::Config>(), argv[1]);
  const std::vector<int32_t> ids = {1, 2, 3};
  const auto logits = model.run({1, 3, ids}, false).at("logits");
  std::printf("%zu logits, the last one %.6f\n", logits.values.size(), logits.values.back());
}
