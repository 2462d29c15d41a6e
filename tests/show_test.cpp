// dense show as its users meet it, beside what training and generation say of themselves.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "tests/process.h"

namespace {

using nlohmann::json;

class Show : public InFolder {
 protected:
  std::string text(const Args& args) {
    const Outcome outcome = run(Args{"show"} + args);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    return outcome.out;
  }
  json object(const Args& args) { return json::parse(text(args + Args{"--json"})); }
};

const Args small = {"gpt2", "--vocab_size",  "256", "--n_layer", "3",  "--n_embd", "64", "--n_head",
                    "2",    "--n_positions", "128", "--context", "96", "--batch",  "2"};

// "name (shape) type count" lines, with single spaces.
std::string squeezed(const std::string& text) { return std::regex_replace(text, std::regex(" +"), " "); }

TEST_F(Show, CountsTheParametersOfEachPageAndFoldsTheirNames) {
  const std::string gpt2 = squeezed(text({"gpt2"}));
  EXPECT_TRUE(contains(gpt2, "\ntransformer.h.{0..11}.attn.c_attn.weight (768, 2304) f32 21,233,664\n")) << gpt2;
  EXPECT_TRUE(contains(gpt2, "\ntransformer.wte.weight (50257, 768) f32 38,597,376\n")) << gpt2;
  EXPECT_TRUE(contains(gpt2, "\n124,439,808 parameters\n")) << gpt2;
  const json whole = object({"gpt2"});
  EXPECT_EQ(whole["count"], 124439808);
  EXPECT_EQ(whole["parameters"].size(), 148u);
  EXPECT_EQ(whole["parameters"][0],
            (json{{"name", "transformer.wte.weight"}, {"shape", {50257, 768}}, {"dtype", "f32"}}));
  EXPECT_EQ(object({"llama"})["count"], 6738415616);
  EXPECT_EQ(object({"bert"})["count"], 109514298);
  EXPECT_TRUE(object({"bert"})["generation"].is_null());
}

TEST_F(Show, FieldsOfThePagesConfigAreFlags) {
  EXPECT_EQ(object(small)["count"], 256 * 64 + 128 * 64 + 3 * (12 * 64 * 64 + 13 * 64) + 2 * 64);
  expect_refused({"show", "gpt2", "--hidden_size", "64"}, "unknown flag --hidden_size", "dense show");
  expect_refused({"show", "gpt2", "--n_head", "5"}, "n_head", "dense show");
}

TEST_F(Show, FlopsAndArenaAreThoseOfTheProfileOfTraining) {
  const Outcome train = run({"train", "--profile", "--steps", "1", "--batch", "2", "--time", "96", "--model.n_layer",
                             "3", "--model.n_embd", "64", "--model.n_head", "2", "--model.n_positions", "128"});
  ASSERT_EQ(train.exit_code, 0) << train.err;
  std::smatch found;
  ASSERT_TRUE(std::regex_search(train.err, found, std::regex("([0-9.]+) GFLOP .* total, ")));
  const double flops = std::stod(found[1]) * 1e9;
  ASSERT_TRUE(std::regex_search(train.err, found, std::regex("arena ([0-9]+) bytes, scratch ([0-9]+) bytes")));
  const json shown = object(small);
  EXPECT_NEAR(shown["flops_per_token"]["forward_and_backward"].get<double>() * 2 * 96, flops, 0.5e6);
  EXPECT_EQ(shown["training"]["arena"], std::stoll(found[1]) + std::stoll(found[2]));
  const int64_t weights = 4 * shown["count"].get<int64_t>();
  EXPECT_EQ(shown["training"]["weights"], weights);
  EXPECT_EQ(shown["training"]["moments"], 2 * weights);
  EXPECT_EQ(shown["training"]["total"], 3 * weights + shown["training"]["arena"].get<int64_t>());
  // forward: matrices once, scores and sums of values for half of all pairs
  EXPECT_EQ(shown["flops_per_token"]["forward"], 2.0 * (3 * 12 * 64 * 64 + 256 * 64) + 3 * 4 * 48 * 64);
}

TEST_F(Show, MemoryOfGenerationIsWeightsCacheAndArena) {
  const json shown = object(small)["generation"];
  EXPECT_EQ(shown["cache"], 2 * 3 * 2 * 96 * 64 * 4);
  EXPECT_EQ(shown["weights"].get<int64_t>(), 4 * object(small)["count"].get<int64_t>());
  EXPECT_EQ(shown["total"],
            shown["cache"].get<int64_t>() + shown["weights"].get<int64_t>() + shown["arena"].get<int64_t>());
  const auto weights = [&](const char* dtype) {
    return object(small + Args{"--dtype", dtype})["generation"]["weights"].get<int64_t>();
  };
  const int64_t matrices = 3 * 12 * 64 * 64 + 256 * 64, rest = weights("f32") - 4 * matrices;
  EXPECT_EQ(weights("bf16"), 2 * matrices + rest);
  EXPECT_EQ(weights("int8"), matrices + matrices / 32 * 2 + rest);
  EXPECT_EQ(weights("int4"), matrices / 2 + matrices / 32 * 2 + rest);

  ASSERT_EQ(run({"train", "--out", "m", "--steps", "1", "--time", "8", "--batch", "1"}).exit_code, 0);
  const Outcome profile = run({"generate", "m", "--prompt", "Anna", "--tokens", "4", "--profile"});
  std::smatch found;
  ASSERT_TRUE(std::regex_search(profile.err, found, std::regex("arena ([0-9]+) bytes, scratch ([0-9]+) bytes")));
  EXPECT_GE(object({"m", "--context", "8"})["generation"]["arena"], std::stoll(found[1]) + std::stoll(found[2]));
}

TEST_F(Show, FoldersHaveTheirOwnSizesAndTypes) {
  Args init = {"init", "--model"};
  init = init + small;
  init.resize(init.size() - 4);  // no --context, no --batch
  ASSERT_EQ(run(init + Args{"--dtype", "bf16", "m"}).exit_code, 0);
  const json shown = object({"m", "--context", "96", "--batch", "2"}), page = object(small);
  EXPECT_EQ(shown["count"], page["count"]);
  EXPECT_EQ(shown["flops_per_token"], page["flops_per_token"]);
  EXPECT_EQ(shown["training"], page["training"]);
  EXPECT_EQ(shown["generation"]["weights"], 2 * page["count"].get<int64_t>());
  for (const json& parameter : shown["parameters"]) EXPECT_EQ(parameter["dtype"], "bf16");

  ASSERT_EQ(run({"quantize", "m", "q", "--dtype", "int8"}).exit_code, 0);
  const json quantised = object({"q", "--context", "96", "--batch", "2"});
  EXPECT_LT(quantised["generation"]["weights"], page["count"].get<int64_t>() * 5 / 4);
  EXPECT_TRUE(quantised["training"].is_null()) << quantised["training"];
  EXPECT_TRUE(contains(text({"q"}), "  training    none: "));
}

TEST_F(Show, NoMachineIsTooSmall) {  // these weights take 20 TB
  const json shown = object({"llama", "--hidden_size", "65536", "--intermediate_size", "262144",
                             "--num_attention_heads", "512", "--num_hidden_layers", "80", "--context", "2048"});
  EXPECT_GT(shown["training"]["weights"], 20e12);
  EXPECT_EQ(shown["generation"]["cache"], 2 * 80 * 2048 * int64_t{65536} * 4);
}

TEST_F(Show, SizesThatNoMachineHasAreRefused) {
  const auto refused = [&](const Args& args, const char* says) { expect_refused(args, says, "dense show"); };
  refused({"show", "gpt2", "--batch", "100000000"},
          "--batch: expected at most 16384 rows of 1024 tokens, got 100000000");
  refused({"show", "gpt2", "--batch", "9223372036854775807"}, "--batch: expected at most 16384 rows of 1024 tokens");
  refused({"show", "mixtral", "--num_local_experts", "20000", "--num_hidden_layers", "1"},
          "expected at most 32768 parameters with names of their own, got 60010");
  refused({"show", "t5", "--context", "1000000000"}, "--context: expected at most 16777216, got 1000000000");
}

// ---- the graph of a block

TEST_F(Show, ABlockHasItsParametersAndEndsWhereTheNextOneBegins) {
  for (const std::string page :
       {"gpt2", "gpt_neox", "llama", "gemma2", "olmo2", "bert", "esm", "microgpt", "mixtral", "t5"}) {
    SCOPED_TRACE(page);
    const json shown = object({page, "--graph"});
    std::set<std::string> want, got;
    std::string block;  // "transformer.h.0."
    for (const json& parameter : shown["parameters"]) {
      const std::string name = parameter["name"];
      std::smatch found;
      if (block.empty() && std::regex_search(name, found, std::regex("^[a-z_.]*\\.0\\."))) block = found[0];
      if (!block.empty() && name.starts_with(block)) want.insert(name);
    }
    EXPECT_FALSE(want.empty());
    std::set<int> known;
    std::map<int, int> readers;
    int enter = 0;
    for (const json& node : shown["graph"]) {
      for (const json& name : node["parameters"]) got.insert(name);
      for (int x : node["reads"]) {
        EXPECT_TRUE(known.contains(x)) << node;
        ++readers[x];
      }
      known.insert(node["id"].get<int>());
    }
    EXPECT_EQ(got, want);
    const json& leaves = shown["graph"].back();
    for (const json& node : shown["graph"]) enter += node["outside"] && node["shape"] == leaves["shape"];
    EXPECT_EQ(enter, 1);  // the tensor that the block before left
    for (int id : known) EXPECT_EQ(readers[id] == 0, id == leaves["id"]) << id;  // nothing else comes out
  }
}

TEST_F(Show, TheGraphIsTextAndGraphvizToo) {
  const std::string shown = squeezed(text(small + Args{"--graph"}));
  EXPECT_TRUE(contains(shown, "\ntransformer.h.0:\n")) << shown;
  EXPECT_TRUE(std::regex_search(
      shown, std::regex(" %\\d+ matmul\\(%\\d+, transformer.h.0.mlp.c_fc.weight\\) \\(192, 256\\)\n")));
  EXPECT_TRUE(
      std::regex_search(shown, std::regex(" %\\d+ causal attention\\(%\\d+, %\\d+, %\\d+\\) \\(2, 96, 2, 32\\)\n")));

  const std::string dot = text(small + Args{"--dot", "-"});
  const Args all = lines(dot);
  ASSERT_GT(all.size(), 40u);
  EXPECT_EQ(all.front(), "digraph \"transformer.h.0\" {");
  EXPECT_EQ(all.back(), "}");
  std::set<std::string> nodes, ends;
  for (size_t i = 1; i + 1 < all.size(); ++i) {
    std::smatch found;
    if (std::regex_match(all[i], found, std::regex("  (n\\d+) \\[label=\"[^\"]+\"(, style=dashed)?\\];"))) {
      nodes.insert(found[1]);
    } else if (std::regex_match(all[i], found, std::regex("  (n\\d+) -> (n\\d+);"))) {
      ends.insert({found[1], found[2]});
    } else {
      EXPECT_EQ(all[i], "  node [shape=box];");
    }
  }
  EXPECT_EQ(nodes, ends);
  EXPECT_TRUE(contains(dot, "transformer.h.0.mlp.c_fc.bias\\n"));

  EXPECT_EQ(text(small + Args{"--dot", "block.dot"}), text(small));
  EXPECT_EQ(contents(folder / "block.dot"), dot);
}

// ---- what does not fit

TEST_F(Show, WhatIsNoModelIsRefusedInOneLine) {
  fs::create_directory(folder / "empty");
  const auto refused = [&](const Args& args, const std::string& says) {
    expect_refused(Args{"show"} + args, says, "dense show");
  };
  refused({}, "expected MODEL");
  refused({"gpt5"}, "got gpt5; pages are gpt2, ");
  refused({"./gpt2"}, "./gpt2: expected the folder of a model");
  refused({"empty"}, "config.json");
  refused({"gpt2", "--context", "1025"}, "--context: expected at most the model's 1024, got 1025");
  refused({"gpt2", "--batch", "0"}, "--batch");
  refused({"gpt2", "--dtype", "int2"}, "--dtype: expected as-stored, f32, bf16, int8 or int4, got int2");
  refused({"gpt2", "--dot", "nowhere/x.dot"}, "nowhere/x.dot");
}

}  // namespace
