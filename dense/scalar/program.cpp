#include "dense/scalar/program.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <numeric>
#include <system_error>
#include <thread>

#include "dense/scalar/code.h"
#include "dense/scalar/denormals.h"
#include "dense/scalar/error.h"
#include "dense/scalar/gradient.h"
#include "dense/scalar/kernels.h"
#include "dense/scalar/listing.h"
#include "dense/scalar/passes.h"
#include "dense/scalar/rules.h"
#include "dense/scalar/stream.h"

namespace dense {

namespace {

constexpr int32_t none = Code::none;

// A stretch of slots that are neighbours in an input or result too.
struct Copy {
  int32_t at, slot, length;
};

std::vector<Copy> copies(std::span<const int32_t> slots) {
  std::vector<Copy> result;
  for (int32_t i = 0; i < int32_t(slots.size()); ++i) {
    if (slots[i] == none) continue;  // an input nobody reads
    if (!result.empty() && slots[i] == result.back().slot + result.back().length &&
        result.back().at + result.back().length == i)
      ++result.back().length;
    else result.push_back({i, slots[i], 1});
  }
  return result;
}

constexpr size_t page = 2 << 20;

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};
using Memory = std::unique_ptr<std::byte[], Free>;

void expect(const char* what, size_t got, size_t rows, size_t lanes) {
  const size_t want = rows * lanes;
  if (got != want) fail("run: ", what, ": expected ", want, " numbers (", rows, " x ", lanes, " lanes), got ", got);
}

}  // namespace

// A program has one of two forms: code, which runs operations side by side, or a stream, which runs one after the other.
struct Program::Parts {
  Precision precision = Precision::exact;
  Isa isa = Isa::portable;
  bool streams = false;
  Code code;
  Execute execute = nullptr;
  Stream stream;
  Interpreter interpreter{};

  std::vector<double> shared;
  int inputs = 0, outputs = 0, seeds = 0, wrt = 0, shared_wrt = 0;
  int32_t slots = 0;
  size_t operations = 0;
  std::vector<std::pair<int32_t, double>> constants;
  std::vector<Copy> given, seeded, shared_given, values, grads, shared_grads, jacobian;  // inputs, seeds, ...
  size_t block = 0;                                                                      // lanes at a time

  mutable std::mutex mutex;
  mutable std::vector<std::pair<size_t, Memory>> free;  // memory of runs that ended, by its width
  mutable size_t made = 0;                              // memories, in use or free

  size_t unit() const { return precision == Precision::f32 ? sizeof(float) : sizeof(double); }

  // Memory begins with sums over lanes: of a chunk and of all so far.
  size_t sums_bytes() const { return (size_t(2 * shared_wrt) * sizeof(double) + 63) / 64 * 64; }

