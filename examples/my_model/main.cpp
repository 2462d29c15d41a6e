// Trains my_model.h on the bytes of a text, saves it as Hugging Face has models, reads that and continues the text:
//
//   ./my_model book.txt my_folder 500
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>

#include "my_model.h"

int main(int argc, char** argv) try {
  if (argc != 4) dense::fail("expected TEXT FOLDER STEPS");
  std::ifstream file(argv[1], std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const int64_t B = 8, T = 64, steps = std::stoi(argv[3]);
  if (text.size() < size_t(T)) dense::fail(argv[1], ": expected ", T, " bytes or more, got ", text.size());
  const auto tokens = [&](size_t begin, size_t count) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data()) + begin;
    return std::vector<int32_t>(bytes, bytes + count);
  };

  dense::Model model(dense::page<my_model::Config>());
  std::mt19937 random(1);
  for (int64_t step = 1; step <= steps; ++step) {
    std::vector<int32_t> ids;  // (B, T)
    for (int64_t b = 0; b < B; ++b) {
      const std::vector<int32_t> row = tokens(random() % (text.size() - size_t(T) + 1), size_t(T));
      ids.insert(ids.end(), row.begin(), row.end());
    }
    const float loss = model.step({.batch = B, .time = T, .ids = ids, .labels = ids}, {.lr = 3e-3});
    if (step % 10 == 0 || step == 1) std::cout << "step " << step << "  loss " << loss << std::endl;
  }
  model.save(argv[2]);

  dense::Model saved(dense::page<my_model::Config>(), argv[2]);
  const std::vector<std::vector<int32_t>> prompts{tokens(0, 16)};
  const dense::Generated more = dense::generate(saved, prompts, {.tokens = 100, .sampling = {.temperature = 0.8}});
  std::cout << text.substr(0, 16);
  for (int32_t id : more.ids[0]) std::cout << char(id);
  std::cout << "\n";
} catch (const std::exception& error) {
  std::cerr << "my_model: " << error.what() << "\n";
  return 2;
}
