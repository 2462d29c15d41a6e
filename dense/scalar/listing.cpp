#include "dense/scalar/listing.h"

#include <unordered_map>

#include "dense/scalar/rules.h"

namespace dense {

namespace {

// Numbers the values of a program in the order in which they are made. Slots are used for one value after the other.
class Numbering {
 public:
  int operator[](int32_t slot) const { return value_.at(slot); }
  int next(int32_t slot) { return value_[slot] = count_++; }
  void alias(int32_t slot, int32_t of) { value_[slot] = value_.at(of); }

 private:
  std::unordered_map<int32_t, int> value_;
  int count_ = 0;
};

std::string name(int value) { return "%" + std::to_string(value); }

}  // namespace

std::string Listing::text() const {
  Numbering number;
  std::string lines;
  for (const Label& label : given) lines += name(number.next(label.slot)) + " = " + label.name + "\n";
  for (const Step& step : steps) {
    if (step.op == Op::gather) {
      for (size_t i = 0; i < step.results.size(); ++i) number.alias(step.results[i], step.operands[i]);
      continue;
    }
    std::string operation = step.op == Op::mix ? "" : rule(step.op).name;
    for (size_t i = 0; i < step.operands.size(); ++i) {
      const bool factor = step.op == Op::mix && i < 2 * step.products;
      if (step.op != Op::mix) operation += " ";
      else if (i > 0) operation += factor && i % 2 ? " * " : " + ";
      operation += name(number[step.operands[i]]);
    }
    std::string names;
    for (int32_t slot : step.results) names += (names.empty() ? "" : ", ") + name(number.next(slot));
    lines += names + " = " + operation + "\n";
  }
  for (const Label& label : results) lines += label.name + " = " + name(number[label.slot]) + "\n";
  return lines;
}

std::string Listing::graphviz() const {
  Numbering number;
  std::string text = "digraph program {\n  rankdir=LR; node [shape=box];\n", arrows;
  const auto node = [&](const std::string& id, const std::string& label, const char* more = "") {
    text += "  " + id + " [label=\"" + label + "\"" + more + "];\n";
  };
  const auto id = [](int value) { return "v" + std::to_string(value); };
  for (const Label& label : given) node(id(number.next(label.slot)), label.name, ", shape=ellipse");
  for (const Step& step : steps) {
    if (step.op == Op::gather) {
      for (size_t i = 0; i < step.results.size(); ++i) number.alias(step.results[i], step.operands[i]);
      continue;
    }
    std::vector<int> from;
    for (int32_t slot : step.operands) from.push_back(number[slot]);
    for (int32_t slot : step.results) {
      const int to = number.next(slot);
      node(id(to), rule(step.op).name);
      for (int x : from) arrows += "  " + id(x) + " -> " + id(to) + ";\n";
    }
  }
  for (size_t i = 0; i < results.size(); ++i) {
    node("r" + std::to_string(i), results[i].name, ", shape=ellipse");
    arrows += "  " + id(number[results[i].slot]) + " -> r" + std::to_string(i) + ";\n";
  }
  return text + arrows + "}\n";
}

}  // namespace dense
