// microgpt against CPython 3.11 running the original: every loss, every sample and every final weight, bit for bit.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "cli/trace.h"
#include "examples/microgpt.h"
#include "tests/errors.h"

namespace {

using nlohmann::json;
const std::string fixtures = DENSE_SOURCE_DIR "/tests/fixtures/microgpt/";

std::string shared() {
  const char* folder = std::getenv("DENSE_SHARED");
  return folder ? folder : DENSE_SOURCE_DIR "/../shared";
}

json read(const std::string& path) {
  std::ifstream file(path);
  return json::parse(file);
}

// options: numbers, or strings that hold them
double number(const json& value) {
  return value.is_string() ? std::stod(value.get<std::string>()) : value.get<double>();
}

std::string sha256(const std::vector<double>& numbers) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  EXPECT_TRUE(EVP_Digest(numbers.data(), numbers.size() * sizeof(double), digest, &size, EVP_sha256(), nullptr));
  return fmt::format("{:02x}", fmt::join(digest, digest + size, ""));
}

const auto go_on = [](int, double) { return true; };

void expect_equal_to_python(const json& python, const std::vector<std::u32string>& docs) {
  microgpt_scalar::Config config;
  config.steps = int(python["losses"].size());
  std::set<std::string> unknown;
  for (const auto& [name, value] : python["options"].items()) unknown.insert(name);
  config.fields([&](const char* name, auto& field, auto...) {
    if constexpr (!std::is_same_v<std::decay_t<decltype(field)>, std::string>)
      if (unknown.erase(name)) field = std::decay_t<decltype(field)>(number(python["options"][name]));
  });
  ASSERT_TRUE(unknown.empty()) << "unknown option " << *unknown.begin();

  const microgpt_scalar::Result result = microgpt_scalar::run(config, docs, go_on, [](int) { return true; });
  EXPECT_EQ(result.num_docs, python["num_docs"]);
  EXPECT_EQ(result.vocab_size, python["vocab_size"]);
  EXPECT_EQ(result.num_params, python["num_params"]);
  ASSERT_EQ(result.losses.size(), python["losses"].size());
  for (size_t i = 0; i < result.losses.size(); ++i)
    ASSERT_EQ(dense::cli::float_hex(result.losses[i]), python["losses"][i]) << "step " << i + 1;
  std::vector<std::string> samples;
  for (const std::u32string& sample : result.samples) samples.push_back(dense::to_utf8(sample));
  EXPECT_EQ(samples, python["samples"].get<std::vector<std::string>>());
  EXPECT_EQ(sha256(result.params), python["params_sha256_le_f64"]);
}

TEST(Microgpt, EqualsPythonOnPlaces) {
  expect_equal_to_python(read(fixtures + "places-200.json"), dense::read_documents(fixtures + "places.txt"));
}

// More layers, odd widths and heads, one head, one token of context, documents longer than it, one document, other scripts.
TEST(Microgpt, EqualsPythonWithOtherSizes) {
  for (const json& python : read(fixtures + "more.json")) {
    SCOPED_TRACE(python["options"].dump());
    const std::string text = python["text"];
    expect_equal_to_python(python, text.empty() ? dense::read_documents(fixtures + python["data"].get<std::string>())
                                                : dense::documents(text, "text"));
  }
}

class SharedFixture : public testing::TestWithParam<const char*> {};

TEST_P(SharedFixture, EqualsPython) {
  const std::string path = shared() + "/fixtures/microgpt/" + GetParam() + ".json";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  const json python = read(path);
  expect_equal_to_python(python, dense::read_documents(shared() + "/data/" + python["data"].get<std::string>()));
}

INSTANTIATE_TEST_SUITE_P(Microgpt, SharedFixture, testing::Values("names-1000", "names-two-layers"),
                         [](const auto& test) { return test.index ? "TwoLayersOnNames" : "Names1000"; });

TEST(Microgpt, TrainingEndsWhenTheWatcherSaysSo) {
  microgpt_scalar::Config config;
  const auto result = microgpt_scalar::run(
      config, dense::documents("ab\nba\n", "text"), [](int step, double) { return step < 3; },
      [](int sample) { return sample < 2; });
  EXPECT_EQ(result.losses.size(), 3);
  EXPECT_EQ(result.samples.size(), 2);
}

TEST(Microgpt, RefusesWhatCannotBe) {
  const auto error = [](const microgpt_scalar::Config& config, const std::string& text) {
    return error_of([&] {
      microgpt_scalar::run(config, text.empty() ? std::vector<std::u32string>() : dense::documents(text, "text"), go_on,
                           nullptr);
    });
  };
  const std::string text = "ab\nba\n";
  EXPECT_EQ(error({}, ""), "expected documents, got none");
  EXPECT_EQ(error({.n_head = 0}, text), "--n_head: expected 1 or more, got 0");
  EXPECT_EQ(error({.n_head = 3}, text), "--n_head: expected a divisor of n_embd 16, got 3");
  EXPECT_EQ(error({.temperature = 0}, text), "--temperature: expected a number above 1e-100, got 0");
  EXPECT_EQ(error({.n_layer = 1 << 20}, text), "expected sizes that make at most 4194304 parameters, got 3221225824");
  EXPECT_EQ(error({.learning_rate = 1e300}, text), "step 3: the loss is nan; try a smaller learning_rate");
}

}  // namespace
