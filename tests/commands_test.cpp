// dense generate, eval, quantize and bench decode as their users meet them, on a small model whose tokens are bytes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "dense/io/safetensors.h"
#include "dense/io/unicode.h"
#include "tests/process.h"

namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using Ids = std::vector<int>;

// In each test's folder the model m, and t.txt to be read.
class Commands : public InFolder {
 protected:
  void SetUp() override {
    train({"--steps", "30", "--batch", "2", "--time", "16", "--optimizer.lr", "0.01"});
    write("t.txt", "the small cat sat on the red mat; the old dog lay by the door, and the cat saw the dog.\n");
  }
  void train(const Args& flags, const std::string& to = "m") {
    const Args size = {"--model.n_layer", "2", "--model.n_embd",      "32",
                       "--model.n_head",  "2", "--model.n_positions", "64"};
    const Outcome outcome = run(Args{"train", "--out", to + "-run"} + size + flags);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    fs::remove_all(folder / to);
    fs::rename(folder / (to + "-run") / "model", folder / to);
    fs::remove_all(folder / (to + "-run"));
  }
  Outcome generate(const Args& flags, const Process::Options& options = {}) {
    return run(Args{"generate", "m"} + flags, options);
  }
  // The lines of JSON that a call prints, and nothing else.
  std::vector<json> objects(const Args& args) {
    const Outcome outcome = run(args + Args{"--json"});
    EXPECT_EQ(outcome.exit_code, 0) << testing::PrintToString(args) << outcome.err;
    std::vector<json> all;
    for (const std::string& line : lines(outcome.out)) all.push_back(json::parse(line));
    return all;
  }
  Ids ids(const Args& flags, const std::string& model = "m") {
    const std::vector<json> all = objects(Args{"generate", model} + flags);
    return all.size() == 1 ? all[0]["ids"].get<Ids>() : Ids();
  }
  void expect_refused(const Args& args, const std::string& says, const Process::Options& options = {}) {
    InFolder::expect_refused(args, says, "dense " + args[0], options);
  }
  // A folder like m.
  void copy(const std::string& to) { fs::copy(folder / "m", folder / to, fs::copy_options::recursive); }
  json edited(const std::string& file, const json& change) {
    json root = fs::exists(folder / file) ? json::parse(contents(folder / file)) : json::object();
    root.update(change);
    write(file, root.dump());
    return root;
  }
  // What `dense forward` computes: the mean loss of a text's tokens but the first of each window, which are bytes.
  double mean_loss(const std::string& text, size_t window) {
    double nats = 0;
    for (size_t begin = 0; begin + 1 < text.size(); begin += window) {
      const size_t n = std::min(window, text.size() - 1 - begin);
      std::vector<int32_t> bytes;
      for (size_t i = 0; i < n; ++i) bytes.push_back(uint8_t(text[begin + i]));
      dense::write_safetensors(
          folder / "x.safetensors",
          std::vector<dense::StoredTensor>{
              {"input_ids", "I32", {1, int64_t(n)}, std::as_writable_bytes(std::span(bytes)), nullptr, {}}});
      EXPECT_EQ(run({"forward", "m", "x.safetensors", "y.safetensors"}).err, "");
      const auto logits = dense::to_f32(dense::read_safetensors(folder / "y.safetensors").at("logits"));
      for (size_t i = 0; i < n; ++i) {
        double sum = 0;
        for (size_t v = 0; v < 256; ++v) sum += std::exp(double(logits[i * 256 + v]));
        nats += std::log(sum) - double(logits[i * 256 + uint8_t(text[begin + i + 1])]);
      }
    }
    return nats / double(text.size() - 1);
  }
};

const Args strange = {"--temperature", "1", "--seed", "5", "--tokens", "12"};  // ids that hardly repeat

// ---- generate

