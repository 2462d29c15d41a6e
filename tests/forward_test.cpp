// dense forward as its users meet it: Hugging Face folders with the values that Hugging Face computes for them, the same
// folders as the Hub has them, and what does not fit.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "dense/io/safetensors.h"
#include "tests/temporary.h"

namespace {

using namespace dense;
namespace fs = std::filesystem;
using Args = std::vector<std::string>;

const char* const cases[] = {
    "gpt2",   "gpt2_bf16_sharded", "gpt2_f16", "llama", "llama3", "mistral", "qwen2",   "gemma",     "phi3", "olmo2",
    "gemma2", "gpt_neox",          "bert",     "esm",   "t5",     "t5_v10",  "mixtral", "deberta_v2"};

std::string fixture(const std::string& name) { return shared_folder() + "/fixtures/hf/" + name; }

struct Outcome {
  int exit_code;
  std::string out, err;
};

class Forward : public testing::Test {
 protected:
  const TemporaryFolder folder;
  void SetUp() override {
    if (!fs::exists(fixture("gpt2"))) GTEST_SKIP() << "no fixtures in " << shared_folder();
  }

  // The program in an empty folder of its own.
  Outcome run(const Args& args) {
    fs::create_directories(folder / "here");
    const std::string out = folder / "stdout", err = folder / "stderr", here = folder / "here";
    Args all{"dense", "forward"};
    all.insert(all.end(), args.begin(), args.end());
    std::vector<char*> argv;
    for (std::string& arg : all) argv.push_back(arg.data());
    argv.push_back(nullptr);
    const pid_t pid = fork();
    if (pid == 0) {
      alarm(60);
      dup2(open("/dev/null", O_RDONLY), 0);
      dup2(open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
      dup2(open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
      if (chdir(here.c_str()) == 0) execv(DENSE_CLI, argv.data());
      _exit(127);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return {WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status), contents(out), contents(err)};
  }

  // What it writes, as bytes, which it must write without a word.
  std::string outputs(const std::string& model, const std::string& inputs, const Args& more = {"--grads"}) {
    const std::string file = folder / "outputs.safetensors";
    fs::remove(file);
    Args args{model, inputs, file};
    args.insert(args.end(), more.begin(), more.end());
    const Outcome outcome = run(args);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(outcome.out + outcome.err, "");
    return contents(file);
  }

  // Exit code 2, one line that says this, nothing written.
  void expect_refused(const Args& args, const std::string& says) {
    const Outcome outcome = run(args);
    const std::string call = testing::PrintToString(args) + "\n" + outcome.err;
    EXPECT_EQ(outcome.exit_code, 2) << call;
    EXPECT_EQ(outcome.out, "") << call;
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << call;
    EXPECT_TRUE(outcome.err.starts_with("dense forward: ") && outcome.err.ends_with("\n")) << call;
    EXPECT_NE(outcome.err.find(says), std::string::npos) << call << "does not say: " << says;
    EXPECT_TRUE(fs::is_empty(folder / "here")) << call << "wrote a file";
    fs::remove_all(folder / "here");
  }
  void expect_refused(const std::string& model, const std::string& inputs, const std::string& says) {
    expect_refused({model, inputs, "y.safetensors", "--grads"}, says);
  }
};

// ---- folders like a fixture, but

struct Changed {
  nlohmann::json config;
  std::vector<StoredTensor> tensors;

  explicit Changed(const std::string& name = "gpt2")
      : config(nlohmann::json::parse(contents(fixture(name) + "/config.json"))) {
    for (const auto& [key, tensor] : read_safetensors(fixture(name))) tensors.push_back(tensor);
  }
  StoredTensor& at(const std::string& name) { return *std::ranges::find(tensors, name, &StoredTensor::name); }
  void erase(const std::string& name) {
    std::erase_if(tensors, [&](const StoredTensor& t) { return t.name == name; });
  }
  std::string write(const TemporaryFolder& to, const std::string& name) const {
    fs::create_directories(to / name);
    to.write(name + "/config.json", config.dump(2));
    write_safetensors(to / (name + "/model.safetensors"), tensors);
    return to / name;
  }
};

template <class T>
StoredTensor tensor(const std::string& name, const std::string& dtype, const Shape& shape,
                    const std::vector<T>& values) {
  const auto memory = std::make_shared<std::vector<T>>(values);
  return {name, dtype, shape, std::as_writable_bytes(std::span(*memory)), memory, {}};
}

std::string write_inputs(const TemporaryFolder& to, const std::vector<StoredTensor>& tensors) {
  write_safetensors(to / "inputs.safetensors", tensors);
  return to / "inputs.safetensors";
}
using Ids = std::vector<int64_t>;
StoredTensor ids(const Ids& values, const Shape& shape, const char* name = "input_ids") {
  return tensor<int64_t>(name, "I64", shape, values);
}

// ---- values

double largest(const std::vector<float>& x) {
  double most = 0;
  for (float v : x) most = std::max(most, std::abs(double(v)));
  return most;
}
double distance(const std::vector<float>& x, const std::vector<float>& y) {
  double most = x.size() == y.size() ? 0 : std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
    const double d = std::abs(double(x[i]) - double(y[i]));
    most = d <= most ? most : std::isnan(d) ? std::numeric_limits<double>::infinity() : d;
  }
  return most;
}

TEST_F(Forward, LogitsLossAndGradientsAreThoseOfHuggingFace) {
  for (const std::string name : cases) {
    SCOPED_TRACE(name);
    outputs(fixture(name), fixture(name) + "/inputs.safetensors");
    const StoredTensors got = read_safetensors(folder / "outputs.safetensors"),
                        want = read_safetensors(fixture(name) + "/expected.safetensors");
    const StoredTensors inputs = read_safetensors(fixture(name) + "/inputs.safetensors");
    std::string got_names, want_names;
    for (const auto& [key, t] : got) got_names += key + "\n";
    for (const auto& [key, t] : want) want_names += key + "\n";
    EXPECT_EQ(got_names, want_names);
    double most = 0;
    for (const auto& [key, t] : want) {
      ASSERT_TRUE(got.contains(key)) << key;
      EXPECT_EQ(got.at(key).dtype, "F32") << key;
      EXPECT_EQ(got.at(key).shape, t.shape) << key;
      if (key.starts_with("grad.")) most = std::max(most, largest(to_f32(t)));
    }
    EXPECT_LE(distance(to_f32(got.at("loss")), to_f32(want.at("loss"))), 1e-5);
    for (const auto& [key, t] : want) {
      if (!key.starts_with("grad.")) continue;
      const std::vector<float> expected = to_f32(t);
      EXPECT_LE(distance(to_f32(got.at(key)), expected), 1e-4 * std::max(largest(expected), 1e-3 * most)) << key;
    }
    const std::vector<int32_t> mask = to_i32(inputs.at("attention_mask"));
    for (const std::string key : {"logits", "last_hidden_state", "encoder_last_hidden_state"}) {
      if (!want.contains(key)) continue;
      const std::vector<float> x = to_f32(got.at(key)), y = to_f32(want.at(key));
      const size_t width = x.size() / mask.size();
      const bool decodes = want.contains("encoder_last_hidden_state") && !key.starts_with("encoder_");  // all are real
      double worst = 0;
      for (size_t i = 0; i < x.size(); ++i)
        if ((decodes || mask[i / width]) && !(std::abs(x[i] - y[i]) <= worst)) worst = std::abs(x[i] - y[i]);
      EXPECT_LE(worst, 1e-4) << key;
    }
  }
}

TEST_F(Forward, LabelsMasksAndGradientsAreOptional) {
  const std::string model = fixture("gpt2"), given = model + "/inputs.safetensors";
  const StoredTensors inputs = read_safetensors(given);
  const std::string whole = outputs(model, given);
  const StoredTensors all =
      parse_safetensors(std::as_writable_bytes(std::span(const_cast<std::string&>(whole))), nullptr, "whole");
  const auto names = [&](const std::string& bytes) {
    std::string text;
    const StoredTensors tensors =
        parse_safetensors(std::as_writable_bytes(std::span(const_cast<std::string&>(bytes))), nullptr, "part");
    for (const auto& [name, t] : tensors) {
      text += name + " ";
      EXPECT_TRUE(std::ranges::equal(t.bytes, all.at(name).bytes)) << name;
    }
    return text;
  };
  EXPECT_EQ(names(outputs(model, given, {})), "last_hidden_state logits loss ");
  const std::string unlabelled = write_inputs(folder, {inputs.at("input_ids"), inputs.at("attention_mask")});
  EXPECT_EQ(names(outputs(model, unlabelled, {})), "last_hidden_state logits ");
  expect_refused(model, unlabelled, "labels");
  // a mask of ones is none
  const std::vector<int64_t> ones(48, 1);
  const std::string masked = write_inputs(
      folder, {inputs.at("input_ids"), tensor("attention_mask", "I64", {2, 24}, ones), inputs.at("labels")});
  const std::string with_ones = outputs(model, masked);
  EXPECT_EQ(outputs(model, write_inputs(folder, {inputs.at("input_ids"), inputs.at("labels")})), with_ones);
  // other integers do as well
  std::vector<int32_t> narrow;
  for (int32_t id : to_i32(inputs.at("input_ids"))) narrow.push_back(id);
  EXPECT_EQ(outputs(model, write_inputs(folder, {tensor("input_ids", "I32", {2, 24}, narrow), inputs.at("labels")})),
            with_ones);
}

TEST_F(Forward, HubFoldersGiveTheSameBytes) {
  for (const std::string name : cases) {
    SCOPED_TRACE(name);
    const std::string inputs = fixture(name) + "/inputs.safetensors", want = outputs(fixture(name), inputs);
    const bool gpt2 = name.starts_with("gpt2"), gpt_neox = name == "gpt_neox";
    const bool encoder = name == "bert" || name == "esm" || name == "deberta_v2", t5 = name.starts_with("t5");
    const std::string base = gpt2                   ? "transformer."
                             : name == "deberta_v2" ? "deberta."
                             : gpt_neox || encoder  ? name + "."
                                                    : "model.";
    const auto without_base = [&](std::vector<StoredTensor>& tensors) {
      for (StoredTensor& t : tensors)
        if (t.name.starts_with(base)) t.name = t.name.substr(base.size());
    };
    Changed bare(name), old(name), buffers(name), sharded(name);
    without_base(bare.tensors);
    EXPECT_TRUE(outputs(bare.write(folder, name + "-bare"), inputs) == want);

    without_base(old.tensors);
    for (StoredTensor& t : old.tensors) {
      const auto names = [&](const char* part) { return t.name.find(part) != std::string::npos; };
      if (!names("ln_") && !names("norm") && !names("Norm")) continue;
      const size_t dot = t.name.rfind('.');
      t.name = t.name.substr(0, dot) + (t.name.ends_with("weight") ? ".gamma" : ".beta");
    }
    EXPECT_TRUE(outputs(old.write(folder, name + "-old"), inputs) == want);

    for (int layer = 0; layer < 2; ++layer) {
      if (encoder || t5) break;  // they have others: see below
      const std::string number = std::to_string(layer);
      const std::string h = gpt2       ? "transformer.h." + number + ".attn."
                            : gpt_neox ? "gpt_neox.layers." + number + ".attention."
                                       : "model.layers." + number + ".self_attn.";
      if (!gpt2)
        buffers.tensors.push_back(tensor<float>(h + "rotary_emb.inv_freq", "F32", {8}, std::vector<float>(8, 3)));
      if (!gpt2 && !gpt_neox) continue;
      if (layer)
        buffers.tensors.push_back(tensor<float>(h + "bias", "F32", {1, 1, 64, 64}, std::vector<float>(64 * 64, 1)));
      else
        buffers.tensors.push_back(tensor<uint8_t>(h + "bias", "U8", {1, 1, 64, 64}, std::vector<uint8_t>(64 * 64, 1)));
      if (layer) buffers.tensors.push_back(tensor<uint8_t>(h + "masked_bias", "BOOL", {}, {1}));
      else buffers.tensors.push_back(tensor<float>(h + "masked_bias", "F32", {}, {-1e4f}));
    }
    EXPECT_TRUE(outputs(buffers.write(folder, name + "-buffers"), inputs) == want);
    without_base(buffers.tensors);
    EXPECT_TRUE(outputs(buffers.write(folder, name + "-bare-buffers"), inputs) == want);

    const std::string shards = folder / (name + "-sharded");
    fs::create_directories(shards);
    write_sharded(shards, sharded.tensors, 50'000);
    fs::copy_file(fixture(name) + "/config.json", shards + "/config.json");
    EXPECT_TRUE(outputs(shards, inputs) == want);
  }
}

// What was trained in bfloat16 is stored so; the values are those of the same weights in float32.
TEST_F(Forward, LlamaInShardsOfSixteenBitsGivesTheSameBytesAsItsWeightsInFloat32) {
  const std::string inputs = fixture("llama3") + "/inputs.safetensors";
  Changed narrow("llama3"), wide("llama3");
  for (StoredTensor& t : narrow.tensors) {
    std::vector<uint16_t> top;
    for (float v : to_f32(t)) top.push_back(uint16_t(std::bit_cast<uint32_t>(v) >> 16));
    t = tensor(t.name, "BF16", t.shape, top);
    wide.at(t.name) = tensor(t.name, "F32", t.shape, to_f32(t));
  }
  const std::string shards = folder / "shards";
  fs::create_directories(shards);
  write_sharded(shards, narrow.tensors, 50'000);
  EXPECT_TRUE(fs::exists(shards + "/model.safetensors.index.json"));
  folder.write("shards/config.json", narrow.config.dump());
  EXPECT_TRUE(outputs(shards, inputs) == outputs(wide.write(folder, "wide"), inputs));
}

// The same meaning, other words.
TEST_F(Forward, LlamaConfigsOfAnyAgeAreRead) {
  const std::string inputs = fixture("llama") + "/inputs.safetensors", want = outputs(fixture("llama"), inputs);
  Changed old("llama"), scaled("llama3");
  for (const char* name : {"attention_bias", "attention_dropout", "head_dim", "mlp_bias", "rope_theta", "rope_scaling",
                           "tie_word_embeddings", "hidden_act", "pretraining_tp"})
    old.config.erase(name);
  EXPECT_TRUE(outputs(old.write(folder, "old"), inputs) == want);
  for (const char* name : {"head_dim", "rope_scaling", "pretraining_tp", "attention_bias"}) old.config[name] = nullptr;
  old.config["max_sequence_length"] = nullptr;
  EXPECT_TRUE(outputs(old.write(folder, "old"), inputs) == want);
  for (const char* key : {"type", "rope_type"})
    for (const char* type : {"default", "dynamic", "linear"}) {  // dynamic: the same while texts are short
      old.config["rope_scaling"] = {{key, type}, {"factor", 1}};
      EXPECT_TRUE(outputs(old.write(folder, "old"), inputs) == want) << type;
    }

  const std::string scaled_inputs = fixture("llama3") + "/inputs.safetensors";
  const std::string scaled_want = outputs(fixture("llama3"), scaled_inputs);
  nlohmann::json& rope = scaled.config["rope_scaling"];
  rope["type"] = rope["rope_type"];
  rope.erase("rope_type");
  EXPECT_TRUE(outputs(scaled.write(folder, "scaled"), scaled_inputs) == scaled_want);
  // as transformers 5 writes it
  nlohmann::json parameters = rope;
  parameters["rope_type"] = "llama3";
  parameters["rope_theta"] = scaled.config["rope_theta"];
  scaled.config["rope_parameters"] = parameters;
  scaled.config.erase("rope_scaling");
  scaled.config.erase("rope_theta");
  scaled.config["dtype"] = "float32";
  EXPECT_TRUE(outputs(scaled.write(folder, "new"), scaled_inputs) == scaled_want);
}

TEST_F(Forward, LlamaConfigsThatDoNotFitAreRefusedByFieldAndValue) {
  const std::string inputs = fixture("llama") + "/inputs.safetensors";
  const nlohmann::json llama3 = Changed("llama3").config["rope_scaling"];
  const auto without = [&](const char* name) {
    nlohmann::json rope = llama3;
    rope.erase(name);
    return rope;
  };
  const std::tuple<const char*, nlohmann::json, const char*> changes[] = {
      {"rope_scaling",
       {{"type", "yarn"}, {"factor", 2.0}},
       "llama: rope_scaling.rope_type: expected default, linear, dynamic or llama3, got yarn"},
      {"rope_scaling", {{"rope_type", "longrope"}}, "got longrope"},
      {"rope_scaling", {{"type", "linear"}}, "llama: rope_scaling.factor: expected a number, missing"},
      {"rope_scaling", {{"type", "linear"}, {"factor", 0}}, "rope_scaling.factor: expected a number above 0, got 0"},
      {"rope_scaling", without("low_freq_factor"), "rope_scaling.low_freq_factor: expected a number, missing"},
      {"rope_scaling", without("high_freq_factor"), "rope_scaling.high_freq_factor: expected a number, missing"},
      {"rope_scaling", without("original_max_position_embeddings"),
       "rope_scaling.original_max_position_embeddings: expected a number, missing"},
      {"rope_scaling", "linear", "rope_scaling: expected an object, got \"linear\""},
      {"num_attention_heads", 6, "model.layers.0.self_attn.q_proj.weight: expected (96, 64), got (64, 64)"},
      {"num_key_value_heads", 3, "llama: num_key_value_heads: expected a divisor of num_attention_heads = 4, got 3"},
      {"num_key_value_heads", nullptr, "model.layers.0.self_attn.k_proj.weight: expected (64, 64), got (32, 64)"},
      {"head_dim", 15, "llama: head_dim: expected an even number, got 15"},
      {"head_dim", 24, "model.layers.1.self_attn.o_proj.weight: expected (64, 96), got (64, 64)"},
      {"hidden_act", "swoosh", "activation: expected one of gelu, "},
      {"attention_bias", true, "model.layers.0.self_attn.q_proj.bias: expected (64), missing"},
      {"mlp_bias", true, "model.layers.1.mlp.down_proj.bias: expected (64), missing"},
      {"num_hidden_layers", 1, "model.layers.1.input_layernorm.weight (64): expected no such tensor"},
      {"intermediate_size", 96, "model.layers.0.mlp.down_proj.weight: expected (64, 96), got (64, 128)"},
      {"rms_norm_eps", "1e-6", "rms_norm_eps: expected a number, got \"1e-6\""},
      {"rope_theta", 0, "rope_theta: expected a number above 0, got 0"}};
  for (const auto& [field, value, says] : changes) {
    Changed changed("llama");
    changed.config[field] = value;
    expect_refused(changed.write(folder, "changed"), inputs, says);
  }
  Changed wide("llama"), dynamic("llama"), untied("llama3");
  wide.config.erase("head_dim");
  wide.config["num_attention_heads"] = 3;
  expect_refused(wide.write(folder, "changed"), inputs,
                 "llama: num_attention_heads: expected a divisor of hidden_size = 64, got 3");
  dynamic.config["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2.0}};
  dynamic.config["max_position_embeddings"] = 23;
  expect_refused(dynamic.write(folder, "changed"), inputs,
                 "llama: expected at most max_position_embeddings = 23 tokens, got 24: longer ones are not supported "
                 "where rope_type is dynamic");
  untied.config["tie_word_embeddings"] = false;
  expect_refused(untied.write(folder, "changed"), fixture("llama3") + "/inputs.safetensors",
                 "lm_head.weight: expected (192, 64), missing");
}

// The same weights by another name.
TEST_F(Forward, AMistralThatSeesEverythingIsALlama) {
  const std::string inputs = fixture("llama") + "/inputs.safetensors", want = outputs(fixture("llama"), inputs);
  Changed mistral("llama");
  mistral.config["model_type"] = "mistral";
  for (const char* name : {"attention_bias", "mlp_bias"}) mistral.config.erase(name);
  for (const auto& [window, same] : {std::pair<nlohmann::json, bool>(nullptr, true), {24, true}, {23, false}}) {
    mistral.config["sliding_window"] = window;
    EXPECT_EQ(outputs(mistral.write(folder, "mistral"), inputs) == want, same) << window;
  }
}

// Nor does it matter which one is chosen where all are the same.
TEST_F(Forward, AMixtralOfEqualExpertsIsAMistral) {
  const std::string inputs = fixture("mistral") + "/inputs.safetensors";
  outputs(fixture("mistral"), inputs, {});
  const std::vector<float> want = to_f32(read_safetensors(folder / "outputs.safetensors").at("logits"));
  Changed mixtral("mistral");
  mixtral.config["model_type"] = "mixtral";
  std::vector<float> preferences(3 * 64);
  for (size_t i = 0; i < preferences.size(); ++i) preferences[i] = float(i * i % 7) - 3;
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    for (const auto& [from, to] : {std::pair("gate", "w1"), {"down", "w2"}, {"up", "w3"}}) {
      StoredTensor t = mixtral.at(layer + "mlp." + from + "_proj.weight");
      mixtral.erase(t.name);
      for (const char* expert : {"0", "1", "2"}) {
        t.name = layer + "block_sparse_moe.experts." + expert + "." + to + ".weight";
        mixtral.tensors.push_back(t);
      }
    }
    mixtral.tensors.push_back(tensor(layer + "block_sparse_moe.gate.weight", "F32", {3, 64}, preferences));
  }
  mixtral.config["num_local_experts"] = 3;
  for (const int chosen : {1, 2, 3}) {
    mixtral.config["num_experts_per_tok"] = chosen;
    outputs(mixtral.write(folder, "mixtral"), inputs, {});
    EXPECT_LE(distance(to_f32(read_safetensors(folder / "outputs.safetensors").at("logits")), want), 2e-5) << chosen;
  }
}

TEST_F(Forward, AQwen2OfAWindowAndNoBiasesIsAMistral) {
  const std::string inputs = fixture("mistral") + "/inputs.safetensors";
  Changed mistral("mistral"), qwen2("mistral");
  qwen2.config["model_type"] = "qwen2";
  qwen2.config["sliding_window"] = 8;
  qwen2.config.erase("head_dim");
  for (const int layer : {0, 1})
    for (const auto& [name, size] : {std::pair("q", 64), {"k", 32}, {"v", 32}})
      qwen2.tensors.push_back(
          tensor<float>("model.layers." + std::to_string(layer) + ".self_attn." + name + "_proj.bias", "F32", {size},
                        std::vector<float>(size_t(size), 0)));
  const auto logits = [&](const Changed& model) {
    outputs(model.write(folder, "model"), inputs, {});
    return to_f32(read_safetensors(folder / "outputs.safetensors").at("logits"));
  };
  const std::vector<float> windowed = logits(mistral);
  mistral.config["sliding_window"] = nullptr;
  const std::vector<float> whole = logits(mistral);
  EXPECT_EQ(logits(qwen2), whole);  // use_sliding_window is false
  qwen2.config["use_sliding_window"] = true;
  EXPECT_EQ(logits(qwen2), whole);  // max_window_layers is 28
  qwen2.config["max_window_layers"] = 0;
  EXPECT_EQ(logits(qwen2), windowed);
  qwen2.config["max_window_layers"] = 1;
  const std::vector<float> upper = logits(qwen2);
  EXPECT_TRUE(upper != whole && upper != windowed);
  qwen2.config["layer_types"] = {"full_attention", "sliding_attention"};
  qwen2.config["max_window_layers"] = 0;
  EXPECT_EQ(logits(qwen2), upper);
}

TEST_F(Forward, ConfigsOfOtherFamiliesThatDoNotFitAreRefusedByFieldAndValue) {
  const std::tuple<const char*, const char*, nlohmann::json, const char*> changes[] = {
      {"mistral",
       "rope_scaling",
       {{"type", "linear"}},
       "mistral: rope_scaling.rope_type: expected default, got linear"},
      {"mistral", "sliding_window", 0, "sliding_window: expected 1 or more, got 0"},
      {"mistral", "num_key_value_heads", 3, "mistral: num_key_value_heads: expected a divisor of num_attention_heads"},
      {"mistral", "num_key_value_heads", nullptr, "k_proj.weight: expected (64, 64), got (32, 64)"},
      {"mistral", "head_dim", 15, "mistral: head_dim: expected an even number, got 15"},
      {"mixtral",
       "rope_scaling",
       {{"type", "linear"}},
       "mixtral: rope_scaling.rope_type: expected default, got linear"},
      {"mixtral", "output_router_logits", true, "mixtral: output_router_logits: expected false, got true"},
      {"mixtral", "num_experts_per_tok", 5,
       "mixtral: num_experts_per_tok: expected at most num_local_experts = 4, got 5"},
      {"mixtral", "num_experts_per_tok", 0, "num_experts_per_tok: expected 1 or more, got 0"},
      {"mixtral", "num_local_experts", 5, "block_sparse_moe.experts.4.w1.weight: expected (56, 64), missing"},
      {"mixtral", "num_local_experts", 3, "block_sparse_moe.gate.weight: expected (3, 64), got (4, 64)"},
      {"mixtral", "num_key_value_heads", 3, "mixtral: num_key_value_heads: expected a divisor of num_attention_heads"},
      {"mixtral", "head_dim", 15, "mixtral: head_dim: expected an even number, got 15"},
      {"qwen2", "rope_scaling", {{"type", "yarn"}}, "qwen2: rope_scaling.rope_type: expected default, linear, dynamic"},
      {"qwen2", "num_attention_heads", 3, "qwen2: num_attention_heads: expected a divisor of hidden_size = 64, got 3"},
      {"qwen2", "num_key_value_heads", 3, "qwen2: num_key_value_heads: expected a divisor of num_attention_heads = 4"},
      {"qwen2", "tie_word_embeddings", false, "lm_head.weight: expected (160, 64), missing"},
      {"qwen2", "max_window_layers", -1, "max_window_layers: expected 0 or more, got -1"},
      {"gemma", "rope_scaling", {{"type", "linear"}}, "gemma: rope_scaling.rope_type: expected default, got linear"},
      {"gemma", "use_bidirectional_attention", true, "gemma: use_bidirectional_attention: expected false, got true"},
      {"gemma", "head_dim", 25, "gemma: head_dim: expected an even number, got 25"},
      {"gemma", "num_key_value_heads", 3, "gemma: num_key_value_heads: expected a divisor of num_attention_heads = 4"},
      {"gemma", "attention_bias", true, "self_attn.q_proj.bias: expected (96), missing"},
      {"phi3", "rope_scaling", {{"type", "linear"}}, "phi3: rope_scaling.rope_type: expected default, longrope, su or"},
      {"phi3", "rope_scaling", {{"type", "su"}}, "phi3: rope_scaling.short_factor: expected 8 numbers, got 0"},
      {"phi3", "rope_scaling", {{"type", "su"}, {"short_factor", {1, 2}}}, "short_factor: expected 8 numbers, got 2"},
      {"phi3", "partial_rotary_factor", 0.2, "phi3: partial_rotary_factor: expected an even number of a head's 16"},
      {"phi3", "num_attention_heads", 3, "phi3: num_attention_heads: expected a divisor of hidden_size = 64, got 3"},
      {"phi3", "num_key_value_heads", 3, "phi3: num_key_value_heads: expected a divisor of num_attention_heads = 4"},
      {"olmo2", "rope_scaling", {{"type", "yarn"}}, "olmo2: rope_scaling.rope_type: expected default, linear, dynamic"},
      {"olmo2", "num_attention_heads", 3, "olmo2: num_attention_heads: expected a divisor of hidden_size = 64, got 3"},
      {"olmo2", "num_key_value_heads", 1, "self_attn.k_norm.weight: expected (16), got (32)"},
      {"olmo2", "attention_bias", true, "self_attn.o_proj.bias: expected (64), missing"},
      {"gemma2", "rope_scaling", {{"type", "linear"}}, "gemma2: rope_scaling.rope_type: expected default, got linear"},
      {"gemma2", "use_bidirectional_attention", true, "gemma2: use_bidirectional_attention: expected false, got true"},
      {"gemma2", "layer_types", nlohmann::json::array({"full_attention"}),
       "gemma2: layer_types: expected 2 of them, got 1"},
      {"gemma2", "layer_types", {"full_attention", "all"}, "layer_types: expected full_attention or sliding_attention"},
      {"gemma2", "query_pre_attn_scalar", 0, "query_pre_attn_scalar: expected a number above 0, got 0"},
      {"gpt_neox", "rope_scaling", {{"type", "yarn"}}, "gpt_neox: rope_scaling.rope_type: expected default, linear"},
      {"gpt_neox", "num_attention_heads", 3, "gpt_neox: num_attention_heads: expected a divisor of hidden_size = 64"},
      {"gpt_neox", "rotary_pct", 0.2, "gpt_neox: rotary_pct: expected an even number of a head's 16 elements, got 3"},
      {"gpt_neox", "attention_bias", false, "layers.0.attention.dense.bias (64): expected no such tensor"},
      {"bert", "position_embedding_type", "relative_key",
       "bert: position_embedding_type: expected absolute, got relative_key"},
      {"bert", "is_decoder", true, "bert: is_decoder: expected false, got true"},
      {"bert", "add_cross_attention", true, "add_cross_attention: expected false, got true"},
      {"bert", "num_attention_heads", 3, "bert: num_attention_heads: expected a divisor of hidden_size = 64, got 3"},
      {"bert", "max_position_embeddings", 23, "position_embeddings.weight: expected (23, 64), got (64, 64)"},
      {"bert", "type_vocab_size", 3, "token_type_embeddings.weight: expected (3, 64), got (2, 64)"},
      {"bert", "hidden_act", "gelo", "activation: expected one of gelu, "},
      {"esm", "position_embedding_type", "relative_key_query",
       "esm: position_embedding_type: expected rotary or absolute, got relative_key_query"},
      {"esm", "is_decoder", true, "esm: is_decoder: expected false, got true"},
      {"esm", "add_cross_attention", true, "add_cross_attention: expected false, got true"},
      {"esm", "is_folding_model", true, "is_folding_model: expected false, got true"},
      {"esm", "num_attention_heads", 3, "esm: num_attention_heads: expected a divisor of hidden_size = 64, got 3"},
      {"esm", "num_attention_heads", 64, "esm: num_attention_heads: expected heads of even size, got 1"},
      {"t5", "feed_forward_proj", "gated-silu", "t5: dense_act_fn: expected silu, got gelu_new"},
      {"t5", "feed_forward_proj", "gelu_new", "t5: is_gated_act: expected false, got true"},
      {"t5", "dense_act_fn", "gelu", "t5: dense_act_fn: expected gelu_new, got gelu"},
      {"t5_v10", "is_gated_act", true, "t5: is_gated_act: expected false, got true"},
      {"t5_v10", "feed_forward_proj", "relu-gated", "t5: dense_act_fn: expected relu-gated, got relu"},
      {"t5", "is_encoder_decoder", false, "t5: is_encoder_decoder: expected true, got false"},
      {"t5", "relative_attention_num_buckets", 3, "relative_attention_num_buckets: expected 4 or more, got 3"},
      {"t5", "relative_attention_num_buckets", 16, "relative_attention_bias.weight: expected (16, 4), got (32, 4)"},
      {"t5_v10", "relative_attention_max_distance", 4,
       "t5: relative_attention_max_distance: expected more than half of relative_attention_num_buckets = 8, got 4"},
      {"t5", "d_kv", 16, "block.0.layer.0.SelfAttention.k.weight: expected (64, 64), got (48, 64)"},
      {"t5", "num_heads", 3, "relative_attention_bias.weight: expected (32, 3), got (32, 4)"},
      {"t5", "num_layers", 1, "encoder.block.1.layer.0.SelfAttention.k.weight (48, 64): expected no such tensor"},
      {"t5", "num_decoder_layers", 3, "decoder.block.2.layer.1.EncDecAttention.k.weight: expected (48, 64), missing"},
      {"t5_v10", "tie_word_embeddings", false, "lm_head.weight: expected (160, 64), missing"},
      {"t5", "relative_attention_max_distance", 16,
       "t5: relative_attention_max_distance: expected more than half of relative_attention_num_buckets = 32, got 16"},
      {"t5", "decoder_start_token_id", -1, "decoder_start_token_id: expected 0 or more, got -1"},
      {"t5", "decoder_start_token_id", 160, "decoder_start_token_id: expected a token of 0 to 159, got 160"},
      {"t5", "pad_token_id", 160, "pad_token_id: expected a token of 0 to 159, got 160"},
      {"t5", "tie_encoder_decoder", true, "tie_encoder_decoder: expected false, got true"},
      {"t5", "hidden_size", 48, "hidden_size: expected 64, got 48"},
      {"t5", "head_dim", 16, "head_dim: expected 12, got 16"},
      {"gpt2", "num_attention_heads", 8, "num_attention_heads: expected 4, got 8"},
      {"gpt2", "add_cross_attention", true, "add_cross_attention: expected false, got true"},
      {"mistral", "attention_bias", true, "attention_bias: expected false, got true"},
      {"mistral",
       "layer_types",
       {"sliding_attention", "full_attention"},
       "layer_types: expected sliding_attention alone, got [\"sliding_attention\",\"full_attention\"]"},
      {"mixtral", "attention_bias", true, "attention_bias: expected false, got true"},
      {"mixtral", "num_experts", 5, "num_experts: expected 4, got 5"},
      {"mixtral", "layer_types", {"full_attention", "sliding_attention"}, "layer_types: expected full_attention alone"},
      {"llama", "layer_types", {"full_attention", "chunked_attention"}, "layer_types: expected full_attention alone"},
      {"llama", "partial_rotary_factor", 0.5, "partial_rotary_factor: expected 1, got 0.5"},
      {"llama", "rms_norm_eps", -1e-5, "rms_norm_eps: expected a number above 0, got -1e-05"},
      {"qwen2", "use_mrope", true, "use_mrope: expected false, got true"},
      {"qwen2", "head_dim", 32, "head_dim: expected 16, got 32"},
      {"olmo2", "head_dim", 32, "head_dim: expected 16, got 32"},
      {"phi3", "attention_bias", true, "attention_bias: expected false, got true"},
      {"phi3", "lm_head_bias", true, "lm_head_bias: expected false, got true"},
      {"bert", "pruned_heads", {{"0", {1}}}, "pruned_heads: expected {}, got {\"0\":[1]}"},
      {"bert", "is_encoder_decoder", true, "is_encoder_decoder: expected false, got true"},
      {"deberta_v2", "num_attention_heads", 3, "num_attention_heads: expected a divisor of hidden_size = 64, got 3"},
      {"deberta_v2", "embedding_size", 32, "embedding_size: expected 64, got 32"},
      {"deberta_v2", "attention_head_size", 8, "attention_head_size: expected 16, got 8"},
      {"deberta_v2", "pos_att_type", {"c2p", "p2p"}, "deberta_v2: pos_att_type: expected c2p and p2c, got p2p"},
      {"deberta_v2", "pos_att_type", "c2p|p2p", "deberta_v2: pos_att_type: expected c2p and p2c, got p2p"},
      {"deberta_v2", "pos_att_type", 2, "pos_att_type: expected a list, got 2"},
      {"deberta_v2", "share_att_key", false, "layer.0.attention.self.pos_key_proj.weight: expected (64, 64), missing"},
      {"deberta_v2", "norm_rel_ebd", "batch_norm", "norm_rel_ebd: expected none or layer_norm, got batch_norm"},
      {"deberta_v2", "position_buckets", 1, "deberta_v2: position_buckets: expected 2 to 125, or 0, got 1"},
      {"deberta_v2", "max_relative_positions", 5, "deberta_v2: position_buckets: expected 2 to 7, or 0, got 8"},
      {"deberta_v2", "position_buckets", 9, "deberta.encoder.rel_embeddings.weight: expected (18, 64), got (16, 64)"},
      {"deberta_v2", "position_buckets", -1, "encoder.rel_embeddings.weight: expected (128, 64), got (16, 64)"},
      {"deberta_v2", "relative_attention", false, "rel_embeddings.weight (16, 64): expected no such tensor"},
      {"deberta_v2", "position_biased_input", true, "position_embeddings.weight: expected (64, 64), missing"},
      {"deberta_v2", "type_vocab_size", 2, "token_type_embeddings.weight: expected (2, 64), missing"},
      {"deberta_v2", "conv_kernel_size", 2, "conv1d: (1, 1, 64) and (64, 64, 2): expected (B, T, C) and"},
      {"deberta_v2", "conv_kernel_size", 3, "deberta.encoder.conv.conv.weight: expected (64, 64, 3), missing"},
      {"deberta_v2", "legacy", false, "lm_predictions.lm_head.dense.weight: expected (64, 64), missing"}};

  for (const auto& [name, field, value, says] : changes) {
    Changed changed(name);
    changed.config[field] = value;
    expect_refused(changed.write(folder, "changed"), fixture(name) + "/inputs.safetensors", says);
  }
}

// What other families compute with, where it asks for nothing: no word about it.
TEST_F(Forward, FieldsOfOtherFamiliesThatAskForNothingAreTakenInSilence) {
  const std::pair<const char*, nlohmann::json> silent[] = {
      {"mixtral",
       {{"attention_bias", false},
        {"layer_types", {"full_attention", "full_attention"}},
        {"num_experts", 4},
        {"is_encoder_decoder", false}}},
      {"mistral", {{"layer_types", {"sliding_attention", "sliding_attention"}}, {"partial_rotary_factor", 1.0}}},
      {"qwen2", {{"use_mrope", false}, {"head_dim", 16}, {"attention_bias", nullptr}}},
      {"phi3", {{"attention_bias", false}, {"lm_head_bias", false}, {"full_attn_mod", 1}, {"interpolate_factor", 1}}},
      {"gpt2", {{"hidden_size", 64}, {"num_hidden_layers", 2}, {"is_decoder", true}}},
      {"t5", {{"d_model", 64}, {"hidden_size", 64}, {"num_hidden_layers", 2}, {"head_dim", 12}}},
      {"bert", {{"pruned_heads", nlohmann::json::object()}, {"chunk_size_feed_forward", 0}, {"embedding_size", 64}}}};
  for (const auto& [name, fields] : silent) {
    Changed changed(name);
    changed.config.update(fields);
    const std::string inputs = fixture(name) + std::string("/inputs.safetensors");
    EXPECT_TRUE(outputs(changed.write(folder, "changed"), inputs, {}) == outputs(fixture(name), inputs, {})) << name;
  }
}

// What the Hub's files hold beside what BertForMaskedLM and EsmForMaskedLM use: other heads, buffers, copies.
TEST_F(Forward, EncodersIgnoreOtherHeadsBuffersAndCopies) {
  const auto add = [](Changed& model, const char* name, const Shape& shape) {
    model.tensors.push_back(
        tensor(name, "F32", shape, std::vector<float>(size_t(shape[0] * (shape.size() > 1 ? shape[1] : 1)), 3)));
  };
  Changed bert("bert"), esm("esm");
  add(bert, "bert.pooler.dense.weight", {64, 64});
  add(bert, "bert.pooler.dense.bias", {64});
  add(bert, "cls.seq_relationship.weight", {2, 64});
  add(bert, "cls.seq_relationship.bias", {2});
  add(bert, "cls.predictions.decoder.weight", {160, 64});
  add(bert, "cls.predictions.decoder.bias", {160});
  bert.tensors.push_back(ids(Ids(64), {1, 64}, "bert.embeddings.position_ids"));
  for (const char* field : {"is_decoder", "position_embedding_type", "pad_token_id", "type_vocab_size"})
    bert.config.erase(field);
  bert.config["pooler_type"] = "first_token_transform";
  const std::string bert_inputs = fixture("bert") + "/inputs.safetensors";
  EXPECT_TRUE(outputs(bert.write(folder, "bert"), bert_inputs) == outputs(fixture("bert"), bert_inputs));

  add(esm, "esm.pooler.dense.weight", {64, 64});
  add(esm, "esm.pooler.dense.bias", {64});
  add(esm, "lm_head.decoder.weight", {33, 64});
  esm.tensors.push_back(ids(Ids(66), {1, 66}, "esm.embeddings.position_ids"));
  esm.config["hidden_act"] = "relu";  // ESM's is always gelu
  const std::string esm_inputs = fixture("esm") + "/inputs.safetensors", want = outputs(fixture("esm"), esm_inputs);
  EXPECT_TRUE(outputs(esm.write(folder, "esm"), esm_inputs) == want);
  // without them, as newer files are
  const std::string logits = outputs(fixture("esm"), esm_inputs, {});
  for (const char* name : {"esm.embeddings.position_embeddings.weight", "esm.contact_head.regression.weight",
                           "esm.contact_head.regression.bias"})
    esm.erase(name);
  EXPECT_TRUE(outputs(esm.write(folder, "esm"), esm_inputs, {}) == logits);
}

// What the Hub's files hold beside what T5ForConditionalGeneration uses, and what its configs lack.
TEST_F(Forward, T5IgnoresCopiesAndWhatFollowsFromOtherFields) {
  for (const std::string name : {"t5", "t5_v10"}) {
    const std::string inputs = fixture(name) + "/inputs.safetensors", want = outputs(fixture(name), inputs);
    Changed copies(name), old(name);
    const std::vector<float> shared = to_f32(copies.at("shared.weight"));
    std::vector<std::string> tied{"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"};
    if (name == "t5_v10") tied.push_back("lm_head.weight");
    for (const std::string& copy : tied) copies.tensors.push_back(tensor(copy, "F32", {160, 64}, shared));
    const StoredTensor bias = copies.at("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
    copies.tensors.push_back(tensor("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", "F32",
                                    bias.shape, to_f32(bias)));
    EXPECT_TRUE(outputs(copies.write(folder, name + "-copies"), inputs) == want);

    for (const char* field : {"dense_act_fn", "is_gated_act", "num_decoder_layers", "classifier_dropout",
                              "decoder_start_token_id", "pad_token_id", "use_cache", "initializer_factor"})
      old.config.erase(field);
    old.config["n_positions"] = 512;
    old.config["task_specific_params"] = {{"summarization", {{"num_beams", 4}}}};
    EXPECT_TRUE(outputs(old.write(folder, name + "-old"), inputs) == want);
  }
}

// Labels alone say what the decoder sees: each of them one place later, after the token that it starts with.
TEST_F(Forward, AnEncoderDecoderIsGivenDecoderIdsOrLabels) {
  Changed changed("t5");
  changed.config["decoder_start_token_id"] = 7;
  changed.config["pad_token_id"] = 9;
  const std::string model = changed.write(folder, "model");
  const StoredTensor text = ids({5, 6, 7, 8, 9, 10, 11, 12}, {2, 4});
  const StoredTensor labels = ids({20, -100, 22, 30, 31, -100}, {2, 3}, "labels");
  const StoredTensor seen = ids({7, 20, 9, 7, 30, 31}, {2, 3}, "decoder_input_ids");
  const std::string both = outputs(model, write_inputs(folder, {text, labels, seen}));
  EXPECT_TRUE(outputs(model, write_inputs(folder, {text, labels})) == both);
  const Shape shape = read_safetensors(folder / "outputs.safetensors").at("logits").shape;
  EXPECT_EQ(shape, (Shape{2, 3, 160}));
  outputs(model, write_inputs(folder, {text, seen}), {});
  EXPECT_FALSE(read_safetensors(folder / "outputs.safetensors").contains("loss"));
  const auto refused = [&](const std::vector<StoredTensor>& tensors, const char* says) {
    expect_refused({model, write_inputs(folder, tensors), "y.safetensors"}, says);
  };
  refused({text}, "decoder_input_ids: expected one token of each row or more, or labels");
  refused({text, labels, ids({7, 20, 7, 30}, {2, 2}, "decoder_input_ids")}, "labels: expected (2, 2), got (2, 3)");
  refused({text, ids({7, 20, 9}, {1, 3}, "decoder_input_ids")}, "decoder_input_ids: expected (2, 3), got (1, 3)");
  refused({text, ids({7, 160}, {2, 1}, "decoder_input_ids")}, "decoder_input_ids: expected 0 to 159, got 160 at 1");
  refused({text, ids({7, 160}, {2, 1}, "labels")}, "labels: expected 0 to 159, or -100 to leave out, got 160 at 1");
}

TEST_F(Forward, TokenTypesAreBertsAlone) {
  const StoredTensors inputs = read_safetensors(fixture("bert") + "/inputs.safetensors");
  const auto logits = [&](const Ids& types) {
    std::vector<StoredTensor> given{inputs.at("input_ids")};
    if (!types.empty()) given.push_back(ids(types, {2, 24}, "token_type_ids"));
    return outputs(fixture("bert"), write_inputs(folder, given), {});
  };
  EXPECT_TRUE(logits({}) == logits(Ids(48, 0)));
  EXPECT_TRUE(logits({}) != logits(Ids(48, 1)));
  const auto refused = [&](const char* model, const Ids& types, const char* says) {
    expect_refused(
        {fixture(model), write_inputs(folder, {ids(Ids(48), {2, 24}), ids(types, {2, 24}, "token_type_ids")}),
         "y.safetensors"},
        says);
  };
  refused("bert", Ids(48, 2), "token_type_ids: expected 0 to 1, got 2 at 0");
  refused("bert", Ids(48, -1), "token_type_ids: expected 0 to 1, got -1 at 0");
  refused("gpt2", Ids(48, 0), "token_type_ids: expected none, since gpt2 knows of no types");
  refused("deberta_v2", Ids(48, 0), "token_type_ids: expected none, since deberta-v2 knows of no types");
  expect_refused({fixture("bert"), write_inputs(folder, {ids(Ids(48), {2, 24}), ids({0, 1}, {1, 2}, "token_type_ids")}),
                  "y.safetensors"},
                 "token_type_ids: expected (2, 24), got (1, 2)");
}

// As the Hub has DeBERTa: positions in one text, the head of the first files, those of other tasks, and the same weights
// under names of their own.
TEST_F(Forward, DebertaIsReadAsTheHubHasIt) {
  const std::string inputs = fixture("deberta_v2") + "/inputs.safetensors",
                    want = outputs(fixture("deberta_v2"), inputs);
  const auto add = [](Changed& model, const std::string& name, const Shape& shape) {
    model.tensors.push_back(
        tensor(name, "F32", shape, std::vector<float>(size_t(shape[0] * (shape.size() > 1 ? shape[1] : 1)), 3)));
  };
  Changed heads("deberta_v2");
  add(heads, "deberta.embeddings.position_embeddings.weight", {64, 64});
  heads.tensors.push_back(ids(Ids(64), {1, 64}, "deberta.embeddings.position_ids"));
  for (const std::string part : {"lm_predictions.lm_head.", "mask_predictions."})
    for (const char* name : {"dense.weight", "LayerNorm.weight", "bias"}) add(heads, part + name, {64});
  add(heads, "pooler.dense.weight", {64, 64});
  add(heads, "cls.predictions.decoder.bias", {160});
  heads.config["pos_att_type"] = "p2c|c2p";
  heads.config["attention_head_size"] = 16;
  for (const char* field : {"legacy", "pad_token_id", "type_vocab_size", "pooler_dropout"}) heads.config.erase(field);
  EXPECT_TRUE(outputs(heads.write(folder, "heads"), inputs) == want);
  add(heads, "deberta.pooler.dense.weight", {64, 64});
  expect_refused(heads.write(folder, "heads"), inputs, "deberta.pooler.dense.weight (64, 64): expected no such tensor");

  outputs(fixture("deberta_v2"), inputs, {});
  const std::vector<float> logits = to_f32(read_safetensors(folder / "outputs.safetensors").at("logits"));
  const auto same = [&](const Changed& model) {
    outputs(model.write(folder, "model"), inputs, {});
    return to_f32(read_safetensors(folder / "outputs.safetensors").at("logits")) == logits;
  };
  Changed first("deberta_v2"), own("deberta_v2"), unused("deberta_v2");
  first.config["legacy"] = false;
  for (StoredTensor& t : first.tensors)
    for (const std::string part : {"cls.predictions.transform.", "cls.predictions."})
      if (t.name.starts_with(part)) t.name = "lm_predictions.lm_head." + t.name.substr(part.size());
  EXPECT_TRUE(same(first));
  own.config["share_att_key"] = false;
  for (StoredTensor t : std::vector(own.tensors))
    for (const std::string part : {"self.key_proj", "self.query_proj"})
      if (const size_t at = t.name.find(part); at != t.name.npos)
        t.name.insert(at + 5, "pos_"), own.tensors.push_back(t);
  EXPECT_TRUE(same(own));
  // without relative attention the norm of its embeddings may be there all the same
  unused.config["relative_attention"] = false;
  unused.erase("deberta.encoder.rel_embeddings.weight");
  EXPECT_FALSE(same(unused));
}

// Of ESM there are variants without a fixture: here, what they have in common with the one that has.
TEST_F(Forward, EsmHasPositionsThatAreLearnedAndANormOfTheEmbeddings) {
  Changed esm("esm");
  esm.config["position_embedding_type"] = "absolute";
  const StoredTensors inputs = read_safetensors(fixture("esm") + "/inputs.safetensors");
  const auto logits = [&](const std::vector<StoredTensor>& given) {
    outputs(esm.write(folder, "esm"), write_inputs(folder, given), {});
    return to_f32(read_safetensors(folder / "outputs.safetensors").at("logits"));
  };
  // position 0 of the table is for nothing, 1 for padding, 2 for the first token
  const std::vector<float> before = logits({inputs.at("input_ids")});
  const StoredTensor places = esm.at("esm.embeddings.position_embeddings.weight");
  const auto changed_at = [&](size_t row) {
    std::vector<float> table = to_f32(places);
    table[row * 64] += 1;
    esm.at(places.name) = tensor(places.name, "F32", {66, 64}, table);
    const std::vector<float> after = logits({inputs.at("input_ids")});
    return std::pair(!std::equal(before.begin(), before.begin() + 24 * 33, after.begin()),           // the first row
                     !std::equal(before.begin() + 24 * 33, before.end(), after.begin() + 24 * 33));  // the padded one
  };
  EXPECT_EQ(changed_at(0), std::pair(false, false));
  EXPECT_EQ(changed_at(1), std::pair(false, true));
  EXPECT_EQ(changed_at(2), std::pair(true, true));
  EXPECT_EQ(changed_at(20), std::pair(true, true));  // the last of 19
  EXPECT_EQ(changed_at(21), std::pair(true, false));
  EXPECT_EQ(changed_at(25), std::pair(true, false));  // the last of 24
  EXPECT_EQ(changed_at(26), std::pair(false, false));
  esm.at(places.name) = places;
  EXPECT_EQ(logits({inputs.at("input_ids")}), before);
  esm.erase("esm.embeddings.position_embeddings.weight");
  expect_refused(esm.write(folder, "esm"), fixture("esm") + "/inputs.safetensors",
                 "esm.embeddings.position_embeddings.weight: expected (66, 64), missing");

  esm.config["position_embedding_type"] = "rotary";
  esm.config["emb_layer_norm_before"] = true;
  expect_refused(esm.write(folder, "esm"), fixture("esm") + "/inputs.safetensors",
                 "esm.embeddings.layer_norm.weight: expected (64), missing");
  esm.tensors.push_back(tensor("esm.embeddings.layer_norm.weight", "F32", {64}, std::vector<float>(64, 1)));
  esm.tensors.push_back(tensor("esm.embeddings.layer_norm.bias", "F32", {64}, std::vector<float>(64, 0)));
  // a norm undoes any scale: token_dropout has none to give but zeros for masks
  std::vector<int32_t> tokens = to_i32(inputs.at("input_ids"));
  for (int32_t& t : tokens) t = t == 32 ? 5 : t;
  const StoredTensor unmasked = tensor("input_ids", "I32", {2, 24}, tokens);
  const std::vector<float> dropped = logits({unmasked});
  esm.config["token_dropout"] = false;
  EXPECT_LE(distance(logits({unmasked}), dropped), 1e-2);
  esm.config["emb_layer_norm_before"] = nullptr;
  esm.config["token_dropout"] = nullptr;
  esm.erase("esm.embeddings.layer_norm.weight");
  esm.erase("esm.embeddings.layer_norm.bias");
  EXPECT_GT(distance(logits({unmasked}), dropped), 0.1);
}

// Where a text stands is said by its padding or by position_ids: the keys and their order are the same.
TEST_F(Forward, PaddingInFrontIsTheSameAsOtherPositions) {
  for (const std::string name : cases) {
    if (name == "esm" || name.starts_with("t5")) continue;  // they have positions of their own, or none
    SCOPED_TRACE(name);
    const std::vector<int32_t> tokens = to_i32(read_safetensors(fixture(name) + "/inputs.safetensors").at("input_ids"));
    const Ids text(tokens.begin(), tokens.begin() + 14);
    Ids padded(23, 5), mask(23, 0), far(14), near(23, 0);
    for (size_t t = 0; t < 14; ++t) {
      padded[t + 7] = text[t], mask[t + 7] = 1;
      far[t] = int64_t(t) + 7, near[t + 7] = int64_t(t);
    }
    const auto logits = [&](const std::vector<StoredTensor>& given) {
      outputs(fixture(name), write_inputs(folder, given), {});
      return to_f32(read_safetensors(folder / "outputs.safetensors").at("logits"));
    };
    const auto real = [](const std::vector<float>& x) {
      const auto each = std::ptrdiff_t(x.size() / 23);
      return std::vector<float>(x.begin() + 7 * each, x.begin() + 21 * each);
    };
    const StoredTensor in_row = ids(padded, {1, 23}), which = ids(mask, {1, 23}, "attention_mask");
    EXPECT_EQ(real(logits({in_row, which})), logits({ids(text, {1, 14}), ids(far, {1, 14}, "position_ids")}));
    EXPECT_EQ(real(logits({in_row, which, ids(near, {1, 23}, "position_ids")})), logits({ids(text, {1, 14})}));
  }
}

// ---- what does not fit

TEST_F(Forward, WeightsThatDoNotFitAreNamedInOneLine) {
  const std::string inputs = fixture("gpt2") + "/inputs.safetensors";
  Changed missing, surplus, misshapen, all, type;
  missing.erase("transformer.h.1.mlp.c_fc.bias");
  expect_refused(missing.write(folder, "missing"), inputs,
                 "missing: transformer.h.1.mlp.c_fc.bias: expected (256), missing");

  surplus.tensors.push_back(tensor<float>("transformer.h.2.ln_1.weight", "F32", {64}, std::vector<float>(64, 1)));
  expect_refused(surplus.write(folder, "surplus"), inputs,
                 "surplus: transformer.h.2.ln_1.weight (64): expected no such tensor");
  Changed both;
  both.tensors.push_back(tensor<float>("wte.weight", "F32", {160, 64}, std::vector<float>(160 * 64, 1)));
  expect_refused(both.write(folder, "both"), inputs, "wte.weight (160, 64): expected no such tensor");

  misshapen.at("transformer.h.0.attn.c_attn.weight").shape = {192, 64};
  expect_refused(misshapen.write(folder, "misshapen"), inputs,
                 "misshapen: transformer.h.0.attn.c_attn.weight: expected (64, 192), got (192, 64)");

  all.erase("transformer.wpe.weight");
  all.erase("transformer.ln_f.bias");
  all.at("transformer.h.0.ln_1.bias").shape = {8, 8};
  all.tensors.push_back(tensor<float>("x", "F32", {1}, {1}));
  all.write(folder, "all");
  for (const char* says :
       {"transformer.wpe.weight: expected (64, 64), missing", "transformer.ln_f.bias: expected (64), missing",
        "transformer.h.0.ln_1.bias: expected (64), got (8, 8)", "x (1): expected no such tensor"})
    expect_refused(folder / "all", inputs, says);

  type.at("transformer.ln_f.bias") = tensor<int32_t>("transformer.ln_f.bias", "I32", {64}, std::vector<int32_t>(64));
  expect_refused(type.write(folder, "type"), inputs, "transformer.ln_f.bias: expected F32, BF16 or F16, got I32");
}

TEST_F(Forward, WeightsThatAreNoNumbersAreNamed) {
  const std::string inputs = fixture("gpt2") + "/inputs.safetensors";
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const char* name : {"transformer.h.1.mlp.c_fc.weight", "transformer.wte.weight", "transformer.ln_f.weight"}) {
    Changed bad;
    std::memcpy(bad.at(name).bytes.data() + 4 * 17, &nan, 4);
    expect_refused(bad.write(folder, "nan"), inputs,
                   std::string(name) + ": expected finite weights, got nan at element 17");
  }
  Changed half("gpt2_bf16_sharded");
  const uint16_t bits = 0x7fc0;
  std::memcpy(half.at("transformer.ln_f.bias").bytes.data() + 2 * 3, &bits, 2);
  expect_refused(half.write(folder, "half"), inputs,
                 "transformer.ln_f.bias: expected finite weights, got nan at element 3");
}

TEST_F(Forward, BrokenFoldersAreRefused) {
  const std::string inputs = fixture("gpt2") + "/inputs.safetensors";
  expect_refused(folder / "none", inputs, "none");
  fs::create_directories(folder / "empty");
  expect_refused(folder / "empty", inputs, "config.json: cannot open: No such file or directory");
  folder.write("empty/config.json", contents(fixture("gpt2") + "/config.json"));
  expect_refused(folder / "empty", inputs, "expected model.safetensors or model.safetensors.index.json, got neither");
  folder.write("empty/pytorch_model.bin", "PK");
  expect_refused(folder / "empty", inputs, "got only pytorch_model.bin");

  const std::string cut = Changed().write(folder, "cut"), weights = contents(cut + "/model.safetensors");
  for (size_t size : {size_t{0}, size_t{5}, size_t{100}, weights.size() / 2, weights.size() - 1}) {
    folder.write("cut/model.safetensors", weights.substr(0, size));
    expect_refused(cut, inputs, "cut/model.safetensors: ");
  }
  folder.write("cut/model.safetensors", weights + "x");
  expect_refused(cut, inputs, "cut/model.safetensors: ");
  fs::remove(cut + "/model.safetensors");
  fs::copy_file(fixture("gpt2_bf16_sharded") + "/model.safetensors.index.json", cut + "/model.safetensors.index.json");
  expect_refused(cut, inputs, "names model-0000");
}

TEST_F(Forward, ConfigsThatDoNotFitAreRefusedByFieldAndValue) {
  const std::string inputs = fixture("gpt2") + "/inputs.safetensors";
  const std::tuple<const char*, nlohmann::json, const char*> changes[] = {
      {"model_type", "mamba", "mamba"},
      {"model_type", 3, "model_type"},
      {"model_type", nullptr, "model_type"},
      {"n_layer", "2", "n_layer: expected a whole number, got \"2\""},
      {"n_layer", 2.5, "n_layer: expected a whole number, got 2.5"},
      {"n_layer", true, "n_layer: expected a whole number, got true"},
      {"n_layer", 0, "n_layer: expected 1 or more, got 0"},
      {"n_layer", -1, "n_layer: expected 1 or more, got -1"},
      {"n_layer", 3, "transformer.h.2.ln_1.weight: expected (64), missing"},
      {"n_layer", 1, "transformer.h.1.ln_1.weight (64): expected no such tensor"},
      {"n_layer", 99999999999, "n_layer"},
      {"n_head", 3, "n_head: expected a divisor of n_embd = 64, got 3"},
      {"n_embd", 32, "transformer.wte.weight: expected (160, 32), got (160, 64)"},
      {"n_inner", 100, "transformer.h.0.mlp.c_fc.weight: expected (64, 100), got (64, 256)"},
      {"vocab_size", 161, "transformer.wte.weight: expected (161, 64), got (160, 64)"},
      {"n_positions", 63, "transformer.wpe.weight: expected (63, 64), got (64, 64)"},
      {"activation_function", "geglu", "activation: expected one of gelu, "},
      {"activation_function", 1, "activation_function: expected a string, got 1"},
      {"layer_norm_epsilon", "small", "layer_norm_epsilon: expected a number, got \"small\""},
      {"scale_attn_weights", 1, "scale_attn_weights: expected true or false, got 1"},
      {"tie_word_embeddings", false, "lm_head.weight: expected (160, 64), missing"}};
  for (const auto& [field, value, says] : changes) {
    Changed changed;
    changed.config[field] = value;
    expect_refused(changed.write(folder, "changed"), inputs, says);
  }
  const std::string broken = Changed().write(folder, "broken");
  for (const char* text :
       {"", "{", "[]", "{\"model_type\":\"gpt2\",}", "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_layer\":2}"}) {
    folder.write("broken/config.json", text);
    expect_refused(broken, inputs, "broken/config.json: ");
  }
}

TEST_F(Forward, InputsThatDoNotFitAreRefused) {
  const std::string model = fixture("gpt2");
  const auto refused = [&](const std::vector<StoredTensor>& tensors, const char* says) {
    expect_refused(model, write_inputs(folder, tensors), says);
  };
  const StoredTensor good = ids({1, 2, 3, 4}, {2, 2}), labels = ids({1, 2, 3, 4}, {2, 2}, "labels");
  const auto mask = [](const Ids& values) { return ids(values, {2, 2}, "attention_mask"); };
  refused({ids({1, 160, 3, 4}, {2, 2}), labels}, "input_ids: expected 0 to 159, got 160 at 1");
  refused({ids({1, 2, 3, -1}, {2, 2}), labels}, "got -1 at 3");
  refused({ids({1, 2, int64_t{1} << 32, 4}, {2, 2}), labels}, "input_ids");
  refused({good, ids({1, 160, 3, 4}, {2, 2}, "labels")},
          "labels: expected 0 to 159, or -100 to leave out, got 160 at 1");
  refused({good, ids({1, -1, 3, 4}, {2, 2}, "labels")}, "labels: expected 0 to 159, or -100 to leave out, got -1 at 1");
  refused({ids(Ids(65, 1), {1, 65}), ids(Ids(65, 1), {1, 65}, "labels")},
          "gpt2: expected at most n_positions = 64 tokens, got 65");
  refused({ids(Ids(8, 1), {2, 4}), ids({1, 0, 0, 0, 0, 1, 0, 1}, {2, 4}, "attention_mask")},
          "attention_mask: row 1: expected ones side by side, got a 1 at 3 after a 0");
  refused({good, mask({1, 1, 1, 2}), labels}, "attention_mask: row 1: expected 0 and 1, got 2 at 1");
  refused({good, ids({0, 1, 2, 64}, {2, 2}, "position_ids"), labels}, "position_ids: expected 0 to 63, got 64 at 3");
  refused({good, ids({0, 1}, {1, 2}, "position_ids"), labels}, "position_ids: expected (2, 2), got (1, 2)");
  refused({good, ids({1, 1}, {2, 1}, "attention_mask"), labels}, "attention_mask: expected (2, 2), got (2, 1)");
  refused({good, ids({1, 1, 1, 1}, {1, 4}, "labels")}, "labels: expected (2, 2), got (1, 4)");
  refused({labels}, "input_ids: expected (B, T), missing");
  refused({ids({1, 2, 3, 4}, {4}), labels}, "input_ids: expected (B, T), got (4)");
  refused({ids({}, {0, 4}), ids({}, {0, 4}, "labels")}, "input_ids: expected (B, T), got (0, 4)");
  refused({ids({}, {4, 0}), ids({}, {4, 0}, "labels")}, "input_ids: expected (B, T), got (4, 0)");
  refused({tensor<float>("input_ids", "F32", {1, 2}, {1, 2}), ids({1, 2}, {1, 2}, "labels")}, "input_ids");
  refused(
      {good, labels, ids({0, 1, 0, 1}, {2, 2}, "head_mask")},
      "head_mask: expected input_ids, attention_mask, position_ids, token_type_ids, decoder_input_ids and labels alone");
  refused({good, labels, ids({0, 1, 0, 1}, {2, 2}, "decoder_input_ids")},
          "decoder_input_ids: expected none, since gpt2 is no encoder-decoder");
  folder.write("inputs.safetensors", "not one");
  expect_refused(model, folder / "inputs.safetensors", "inputs.safetensors: expected");
  expect_refused(model, folder / "nothing.safetensors", "nothing.safetensors: cannot open: No such file or directory");
}

TEST_F(Forward, FlagsAndPathsAreChecked) {
  const std::string model = fixture("gpt2"), inputs = model + "/inputs.safetensors";
  const std::pair<Args, const char*> calls[] = {
      {{}, "expected MODEL (see"},
      {{model, inputs}, "expected OUTPUTS (see"},
      {{model, inputs, "y", "z"}, "unexpected argument \"z\""},
      {{model, inputs, "y", "--grad"}, "unknown flag --grad; did you mean --grads?"},
      {{model, inputs, "y", "--device=gpu"}, "unknown flag --device"},
      {{model, inputs, "y", "-t"}, "unknown flag -t"},
      {{model, inputs, "y", "--threads", "two"}, "--threads: expected a whole number, got \"two\""},
      {{model, inputs, "y", "--threads", "-1"}, "--threads: expected 0 or more, got -1"},
      {{model, inputs, "y", "--threads"}, "--threads: expected a value, got nothing"},
      {{model, inputs, "y", "--threads="}, "--threads: expected a value, got \"\""},
      {{model, inputs, "none/y"}, "none/y: cannot write: No such file or directory"},
      {{model, inputs, "/"}, "/: is a folder"}};
  for (const auto& [args, says] : calls) expect_refused(args, says);
  const Outcome help = run({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_NE(help.out.find("dense forward MODEL INPUTS OUTPUTS"), std::string::npos);
}

TEST_F(Forward, AFailedRunLeavesAnOlderOutputAsItWas) {
  const std::string old = folder.write("old.safetensors", "old");
  const std::string bad = write_inputs(folder, {ids({160}, {1, 1})});
  const Outcome outcome = run({fixture("gpt2"), bad, old});
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(contents(old), "old");
}

TEST_F(Forward, UnknownConfigFieldsAreNamedOnce) {
  Changed changed;
  changed.config["rotary"] = true;
  changed.config["experts"] = 3;
  const Outcome outcome =
      run({changed.write(folder, "model"), fixture("gpt2") + "/inputs.safetensors", folder / "y.safetensors"});
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << outcome.err;
  EXPECT_TRUE(outcome.err.find("rotary") != std::string::npos && outcome.err.find("experts") != std::string::npos)
      << outcome.err;
}

}  // namespace
