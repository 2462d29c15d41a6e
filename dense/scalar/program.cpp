#include "dense/scalar/program.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <numeric>

#include "dense/scalar/code.h"
#include "dense/scalar/error.h"
#include "dense/scalar/gradient.h"
#include "dense/scalar/kernels.h"
#include "dense/scalar/passes.h"
#include "dense/scalar/rules.h"

namespace dense {

namespace {

// A stretch of slots that are neighbours in a result too.
struct Copy {
  int32_t to, slot, length;
};

std::vector<Copy> copies(std::span<const int32_t> slots) {
  std::vector<Copy> result;
  for (int32_t i = 0; i < int32_t(slots.size()); ++i) {
    if (!result.empty() && slots[i] == result.back().slot + result.back().length &&
        result.back().to + result.back().length == i)
      ++result.back().length;
    else result.push_back({i, slots[i], 1});
  }
  return result;
}

struct Free {
  void operator()(double* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
using Memory = std::unique_ptr<double[], Free>;

void expect(const char* what, size_t got, size_t rows, int lanes) {
  const size_t want = rows * size_t(lanes);
  if (got != want) fail("run: ", what, ": expected ", want, " numbers (", rows, " x ", lanes, " lanes), got ", got);
}

}  // namespace

struct Program::Parts {
  Code code;
  Execute execute;
  std::vector<double> shared;
  int inputs, outputs, seeds;
  std::vector<Copy> values, grads, shared_grads;
  int wrt = 0, shared_wrt = 0;
  int block;  // lanes at a time

  mutable std::mutex mutex;
  mutable std::vector<Memory> free_one, free_block;  // memory of runs that ended, for one lane and for a block
  mutable size_t made = 0;                           // memories, in use or free

