// Continues a text with a model in a Hugging Face folder:
//
//   find_package(dense REQUIRED)                              in CMakeLists.txt, after cmake --install build --prefix ...
//   add_executable(generate generate.cpp)
//   target_link_libraries(generate dense::dense)
//
//   ./generate gpt2/ "Once upon a time"
#include <exception>
#include <iostream>

#include "models/gpt2.h"
#include "models/llama.h"

int main(int argc, char** argv) try {
  if (argc != 3) throw dense::Error("expected MODEL PROMPT");
  const auto folder = dense::find_model(argv[1]);
  const bool is_llama = dense::model_type(folder) == "llama";
  dense::Model model(is_llama ? dense::page<llama::Config>() : dense::page<gpt2::Config>(), folder);
  const dense::Tokenizer tokenizer(folder);
  const std::vector<std::vector<int32_t>> prompts{tokenizer.encode(argv[2], true)};

  dense::TextStream stream(tokenizer, true);
  for (int32_t id : prompts[0]) std::cout << stream.push(id);
  dense::generate(model, prompts, dense::read_generation(folder), [&](int64_t, int32_t id) {
    std::cout << stream.push(id) << std::flush;
    return bool(std::cout);
  });
  std::cout << stream.finish() << "\n";
} catch (const std::exception& error) {
  std::cerr << "generate: " << error.what() << "\n";
  return 2;
}
