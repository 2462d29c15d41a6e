#include "cli/block.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "dense/scalar/error.h"

namespace dense::cli {
namespace {

std::vector<std::string> parts_of(const std::string& name) {
  std::vector<std::string> parts(1);
  for (char c : name)
    if (c == '.') parts.emplace_back();
    else parts.back() += c;
  return parts;
}

bool is_number(const std::string& part) {
  return !part.empty() && part.size() < 9 && part.find_first_not_of("0123456789") == part.npos;
}

// "h.0" of "h.0.attn.c_attn.weight": up to the first number; "" without one.
std::string block_name(const std::string& parameter) {
  std::string name;
  for (const std::string& part : parts_of(parameter)) {
    name += (name.empty() ? "" : ".") + part;
    if (is_number(part)) return name;
  }
  return {};
}

std::string what(const TensorNode& node) {
  switch (node.kind) {
    case Kind::input: return node.name.empty() ? "constant" : node.name;
    case Kind::counter: return "counter";
    case Kind::random: return "random";
    case Kind::map: return node.name.empty() ? "map" : node.name;
    case Kind::matmul: return "matmul";
    case Kind::view: return "view";
    case Kind::place: return "concat";
    case Kind::gather: return "gather";
    case Kind::top_k: return "top_k";
    case Kind::expert_matmul: return "expert_matmul";
    case Kind::scatter: return "scatter";
    case Kind::attention: {
      const auto& options = std::get<AttentionOptions>(node.detail);
      std::string text = options.causal ? "causal attention" : "attention";
      if (options.window) text += fmt::format(" of {} tokens", options.window);
      if (options.soft_cap > 0) text += fmt::format(" capped at {}", options.soft_cap);
      return text;
    }
    default: return "part";
  }
}

}  // namespace

std::string without_numbers(const std::string& name) {
  std::string result;
  for (const std::string& part : parts_of(name)) result += (result.empty() ? "" : ".") + (is_number(part) ? "#" : part);
  return result;
}

std::vector<Folded> folded(const std::vector<std::string>& names) {
  std::vector<std::vector<std::string>> groups;
  for (const std::string& name : names) {
    const auto same = std::ranges::find_if(
        groups, [&](const auto& group) { return without_numbers(group[0]) == without_numbers(name); });
    if (same == groups.end()) groups.push_back({name});
    else same->push_back(name);
  }
  std::vector<Folded> result;
  for (const std::vector<std::string>& group : groups) {
    std::vector<std::set<int>> numbers(parts_of(group[0]).size());
    for (const std::string& name : group) {
      const std::vector<std::string> parts = parts_of(name);
      for (size_t i = 0; i < parts.size(); ++i)
        if (is_number(parts[i])) numbers[i].insert(std::stoi(parts[i]));
    }
    std::string all;
    size_t choices = 1;
    for (size_t i = 0; i < numbers.size(); ++i) {
      all += all.empty() ? "" : ".";
      if (numbers[i].size() < 2) {
        all += parts_of(group[0])[i];
        continue;
      }
      const int first = *numbers[i].begin(), last = *numbers[i].rbegin();
      if (last - first + 1 == int(numbers[i].size())) all += fmt::format("{{{}..{}}}", first, last);
      else all += fmt::format("{{{}}}", fmt::join(numbers[i], ","));
      choices *= numbers[i].size();
    }
    if (choices == group.size()) result.push_back({all, group.size()});
    else
      for (const std::string& name : group) result.push_back({name, 1});
  }
  return result;
}

Block block_of(Tensor ids, Tensor logits) {
  const Graph& graph = ids.graph();
  const auto n = size_t(graph.nodes());
  Block block;
  for (int32_t id = 0; id < int32_t(n) && block.name.empty(); ++id)
    if (graph.node(id).kind == Kind::input) block.name = block_name(graph.node(id).name);
  if (block.name.empty()) fail("expected parameters with the number of a block in their names");

  const auto base = [&](int32_t id) { return graph.node(id).kind == Kind::view ? graph.node(id).operands[0] : id; };
  std::vector<char> knows_ids(n, 0), is_parameter(n, 0);  // the block's, or made of its parameters alone
  std::vector<int32_t> last_reader(n, -1);
  int32_t first = -1, last = -1;  // that read the block's parameters, before those of the next block are recorded
  const std::string all_blocks = block.name.substr(0, block.name.rfind('.') + 1);
  bool is_next = false;
  for (int32_t id = 0; id < int32_t(n); ++id) {
    const TensorNode& node = graph.node(id);
    const auto at = size_t(id);
    if (node.kind == Kind::input) {
      knows_ids[at] = id == ids.id();
      is_parameter[at] = node.name.starts_with(block.name + ".");
      is_next |= node.name.starts_with(all_blocks) && !is_parameter[at];
    }
    for (int32_t x : node.operands) {
      const auto from = size_t(base(x));
      knows_ids[at] |= knows_ids[from];
      is_parameter[at] |= is_parameter[from];
      if (node.kind != Kind::view && node.kind != Kind::part) last_reader[from] = id;
    }
    if (!knows_ids[at]) continue;
    if (is_parameter[at] && node.kind != Kind::view && !is_next) {
      if (first < 0) first = id;
      last = id;
    }
    is_parameter[at] = 0;
  }
  last_reader[size_t(base(logits.id()))] = int32_t(n);

  // From the last such tensor before the block's parameters are read to the first one after.
  int32_t begin = -1, end = -1, reach = -1;  // reach: the last reader of all that came before
  for (int32_t id = 0; id < int32_t(n) && end < 0; ++id) {
    const Kind kind = graph.node(id).kind;
    if (!knows_ids[size_t(id)] || kind == Kind::view || kind == Kind::part) continue;
    if (reach <= id && id < first) begin = id;
    if (reach <= id && id >= last) end = id;
    reach = std::max(reach, last_reader[size_t(id)]);
  }

  std::set<int32_t> found{end};
  for (std::vector<int32_t> open{end}; !open.empty();) {
    const int32_t id = open.back();
    open.pop_back();
    const TensorNode& node = graph.node(id);
    Block::Node shown{id, what(node), {}, {}, node.shape};
    shown.outside = knows_ids[size_t(id)] ? id <= begin : !is_parameter[size_t(base(id))];
    for (int32_t x : shown.outside ? std::vector<int32_t>() : node.operands) {
      const TensorNode& source = graph.node(base(x));
      if (source.kind == Kind::input && graph.parameters().contains(source.name)) {
        shown.parameters.push_back(source.name);
        continue;
      }
      shown.reads.push_back(x);
      if (found.insert(x).second) open.push_back(x);
    }
    block.nodes.push_back(std::move(shown));
  }
  std::ranges::sort(block.nodes, {}, &Block::Node::id);
  return block;
}

std::string as_text(const Block& block) {
  std::vector<std::string> lines;
  size_t width = 0;
  for (const Block::Node& node : block.nodes) {
    std::vector<std::string> operands;
    for (int32_t x : node.reads) operands.push_back(fmt::format("%{}", x));
    for (const Folded& names : folded(node.parameters)) operands.push_back(names.name);
    lines.push_back(fmt::format("  {:<6}{}{}{}", fmt::format("%{}", node.id), node.outside ? "from outside: " : "",
                                node.what, operands.empty() ? "" : fmt::format("({})", fmt::join(operands, ", "))));
    if (lines.back().size() < 100) width = std::max(width, lines.back().size());
  }
  std::string text = block.name + ":\n";
  for (size_t i = 0; i < lines.size(); ++i)
    text += fmt::format("{:<{}}  {}\n", lines[i], width, to_string(block.nodes[i].shape));
  return text;
}

std::string as_dot(const Block& block) {
  std::string text = fmt::format("digraph \"{}\" {{\n  node [shape=box];\n", block.name);
  for (const Block::Node& node : block.nodes) {
    text += fmt::format("  n{} [label=\"{}\\n", node.id, node.what);
    for (const std::string& name : node.parameters) text += name + "\\n";
    text += fmt::format("{}\"{}];\n", to_string(node.shape), node.outside ? ", style=dashed" : "");
    for (int32_t x : node.reads) text += fmt::format("  n{} -> n{};\n", x, node.id);
  }
  return text + "}\n";
}

}  // namespace dense::cli
