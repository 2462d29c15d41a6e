// dense models: the table of pages says what they say themselves.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "tests/process.h"

namespace {

using nlohmann::json;

class Models : public InFolder {
 protected:
  std::string out(const Args& flags) {
    const Outcome outcome = run(Args{"models"} + flags);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    return outcome.out;
  }
  std::map<std::string, json> pages() {
    std::map<std::string, json> all;
    for (const std::string& line : lines(out({"--json"}))) {
      const json page = json::parse(line);
      all[page["model_type"]] = page;
    }
    return all;
  }
};

TEST_F(Models, EachPageSaysWhatItDoes) {
  const auto all = pages();
  EXPECT_EQ(all.at("gpt2"),
            (json{{"model_type", "gpt2"},
                  {"file", "gpt2.h"},
                  {"architecture", "GPT2LMHeadModel"},
                  {"kind", "decoder"},
                  {"generates", true},
                  {"token_types", false},
                  {"lines", all.at("gpt2")["lines"]},
                  {"paper", "Radford et al. 2019, \"Language Models are Unsupervised Multitask Learners\""}}));
  EXPECT_EQ(all.at("bert")["token_types"], true);
  EXPECT_EQ(all.at("microgpt")["paper"], nullptr);
  EXPECT_EQ(all.at("microgpt")["architecture"], nullptr);
  for (const auto& [name, paper] : {std::pair("bert", "Devlin et al. 2018, arXiv:1810.04805"),
                                    {"deberta-v2", "He et al. 2021, arXiv:2006.03654"},
                                    {"esm", "Lin et al. 2023, doi:10.1126/science.ade2574"},
                                    {"olmo2", "Team OLMo 2024, arXiv:2501.00656"},
                                    {"phi3", "Microsoft 2024, arXiv:2404.14219"}})
    EXPECT_EQ(all.at(name)["paper"], paper);
  for (const auto& [name, page] : all) {
    EXPECT_TRUE(page["paper"].is_string() || name == "microgpt") << name << ": its first comment cites no paper";
    EXPECT_EQ(page["kind"] == "encoder", !page["generates"]) << name;
    if (!page["architecture"].is_string()) continue;
    const std::string architecture = page["architecture"];  // whose name says it, too
    EXPECT_EQ(page["kind"], architecture.ends_with("ForMaskedLM")                ? "encoder"
                            : architecture.ends_with("ForConditionalGeneration") ? "encoder-decoder"
                                                                                 : "decoder");
  }
}

TEST_F(Models, LinesAreThoseThatAreNeitherBlankNorComment) {
  for (const auto& [name, page] : pages()) {
    const std::string file = DENSE_SOURCE_DIR "/models/" + page["file"].get<std::string>();
    int count = 0;
    for (std::string line : lines(contents(file))) {
      std::erase_if(line, [](char c) { return c == ' '; });
      count += !line.empty() && !line.starts_with("//");
    }
    EXPECT_EQ(page["lines"], count) << name;
    EXPECT_LE(count, 160) << name << " is no page";
  }
}

TEST_F(Models, TheReadmeHasTheTable) {
  const std::string table = out({"--markdown"});
  EXPECT_TRUE(contains(contents(DENSE_SOURCE_DIR "/README.md"), "\n\n" + table + "\n"))
      << "README.md: expected what dense models --markdown prints:\n"
      << table;
  EXPECT_EQ(lines(table).size(), pages().size() + 2);
}

TEST_F(Models, PeopleAreShownALineForEachPage) {
  const std::vector<std::string> all = lines(out({}));
  EXPECT_EQ(all.size(), pages().size());
  for (const std::string& line : all) EXPECT_FALSE(line.ends_with(" ")) << line;
  EXPECT_TRUE(all[0].starts_with("gpt2        decoder         trains, generates ")) << all[0];
  EXPECT_TRUE(contains(all[0], " lines  Radford et al. 2019, ")) << all[0];
  expect_refused({"models", "--json", "--markdown"}, "expected one of --json and --markdown", "dense models");
  expect_refused({"models", "gpt2"}, "unexpected argument \"gpt2\"", "dense models");
}

}  // namespace