TEST_F(Commands, GenerateContinuesAPromptFromAFlagOrStandardInput) {
  const Outcome outcome = generate(strange + Args{"--prompt", "Anna"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const std::string text = objects(Args{"generate", "m", "--prompt", "Anna"} + strange).at(0)["text"];
  EXPECT_EQ(outcome.out, "Anna" + text + "\n");
  EXPECT_TRUE(outcome.err.starts_with("4 prompt tokens, ") && contains(outcome.err, "; 12 new ones, ")) << outcome.err;
  EXPECT_EQ(lines(outcome.err).size(), 1u);
  EXPECT_EQ(generate(strange, {.in = "Anna"}).out, outcome.out);
  EXPECT_EQ(generate({"--tokens", "0", "--prompt", "Anna"}).out, "Anna\n");
  EXPECT_TRUE(contains(generate({"--prompt", "Anna"}).err, "; 60 new ones, ")) << "64 in all";
}

TEST_F(Commands, GenerateGivesNewIdsTextAndTimingsAsJson) {
  const std::vector<json> all = objects(Args{"generate", "m", "--ids", "65,110,110,97"} + strange);
  ASSERT_EQ(all.size(), 1u);
  const json& one = all[0];
  EXPECT_EQ(one.size(), 3u);
  EXPECT_EQ(one["ids"].size(), 12u);
  for (int id : one["ids"]) EXPECT_TRUE(id >= 0 && id < 256) << id;
  EXPECT_EQ(one["timings"]["prompt_tokens"], 4);
  EXPECT_EQ(one["timings"]["tokens"], 12);
  for (const char* name : {"load_seconds", "first_token_seconds", "prefill_seconds", "prefill_tokens_per_second",
                           "decode_seconds", "decode_tokens_per_second"})
    EXPECT_GE(one["timings"][name].get<double>(), 0) << name;
  const json text = objects(Args{"generate", "m", "--prompt", "Anna"} + strange).at(0);
  EXPECT_EQ(text["ids"], one["ids"]);
  EXPECT_EQ(text["text"], one["text"]);

  fs::remove(folder / "m/tokenizer.json");
  const json bare = objects(Args{"generate", "m", "--ids", "65,110,110,97"} + strange).at(0);
  EXPECT_EQ(bare["ids"], one["ids"]);
  EXPECT_TRUE(bare["text"].is_null());
  std::string plain;
  for (int id : one["ids"]) plain += (plain.empty() ? "" : " ") + std::to_string(id);
  EXPECT_EQ(generate(Args{"--ids", "65,110,110,97"} + strange).out, plain + "\n");
}

TEST_F(Commands, GenerateContinuesManyPromptsEachAsIfAlone) {
  const Args prompts = {"Anna", "B", "Carol and Dave went to the sea, but", "\xc3\xa9t\xc3\xa9"};
  write("prompts.txt", prompts[0] + "\n" + prompts[1] + "\r\n" + prompts[2] + "\n" + prompts[3]);
  const std::vector<json> all = objects(Args{"generate", "m", "--prompts", "prompts.txt"} + strange);
  ASSERT_EQ(all.size(), prompts.size());
  std::string texts;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const json alone = objects(Args{"generate", "m", "--prompt", prompts[i]} + strange).at(0);
    EXPECT_EQ(all[i]["ids"], alone["ids"]) << prompts[i];
    EXPECT_EQ(all[i]["text"], alone["text"]) << prompts[i];
    texts += prompts[i] + alone["text"].get<std::string>() + "\n";
  }
  EXPECT_EQ(generate(Args{"--prompts", "prompts.txt"} + strange).out, texts);
}

// An answer stands alone: the prompt is not part of it.
TEST_F(Commands, AnEncoderDecoderAnswersItsPrompts) {
  const Args size = {"--vocab_size", "256", "--d_model", "32", "--d_kv", "8", "--d_ff", "64", "--num_heads", "4"};
  ASSERT_EQ(run(Args{"init", "--model", "t5", "--num_layers", "2", "a"} + size).exit_code, 0);
  fs::copy_file(folder / "m/tokenizer.json", folder / "a/tokenizer.json");
  const Args some = strange + Args{"--ignore-eos"};
  write("prompts.txt", "Anna\nCarol and Dave went to the sea, but");
  const std::vector<json> all = objects(Args{"generate", "a", "--prompts", "prompts.txt"} + some);
  ASSERT_EQ(all.size(), 2u);
  const json anna = objects(Args{"generate", "a", "--prompt", "Anna"} + some).at(0);
  EXPECT_EQ(anna["ids"].size(), 12u);
  EXPECT_EQ(all[0]["ids"], anna["ids"]);
  EXPECT_NE(all[1]["ids"], anna["ids"]);
  const std::string text = anna["text"], other = all[1]["text"];
  EXPECT_EQ(run(Args{"generate", "a", "--prompt", "Anna"} + some).out, text + "\n");
  EXPECT_EQ(run(Args{"generate", "a", "--prompts", "prompts.txt"} + some).out, text + "\n" + other + "\n");

  // it ends after a token that ends texts
  const int stop = anna["ids"][3];
  edited("a/generation_config.json", {{"eos_token_id", stop}});
  const Ids ended = ids(strange + Args{"--prompt", "Anna"}, "a");
  EXPECT_TRUE(ended.size() <= 4u && ended.back() == stop);

  for (const char* type : {"bf16", "int8", "int4"}) {
    const std::string out = std::string("made/") + type;
    ASSERT_EQ(run({"quantize", "a", out, "--dtype", type}).exit_code, 0);
    const Args prompt = some + Args{"--prompt", "Anna"};
    EXPECT_EQ(ids(prompt, out), ids(prompt + Args{"--dtype", type}, "a")) << type;
  }
  expect_refused({"eval", "a", "--data", "t.txt"}, "a: expected a causal model, got t5");
  InFolder::expect_refused({"bench", "decode", "a"}, "a: expected a causal model, got t5", "dense bench decode");
}

TEST_F(Commands, GenerateDependsOnTheSeedAlone) {
  const auto with = [&](const Args& flags) { return ids(Args{"--prompt", "Anna", "--tokens", "20"} + flags); };
  const Ids greedy = with({"--greedy"}), seed = with({"--temperature", "1", "--seed", "1"});
  EXPECT_EQ(with({"--greedy"}), greedy);
  EXPECT_EQ(with({"--greedy", "--seed", "7"}), greedy);
  EXPECT_EQ(with({"--temperature", "0"}), greedy);
  EXPECT_EQ(with({}), greedy);
  EXPECT_EQ(with({"--top_k", "1"}), greedy);
  EXPECT_EQ(with({"--temperature", "1", "--seed", "1"}), seed);
  EXPECT_EQ(with({"--temperature", "1", "--seed", "1", "--threads", "1"}), seed);
  EXPECT_NE(with({"--temperature", "1", "--seed", "2"}), seed);
  EXPECT_NE(seed, greedy);
}

TEST_F(Commands, GenerateDoesAsTheModelsGenerationConfigSays) {
  const Args prompt = {"--prompt", "Anna", "--tokens", "20", "--seed", "5"};
  const auto with = [&](const json& config, const Args& flags = {}) {
    write("m/generation_config.json", config.dump());
    return ids(prompt + flags);
  };
  const auto flags = [&](const Args& more) { return with(json::object(), more); };
  EXPECT_EQ(with({{"temperature", 0.7}, {"top_k", 3}}), flags({"--greedy"})) << "do_sample is not given";
  const json sampled = {{"do_sample", true}, {"temperature", 1.5}, {"top_k", 9}, {"top_p", 0.9}, {"min_p", 0.01}};
  const Args same = {"--temperature", "1.5", "--top_k", "9", "--top_p", "0.9", "--min_p", "0.01"};
  EXPECT_EQ(with(sampled), flags(same));
  EXPECT_EQ(with(sampled, {"--top_k", "0", "--top_p", "1", "--min_p", "0"}), flags({"--temperature", "1.5"}));
  EXPECT_EQ(with(sampled, {"--greedy"}), flags({"--greedy"}));
  EXPECT_EQ(with({{"do_sample", true}}), flags({"--top_k", "50"})) << "as Hugging Face has it";
  EXPECT_EQ(with({{"do_sample", true}, {"top_k", nullptr}}), flags({"--temperature", "1"})) << "null: all";
  EXPECT_NE(flags({"--top_k", "50"}), flags({"--temperature", "1"}));
  EXPECT_EQ(with({{"repetition_penalty", 1.5}}), flags({"--repetition_penalty", "1.5"}));
  EXPECT_NE(with({{"repetition_penalty", 1.5}}), flags({}));

  const std::pair<json, const char*> refused[] = {
      {{{"do_sample", true}, {"temperature", "hot"}}, "temperature: expected a number, got \"hot\""},
      {{{"do_sample", true}, {"temperature", -1}}, "temperature: expected 0 or more, got -1"},
      {{{"do_sample", true}, {"top_p", 0}}, "top_p: expected more than 0, at most 1, got 0"},
      {{{"do_sample", true}, {"top_k", 1e30}}, "top_k: expected a whole number, got 1e+30"},
      {{{"repetition_penalty", 0}}, "repetition_penalty: expected more than 0, got 0"},
      {{{"do_sample", "yes"}}, "do_sample: expected true or false, got \"yes\""},
      {{{"eos_token_id", "end"}}, "eos_token_id: expected a token or a list of tokens, got \"end\""},
      {{{"eos_token_id", {3, 1.5}}}, "eos_token_id: expected a token or a list of tokens, got [3,1.5]"},
  };
  for (const auto& [config, says] : refused) {
    write("m/generation_config.json", config.dump());
    expect_refused(Args{"generate", "m"} + prompt, std::string("m/generation_config.json: ") + says);
  }
}

TEST_F(Commands, GenerateEndsAfterATokenThatEndsTexts) {
  const Args flags = Args{"--prompt", "Anna"} + strange;
  const Ids all = ids(flags);
  const auto until = [&](const Ids& ends) { return Ids(all.begin(), std::ranges::find_first_of(all, ends) + 1); };
  const auto with = [&](const json& eos) {
    write("m/generation_config.json", json{{"eos_token_id", eos}}.dump());
    return ids(flags);
  };
  ASSERT_EQ(all.size(), 12u);
  EXPECT_EQ(with(all[4]), until({all[4]}));
  EXPECT_LT(until({all[4]}).size(), 12u);
  EXPECT_EQ(with({all[8], all[6]}), until({all[6], all[8]}));
  EXPECT_EQ(ids(flags + Args{"--ignore-eos"}), all);
  EXPECT_EQ(with(nullptr), all);
  fs::remove(folder / "m/generation_config.json");  // older models have it here
  edited("m/config.json", {{"eos_token_id", all[4]}});
  EXPECT_EQ(ids(flags), until({all[4]}));
}

TEST_F(Commands, GenerateStopsAtTheEndOfTheContext) {
  const std::string prompt(61, 'x');
  EXPECT_EQ(ids({"--prompt", prompt, "--tokens", "100"}).size(), 3u);  // 64 in all
  write("prompts.txt", prompt + "\nAnna\n");
  const std::vector<json> all = objects({"generate", "m", "--prompts", "prompts.txt", "--tokens", "20"});
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0]["ids"].size(), 3u);
  EXPECT_EQ(all[1]["ids"].size(), 20u);
}

