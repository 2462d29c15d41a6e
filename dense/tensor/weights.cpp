#include "dense/tensor/weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numbers>

#include "dense/scalar/error.h"
#include "dense/tensor/elements.h"
#include "dense/tensor/plan.h"
#include "dense/tensor/quantised.h"
#include "dense/tensor/threads.h"

namespace dense {

namespace {

// FNV-1a (Fowler, Noll, Vo): the same on every machine.
uint64_t hash_of(std::string_view name) {
  uint64_t h = 0xcbf29ce484222325;
  for (char c : name) h = (h ^ uint8_t(c)) * 0x100000001b3;
  return h;
}

// Box & Muller 1958, of uniform numbers that are a function of (seed, name, element).
void fill_normal(const Memory& memory, Dtype dtype, const Shape& shape, uint64_t seed, const std::string& name,
                 double deviation) {
  Graph graph;
  const Tensor to = graph.external(shape, dtype, memory, name), key = graph.input({2}, Dtype::i32);
  const uint64_t hash = hash_of(name);
  key.set({int32_t(hash), int32_t(hash >> 32)});
  const Tensor u = graph.random(shape, 2 * seed, key), v = graph.random(shape, 2 * seed + 1, key);
  const Tensor x = map("normal", {u, v}, [deviation](Row, std::span<const Var> r) {
    return deviation * sqrt(-2 * log(1 - r[0])) * cos(2 * std::numbers::pi * r[1]);
  });
  Plan({assign(to, x)}).run();
}

}  // namespace

void Parameters::load(Parameter parameter) {
  loaded_ = true;
  if (!filled_) parameter.memory = {};
  const std::string name = parameter.name;
  if (!all_.emplace(name, std::move(parameter)).second) fail(name, ": expected one tensor of this name, got two");
}

// By its name, or as older files spell it: without the base, gamma for weight, beta for bias.
std::map<std::string, Parameter>::iterator Parameters::find(const std::string& name) {
  auto found = all_.find(name);
  if (found != all_.end() || !loaded_) return found;
  std::vector<std::string> spellings{name};
  if (!base_.empty() && name.starts_with(base_ + ".")) spellings.push_back(name.substr(base_.size() + 1));
  for (size_t i = 0, n = spellings.size(); i < n; ++i) {
    const std::string& s = spellings[i];
    if (s.ends_with(".weight")) spellings.push_back(s.substr(0, s.size() - 6) + "gamma");
    else if (s.ends_with(".bias")) spellings.push_back(s.substr(0, s.size() - 4) + "beta");
  }
  for (const std::string& spelling : spellings) {
    found = all_.find(spelling);
    if (found == all_.end() || found->second.declared) continue;
    auto entry = all_.extract(found);
    entry.key() = name;
    entry.mapped().stored = spelling;
    entry.mapped().name = name;
    return all_.insert(std::move(entry)).position;
  }
  return all_.end();
}

const Parameter& Parameters::declare(const std::string& name, const Shape& shape, Init init) {
  auto found = find(name);
  if (found == all_.end()) {
    if (loaded_) problems_.push_back(text(name, ": expected ", to_string(shape), ", missing"));
    Parameter made{name, Dtype::f32, shape, {}, false, init};
    if (filled_) made.memory = initial(made);
    found = all_.emplace(name, std::move(made)).first;
  }
  Parameter& parameter = found->second;
  const auto packed_as = [&](size_t n, size_t k) {
    return parameter.packed == Shape{(shape[n] + strip_rows - 1) / strip_rows,
                                     (shape[k] + quantised_block - 1) / quantised_block, block_bytes(parameter.dtype)};
  };
  if (is_quantised(parameter.dtype) && !parameter.declared && shape.size() == 2 && (packed_as(0, 1) || packed_as(1, 0)))
    parameter.shape = shape;
  if (parameter.shape != shape) {
    const std::string problem = text(name, ": expected ", to_string(shape), ", got ", to_string(parameter.shape));
    if (parameter.declared) fail(problem);  // two uses on a page
    problems_.push_back(problem);
    parameter.shape = shape;
    parameter.dtype = Dtype::f32;
    parameter.memory = zero_memory(parameter.bytes().size());
  }
  parameter.declared = true;
  return parameter;
}

Memory Parameters::initial(const Parameter& parameter, Dtype dtype) const {
  const auto count = size_t(count_of(parameter.shape)), size = size_of(dtype);
  Memory memory = zero_memory(count * size);
  if (parameter.init.deviation > 0) {
    fill_normal(memory, dtype, parameter.shape, seed_, parameter.name, parameter.init.deviation);
  } else if (const auto value = float(parameter.init.value); value != 0) {
    std::byte one[4];
    elements_f32(best_isa()).store(&value, 1, one, dtype, 1);
    for (size_t i = 0; i < count; ++i) std::memcpy(memory.data + i * size, one, size);
  }
  return memory;
}

void Parameters::check(std::span<const std::string> inert) const {
  std::string all;
  const auto add = [&](const std::string& problem) { all += (all.empty() ? "" : "; ") + problem; };
  for (const std::string& problem : problems_) add(problem);
  for (const auto& entry : all_) {
    const auto& [name, parameter] = entry;
    const auto matches = [&](const std::string& part) {
      return entry.first.ends_with(part) || (part.ends_with('.') && entry.first.starts_with(part));
    };
    if (!parameter.declared && std::ranges::none_of(inert, matches))
      add(text(name, " ", to_string(parameter.shape), ": expected no such tensor"));
  }
  if (!all.empty()) fail(all);
}

std::vector<const Parameter*> Parameters::declared() const {
  std::vector<const Parameter*> result;
  for (const auto& [name, parameter] : all_)
    if (parameter.declared) result.push_back(&parameter);
  return result;
}

int64_t Parameters::count() const {
  int64_t total = 0;
  for (const Parameter* parameter : declared()) total += count_of(parameter->shape);
  return total;
}

void Parameters::forget_copies() {
  if (!filled_) return;
  std::erase_if(all_, [&](const auto& entry) {
    const Parameter& p = entry.second;
    return !p.declared && std::ranges::any_of(all_, [&](const auto& other) {
      const Parameter& q = other.second;
      return q.declared && q.dtype == p.dtype && q.shape == p.shape && std::ranges::equal(q.bytes(), p.bytes());
    });
  });
}

void Parameters::widen() {
  const auto threads = make_threads(1);
  for (auto& [name, parameter] : all_)
    if (parameter.declared) convert(name, Dtype::f32, true, *threads);
}

void Parameters::convert(const std::string& name, Dtype type, bool by_row, Threads& threads) {
  Parameter& p = all_.at(name);
  if (p.dtype == type) return;
  if (is_quantised(p.dtype)) fail(name, ": expected weights that are not quantised, got ", dense::name(p.dtype));
  Memory to;
  if (is_quantised(type)) {
    const int64_t n = p.shape[by_row ? 0 : 1], k = p.shape[by_row ? 1 : 0];
    p.packed = {(n + strip_rows - 1) / strip_rows, (k + quantised_block - 1) / quantised_block, block_bytes(type)};
    if (filled_) to = zero_memory(quantised_bytes(type, n, k));
    try {
      if (filled_) quantise({p.memory.data, p.dtype, n, k, by_row ? k : 1, by_row ? 1 : n}, type, to.data, threads);
    } catch (const Error& error) {
      fail(name, ": ", error.what());
    }
  } else if (filled_) {
    to = zero_memory(size_t(count_of(p.shape)) * size_of(type));
    const auto elements = elements_f32(best_isa());
    const int64_t count = count_of(p.shape), block = 1 << 14;
    threads.run(int((count + block - 1) / block), [&](int task) {
      std::array<float, size_t(block)> some;
      const int64_t at = task * block, n = std::min(block, count - at);
      elements.load(p.memory.data + at * int64_t(size_of(p.dtype)), p.dtype, 1, n, some.data());
      elements.store(some.data(), n, to.data + at * int64_t(size_of(type)), type, 1);
    });
  }
  p.dtype = type;
  p.memory = to;
}

Tensor Weights::operator()(std::string_view name, const Shape& shape, Init init) const {
  const Parameter& parameter = parameters_->declare(join(name), shape, init);
  return graph_->parameter(parameter.name, parameter.shape, parameter.dtype, parameter.memory);
}

}  // namespace dense