  Memory memory(size_t width) const {
    {
      const std::lock_guard lock(mutex);
      for (size_t i = free.size(); i-- > 0;) {
        if (free[i].first != width) continue;
        Memory memory = std::move(free[i].second);
        free.erase(free.begin() + std::ptrdiff_t(i));
        return memory;
      }
      ++made;
      free.reserve(made);  // so that giving back cannot fail
    }
    const size_t size = sums_bytes() + (size_t(slots) * width + slack) * unit();
    const size_t alignment = size < page ? 64 : page;
    Memory memory(
        static_cast<std::byte*>(std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment)));
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    if (size >= page) madvise(memory.get(), size, MADV_HUGEPAGE);  // rows lie far apart: few pages find them sooner
#endif
    std::fill_n(memory.get(), size, std::byte{0});
    std::byte* const rows = memory.get() + sums_bytes();
    for (const auto& [slot, value] : constants) {
      if (precision == Precision::f32)
        std::fill_n(reinterpret_cast<float*>(rows) + size_t(slot) * width, width, float(value));
      else std::fill_n(reinterpret_cast<double*>(rows) + size_t(slot) * width, width, value);
    }
    return memory;
  }
  void give_back(Memory memory, size_t width) const {
    const std::lock_guard lock(mutex);
    free.emplace_back(width, std::move(memory));
  }

  void forward(void* memory, size_t width) const {
    if (streams) interpret(memory, width, 0);
  }
  void backward(void* memory, size_t width) const {
    if (precision != Precision::exact) {
      const DenormalsAsZero scope;
      interpret(memory, width, stream.backward);
    } else if (streams) {
      interpret(memory, width, stream.backward);
    } else execute(code, static_cast<double*>(memory), int(width));
  }
  void interpret(void* memory, size_t width, size_t begin) const {
    const Interpret run = width == 1 ? interpreter.one : width == 4 ? interpreter.few : interpreter.many;
    run(stream.words.data() + begin, memory, width);
  }

  // Lanes at a time: enough to hide the cost of an operation, few enough for the cache.
  size_t best_block() const {
    const size_t lane = size_t(slots + 1) * unit(), vector = streams ? interpreter.vector : 8;
    if (!streams) return std::clamp<size_t>((1 << 20) / lane / vector, 1, 16) * 8;  // half a second level cache
    const size_t in_first = (24 << 10) / lane / vector, in_second = std::min<size_t>(4, (13 << 18) / lane / vector);
    return std::clamp<size_t>(std::max(in_first, in_second), 1, 512 / vector) * vector;
  }

  Listing listing() const;

  // How many of `lanes` to run together.
  size_t width(size_t lanes) const {
    if (!streams) return lanes < 8 ? 1 : block;  // a vector wants to be full
    if (lanes == 1) return 1;
    if (lanes <= 4) return 4;
    return std::min(block, (lanes + interpreter.vector - 1) / interpreter.vector * interpreter.vector);
  }
};