TEST_F(Commands, GenerateRefusesFlagsThatDoNotFit) {
  write("prompts.txt", "Anna\nBob\n");
  write("long.txt", "Anna\n" + std::string(70, 'x') + "\n");
  write("latin1.txt", "Anna\nJos\xe9\n");
  write("empty.txt", "");
  write("blank.txt", "Anna\n\nBob\n");
  const std::pair<Args, const char*> cases[] = {
      {{"--prompt", "a", "--ids", "1"}, "expected one of --prompt, --prompts and --ids, got 2"},
      {{"--prompt", "a", "--prompts", "prompts.txt"}, "expected one of --prompt, --prompts and --ids, got 2"},
      {{"--prompt", "a", "--prompts", "prompts.txt", "--ids", "1"}, "--prompts and --ids, got 3"},
      {{"--greedy", "--temperature", "1"}, "--greedy: expected no temperature, top_k, top_p or min_p beside it"},
      {{"--temperature", "-1"}, "--temperature: expected 0 or more, got -1"},
      {{"--top_k", "-1"}, "--top_k: expected 0 or more, got -1"},
      {{"--top_p", "0"}, "--top_p: expected more than 0, at most 1, got 0"},
      {{"--top_p", "1.5"}, "--top_p: expected more than 0, at most 1, got 1.5"},
      {{"--min_p", "-0.1"}, "--min_p: expected 0 to 1, got -0.1"},
      {{"--repetition_penalty", "0"}, "--repetition_penalty: expected more than 0, got 0"},
      {{"--tokens", "-1"}, "--tokens: expected 0 or more, got -1"},
      {{"--tokens", "many"}, "--tokens: expected a whole number, got \"many\""},
      {{"--threads", "-1"}, "--threads: expected 0 or more, got -1"},
      {{"--dtype", "int3"}, "--dtype: expected as-stored, f32, bf16, int8 or int4, got int3"},
      {{"--temperatur", "1"}, "unknown flag --temperatur; did you mean --temperature?"},
      {{"--ids", "1,x"}, "--ids: expected a whole number, got \"x\""},
      {{"--ids", "256"}, "expected ids of 0 to 255, got 256"},
      {{"--ids", "7,-1"}, "expected ids of 0 to 255, got -1"},
      {{"--prompts", "missing.txt"}, "missing.txt: cannot open: No such file or directory"},
      {{"--prompts", "empty.txt"}, "--prompts: empty.txt: expected a line or more"},
      {{"--prompts", "blank.txt"}, "prompt 2: expected one token or more"},
      {{"--prompts", "latin1.txt"}, "prompt 2: encode: expected UTF-8, got byte 0xe9 at byte 3"},
      {{"--prompts", "long.txt"}, "prompt 2: expected fewer than the 64 tokens of the model's context, got 70"},
      {{"--prompt", "Jos\xe9"}, "prompt: encode: expected UTF-8, got byte 0xe9 at byte 3"},
      {{"--prompt", std::string(64, 'x')}, "prompt: expected fewer than the 64 tokens of the model's context, got 64"},
  };
  for (const auto& [args, says] : cases) {
    const bool asks = std::ranges::any_of(args, [](const auto& arg) { return arg.find("rompt") != arg.npos; });
    expect_refused(Args{"generate", "m"} + (asks || args[0] == "--ids" ? Args{} : Args{"--prompt", "a"}) + args, says);
  }
  expect_refused({"generate", "m"}, "prompt: expected one token or more");  // standard input is empty
  expect_refused({"generate", "--prompt", "a"}, "expected MODEL (see dense generate --help)");
  expect_refused({"generate", "m", "n", "--prompt", "a"}, "unexpected argument \"n\"");
}

