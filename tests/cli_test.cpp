// The dense program as its users meet it: exit codes, one-line errors, what it prints and which files it touches.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cli/pages.h"
#include "cli/trace.h"
#include "dense/io/safetensors.h"
#include "examples/microgpt.h"
#include "tests/process.h"

using namespace std::chrono_literals;

namespace {

// Each test has a small file of documents.
class Cli : public InFolder {
 protected:
  void SetUp() override { write("names.txt", "anna\nbob\ncarol\ndave\n"); }

  // Small enough for a few milliseconds.
  Outcome train(const Args& more) {
    return run(Args{"microgpt", "--data", "names.txt", "--steps", "3", "--samples", "2"} + more);
  }
  // Starts a training that would take forever, and returns when it is under way.
  std::unique_ptr<Process> train_forever(const Args& more) {
    auto process = std::make_unique<Process>(
        folder, Args{"microgpt", "--data", "names.txt", "--steps", "2000000000", "--n_embd", "4"} + more);
    while (!contains(process->err(), "config")) std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(100ms);
    return process;
  }
  nlohmann::json trace(const std::string& name) { return nlohmann::json::parse(contents(folder / name)); }
  void expect_refused(const Args& args, const std::string& says, const std::string& program = "dense microgpt") {
    InFolder::expect_refused(args, says, program);
  }
};

TEST_F(Cli, RefusesBadFlagsInOneLine) {
  const struct {
    Args args;
    const char* says;
  } cases[] = {
      {{"--foo"}, "unknown flag --foo (see dense microgpt --help)"},
      {{"--foo=3"}, "unknown flag --foo (see dense microgpt --help)"},
      {{"--step", "3"}, "unknown flag --step; did you mean --steps?"},
      {{"--n-embd", "3"}, "unknown flag --n-embd; did you mean --n_embd?"},
      {{"--temp", "3"}, "unknown flag --temp; did you mean --temperature?"},
      {{"-x"}, "unknown flag -x"},
      {{"-7"}, "unknown flag -7"},
      {{"names.txt"}, "unexpected argument \"names.txt\" (see dense microgpt --help)"},
      {{"two\nlines"}, "unexpected argument \"two?lines\""},
      {{""}, "unexpected argument \"\""},
      {{"--steps", "2x"}, "--steps: expected a whole number, got \"2x\""},
      {{"--steps=2x"}, "--steps: expected a whole number, got \"2x\""},
      {{"--steps", "1.5"}, "--steps: expected a whole number, got \"1.5\""},
      {{"--steps", "1e3"}, "--steps: expected a whole number, got \"1e3\""},
      {{"--steps", "0x10"}, "--steps: expected a whole number, got \"0x10\""},
      {{"--steps", "+1"}, "--steps: expected a whole number, got \"+1\""},
      {{"--steps", " 1"}, "--steps: expected a whole number, got \" 1\""},
      {{"--steps", ""}, "--steps: expected a whole number, got \"\""},
      {{"--steps="}, "--steps: expected a value, got \"\""},
      {{"--steps=", "3"}, "--steps: expected a value, got \"\""},
      {{"--steps"}, "--steps: expected a value, got nothing"},
      {{"--steps", "--seed", "3"}, "--steps: expected a whole number, got \"--seed\""},
      {{"--steps", "99999999999"}, "--steps: expected a whole number from -2147483648 to 2147483647"},
      {{"--steps", "99999999999999999999999"}, "--steps: expected a whole number from"},
      {{"--seed", "9223372036854775808"}, "--seed: expected a whole number from"},
      {{"--steps", "1", "--steps", "1"}, "--steps: given 2 times"},
      {{"--steps", "1", "--seed", "3", "--steps=2"}, "--steps: given 2 times"},
      {{"--temperature", "warm"}, "--temperature: expected a number, got \"warm\""},
      {{"--temperature", "1,5"}, "--temperature: expected a number, got \"1,5\""},
      {{"--temperature", "nan"}, "--temperature: expected a number"},
      {{"--temperature", "-inf"}, "--temperature: expected a number"},
      {{"--temperature", "1e999"}, "--temperature: expected a number"},
      {{"--data", ""}, "--data: expected a value, got \"\""},
      {{"--data", "--steps", "3"}, "--data: expected a value, got \"--steps\""},
      {{"--trace"}, "--trace: expected a value, got nothing"},
  };
  for (const auto& c : cases) expect_refused(Args{"microgpt"} + c.args, c.says);
}

TEST_F(Cli, RefusesSizesThatMakeNoModel) {
  for (const char* flag : {"--n_layer", "--n_embd", "--n_head", "--block_size", "--temperature"}) {
    for (const char* value : {"0", "-1", "-2147483648"}) expect_refused({"microgpt", flag, value}, flag);
  }
  expect_refused({"microgpt", "--steps", "-1"}, "--steps");
  expect_refused({"microgpt", "--samples", "-1"}, "--samples");
  expect_refused({"microgpt", "--n_embd", "16", "--n_head", "3"}, "n_head");
  for (const char* flag : {"--n_layer", "--n_embd", "--block_size"})
    expect_refused({"microgpt", flag, "2147483644"}, "expected sizes that make at most 4194304 parameters, got ");
}

TEST_F(Cli, RefusesBadDataInOneLine) {
  write("empty.txt", "");
  write("blank.txt", " \n\r\n\t\n");
  write("latin1.txt", "anna\nbob\nJos\xe9\n");
  fs::create_directory(folder / "folder");
  const std::pair<const char*, const char*> cases[] = {
      {"missing.txt", "missing.txt: cannot open: No such file or directory"},
      {"names.txt/x", "names.txt/x: cannot open: Not a directory"},
      {"empty.txt", "empty.txt: no documents: every line is empty"},
      {"blank.txt", "blank.txt: no documents: every line is empty"},
      {"latin1.txt", "latin1.txt: line 3: not UTF-8: byte 0xe9"},
      {"folder", "folder: is a folder"},
      {"/dev/null", "/dev/null: no documents: every line is empty"},
      {"two\nlines", "two?lines: cannot open"},
  };
  for (const auto& [data, says] : cases) expect_refused({"microgpt", "--data", data}, says);
  if (geteuid() == 0) return;  // root reads everything
  fs::permissions(folder / "names.txt", fs::perms::none);
  expect_refused({"microgpt", "--data", "names.txt"}, "names.txt: cannot open: Permission denied");
}

TEST_F(Cli, RefusesATraceItCannotWriteBeforeTraining) {
  fs::create_directory(folder / "folder");
  fs::create_symlink("loop", folder / "loop");
  write("old.json", "old");
  const std::pair<const char*, const char*> cases[] = {
      {"missing/t.json", "missing/t.json: cannot write: No such file or directory"},
      {"names.txt/t.json", "names.txt/t.json: cannot write: Not a directory"},
      {"loop", "loop: cannot write: Too many levels of symbolic links"},
      {"folder", "folder: is a folder"},
      {"names.txt", "--trace: names.txt is the data"},
  };
  for (const auto& [path, says] : cases) {
    expect_refused({"microgpt", "--data", "names.txt", "--steps", "2000000000", "--trace", path}, says);
  }
  // Other errors leave a trace as it was.
  expect_refused({"microgpt", "--data", "missing.txt", "--trace", "old.json"}, "missing.txt");
  expect_refused({"microgpt", "--n_head", "3", "--trace", "new.json"}, "n_head");
  if (geteuid() == 0) return;  // root writes everywhere
  fs::permissions(folder / "old.json", fs::perms::owner_read);
  expect_refused({"microgpt", "--trace", "old.json"}, "old.json: cannot write: Permission denied");
  fs::permissions(folder / "folder", fs::perms::owner_read | fs::perms::owner_exec);
  expect_refused({"microgpt", "--trace", "folder/t.json"}, "folder/t.json: cannot write: Permission denied");
}

TEST_F(Cli, RefusesUnknownCommands) {
  expect_refused({"micrgpt"}, "unknown command micrgpt; did you mean microgpt? (see dense --help)", "dense");
  expect_refused({"bench"}, "unknown command bench; did you mean bench microgpt?", "dense");
  expect_refused({"--steps", "3"}, "unknown command --steps (see dense --help)", "dense");
  expect_refused({""}, "unknown command", "dense");
}

TEST_F(Cli, TimesAndChecksOneCaseOfTheScalarBenchmark) {
  for (const char* precision : {"exact", "f64", "f32"}) {
    const Outcome outcome =
        run({"bench", "scalar", "--ops", "300", "--iterations", "40", "--lanes", "9", "--precision", precision});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_TRUE(contains(outcome.out, "300 operations, ") && contains(outcome.out, " of 9 lanes, ")) << outcome.out;
    EXPECT_TRUE(contains(outcome.out, precision) && contains(outcome.out, " ns; C ")) << outcome.out;
  }
  expect_refused({"bench", "scalar", "--precision", "f16"}, "--precision: expected exact, f64 or f32",
                 "dense bench scalar");
  expect_refused({"bench", "scalar", "--isa", "sse"}, "--isa: expected avx512, avx2, portable or best",
                 "dense bench scalar");
  expect_refused({"bench", "scalar", "--lanes", "0"}, "--lanes: expected 1 or more", "dense bench scalar");
}

TEST_F(Cli, HelpGoesToStdout) {
  for (const Args& args : {Args{}, {"--help"}, {"-h"}, {"help"}}) {
    const Outcome outcome = run(args);
    EXPECT_EQ(outcome.exit_code, 0);
    EXPECT_EQ(outcome.err, "");
    EXPECT_TRUE(contains(outcome.out, "dense microgpt ") && contains(outcome.out, "dense bench microgpt "));
  }
  for (const Args& args : {Args{"microgpt", "--help"}, {"microgpt", "-h"}, {"microgpt", "--steps", "3", "--help"}}) {
    const Outcome outcome = run(args);
    EXPECT_EQ(outcome.exit_code, 0);
    EXPECT_EQ(outcome.err, "");
    EXPECT_TRUE(contains(outcome.out, "Example: dense microgpt --"));
    microgpt_scalar::Config().fields([&](const std::string& name, auto&, const std::string& text, auto) {
      EXPECT_TRUE(contains(outcome.out, "  --" + name + " ") && contains(outcome.out, text)) << name;
    });
  }
  EXPECT_EQ(run({"--version"}).out.rfind("dense ", 0), 0u);
}

TEST_F(Cli, PrintsSamplesToStdoutAndTheRestToStderr) {
  const Outcome outcome = train({});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(lines(outcome.out).size(), 2u);
  EXPECT_TRUE(contains(outcome.err, "4 documents from names.txt, 11 tokens, ")) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "steps 3, seed 42, n_layer 1")) << outcome.err;
  EXPECT_FALSE(contains(outcome.err, "\r") || contains(outcome.err, "\x1b"));
}

