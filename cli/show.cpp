// dense show: a model's parameters, what it computes and what memory it takes, without running it.
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/block.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/pages.h"
#include "cli/progress.h"
#include "cli/whole_file.h"
#include "dense/io/hub.h"
#include "dense/train/generate.h"

namespace dense::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Config {
  int64_t context = 0, batch = 1;
  std::string dtype = "as-stored", dot;
  bool graph = false, json = false;

  void fields(auto&& f) {
    f("context", context, "tokens of a row (0: the model's context, at most 1024)", 0);
    f("batch", batch, "rows", 1);
    f("dtype", dtype, "weights in generation: as-stored, or f32, bf16, int8, int4");
    f("graph", graph, "the recorded graph of a block, too");
    f("dot", dot, "file for that graph in Graphviz's language; - is standard output, which then gets nothing else");
    f("json", json, "print all of it as JSON");
  }
};

// A line for each group of parameters, in the order of their recording.
std::string parameter_lines(const std::vector<const Parameter*>& parameters) {
  struct Group {
    const Parameter* one;
    std::vector<std::string> names;
  };
  std::vector<Group> groups;
  for (const Parameter* p : parameters) {
    const auto same = std::ranges::find_if(groups, [&](const Group& g) {
      return without_numbers(g.one->name) == without_numbers(p->name) && g.one->shape == p->shape &&
             g.one->dtype == p->dtype;
    });
    if (same == groups.end()) groups.push_back({p, {p->name}});
    else same->names.push_back(p->name);
  }
  struct Line {
    std::string name, shape, type, count;
  };
  std::vector<Line> lines;
  for (const Group& group : groups)
    for (const Folded& names : folded(group.names))
      lines.push_back({names.name, to_string(group.one->shape), dense::name(group.one->dtype),
                       with_commas(int64_t(names.count) * count_of(group.one->shape))});
  size_t name = 0, shape = 0, count = 0;
  for (const Line& l : lines)
    name = std::max(name, l.name.size()), shape = std::max(shape, l.shape.size()),
    count = std::max(count, l.count.size());
  std::string text;
  for (const Line& l : lines)
    text += fmt::format("{:<{}}  {:<{}}  {:<4}  {:>{}}\n", l.name, name, l.shape, shape, l.type, l.count, count);
  return text;
}

std::string scaled(double number, const char* unit) {  // 497.8 MB
  const char* prefix = "kMGTPE";
  for (number /= 1e3; number >= 1e3 && prefix[1]; number /= 1e3) ++prefix;
  return fmt::format("{:.4g} {}{}", number, *prefix, unit);
}

Json weights_of(Model& model) {
  size_t bytes = 0;
  for (const Parameter* p : model.parameters().declared()) bytes += p->bytes().size();
  return bytes;
}

Json with_total(Json bytes) {
  size_t total = 0;
  for (const Json& part : bytes) total += part.get<size_t>();
  bytes["total"] = total;
  return bytes;
}

// 585 MB = 498 MB weights + 75 MB cache + 12 MB arena
std::string as_sum(const Json& bytes) {
  std::vector<std::string> parts;
  for (const auto& [name, part] : bytes.items())
    if (name != "total") parts.push_back(scaled(part.get<double>(), "B") + " " + name);
  return fmt::format("{} = {}", scaled(bytes["total"].get<double>(), "B"), fmt::join(parts, " + "));
}

constexpr size_t most_parameters = 1 << 15;  // planning takes seconds for so many
constexpr int64_t most_tokens = 1 << 24;     // of a batch: far more than a step has, few enough for their ids' memory

// What one step of AdamW computes for each token, and the memory for it.
void plan_training(Model& model, int64_t B, int64_t T, Json& json) {
  const std::vector<int32_t> any(size_t(B * T));
  Model::Training training;
  training.dropout = true;
  training.optimizer.norm = true, training.optimizer.clip = 1;  // as `dense train` has it
  const Plan& plan = model.plan_step({B, T, any, any}, training);
  const Json weights = weights_of(model);
  json["flops_per_token"]["forward_and_backward"] = plan.flops() / double(B * T);
  json["training"] =
      with_total({{"weights", weights}, {"moments", 2 * weights.get<size_t>()}, {"arena", plan.arena_bytes()}});
}

// The memory for B texts of T tokens; of an encoder-decoder also for answers of as many.
void plan_generation(Model& model, int64_t B, int64_t T, Json& json) {
  Generator generator(model, B, T);
  const size_t arena = std::max(generator.prefill_plan(model.page().decoder ? T : generator.block()).arena_bytes(),
                                generator.decode_plan().arena_bytes());
  json["generation"] =
      with_total({{"weights", weights_of(model)}, {"cache", generator.cache_bytes()}, {"arena", arena}});
}

}  // namespace