TEST_F(Commands, GenerateSaysWhatIsWrongWithAFolder) {
  const auto refused = [&](const std::string& says, const Args& flags = {"--prompt", "a"}) {
    expect_refused(Args{"generate", "n"} + flags, says);
    fs::remove_all(folder / "n");
  };
  copy("n");
  fs::resize_file(folder / "n/model.safetensors", fs::file_size(folder / "n/model.safetensors") / 2);  // half of it
  refused("n/model.safetensors: ");
  copy("n");
  fs::resize_file(folder / "n/model.safetensors", 5);
  refused("n/model.safetensors: ");
  copy("n");
  fs::remove(folder / "n/model.safetensors");
  refused("n: expected model.safetensors or model.safetensors.index.json, got neither");
  copy("n");
  fs::remove(folder / "n/model.safetensors");
  write("n/model.safetensors.index.json", R"({"weight_map": {"wte.weight": "model-00002-of-00002.safetensors"}})");
  refused("n/model.safetensors.index.json: names model-00002-of-00002.safetensors, which is missing");
  copy("n");
  write("n/config.json", R"({"n_embd": 32})");
  refused("n/config.json: model_type: expected a string, got nothing");
  copy("n");
  edited("n/config.json", {{"model_type", "rwkv"}});
  refused("model_type: expected one of gpt2");
  copy("n");
  write("n/config.json", "{");
  refused("n/config.json: ");
  copy("n");
  fs::remove(folder / "n/config.json");
  fs::remove(folder / "n/generation_config.json");
  refused("n/config.json: cannot open: No such file or directory");
  copy("n");
  fs::remove(folder / "n/tokenizer.json");
  refused("n: expected tokenizer.json or vocab.txt in it");
  copy("n");
  json tokenizer = json::parse(contents(folder / "n/tokenizer.json"));
  tokenizer["model"]["vocab"]["more"] = 256;
  write("n/tokenizer.json", tokenizer.dump());
  refused("tokenizer: expected at most the model's 256 tokens, got 257");
}