  Memory memory(int width) const {
    {
      const std::lock_guard lock(mutex);
      auto& free = width == 1 ? free_one : free_block;
      if (!free.empty()) {
        Memory memory = std::move(free.back());
        free.pop_back();
        return memory;
      }
      ++made;
      free.reserve(made);  // so that giving back cannot fail
    }
    const size_t size = size_t(code.slots) * width + slack;
    Memory memory(static_cast<double*>(::operator new[](size * sizeof(double), std::align_val_t(64))));
    std::fill_n(memory.get(), size, 0.0);
    for (const auto& [slot, value] : code.constants) std::fill_n(&memory[size_t(slot) * width], width, value);
    return memory;
  }
  void give_back(Memory memory, int width) const {
    const std::lock_guard lock(mutex);
    (width == 1 ? free_one : free_block).push_back(std::move(memory));
  }
};

namespace {

// Memory for one run, given back at its end.
struct Lease {
  const Program::Parts& parts;
  int width;
  Memory memory;
  Lease(const Program::Parts& p, int w) : parts(p), width(w), memory(p.memory(w)) {}
  ~Lease() { parts.give_back(std::move(memory), width); }
};

}  // namespace

Program Tape::compile(std::initializer_list<Var> outputs, std::span<const Var> wrt) const {
  return compile(std::span(outputs.begin(), outputs.size()), wrt);
}

Program Tape::compile(std::initializer_list<Var> outputs, std::initializer_list<Var> wrt) const {
  return compile(std::span(outputs.begin(), outputs.size()), std::span(wrt.begin(), wrt.size()));
}

Program Tape::compile(std::span<const Var> outputs, std::span<const Var> wrt) const {
  if (outputs.empty()) fail("compile: expected one output or more, got none");
  for (Var y : outputs)
    if (y.tape() && y.tape() != this) fail("compile: expected outputs of this tape, got Var ", y.id(), " of another");
  for (Var x : wrt) {
    if (x.tape() != this)
      fail("compile: wrt: expected inputs of this tape, got ", x.tape() ? "a Var of another" : "a number");
    if (const Op op = nodes_[x.id()].op; op != Op::input && op != Op::shared)
      fail("compile: wrt: expected inputs, got Var ", x.id(), ", the result of ", rule(op).name);
  }
  auto parts = std::make_shared<Program::Parts>();
  parts->inputs = inputs_;
  parts->outputs = int(outputs.size());
  parts->seeds = wrt.empty() || outputs.size() == 1 ? 0 : int(outputs.size());
  parts->shared = shared_;

  Tape work;
  std::vector<int32_t> results = lower(*this, outputs, parts->seeds, work);
  Gradient gradient;
  if (!wrt.empty()) {
    std::vector<int32_t> inputs, seeds(outputs.size());
    for (Var x : wrt) {
      const Node& node = nodes_[x.id()];
      inputs.push_back(node.op == Op::input ? node.index : work.inputs() + node.index);
    }
    std::iota(seeds.begin(), seeds.end(), inputs_);
    if (parts->seeds == 0) seeds = {work.constant(1).id()};
    gradient = record_gradient(work, results, seeds, inputs);
    results.insert(results.end(), gradient.places.begin(), gradient.places.end());
  }
  const Simplified simplified = simplify(work);
  for (int32_t& y : results) y = simplified.same[y];
  gradient.owner.resize(gradient.owner.empty() ? 0 : work.nodes().size(), Code::none);
  parts->code = generate(work, simplified.level, gradient.owner, results);
  parts->execute = best_execute();

  std::vector<int32_t> values, grads, shared_grads;
  for (size_t i = 0; i < results.size(); ++i) {
    const bool value = i < outputs.size();
    const bool shared = !value && nodes_[wrt[i - outputs.size()].id()].op == Op::shared;
    (value ? values : shared ? shared_grads : grads).push_back(parts->code.slot_of[results[i]]);
  }
  parts->code.slot_of = {};
  parts->wrt = int(grads.size());
  parts->shared_wrt = int(shared_grads.size());
  parts->values = copies(values);
  parts->grads = copies(grads);
  parts->shared_grads = copies(shared_grads);
  // lanes of a block: enough to hide the cost of an instruction, few enough for 1 MB of memory, half a second level cache
  parts->block = int(std::clamp<size_t>((1 << 14) / size_t(parts->code.slots + 1), 1, 16) * 8);
  parts->give_back(parts->memory(1), 1);
  return Program(std::move(parts));
}

void Program::run(const Batch& batch) const {
  const Parts& p = *parts_;
  const size_t lanes = size_t(batch.lanes), width = lanes < 8 ? 1 : size_t(p.block);  // a vector wants to be full
  if (batch.lanes < 1) fail("run: lanes: expected 1 or more, got ", batch.lanes);
  expect("inputs", batch.inputs.size(), p.inputs, batch.lanes);
  if (!batch.shared.empty()) expect("shared", batch.shared.size(), p.shared.size(), 1);
  const bool backward = !batch.grads.empty() || !batch.shared_grads.empty();
  if (!batch.seeds.empty() || (p.seeds && backward)) expect("seeds", batch.seeds.size(), p.seeds, batch.lanes);
  if (!batch.values.empty()) expect("values", batch.values.size(), p.outputs, batch.lanes);
  if (!batch.grads.empty()) expect("grads", batch.grads.size(), p.wrt, batch.lanes);
  if (!batch.shared_grads.empty()) expect("shared_grads", batch.shared_grads.size(), p.shared_wrt, 1);

  Lease lease(p, int(width));
  double* memory = lease.memory.get();
  const std::span<const double> shared = batch.shared.empty() ? std::span(p.shared) : batch.shared;
  double* to = memory + p.code.first_shared * width;
  if (width == 1) std::copy(shared.begin(), shared.end(), to);
  else
    for (double value : shared) to = std::fill_n(to, width, value);

  for (size_t lane = 0; lane < lanes; lane += width) {
    const size_t here = std::min(width, lanes - lane);
    const auto read = [&](std::span<const double> rows, size_t count, size_t slot) {
      for (size_t i = 0; i < count; ++i) {
        double* row = memory + (slot + i) * width;
        std::copy_n(rows.data() + i * lanes + lane, here, row);
        std::fill(row + here, row + width, row[here - 1]);  // lanes beyond the last compute what nobody reads
      }
    };
    const auto write = [&](std::span<double> rows, const std::vector<Copy>& copies) {
      if (rows.empty()) return;
      for (const Copy& copy : copies)
        for (int32_t i = 0; i < copy.length; ++i)
          std::copy_n(memory + size_t(copy.slot + i) * width, here, rows.data() + size_t(copy.to + i) * lanes + lane);
    };
    read(batch.inputs, size_t(p.inputs), 0);
    if (!batch.seeds.empty()) read(batch.seeds, size_t(p.seeds), size_t(p.inputs));
    p.execute(p.code, memory, int(width));
    write(batch.values, p.values);
    write(batch.grads, p.grads);
    if (batch.shared_grads.empty()) continue;
    for (const Copy& copy : p.shared_grads) {
      const double* from = memory + size_t(copy.slot) * width;
      double* total = batch.shared_grads.data() + copy.to;
      if (lanes == 1) std::copy_n(from, copy.length, total);
      for (int32_t i = 0; i < copy.length && lanes > 1; ++i)
        total[i] = std::accumulate(from + i * width, from + i * width + here, lane == 0 ? 0.0 : total[i]);
    }
  }
}

int Program::instructions() const { return int(parts_->code.instructions.size()); }

size_t Program::bytes() const { return size_t(parts_->code.slots) * sizeof(double); }

}  // namespace dense