TEST_F(Cli, LogsAboutTenLinesWhenNobodyWatches) {
  for (const auto& [steps, expected] : std::map<std::string, int>{{"1", 1}, {"7", 7}, {"20", 10}, {"25", 8}}) {
    int count = 0;
    for (const std::string& line : lines(run({"microgpt", "--data", "names.txt", "--steps", steps}).err)) {
      if (line.starts_with("step ") && contains(line, "/" + steps + "  loss ")) ++count;
    }
    EXPECT_EQ(count, expected) << steps;
  }
}

TEST_F(Cli, TakesFlagsInBothFormsAndAnyOrder) {
  const Outcome outcome = train({"--seed=-7", "--learning_rate", "1e-3", "--temperature", ".5", "--trace=t.json"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(trace("t.json")["config"]["seed"], -7);
  EXPECT_EQ(trace("t.json")["config"]["learning_rate"], 0.001);
  EXPECT_EQ(trace("t.json")["config"]["temperature"], 0.5);
  EXPECT_EQ(train({"--trace", "u.json", "--temperature=.5", "--seed", "-7", "--learning_rate=1e-3"}).out, outcome.out);
  EXPECT_EQ(trace("u.json")["losses"], trace("t.json")["losses"]);
  EXPECT_EQ(trace("u.json")["params_sha256_le_f64"], trace("t.json")["params_sha256_le_f64"]);
}

TEST_F(Cli, TheTraceHoldsTheWholeRun) {
  const Outcome outcome = train({"--trace", "t.json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto json = trace("t.json");
  microgpt_scalar::Config config;
  config.steps = 3, config.samples = 2;
  config.fields([&](const char* name, auto& value, auto...) { EXPECT_EQ(json["config"][name], value) << name; });
  EXPECT_EQ(json["config"]["data"], "names.txt");
  EXPECT_EQ(json["config"]["trace"], "t.json");
  EXPECT_EQ(json["num_docs"], 4);
  EXPECT_EQ(json["vocab_size"], 11);  // a b c d e l n o r v, and the end of a document
  EXPECT_GT(json["num_params"], 0);
  ASSERT_EQ(json["losses"].size(), 3u);
  for (const std::string loss : json["losses"]) {
    EXPECT_EQ(dense::cli::float_hex(std::strtod(loss.c_str(), nullptr)), loss);
    EXPECT_NEAR(std::strtod(loss.c_str(), nullptr), std::log(11), 1) << "an untrained model guesses";
  }
  EXPECT_EQ(json["samples"], lines(outcome.out));
  const std::string hash = json["params_sha256_le_f64"];
  EXPECT_TRUE(hash.size() == 64 && hash.find_first_not_of("0123456789abcdef") == hash.npos) << hash;
  EXPECT_FALSE(json.contains("interrupted"));
}

TEST_F(Cli, TheTraceReplacesAnOldOne) {
  write("t.json", "old");
  fs::permissions(folder / "t.json", fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink("t.json", folder / "link");
  EXPECT_EQ(train({"--trace", "link"}).exit_code, 0);
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_EQ(trace("t.json")["losses"].size(), 3u);
  EXPECT_EQ(fs::status(folder / "t.json").permissions(), fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_EQ(snapshot().size(), 3u) << "a temporary file was left";
}

TEST_F(Cli, TheTraceMayBeADevice) {
  EXPECT_EQ(train({"--trace", "/dev/null"}).exit_code, 0);
  const Outcome outcome = train({"--trace", "/dev/stdout"});
  EXPECT_EQ(outcome.exit_code, 0);
  const size_t end = outcome.out.find("\n}\n") + 3;
  const auto json = nlohmann::json::parse(outcome.out.substr(0, end));
  EXPECT_EQ(json["samples"], lines(outcome.out.substr(end)));
  const Outcome full = train({"--trace", "/dev/full"});
  EXPECT_EQ(full.exit_code, 2);
  EXPECT_EQ(lines(full.err).back(), "dense microgpt: /dev/full: cannot write: No space left on device");
}

TEST_F(Cli, CtrlCEndsTrainingAndKeepsWhatWasDone) {
  for (const auto& [signal, exit_code] : {std::pair(SIGINT, 130), std::pair(SIGTERM, 143)}) {
    write("t.json", "old");
    auto process = train_forever({"--samples", "2", "--trace", "t.json"});
    EXPECT_EQ(contents(folder / "t.json"), "old");
    EXPECT_EQ(snapshot().size(), 2u) << "a temporary file lies about during training";
    process->send(signal);
    EXPECT_EQ(process->wait(), exit_code);
    EXPECT_EQ(lines(process->out()).size(), 2u);
    EXPECT_TRUE(contains(process->err(), "of 2,000,000,000 steps")) << process->err();
    EXPECT_EQ(trace("t.json")["interrupted"], true);
    EXPECT_GT(trace("t.json")["losses"].size(), 0u);
    EXPECT_EQ(trace("t.json")["samples"], lines(process->out()));
  }
}

std::string one_of_the_pages() {
  std::string names;
  for (const dense::Page& page : dense::cli::pages()) names += (names.empty() ? "" : ", ") + page.model_type;
  return "expected one of " + names;
}

// ---- dense init

const Args tiny_llama = {"init",  "--model",
                         "llama", "--vocab_size",
                         "11",    "--hidden_size",
                         "8",     "--intermediate_size",
                         "12",    "--num_hidden_layers",
                         "2",     "--num_attention_heads",
                         "4"};

TEST_F(Cli, InitWritesAFolderAsHuggingFaceDoes) {
  const Outcome outcome =
      run(tiny_llama + Args{"--num_key_value_heads", "2", "--rope_scaling.rope_type", "linear",
                            "--rope_scaling.factor=2", "--eos_token_id", "2,3", "--dtype", "bf16", "made/m"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_TRUE(outcome.err.starts_with("llama: 1,176 parameters of bf16 in made/m after ")) << outcome.err;
  EXPECT_EQ(contents(folder / "made/m/config.json"), R"({
  "architectures": [
    "LlamaForCausalLM"
  ],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 1,
  "eos_token_id": [
    2,
    3
  ],
  "hidden_act": "silu",
  "hidden_size": 8,
  "initializer_range": 0.02,
  "intermediate_size": 12,
  "max_position_embeddings": 2048,
  "mlp_bias": false,
  "model_type": "llama",
  "num_attention_heads": 4,
  "num_hidden_layers": 2,
  "num_key_value_heads": 2,
  "pad_token_id": null,
  "rms_norm_eps": 1e-06,
  "rope_scaling": {
    "factor": 2.0,
    "rope_type": "linear"
  },
  "rope_theta": 10000.0,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "vocab_size": 11
}
)");
  EXPECT_EQ(contents(folder / "made/m/generation_config.json"), R"({
  "_from_model_config": true,
  "bos_token_id": 1,
  "eos_token_id": [
    2,
    3
  ]
}
)");
  const std::string weights = contents(folder / "made/m/model.safetensors");
  EXPECT_TRUE(weights.substr(8).starts_with(R"({"__metadata__":{"format":"pt"},"lm_head.weight":{"dtype":"BF16")"));
  EXPECT_EQ(snapshot().size(), 6u) << "names.txt, two folders and their three files";

  std::vector<int32_t> ids = {1, 5, 3, 10};
  dense::write_safetensors(folder / "x.safetensors",
                           std::vector<dense::StoredTensor>{
                               {"input_ids", "I32", {1, 4}, std::as_writable_bytes(std::span(ids)), nullptr, {}}});
  EXPECT_EQ(run({"forward", "made/m", "x.safetensors", "y.safetensors"}).err, "");
  const auto logits = dense::to_f32(dense::read_safetensors(folder / "y.safetensors").at("logits"));
  EXPECT_EQ(logits.size(), 44u);
  for (float v : logits) EXPECT_LT(std::abs(v), 1);  // a NaN is not
}

TEST_F(Cli, InitLeavesOutATiedHeadAndTokensThatAVocabularyLacks) {
  const Args sizes = {"--n_layer", "1", "--n_embd", "8", "--n_head", "2", "--vocab_size", "9"};
  for (const char* tied : {"true", "false"}) {
    const Outcome outcome =
        run(Args{"init", "--model=gpt2"} + sizes + Args{"--force", "g", "--tie_word_embeddings", tied});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(dense::read_safetensors(folder / "g").contains("lm_head.weight"), *tied == 'f');
  }
  EXPECT_EQ(run(Args{"init", "--model=gpt2"} + sizes + Args{"--scale_attn_weights", "h"}).exit_code, 0) << "true";
  EXPECT_TRUE(nlohmann::json::parse(contents(folder / "g/config.json"))["eos_token_id"].is_null());
  EXPECT_EQ(contents(folder / "g/generation_config.json"), "{\n  \"_from_model_config\": true\n}\n");
  EXPECT_EQ(run({"init", "--model", "microgpt", "m"}).exit_code, 0);
  EXPECT_FALSE(fs::exists(folder / "m/generation_config.json")) << "Hugging Face has no such class";
}

TEST_F(Cli, InitGivesTheSameBytesForTheSameSeed) {
  const auto weights = [&](const Args& more) {
    const Outcome outcome = run(tiny_llama + Args{"--force", "m"} + more);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return contents(folder / "m/model.safetensors");
  };
  const std::string zero = weights({});
  EXPECT_TRUE(weights({"--seed", "0"}) == zero);
  EXPECT_FALSE(weights({"--seed", "1"}) == zero);
  EXPECT_FALSE(weights({"--seed", "-1"}) == zero);
  const auto all = [&] {
    std::vector<float> values;
    for (const auto& [name, tensor] : dense::read_safetensors(folder / "m"))
      for (float v : dense::to_f32(tensor)) values.push_back(v);
    return values;
  };
  weights({});
  const std::vector<float> wide = all();
  for (const auto& [dtype, precision] : {std::pair("bf16", 1.f / 256), std::pair("f16", 1.f / 2048)}) {
    weights({"--dtype", dtype});
    const std::vector<float> narrow = all();
    ASSERT_EQ(narrow.size(), wide.size());
    for (size_t i = 0; i < wide.size(); ++i) EXPECT_NEAR(narrow[i], wide[i], precision * std::abs(wide[i]) + 1e-7);
  }
  EXPECT_EQ(weights({"--shard_size", "2000"}), "") << "one file";
  EXPECT_TRUE(fs::exists(folder / "m/model.safetensors.index.json"));
  EXPECT_EQ(all(), wide);
  for (const auto& entry : fs::directory_iterator(folder / "m")) EXPECT_LT(fs::file_size(entry), 3500u) << entry;
}

TEST_F(Cli, InitReplacesAModelOnlyWhenForced) {
  ASSERT_EQ(run(tiny_llama + Args{"--shard_size=1000", "m"}).exit_code, 0);
  write("m/tokenizer.json", "mine");
  expect_refused(tiny_llama + Args{"m"}, "m: holds a model already; --force writes a new one in its place",
                 "dense init");
  expect_refused(tiny_llama + Args{"./m/"}, "holds a model already", "dense init");
  ASSERT_EQ(run(tiny_llama + Args{"--force", "m/"}).exit_code, 0);
  Args files;
  for (const auto& entry : fs::directory_iterator(folder / "m")) files.push_back(entry.path().filename());
  std::ranges::sort(files);
  EXPECT_EQ(files, (Args{"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}));
  EXPECT_EQ(contents(folder / "m/tokenizer.json"), "mine");
  fs::create_directory(folder / "empty");
  EXPECT_EQ(run(tiny_llama + Args{"empty"}).exit_code, 0);
  fs::remove_all(folder / "empty");
  fs::remove_all(folder / "m");
  EXPECT_EQ(snapshot().size(), 1u) << "a draft was left";
}

TEST_F(Cli, CtrlCEndsInitAndLeavesNothing) {
  Process process(folder, {"init", "--model", "llama", "m"});  // 27 GB
  while (snapshot().size() < 4) std::this_thread::sleep_for(1ms);
  process.send(SIGINT);
  EXPECT_EQ(process.wait(), 130);
  EXPECT_EQ(process.err(), "stopped: nothing was written\n");
  EXPECT_EQ(snapshot().size(), 1u);
}

TEST_F(Cli, RefusesToInitWhatDoesNotFit) {
  const std::pair<Args, std::string> cases[] = {
      {{"m"}, "--model: " + one_of_the_pages() + ", missing"},
      {{"--model", "gpt3", "m"}, "model_type: " + one_of_the_pages() + ", got gpt3"},
      {{"--model", "llama"}, "expected OUT_DIR (see dense init --help)"},
      {{"--model", "llama", "a", "b"}, "unexpected argument \"b\" (see dense init --help)"},
      {{"--model", "llama", "--n_layer", "2", "m"}, "unknown flag --n_layer"},
      {{"--model", "llama", "--hidden_siz", "2", "m"}, "unknown flag --hidden_siz; did you mean --hidden_size?"},
      {{"--model", "llama", "m", "--hidden_size"}, "--hidden_size: expected a value, got nothing"},
      {{"--model", "llama", "--hidden_size", "0", "m"}, "--hidden_size: expected 1 or more, got 0"},
      {{"--model", "llama", "--hidden_size", "50", "m"}, "llama: num_attention_heads: expected a divisor of"},
      {{"--model", "llama", "--dtype", "f64", "m"}, "--dtype: expected f32, bf16 or f16, got f64"},
      {{"--model", "llama", "--shard_size", "0", "m"}, "--shard_size: expected 1 or more, got 0"},
      {{"--model", "llama", "--shard_size", "5GB", "m"}, "--shard_size: expected a whole number, got \"5GB\""},
      {{"--model", "llama", "--eos_token_id", "32000", "m"}, "--eos_token_id: expected 0 to vocab_size - 1 = 31999"},
      {{"--model", "llama", "--rope_scaling.type", "yarn", "m"}, "rope_scaling.rope_type: expected default, linear"},
      {{"--model", "llama", "names.txt"}, "names.txt: expected a folder"},
      {{"--model", "llama", "names.txt/m"}, "names.txt/m"},
      {{"--model", "llama", "--num_hidden_layers", "3000", "m"}, "bytes free on its disk, got "},
  };
  for (const auto& [args, says] : cases) expect_refused(Args{"init"} + args, says, "dense init");
}

TEST_F(Cli, CtrlCEndsSamplingAndKeepsWhatWasDone) {
  const Args args = {"microgpt", "--data", "names.txt", "--steps", "1", "--samples", "20000000", "--trace", "t.json"};
  Process process(folder, args);
  while (!contains(process.err(), "trained 1 of 1 steps")) std::this_thread::sleep_for(10ms);
  std::this_thread::sleep_for(100ms);
  process.send(SIGINT);
  EXPECT_EQ(process.wait(), 130);
  EXPECT_EQ(trace("t.json")["interrupted"], true);
  EXPECT_GT(trace("t.json")["samples"].size(), 0u);
  EXPECT_EQ(trace("t.json")["samples"], lines(process.out()));
}

TEST_F(Cli, ASecondCtrlCKills) {
  auto process = train_forever({"--samples", "20000000"});
  process->send(SIGINT);
  std::this_thread::sleep_for(200ms);
  process->send(SIGINT);
  EXPECT_EQ(process->wait(), -SIGINT);
}

TEST_F(Cli, AClosedPipeEndsItQuietly) {
  int fds[2];
  ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
  close(fds[0]);
  Process process(folder, {"microgpt", "--data", "names.txt", "--steps", "3"}, {.out_fd = fds[1]});
  close(fds[1]);
  EXPECT_EQ(process.wait(), -SIGPIPE);
  EXPECT_FALSE(contains(process.err(), "dense microgpt:")) << process.err();
}

TEST_F(Cli, AFullDiskBehindStdoutIsAnError) {
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  Process process(folder, {"microgpt", "--data", "names.txt", "--steps", "3"}, {.out_fd = full});
  close(full);
  EXPECT_EQ(process.wait(), 1);
  EXPECT_TRUE(contains(process.err(), "dense microgpt: cannot write to standard output")) << process.err();
}

TEST_F(Cli, ShowsABarOnATerminal) {
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  ASSERT_TRUE(terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0);
  const int other_end = open(ptsname(terminal), O_RDWR | O_NOCTTY | O_CLOEXEC);
  const winsize size = {24, 90, 0, 0};
  ioctl(terminal, TIOCSWINSZ, &size);
  Process process(folder, {"microgpt", "--data", "names.txt", "--steps", "2000000000", "--n_embd", "4"},
                  {.err_fd = other_end});
  close(other_end);

  std::string shown;
  const auto start = std::chrono::steady_clock::now();
  char block[4096];
  for (bool stopped = false;;) {
    pollfd ready = {terminal, POLLIN, 0};
    poll(&ready, 1, 10);
    if (!stopped && std::chrono::steady_clock::now() - start > 500ms) process.send(SIGINT), stopped = true;
    if (!ready.revents) continue;
    const ssize_t count = read(terminal, block, sizeof block);
    if (count <= 0) break;  // the other end is closed: the program has ended
    shown.append(block, static_cast<size_t>(count));
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  close(terminal);
  EXPECT_EQ(process.wait(), 130);

  int bars = 0;
  for (size_t at = shown.find("\r["); at != shown.npos; at = shown.find("\r[", at + 1)) {
    const std::string bar = shown.substr(at + 1, shown.find('\x1b', at) - at - 1);
    EXPECT_LT(bar.size(), 90u) << bar;
    EXPECT_TRUE(contains(bar, "/2000000000  loss ") && bar.ends_with(" left")) << bar;
    ++bars;
  }
  EXPECT_GE(bars, 2);
  EXPECT_LE(bars, 20 * seconds.count() + 2);
  EXPECT_TRUE(contains(shown, "left\x1b[K\r\x1b[Ktrained ")) << "the bar was not cleared:\n" << shown;
}

TEST_F(Cli, RandomFlagsTrainOrAreRefused) {
  const char* wish = std::getenv("DENSE_FUZZ_ROUNDS");
  const int rounds = wish ? std::atoi(wish) / 400 : 200;  // other tests' rounds are cheap, here each is a process
  const Args junk = {"",        "-",
                     "--",      "---",
                     "--=",     "=",
                     "--steps", "--data=",
                     "-h1x",    "x",
                     "1",       "[1,2]",
                     "{}",      "%s",
                     "\n",      "--no-such=1",
                     "--help=", "\xff\xfe",
                     "!",       "--n_embd=\xc3",
                     "-s",      "--trace=/dev/null",
                     "@",       "''"};
  const std::map<std::string, Args> values = {
      {"data", {"names.txt", "names.txt", "missing.txt", "."}},
      {"steps", {"0", "1", "2", "-1"}},
      {"samples", {"0", "1", "-1"}},
      {"n_layer", {"1", "2", "0", "-1"}},
      {"n_embd", {"4", "8", "6", "0", "-4"}},
      {"n_head", {"1", "2", "4", "3", "0"}},
      {"block_size", {"1", "2", "8", "0"}},
      {"seed", {"0", "-1", "9223372036854775807", "-9223372036854775808"}},
      {"trace", {"fuzz.json", "/dev/null", "no/fuzz.json"}},
  };
  const Args numbers = {"0.5", "1e-3", "0", "-1", "1", "1e308", "-0", "1e-308", "inf", "nan", "0.99", "5e-324", "1e9"};
  std::mt19937 random(7);
  auto one_in = [&](int n) { return random() % static_cast<unsigned>(n) == 0; };
  auto pick = [&](const Args& from) { return from[random() % from.size()]; };
  int trained = 0;
  for (int round = 0; round < rounds; ++round) {
    const bool tame = one_in(2);  // otherwise hardly any run would get as far as training
    Args args = {"microgpt"};
    auto give = [&](const std::string& name, const std::string& value) {
      if (one_in(2)) args.push_back("--" + name + "=" + value);
      else args.insert(args.end(), {"--" + name, value});
    };
    microgpt_scalar::Config().fields([&](const std::string& name, auto&, auto...) {
      const bool needed = name == "data" || name == "steps" || name == "samples";  // the defaults would take long
      if (!needed && !one_in(3)) return;
      const auto known = values.find(name);
      const Args& candidates = known == values.end() ? numbers : known->second;
      give(name, tame ? candidates[random() % 2] : one_in(8) ? pick(junk) : pick(candidates));
      if (!tame && one_in(20)) give(name, pick(candidates));
    });
    while (!tame && one_in(3)) {
      args.insert(args.begin() + 1 + static_cast<std::ptrdiff_t>(random() % args.size()), pick(junk));
    }
    const Outcome outcome = run(args);
    const std::string call = testing::PrintToString(args) + "\n" + outcome.err;
    ASSERT_TRUE(outcome.exit_code == 0 || outcome.exit_code == 2) << outcome.exit_code << ": " << call;
    if (outcome.exit_code == 2) {
      EXPECT_TRUE(lines(outcome.err).back().starts_with("dense microgpt: ")) << call;
      EXPECT_EQ(outcome.out, "") << call;
    } else {
      ++trained;
    }
  }
  EXPECT_GE(trained, rounds / 8);
  EXPECT_LE(snapshot().size(), 2u) << "names.txt and fuzz.json";
}

TEST(Trace, SpellsFloatsAsPythonDoes) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const std::pair<double, const char*> cases[] = {
      // x, and Python's x.hex()
      {0.0, "0x0.0p+0"},
      {-0.0, "-0x0.0p+0"},
      {1.0, "0x1.0000000000000p+0"},
      {-3.0, "-0x1.8000000000000p+1"},
      {0.1, "0x1.999999999999ap-4"},
      {1e-8, "0x1.5798ee2308c3ap-27"},
      {1.0 / 3, "0x1.5555555555555p-2"},
      {2.5e17, "0x1.bc16d674ec800p+57"},
      {5e-324, "0x0.0000000000001p-1022"},
      {-5e-324, "-0x0.0000000000001p-1022"},
      {2.2250738585072009e-308, "0x0.fffffffffffffp-1022"},
      {2.2250738585072014e-308, "0x1.0000000000000p-1022"},
      {1.7976931348623157e308, "0x1.fffffffffffffp+1023"},
      {-1.7976931348623157e308, "-0x1.fffffffffffffp+1023"},
      {inf, "inf"},
      {-inf, "-inf"},
      {nan, "nan"},
      {-nan, "nan"},
  };
  for (const auto& [x, hex] : cases) EXPECT_EQ(dense::cli::float_hex(x), hex);
}

}  // namespace