// A model may have more tokens than its tokenizer: their number is rounded up.
TEST_F(Commands, GenerateGivesNoTextToTokensThatTheTokenizerLacks) {
  const Args call = {"init", "--model",  "gpt2", "--vocab_size",  "5000", "--n_layer", "1", "--n_embd",
                     "32",   "--n_head", "2",    "--n_positions", "64",   "big"};
  ASSERT_EQ(run(call).exit_code, 0);
  fs::copy_file(folder / "m/tokenizer.json", folder / "big/tokenizer.json");
  const Args flags = {"--prompt", "Anna", "--temperature", "1", "--tokens", "40", "--ignore-eos"};
  const std::vector<json> all = objects(Args{"generate", "big"} + flags);
  ASSERT_EQ(all.size(), 1u);
  const auto known = std::ranges::count_if(all[0]["ids"].get<Ids>(), [](int id) { return id < 256; });
  EXPECT_LT(known, 10);
  EXPECT_LE(all[0]["text"].get<std::string>().size(), size_t(3 * known));
  EXPECT_EQ(run(Args{"generate", "big"} + flags).out, "Anna" + all[0]["text"].get<std::string>() + "\n");
  expect_refused({"generate", "big", "--ids", "5000"}, "expected ids of 0 to 4999, got 5000");
}

TEST_F(Commands, AClosedPipeEndsGenerateQuietly) {
  int fds[2];
  ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
  close(fds[0]);
  Process process(folder, {"generate", "m", "--prompt", "Anna"}, {.out_fd = fds[1]});
  close(fds[1]);
  EXPECT_EQ(process.wait(), -SIGPIPE);
  EXPECT_EQ(process.err(), "");
}

TEST_F(Commands, CtrlCEndsGenerateAfterAWholeCharacter) {
  const Args endless = {"init",
                        "--model=llama",
                        "--vocab_size=256",
                        "--hidden_size=32",
                        "--intermediate_size=32",
                        "--num_hidden_layers=1",
                        "--num_attention_heads=2",
                        "--max_position_embeddings=2000000",
                        "n"};
  ASSERT_EQ(run(endless).exit_code, 0);
  fs::copy_file(folder / "m/tokenizer.json", folder / "n/tokenizer.json");
  for (const auto& [signal, exit_code] : {std::pair(SIGINT, 130), std::pair(SIGTERM, 143)}) {
    Process process(folder,
                    {"generate", "n", "--prompt", "Anna", "--temperature", "1", "--tokens", "1000000", "--ignore-eos"});
    while (process.out().size() < 100) std::this_thread::sleep_for(1ms);
    process.send(signal);
    EXPECT_EQ(process.wait(), exit_code);
    const std::string out = process.out();
    EXPECT_TRUE(out.starts_with("Anna") && out.ends_with("\n"));
    EXPECT_EQ(dense::utf8_error(out), out.npos);
    EXPECT_TRUE(contains(process.err(), " new ones, ")) << process.err();
  }
}

// ---- types of weights, and quantize

TEST_F(Commands, GenerateRunsInEveryType) {
  const Args flags = Args{"--prompt", "Anna"} + strange;
  const Ids as_stored = ids(flags);
  for (const char* type : {"as-stored", "f32", "bf16", "int8", "int4"})
    EXPECT_EQ(ids(flags + Args{"--dtype", type}).size(), 12u) << type;
  EXPECT_EQ(ids(flags + Args{"--dtype", "as-stored"}), as_stored);
  EXPECT_EQ(ids(flags + Args{"--dtype", "f32"}), as_stored);
}