int show_command(const Call& call) {
  Config config;
  std::string name;
  std::vector<Flag> flags = flags_of(config_fields(config));
  std::optional<Page> page;  // a folder's comes later
  for (Page& each : pages())
    if (!page && std::ranges::find(call.args, each.model_type) != call.args.end()) page = std::move(each);
  if (page)
    for (Flag& flag : flags_of(page->fields)) flags.push_back(std::move(flag));
  if (!set_flags(flags, call,
                 "Says what a model is made of, computes and needs, without running it.\n\n"
                 "MODEL    a page, whose config's fields are flags, too, or a folder, or a name in the local cache:\n"
                 "         " +
                     page_names(),
                 call.program + " llama --num_hidden_layers 16 --context 2048 --dtype bf16", {{"MODEL", &name}}))
    return 0;
  const std::optional<Dtype> type = weight_type(config.dtype, "--");
  const bool is_page = page && page->model_type == name;
  std::filesystem::path folder;
  if (!is_page) {
    try {
      folder = find_model(name);
    } catch (const Error& error) {
      fail(error.what(), "; pages are ", page_names());
    }
    page = page_of(model_type(folder));
  }
  // Each as if it were read anew, for the types that its weights have then.
  const auto model_of = [&] {
    if (is_page) return std::make_unique<Model>(*page, 0, 0, false);
    return std::make_unique<Model>(*page, folder, 0, Warn(), false);
  };

  const auto model = model_of();
  if (const size_t count = model->parameters().all().size(); count > most_parameters)
    fail("expected at most ", most_parameters, " parameters with names of their own, got ", count);
  if (model->context() && config.context > model->context())
    fail("--context: expected at most the model's ", model->context(), ", got ", config.context);
  const int64_t most = model->context() ? std::min<int64_t>(model->context(), 1024) : 1024;
  const int64_t B = config.batch, T = config.context ? config.context : most;
  if (T > most_tokens) fail("--context: expected at most ", most_tokens, ", got ", T);
  if (B > most_tokens / T) fail("--batch: expected at most ", most_tokens / T, " rows of ", T, " tokens, got ", B);

  Graph graph(model->threads());
  Context context;
  const Tensor ids = graph.input({B, T}, Dtype::i32, "input_ids");
  if (page->decoder) context.decoder_ids = graph.input({B, T}, Dtype::i32, "decoder_input_ids");
  const Tensor logits = page->forward(Weights(graph, model->parameters()), ids, context);
  if (!config.dot.empty()) {
    const std::string dot = as_dot(block_of(ids, logits));
    if (config.dot == "-") return fmt::print("{}", dot), 0;
    write_whole_file(config.dot, dot);
  }
  std::vector<Tensor> recorded;
  for (const auto& [key, x] : graph.parameters()) recorded.push_back(x);
  std::ranges::sort(recorded, {}, &Tensor::id);
  std::vector<const Parameter*> parameters;
  Json json = {{"model_type", page->model_type}, {"architecture", page->architecture}};
  for (Tensor x : recorded) {
    parameters.push_back(&model->parameters().all().at(x.node().name));
    json["parameters"].push_back(
        {{"name", x.node().name}, {"shape", x.shape()}, {"dtype", dense::name(parameters.back()->dtype)}});
  }
  json["count"] = model->parameters().count(), json["batch"] = B, json["context"] = T;
  json["flops_per_token"]["forward"] = Plan({logits}).flops() / double(B * T);
  json["training"] = json["generation"] = nullptr;  // there may be none
  std::string no_training;
  try {
    plan_training(*model_of(), B, T, json);
  } catch (const Error& error) {  // as of quantised weights
    no_training = error.what();
  }
  if (page->generates()) {
    const auto generating = model_of();
    if (type) generating->convert(*type);
    plan_generation(*generating, B, T, json);
  }

  if (config.json) {
    if (config.graph)
      for (const Block::Node& node : block_of(ids, logits).nodes)
        json["graph"].push_back({{"id", node.id},
                                 {"what", node.what},
                                 {"reads", node.reads},
                                 {"parameters", node.parameters},
                                 {"shape", node.shape},
                                 {"outside", node.outside}});
    fmt::print("{}\n", json.dump());
    return 0;
  }
  fmt::print("{}\n{}{} parameters\n\n", page->architecture.empty() ? page->model_type : page->architecture,
             parameter_lines(parameters), with_commas(model->parameters().count()));
  const Json& flops = json["flops_per_token"];
  fmt::print("with {} x {} tokens{}\n  forward     {} a token\n", B, T, page->decoder ? " and answers of as many" : "",
             scaled(flops["forward"].get<double>(), "FLOP"));
  if (!no_training.empty()) fmt::print("  training    none: {}\n", no_training);
  else
    fmt::print("  training    {} a token, {}\n", scaled(flops["forward_and_backward"].get<double>(), "FLOP"),
               as_sum(json["training"]));
  if (page->generates()) fmt::print("  generation  {}\n", as_sum(json["generation"]));
  if (config.graph) fmt::print("\n{}", as_text(block_of(ids, logits)));
  return 0;
}

}  // namespace dense::cli