namespace {

// The sum over lanes in eight partial sums, which one vector holds.
template <class T>
double lane_sum(const T* row, size_t n) {
  double part[8] = {};
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (size_t k = 0; k < 8; ++k) part[k] += double(row[i + k]);
  for (size_t k = 0; i + k < n; ++k) part[k] += double(row[i + k]);
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

// One run: T is the type the program computes in, U that of the numbers given.
template <class T, class U>
class Run {
 public:
  using Batch = Program::BatchOf<U>;
  Run(const Program::Parts& parts, const Batch& batch)
      : p_(parts), batch_(batch), lanes_(size_t(batch.lanes)), width_(parts.width(lanes_)) {
    backward_ = !batch.grads.empty() || !batch.shared_grads.empty() || (!batch.jacobian.empty() && !parts.seeds);
    // Sums over lanes are made of sums over chunks, whatever the threads. Exact ones go from lane to lane.
    const bool in_order = !batch.shared_grads.empty() && parts.precision == Precision::exact;
    chunk_ = in_order ? lanes_ : (1023 / width_ + 1) * width_;
    chunks_ = (lanes_ - 1) / chunk_ + 1;
  }

  void operator()() {
    const size_t useful = std::min(lanes_ * p_.operations / 1'000'000 + 1, chunks_);  // to start one takes 50,000
    if (useful > 1 && batch_.threads != 1) {
      const size_t most = batch_.threads ? size_t(batch_.threads) : std::max(1u, std::thread::hardware_concurrency());
      if (most > 1) return on_threads(std::min(most, useful));
    }
    Lease lease(*this);
    if (lanes_ == 1) return run_block(lease, 0, 1);
    double* const total = lease.sums + p_.shared_wrt;
    for (size_t c = 0; c < chunks_; ++c) {
      run_chunk(lease, c);
      for (int i = 0; i < p_.shared_wrt; ++i) total[i] = c == 0 ? lease.sums[i] : total[i] + lease.sums[i];
    }
    std::copy_n(total, batch_.shared_grads.size(), batch_.shared_grads.data());
  }

 private:
  // Memory for one thread, given back at the end of the run.
  struct Lease {
    const Program::Parts& parts;
    size_t width;
    Memory memory;
    T* rows;
    double* sums;  // over the lanes of a chunk, one per shared wrt; the total of the chunks so far
    explicit Lease(const Run& run) : parts(run.p_), width(run.width_), memory(parts.memory(width)) {
      sums = reinterpret_cast<double*>(memory.get());
      rows = reinterpret_cast<T*>(memory.get() + parts.sums_bytes());
      const std::span<const U> given = run.batch_.shared;
      for (const Copy& copy : parts.shared_given)
        if (given.empty()) spread(parts.shared.data() + copy.at, copy);
        else spread(given.data() + copy.at, copy);
    }
    // One number for all lanes.
    template <class N>
    void spread(const N* from, const Copy& copy) {
      T* to = rows + size_t(copy.slot) * width;
      if (width == 1) std::copy_n(from, copy.length, to);
      else
        for (int32_t i = 0; i < copy.length; ++i) to = std::fill_n(to, width, T(from[i]));
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() { parts.give_back(std::move(memory), width); }
  };

  void on_threads(size_t threads) {
    const auto wrt = size_t(p_.shared_wrt);
    std::vector<double> sums(chunks_ * wrt);
    std::vector<std::exception_ptr> errors(threads);
    std::atomic<size_t> next = 0;
    const auto work = [&](size_t thread) {
      try {
        Lease lease(*this);
        for (size_t c; (c = next++) < chunks_;) {
          run_chunk(lease, c);
          std::copy_n(lease.sums, wrt, sums.data() + c * wrt);
        }
      } catch (...) {
        errors[thread] = std::current_exception();
        next = chunks_;
      }
    };
    {
      std::vector<std::jthread> team;
      try {
        for (size_t t = 1; t < threads; ++t) team.emplace_back(work, t);
      } catch (const std::system_error&) {  // no more threads to be had: these will do
      }
      work(0);
    }
    for (const auto& error : errors)
      if (error) std::rethrow_exception(error);
    for (size_t c = 1; c < chunks_; ++c)
      for (size_t i = 0; i < wrt; ++i) sums[i] += sums[c * wrt + i];
    std::copy_n(sums.data(), batch_.shared_grads.size(), batch_.shared_grads.data());
  }

  void run_chunk(const Lease& lease, size_t chunk) {
    std::fill_n(lease.sums, p_.shared_wrt, 0.0);
    const size_t end = std::min(lanes_, (chunk + 1) * chunk_);
    for (size_t lane = chunk * chunk_; lane < end; lane += width_) run_block(lease, lane, std::min(width_, end - lane));
  }

  void run_block(const Lease& lease, size_t lane, size_t here) {
    T* const rows = lease.rows;
    const auto seeds = size_t(p_.seeds);
    read(batch_.inputs, p_.given, size_t(p_.inputs), rows, lane, here);
    p_.forward(rows, width_);
    if (!batch_.jacobian.empty() && seeds)
      for (size_t y = 0; y < seeds; ++y) {
        for (const Copy& copy : p_.seeded)
          for (int32_t i = 0; i < copy.length; ++i)
            std::fill_n(rows + (size_t(copy.slot) + size_t(i)) * width_, width_, T(size_t(copy.at) + size_t(i) == y));
        p_.backward(rows, width_);
        write_jacobian(y, rows, lane, here);
      }
    if (!batch_.seeds.empty()) read(batch_.seeds, p_.seeded, seeds, rows, lane, here);
    if (backward_ || !p_.streams) p_.backward(rows, width_);
    if (!batch_.jacobian.empty() && !seeds) write_jacobian(0, rows, lane, here);
    write(batch_.values, p_.values, size_t(p_.outputs), rows, lane, here);
    write(batch_.grads, p_.grads, size_t(p_.wrt), rows, lane, here);
    if (batch_.shared_grads.empty()) return;
    if (lanes_ == 1) return write(batch_.shared_grads, p_.shared_grads, size_t(p_.shared_wrt), rows, 0, 1);
    for (const Copy& copy : p_.shared_grads)
      for (int32_t i = 0; i < copy.length; ++i) {
        const T* row = rows + (size_t(copy.slot) + size_t(i)) * width_;
        double& sum = lease.sums[copy.at + i];
        if (p_.precision == Precision::exact) sum = std::accumulate(row, row + here, sum);
        else sum += lane_sum(row, here);
      }
  }

  void read(std::span<const U> from, const std::vector<Copy>& copies, size_t count, T* rows, size_t lane, size_t here) {
    for (const Copy& copy : copies) {
      if (lanes_ == 1 && width_ == 1) {
        std::copy_n(from.data() + copy.at, copy.length, rows + copy.slot);
        continue;
      }
      for (int32_t i = 0; i < copy.length; ++i) {
        T* row = rows + (size_t(copy.slot) + size_t(i)) * width_;
        const size_t at = size_t(copy.at) + size_t(i);
        const U* x = from.data() + (batch_.by_lane ? lane * count + at : at * lanes_ + lane);
        if (!batch_.by_lane) std::copy_n(x, here, row);
        else
          for (size_t l = 0; l < here; ++l) row[l] = T(x[l * count]);
        std::fill(row + here, row + width_, row[here - 1]);  // lanes beyond the last compute what nobody reads
      }
    }
  }

  void write(std::span<U> to, const std::vector<Copy>& copies, size_t count, const T* rows, size_t lane, size_t here) {
    if (to.empty()) return;
    for (const Copy& copy : copies) {
      if (lanes_ == 1 && width_ == 1) {
        std::copy_n(rows + copy.slot, copy.length, to.data() + copy.at);
        continue;
      }
      for (int32_t i = 0; i < copy.length; ++i) {
        const T* row = rows + (size_t(copy.slot) + size_t(i)) * width_;
        const size_t at = size_t(copy.at) + size_t(i);
        U* x = to.data() + (batch_.by_lane ? lane * count + at : at * lanes_ + lane);
        if (!batch_.by_lane) std::copy_n(row, here, x);
        else
          for (size_t l = 0; l < here; ++l) x[l * count] = U(row[l]);
      }
    }
  }

  // The derivatives of output y.
  void write_jacobian(size_t y, const T* rows, size_t lane, size_t here) {
    const auto wrt = size_t(p_.wrt) + size_t(p_.shared_wrt), outputs = size_t(p_.outputs);
    for (const Copy& copy : p_.jacobian)
      for (int32_t i = 0; i < copy.length; ++i) {
        const T* row = rows + (size_t(copy.slot) + size_t(i)) * width_;
        const size_t x = size_t(copy.at) + size_t(i);
        for (size_t l = 0; l < here; ++l)
          batch_.jacobian[batch_.by_lane ? ((lane + l) * outputs + y) * wrt + x : (y * wrt + x) * lanes_ + lane + l] =
              U(row[l]);
      }
  }

  const Program::Parts& p_;
  const Batch& batch_;
  size_t lanes_, width_, chunk_, chunks_;
  bool backward_;
};

template <class U>
void checked_run(const Program::Parts& p, const Program::BatchOf<U>& batch) {
  if (batch.lanes < 0) fail("run: lanes: expected 0 or more, got ", batch.lanes);
  if (batch.threads < 0) fail("run: threads: expected 0 or more, got ", batch.threads);
  const auto lanes = size_t(batch.lanes);
  const bool backward = !batch.grads.empty() || !batch.shared_grads.empty();
  expect("inputs", batch.inputs.size(), p.inputs, lanes);
  if (!batch.shared.empty()) expect("shared", batch.shared.size(), p.shared.size(), 1);
  if (!batch.seeds.empty() && !p.seeds)
    fail("run: seeds: expected none for ", p.outputs == 1 ? "one output" : "a program without gradient", ", got ",
         batch.seeds.size(), " numbers");
  if (!batch.seeds.empty() || (p.seeds && backward)) expect("seeds", batch.seeds.size(), p.seeds, lanes);
  if (!batch.values.empty()) expect("values", batch.values.size(), p.outputs, lanes);
  if (!batch.grads.empty()) expect("grads", batch.grads.size(), p.wrt, lanes);
  if (!batch.shared_grads.empty()) expect("shared_grads", batch.shared_grads.size(), p.shared_wrt, 1);
  if (!batch.jacobian.empty())
    expect("jacobian", batch.jacobian.size(), size_t(p.outputs) * (p.wrt + p.shared_wrt), lanes);
  if (lanes == 0) return void(std::ranges::fill(batch.shared_grads, U(0)));
  if (p.precision == Precision::f32) Run<float, U>(p, batch)();
  else Run<double, U>(p, batch)();
}

// Whether code is the better form of an exact program: where it has many operations side by side, or few in all.
bool worth_grouping(const Tape& work, std::span<const int32_t> level) {
  const size_t n = work.nodes().size();
  if (n < 4096) return true;
  const int32_t deepest = *std::max_element(level.begin(), level.end());
  return n / size_t(deepest + 1) >= 64;
}

}  // namespace

void Program::run(const Batch& batch) const { checked_run(*parts_, batch); }
void Program::run(const BatchOf<float>& batch) const { checked_run(*parts_, batch); }

Program Tape::compile(std::initializer_list<Var> outputs, std::span<const Var> wrt, Precision precision) const {
  return compile(std::span(outputs.begin(), outputs.size()), wrt, precision);
}

Program Tape::compile(std::initializer_list<Var> outputs, std::initializer_list<Var> wrt, Precision precision) const {
  return compile(std::span(outputs.begin(), outputs.size()), std::span(wrt.begin(), wrt.size()), precision);
}

Program Tape::compile(std::span<const Var> outputs, std::span<const Var> wrt, Precision precision) const {
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
  parts->precision = precision;
  parts->isa = best_isa();
  parts->inputs = inputs_;
  parts->outputs = int(outputs.size());
  parts->seeds = wrt.empty() || outputs.size() == 1 ? 0 : int(outputs.size());
  parts->shared = shared_;

  Tape work;
  std::vector<int32_t> results = lower(*this, outputs, parts->seeds, precision, work);
  const auto forward = int32_t(work.nodes().size());
  Gradient gradient;
  if (!wrt.empty()) {
    std::vector<int32_t> inputs, seeds(outputs.size());
    for (Var x : wrt) {
      const Node& node = nodes_[x.id()];
      inputs.push_back(node.op == Op::input ? node.index : work.inputs() + node.index);
    }
    std::iota(seeds.begin(), seeds.end(), inputs_);
    if (parts->seeds == 0) seeds = {work.constant(1).id()};
    gradient = record_gradient(work, results, seeds, inputs, precision == Precision::exact ? For::in_order : For::fast);
    results.insert(results.end(), gradient.places.begin(), gradient.places.end());
  }
  const Simplified simplified = simplify(work, precision);
  for (int32_t& y : results) y = simplified.same[y];
  std::vector<int32_t> slot_of;
  parts->streams = precision != Precision::exact || !worth_grouping(work, simplified.level);
  if (parts->streams) {
    parts->interpreter = precision == Precision::exact ? exact_interpreter(parts->isa)
                         : precision == Precision::f64 ? f64_interpreter(parts->isa)
                                                       : f32_interpreter(parts->isa);
    parts->stream = assemble(work, simplified.level, results, forward, parts->seeds > 0, precision);
    parts->slots = parts->stream.slots;
    parts->operations = size_t(parts->stream.operations);
    parts->constants = std::move(parts->stream.constants);
    slot_of = std::move(parts->stream.slot_of);
  } else {
    gradient.owner.resize(gradient.owner.empty() ? 0 : work.nodes().size(), none);
    parts->execute = execute_for(parts->isa);
    parts->code = generate(work, simplified.level, gradient.owner, results);
    parts->slots = parts->code.slots;
    for (const Instruction& i : parts->code.instructions) parts->operations += i.op == Op::gather ? 0 : size_t(i.count);
    parts->constants = std::move(parts->code.constants);
    slot_of = std::move(parts->code.slot_of);
  }

  const auto given = [&](size_t first, size_t count) { return copies(std::span(slot_of).subspan(first, count)); };
  parts->given = given(0, size_t(inputs_));
  parts->seeded = given(size_t(inputs_), size_t(parts->seeds));
  parts->shared_given = given(size_t(work.inputs()), shared_.size());
  std::vector<int32_t> values, grads, shared_grads, jacobian;
  for (size_t i = 0; i < results.size(); ++i) {
    const bool value = i < outputs.size();
    const bool is_shared = !value && nodes_[wrt[i - outputs.size()].id()].op == Op::shared;
    (value ? values : is_shared ? shared_grads : grads).push_back(slot_of[results[i]]);
    if (!value) jacobian.push_back(slot_of[results[i]]);
  }
  parts->wrt = int(grads.size());
  parts->shared_wrt = int(shared_grads.size());
  parts->values = copies(values);
  parts->grads = copies(grads);
  parts->shared_grads = copies(shared_grads);
  parts->jacobian = copies(jacobian);
  parts->block = parts->best_block();
  parts->give_back(parts->memory(1), 1);
  return Program(std::move(parts));
}

int Program::inputs() const { return parts_->inputs; }
int Program::shared() const { return int(parts_->shared.size()); }
int Program::outputs() const { return parts_->outputs; }
int Program::wrt() const { return parts_->wrt; }
int Program::shared_wrt() const { return parts_->shared_wrt; }
int Program::seeds() const { return parts_->seeds; }
Precision Program::precision() const { return parts_->precision; }
int Program::instructions() const {
  return parts_->streams ? parts_->stream.operations : int(parts_->code.instructions.size());
}
size_t Program::operations() const { return parts_->operations; }
Listing Program::Parts::listing() const {
  Listing result;
  const auto label = [](std::vector<Label>& labels, const std::vector<Copy>& copies, const char* what) {
    for (const Copy& copy : copies)
      for (int32_t i = 0; i < copy.length; ++i)
        labels.push_back({what + (" " + std::to_string(copy.at + i)), copy.slot + i});
  };
  label(result.given, given, "input");
  label(result.given, seeded, "seed");
  label(result.given, shared_given, "shared");
  for (const auto& [slot, value] : constants) result.given.push_back({text("constant ", value), slot});
  for (size_t at = 0; at < stream.words.size();) {
    const Header header{stream.words[at]};
    const auto results = stream.words.begin() + std::ptrdiff_t(at) + 1, operands = results + header.results();
    const auto end = operands + header.operands();
    if (header.kernel() != Header::stop)
      result.steps.push_back(
          {header.op(), header.op() == Op::mix ? header.products() : 0, {results, operands}, {operands, end}});
    at += 1 + header.results() + header.operands();
  }
  for (const Instruction& ins : code.instructions)
    for (int32_t i = 0; i < ins.count; ++i) {
      Step step{ins.op, 0, {ins.out + i}, {}};
      const int32_t* args = code.args.data() + ins.args;
      if (ins.op == Op::gather) step.operands = {args[i]};
      else
        for (int32_t k = 0; k < ins.terms; ++k) step.operands.push_back((args[k] >> 1) + (args[k] & 1 ? i : 0));
      result.steps.push_back(std::move(step));
    }
  label(result.results, values, "output");
  label(result.results, grads, "gradient by per-lane wrt");
  label(result.results, shared_grads, "gradient by shared wrt");
  return result;
}

std::string Program::listing() const { return parts_->listing().text(); }
std::string Program::graphviz() const { return parts_->listing().graphviz(); }
std::string Program::summary() const {
  const Parts& p = *parts_;
  const char* type = p.precision == Precision::exact ? "float64 with C's functions, sums in order"
                     : p.precision == Precision::f64 ? "float64"
                                                     : "float32";
  const std::string way =
      p.streams ? text("one operation after the other, ", p.block, " lanes at a time")
                : text("operations of a kind side by side, ", p.block, " lanes at a time where there are 8");
  return text(p.inputs, " inputs, ", p.shared.size(), " shared, ", p.outputs, " outputs, gradient by ",
              p.wrt + p.shared_wrt, "\n", operations(), " operations in ", instructions(), " instructions, ", bytes(),
              " bytes a lane\n", type, " on ", name(p.isa), ", ", way);
}
size_t Program::bytes() const { return size_t(parts_->slots) * parts_->unit(); }

}  // namespace dense