TEST_F(Commands, QuantizeWritesWhatOtherCommandsConvertTo) {
  edited("m/generation_config.json", {{"top_k", 7}});
  write("m/chat_template.jinja", "{{ messages }}");
  const Args prompt = Args{"--prompt", "Anna"} + strange;
  size_t bytes = fs::file_size(folder / "m/model.safetensors");
  for (const char* type : {"bf16", "int8", "int4"}) {
    const std::string out = std::string("made/") + type;
    const Outcome outcome = run({"quantize", "m", out, "--dtype", type});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    EXPECT_TRUE(outcome.err.starts_with("saved " + out + ": ")) << outcome.err;
    EXPECT_EQ(ids(prompt, out), ids(prompt + Args{"--dtype", type})) << type;
    const Args eval = {"--data", "t.txt"};
    EXPECT_EQ(objects(Args{"eval", out} + eval), objects(Args{"eval", "m", "--dtype", type} + eval)) << type;
    for (const char* file : {"tokenizer.json", "generation_config.json", "chat_template.jinja"})
      EXPECT_EQ(contents(folder / out / file), contents(folder / "m" / file)) << file;
    EXPECT_LT(fs::file_size(folder / out / "model.safetensors"), bytes) << type;
    bytes = fs::file_size(folder / out / "model.safetensors");

    std::vector<int32_t> some = {65, 110, 110, 97};
    dense::write_safetensors(folder / "x.safetensors",
                             std::vector<dense::StoredTensor>{
                                 {"input_ids", "I32", {1, 4}, std::as_writable_bytes(std::span(some)), nullptr, {}}});
    EXPECT_EQ(run({"forward", out, "x.safetensors", "y.safetensors"}).err, "");
    for (float v : dense::to_f32(dense::read_safetensors(folder / "y.safetensors").at("logits")))
      EXPECT_LT(std::abs(v), 10);  // a NaN is not
  }
  expect_refused({"forward", "made/int4", "x.safetensors", "z.safetensors", "--grads"}, "expected labels");
}

TEST_F(Commands, QuantizeRefusesWhatDoesNotFit) {
  fs::create_symlink("m", folder / "link");
  const std::pair<Args, const char*> cases[] = {
      {{"m", "m"}, "m: expected another folder than the model's"},
      {{"m", "./m/"}, "expected another folder than the model's"},
      {{"m", "link"}, "expected another folder than the model's"},
      {{"m"}, "expected OUT (see dense quantize --help)"},
      {{}, "expected MODEL (see dense quantize --help)"},
      {{"m", "n", "--dtype", "int3"}, "--dtype: expected as-stored, f32, bf16, int8 or int4, got int3"},
      {{"m", "n", "--dtype", "as-stored"}, "--dtype: expected f32, bf16, int8 or int4, got as-stored"},
      {{"m", "t.txt"}, "t.txt"},
      {{"m", "t.txt/n"}, "t.txt/n"},
  };
  for (const auto& [args, says] : cases) expect_refused(Args{"quantize"} + args, says);
  ASSERT_EQ(run({"quantize", "m", "n"}).exit_code, 0);
  expect_refused({"quantize", "n", "o", "--dtype", "int4"}, "expected weights that are not quantised, got int8");
  expect_refused({"quantize", "m", "n"}, "n: holds a model already; --force writes a new one in its place");
  EXPECT_EQ(run({"quantize", "m", "n", "--dtype", "int4", "--force"}).exit_code, 0);
}

TEST_F(Commands, FewerBitsPredictATextNearlyAsWell) {
  std::string text;
  for (int i = 0; i < 40; ++i)
    text += "the small cat sat on the red mat; number " + std::to_string(i * i) + " is next.\n";
  write("t.txt", text);
  train({"--data.path", "t.txt", "--steps", "150", "--batch", "4", "--time", "32", "--optimizer.lr", "0.005"}, "n");
  const auto perplexity = [&](const char* type) {
    return objects({"eval", "n", "--data", "t.txt", "--dtype", type}).at(0)["perplexity"].get<double>();
  };
  const double stored = perplexity("as-stored");
  EXPECT_LT(stored, 4) << "it has learned";
  EXPECT_NEAR(perplexity("bf16") / stored, 1, 0.005);
  EXPECT_NEAR(perplexity("int8") / stored, 1, 0.005);
  EXPECT_NEAR(perplexity("int4") / stored, 1, 0.05);
  EXPECT_NE(perplexity("int8"), stored);
  EXPECT_NE(perplexity("int4"), perplexity("int8"));
}

// ---- eval

TEST_F(Commands, EvalGivesThePerplexityOfForwardsLogits) {
  const std::string text = contents(folder / "t.txt");
  ASSERT_EQ(text.size(), 88u);
  for (const int context : {64, 29, 10}) {
    const Args flags = context == 64 ? Args{} : Args{"--context", std::to_string(context)};
    const std::vector<json> all = objects(Args{"eval", "m", "--data", "t.txt"} + flags);
    ASSERT_EQ(all.size(), 1u);
    const double mean = mean_loss(text, size_t(context));
    EXPECT_NEAR(all[0]["perplexity"].get<double>() / std::exp(mean), 1, 1e-5) << context;
    EXPECT_NEAR(all[0]["nats_per_token"].get<double>(), mean, 1e-5) << context;
    EXPECT_NEAR(all[0]["nats_per_byte"].get<double>(), mean * 87 / 88, 1e-5) << context;
    EXPECT_EQ(all[0]["tokens"], 87);
    EXPECT_EQ(all[0]["bytes"], 88);
  }
  const Outcome outcome = run({"eval", "m", "--data", "t.txt", "--context", "10"});
  EXPECT_TRUE(outcome.out.starts_with("perplexity ")) << outcome.out;
  EXPECT_TRUE(outcome.out.ends_with("; 87 tokens, 88 bytes, windows of 10\n")) << outcome.out;
  EXPECT_TRUE(contains(outcome.err, "/9  loss ")) << outcome.err;
}

TEST_F(Commands, EvalRefusesWhatDoesNotFit) {
  write("empty.txt", "");
  write("short.txt", "x");
  write("latin1.txt", "Jos\xe9");
  const std::pair<Args, const char*> cases[] = {
      {{"m"}, "expected --data"},
      {{"--data", "t.txt"}, "expected MODEL (see dense eval --help)"},
      {{"m", "--data", "empty.txt"}, "empty.txt: expected two tokens or more, got 0"},
      {{"m", "--data", "short.txt"}, "short.txt: expected two tokens or more, got 1"},
      {{"m", "--data", "latin1.txt"}, "latin1.txt: encode: expected UTF-8, got byte 0xe9 at byte 3"},
      {{"m", "--data", "missing.txt"}, "missing.txt: cannot open"},
      {{"m", "--data", "t.txt", "--context", "65"}, "--context: expected at most the model's 64, got 65"},
      {{"m", "--data", "t.txt", "--context", "-1"}, "--context: expected 0 or more, got -1"},
      {{"m", "--data", "t.txt", "--dtype", "f16"}, "--dtype: expected as-stored, f32, bf16, int8 or int4, got f16"},
  };
  for (const auto& [args, says] : cases) expect_refused(Args{"eval"} + args, says);
}

// ---- names

TEST_F(Commands, ModelsAreFoundByNameInTheCacheOfHuggingFace) {
  const auto put = [&](const std::string& repository, const std::string& commit, const std::string& ref) {
    const fs::path to = folder / "hf/hub" / repository;
    fs::create_directories(to / "snapshots" / commit);
    fs::create_directories(to / "blobs");
    for (const auto& file : fs::directory_iterator(folder / "m")) {  // links, as huggingface_hub makes them
      const std::string name = file.path().filename();
      fs::copy_file(file, to / "blobs" / (commit + name));
      fs::create_symlink("../../blobs/" + commit + name, to / "snapshots" / commit / name);
    }
    write("hf/hub/" + repository + "/refs/" + ref, commit);
  };
  put("models--tiny", "11aa", "main");
  train({"--steps", "30", "--batch", "2", "--time", "16", "--seed", "1"});
  put("models--org--tiny", "22bb", "main");
  put("models--org--tiny", "33cc", "refs/pr/7");
  write("hf/hub/models--org--tiny/snapshots/33cc/generation_config.json", R"({"eos_token_id": null})");
  fs::create_directories(folder / "hf/hub/models--gone/snapshots");

  const auto perplexity = [&](const std::string& name, const std::map<std::string, std::string>& environment) {
    const Outcome outcome = run({"eval", name, "--data", "t.txt", "--json"}, {.environment = environment});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return outcome.out;
  };
  const std::map<std::string, std::string> home = {{"HF_HOME", folder / "hf"}, {"HF_HUB_CACHE", ""}};
  const std::string second = perplexity("m", {}), first = perplexity("tiny", home);
  EXPECT_NE(first, second);
  EXPECT_EQ(perplexity("org/tiny", home), second);
  EXPECT_EQ(perplexity("org/tiny@main", home), second);
  EXPECT_EQ(perplexity("org/tiny@22bb", home), second);
  EXPECT_EQ(perplexity("org/tiny@refs/pr/7", home), second);
  EXPECT_EQ(perplexity("tiny", {{"HF_HUB_CACHE", folder / "hf/hub"}, {"HF_HOME", "/nowhere"}}), first);
  fs::create_directories(folder / "cache");
  fs::create_symlink("../hf", folder / "cache/huggingface");
  const std::map<std::string, std::string> none = {{"HF_HUB_CACHE", ""}, {"HF_HOME", ""}};
  auto xdg = none, user = none;
  xdg["XDG_CACHE_HOME"] = folder / "cache";
  user["XDG_CACHE_HOME"] = "", user["HOME"] = folder / "user";
  EXPECT_EQ(perplexity("tiny", xdg), first);
  fs::create_directories(folder / "user");
  fs::create_symlink("../cache", folder / "user/.cache");
  EXPECT_EQ(perplexity("tiny", user), first);
  const Outcome quantized = run({"quantize", "org/tiny", "q"}, {.environment = home});
  EXPECT_EQ(quantized.exit_code, 0) << quantized.err;
  EXPECT_EQ(contents(folder / "q/tokenizer.json"), contents(folder / "m/tokenizer.json"));
  fs::create_directory(folder / "tiny");  // a folder comes first
  expect_refused({"generate", "tiny", "--prompt", "a"}, "tiny/config.json: cannot open", {.environment = home});

  const std::string cache = folder / "hf/hub";
  const std::string expected = "model: expected a folder, or a name in the cache " + cache + ", got ";
  const std::pair<const char*, std::string> cases[] = {
      {"other", expected + "other"},
      {"org/other", expected + "org/other"},
      {"/org/tiny", "/org/tiny: expected the folder of a model, missing"},
      {"..", ""},
      {"org/../tiny", expected + "org/../tiny"},
      {"t.txt", expected + "t.txt"},
      {"org/tiny@other", "models--org--tiny: expected a snapshot of revision other, missing"},
      {"org/tiny@", "models--org--tiny: expected a snapshot of revision , missing"},
      {"gone", "models--gone: expected a snapshot of revision main, missing"},
  };
  for (const auto& [name, says] : cases)
    expect_refused({"generate", name, "--prompt", "a"}, says, {.environment = home});
  for (const char* command : {"eval", "quantize"})
    expect_refused(Args{command, "other"} + (*command == 'e' ? Args{"--data", "t.txt"} : Args{"o"}), expected,
                   {.environment = home});
  write("hf/hub/models--org--tiny/refs/main", "44dd");  // which was not downloaded
  expect_refused({"generate", "org/tiny", "--prompt", "a"}, "expected a snapshot of revision main, missing",
                 {.environment = home});
}

// ---- bench decode

TEST_F(Commands, TimesDecodingAndAPrompt) {
  const Outcome outcome =
      run({"bench", "decode", "m", "--tokens", "2", "--rounds", "1", "--prefill", "8", "--rows", "2"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_TRUE(outcome.out.starts_with("gpt2, ")) << outcome.out;
  for (const char* says :
       {" MB a token; loaded in ", " tok/s (2 rows), ", " GB/s that memory gives, ", " GB/s when they are but read\n",
        "\ndecode: ", "  matvec", "\nprefill: ", " tok/s (8 tokens in ", "  attention"})
    EXPECT_TRUE(contains(outcome.out, says)) << says << " is not in\n" << outcome.out;
  const auto refused = [&](const Args& flags, const std::string& says) {
    InFolder::expect_refused(Args{"bench", "decode", "m"} + flags, says, "dense bench decode");
  };
  refused({"--tokens", "64", "--prefill", "8"},
          "expected --prompt and --tokens together at most the model's 64, got 65");
  refused({"--tokens", "2", "--prefill", "65"}, "--prefill: expected at most the model's 64, got 65");
  refused({"--rounds", "0"}, "--rounds: expected 1 or more, got 0");
  refused({"--dtype", "int3"}, "--dtype: expected as-stored, f32, bf16, int8 or int4, got int3");
}

// oneDNN is told to do without AVX-512, and so without products of bfloat16.
TEST_F(Commands, CompareWithFloat32WhereOneDnnHasNoBfloat16) {
  const std::map<std::string, std::string> avx2 = {{"ONEDNN_MAX_CPU_ISA", "AVX2"}};
  const Outcome decode =
      run({"bench", "decode", "m", "--tokens", "2", "--rounds", "1", "--prefill", "8"}, {.environment = avx2});
  EXPECT_EQ(decode.exit_code, 0) << decode.err;
  EXPECT_TRUE(contains(decode.out, " in f32 and none in bf16: ")) << decode.out;
  const Outcome train = run({"bench", "train", "--precision", "bf16", "--time", "8", "--steps", "1", "--n_layer", "1",
                             "--n_embd", "8", "--n_head", "2", "--vocab_size", "16"},
                            {.environment = avx2});
  EXPECT_EQ(train.exit_code, 0) << train.err;
  EXPECT_TRUE(contains(train.out, " GFLOP/s of oneDNN: ")) << train.out;
  EXPECT_FALSE(contains(train.out, " 0.0 GFLOP/s of oneDNN")) << train.out;
}

}  // namespace
