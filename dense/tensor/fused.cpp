#include "dense/tensor/fused.h"

#include <algorithm>
#include <bit>
#include <map>
#include <numeric>

#include "dense/scalar/error.h"
#include "dense/scalar/passes.h"
#include "dense/scalar/stream.h"
#include "dense/tensor/elements.h"
#include "dense/tensor/threads.h"

namespace dense {

namespace {

constexpr int32_t none = -1;
constexpr int64_t block_elements = 1024, task_elements = 1 << 14, most_sums = 16;

bool is_reduction(Op op) { return op == Op::row_sum || op == Op::row_max; }

int64_t up_to_multiple(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

// A part of the program.
struct Step {
  enum Kind : uint8_t { elements, rows, sum, max, across } kind;  // interpret full slots or row slots; or one operation
  size_t begin = 0;                                               // words
  int32_t from = none, to = none;                                 // slots
};

// Slots of one kind, full blocks or one value a row. Some are filled once and stay.
struct Slots {
  int32_t count = 0;
  std::vector<int32_t> free;
  int32_t take() {
    if (free.empty()) return count++;
    const int32_t slot = free.back();
    free.pop_back();
    return slot;
  }
};

}  // namespace

struct Fused::Parts {
  FusedSpec spec;
  // The space as the kernel goes through it: axes merged where all views allow, the last one the columns.
  Shape rows;  // sizes of the other axes
  int64_t columns = 1, row_count = 1;
  int64_t block_rows = 1, block_columns = 1, row_chunk = 1, column_chunk = 1, row_tasks = 1, column_tasks = 1;
  int64_t width = 0, row_width = 0;  // of slots
  bool partial_sums = false;         // of columns: one row of sums for each task over rows

  struct Load {
    int operand;
    int32_t slot;
    bool row, fixed;  // one value a row; the same in all rows
    int64_t offset, column_stride;
    Shape strides;
    bool dense;  // rows follow each other without a gap
  };
  struct Store {
    int output;
    int32_t slot;  // none: a number
    double number;
    Keep keep;
    bool row;  // the value is one a row
    int64_t offset, column_stride;
    Shape strides;
    bool dense;
    int64_t sums = 0;  // where in the sums of a task
  };
  std::vector<Load> loads;
  std::vector<Store> stores;
  std::vector<Step> steps;
  std::vector<uint32_t> words;
  std::vector<std::pair<int32_t, double>> constants, row_constants;
  int32_t slots = 0, row_slots = 0;
  int64_t sums = 0;  // elements, of a task
  size_t operations = 0;
  int threads = 1;
  Interpreter interpreter{};
  Elements<float> f32{};
  Elements<double> f64{};

  size_t element() const { return spec.wide ? 8 : 4; }
  size_t thread_bytes() const {
    const int64_t all = slots * width + row_slots * row_width + slack;
    return size_t(up_to_multiple(all * int64_t(element()), 64));
  }
  size_t task_sums_bytes() const { return size_t(up_to_multiple(sums * int64_t(element()), 64)); }

  void choose_space();
  void build(const Tape& tape);
  template <class T>
  void run(const Elements<T>& elements, std::span<const std::byte* const> operands, std::span<std::byte* const> outputs,
           std::byte* scratch, Threads& pool) const;
};

// Merges axes, and chooses blocks and tasks. They depend on the space alone, so that sums do not change with threads.
void Fused::Parts::choose_space() {
  if (spec.space.empty()) {
    spec.space = {1};
    for (auto& operand : spec.operands) operand.view.strides = {0};
    for (auto& output : spec.outputs) output.view.strides = {1};
  }
  std::vector<Shape*> strides;
  for (auto& operand : spec.operands) strides.push_back(&operand.view.strides);
  for (auto& output : spec.outputs) {
    Shape& s = output.view.strides;
    if (output.keep == Keep::rows) s.back() = 0;
    if (output.keep == Keep::columns) std::fill(s.begin(), s.end() - 1, 0);
    strides.push_back(&s);
  }
  const bool whole_rows = std::ranges::any_of(steps, [](const Step& s) { return s.kind != Step::elements; }) ||
                          std::ranges::any_of(spec.outputs, [](const auto& o) { return o.keep == Keep::rows; });
  const bool sums_rows = std::ranges::any_of(spec.outputs, [](const auto& o) { return o.keep == Keep::columns; });
  Shape& space = spec.space;
  for (size_t i = space.size() - 1; i-- > 0;) {
    const bool last = i + 2 == space.size();
    if (last && (whole_rows || sums_rows) && space[i] != 1) continue;
    const auto merge = [&](const Shape* s) {
      return space[i] == 1 || space[i + 1] == 1 || (*s)[i] == (*s)[i + 1] * space[i + 1];
    };
    if ((last && whole_rows && space[i + 1] == 1) || !std::ranges::all_of(strides, merge)) continue;
    for (Shape* s : strides) {
      if (space[i + 1] == 1) (*s)[i + 1] = (*s)[i];
      s->erase(s->begin() + std::ptrdiff_t(i));
    }
    space[i + 1] *= space[i];
    space.erase(space.begin() + std::ptrdiff_t(i));
  }
  columns = space.back();
  rows.assign(space.begin(), space.end() - 1);
  row_count = count_of(rows);

  const auto vector = int64_t(interpreter.vector);
  block_columns = whole_rows ? columns : std::min(columns, block_elements);
  block_rows = std::clamp<int64_t>(block_elements / block_columns, 1, row_count);
  if (!whole_rows && block_columns < columns) block_rows = 1;
  width = up_to_multiple(block_rows * block_columns, vector);
  row_width = up_to_multiple(block_rows, vector);

  // tasks
  const int64_t all = row_count * columns;
  row_chunk = row_count, column_chunk = columns;
  if (all > 2 * task_elements) {
    const bool cut = !whole_rows && columns > block_columns && (!sums_rows || row_count < 256);
    if (cut)
      column_chunk =
          std::clamp<int64_t>(task_elements / (sums_rows ? row_count : 1) / block_columns, 1, columns) * block_columns;
    if (!(cut && sums_rows)) {
      const int64_t want = task_elements / std::min(column_chunk, columns);
      row_chunk = up_to_multiple(std::max<int64_t>(want, 1), block_rows);
      if (sums_rows)
        row_chunk = std::max(row_chunk, up_to_multiple((row_count + most_sums - 1) / most_sums, block_rows));
    }
  }
  row_tasks = (row_count + row_chunk - 1) / row_chunk;
  column_tasks = (columns + column_chunk - 1) / column_chunk;
  partial_sums = sums_rows;
}

// Puts the program together: values in stages, each stage a stream of its own, slots shared by all.
void Fused::Parts::build(const Tape& tape) {
  const Precision precision = spec.wide ? Precision::f64 : Precision::f32;
  std::vector<Var> outputs;
  for (const auto& output : spec.outputs) outputs.push_back(output.value);
  Tape work;
  std::vector<int32_t> places = lower(tape, outputs, 0, precision, work);
  const Simplified simplified = simplify(work, precision);
  for (int32_t& place : places) place = simplified.same[size_t(place)];

  const auto n = int32_t(work.nodes().size());
  const auto node_at = [&](int32_t id) -> const Node& { return work.nodes()[size_t(id)]; };
  std::vector<uint8_t> live(size_t(n), 0), by_row(size_t(n), 0);
  for (int32_t place : places) live[size_t(place)] = 1;
  for (int32_t y = n; y-- > 0;)
    if (live[size_t(y)])
      for (int32_t x : work.operands(y)) live[size_t(x)] = 1;

  // Full stages have even numbers, stages over rows odd ones. Sums over a row belong to the stage over rows that follows
  // the one they are of.
  std::vector<int> stage(size_t(n), -2);  // -2: a constant
  std::vector<int32_t> operations_of;     // in order
  int last_stage = 0;
  const auto& space = spec.space;
  for (int32_t y = 0; y < n; ++y) {
    if (!live[size_t(y)]) continue;
    const Node& node = node_at(y);
    if (node.op == Op::constant) continue;
    if (node.op == Op::input) {
      by_row[size_t(y)] = spec.operands[size_t(node.index)].row;
      stage[size_t(y)] = by_row[size_t(y)] ? -1 : 0;
      continue;
    }
    int highest = -2;
    bool any_row = false, any_full = false;
    for (int32_t x : work.operands(node)) {
      highest = std::max(highest, stage[size_t(x)]);
      if (stage[size_t(x)] > -2) (by_row[size_t(x)] ? any_row : any_full) = true;
    }
    if (is_reduction(node.op) || (node.op == Op::across && any_row)) {
      by_row[size_t(y)] = node.op != Op::across;
      stage[size_t(y)] = highest + 1;
    } else {
      if (any_row && any_full) fail("map: expected values of rows to be carried across them");
      by_row[size_t(y)] = any_row;
      stage[size_t(y)] = any_row ? highest : std::max(highest, 0);
    }
    last_stage = std::max(last_stage, stage[size_t(y)]);
  }

  // A value is needed after its stage by readers in later ones, and until the end by outputs.
  std::vector<int> needed(size_t(n), -2);
  for (int32_t y = 0; y < n; ++y)
    if (live[size_t(y)])
      for (int32_t x : work.operands(y)) needed[size_t(x)] = std::max(needed[size_t(x)], stage[size_t(y)]);
  for (int32_t place : places) needed[size_t(place)] = last_stage + 1;

  // A product that only a sum of the same stage reads is part of that sum, which rounds it first: the same bits in one
  // operation. One product only: of two the second would not be rounded.
  std::vector<int32_t> readers(size_t(n), 0), reader(size_t(n), none);
  for (int32_t y = 0; y < n; ++y)
    if (live[size_t(y)])
      for (int32_t x : work.operands(y)) ++readers[size_t(x)], reader[size_t(x)] = y;
  for (int32_t place : places) readers[size_t(place)] += 2;
  const auto joins = [&](int32_t x, int s) {
    const auto could = [&](int32_t product) {
      return node_at(product).op == Op::mul && stage[size_t(product)] == s && readers[size_t(product)] == 1;
    };
    const int32_t y = reader[size_t(x)];
    if (!could(x) || node_at(y).op != Op::add || stage[size_t(y)] != s) return false;
    const auto terms = work.operands(y);
    return x == terms[0] || !could(terms[0]);
  };

  Slots full, row;
  std::vector<int32_t> slot(size_t(n), none);
  std::map<uint64_t, int32_t> constant_slot[2];  // by their bits: NaN is a number like others, and -0 is not 0
  const auto constant = [&](double value, bool of_row) {
    const auto [found, is_new] = constant_slot[of_row].try_emplace(std::bit_cast<uint64_t>(value), 0);
    if (!is_new) return found->second;
    Slots& pool = of_row ? row : full;
    const int32_t made = found->second = pool.count++;
    (of_row ? row_constants : constants).push_back({made, value});
    return made;
  };
  for (int32_t y = 0; y < n; ++y) {
    const Node& node = node_at(y);
    if (!live[size_t(y)] || node.op != Op::input) continue;
    const auto& operand = spec.operands[size_t(node.index)];
    const bool fixed =
        std::all_of(operand.view.strides.begin(), operand.view.strides.end() - !operand.view.strides.empty(),
                    [](int64_t s) { return s == 0; }) &&
        !by_row[size_t(y)];
    slot[size_t(y)] = (by_row[size_t(y)] ? row : full).take();
    if (fixed) needed[size_t(y)] = last_stage + 1;  // stays
    loads.push_back({node.index, slot[size_t(y)], bool(by_row[size_t(y)]), fixed, operand.view.offset, 0, {}, false});
  }

  for (int s = -1; s <= last_stage; ++s) {
    const bool of_rows = s % 2 != 0;
    Slots& pool = of_rows ? row : full;
    Tape sub;
    std::vector<int32_t> local(size_t(n), none), inputs, results;
    const auto use = [&](int32_t x) {
      if (local[size_t(x)] != none) return local[size_t(x)];
      if (node_at(x).op == Op::constant) return sub.constant(work.constant_value(node_at(x))).id();
      inputs.push_back(x);
      return local[size_t(x)] = sub.input().id();
    };
    // inputs stand first on a tape that is to be simplified
    std::vector<int32_t> members;
    for (int32_t y = 0; y < n; ++y) {
      const Node& node = node_at(y);
      if (!live[size_t(y)] || stage[size_t(y)] != s || node.op == Op::input || node.op == Op::constant) continue;
      if (is_reduction(node.op) || (node.op == Op::across && by_row[size_t(work.operands(node)[0])])) {
        slot[size_t(y)] = pool.take();
        const Step::Kind kind = node.op == Op::row_sum ? Step::sum : node.op == Op::row_max ? Step::max : Step::across;
        int32_t from = work.operands(node)[0];
        const int32_t from_slot = node_at(from).op == Op::constant
                                      ? constant(work.constant_value(node_at(from)), kind == Step::across)
                                      : slot[size_t(from)];
        steps.push_back({kind, 0, from_slot, slot[size_t(y)]});
        ++operations;
      } else {
        members.push_back(y);
      }
    }
    for (int32_t y : members)
      for (int32_t x : work.operands(y))
        if (stage[size_t(x)] != s || node_at(x).op == Op::input || slot[size_t(x)] != none) use(x);
    for (int32_t y : members) {
      const Node& node = node_at(y);
      if (node.op == Op::softmax || node.op == Op::at) fail("map: expected operations on elements alone");
      if (joins(y, s)) continue;
      const auto terms = work.operands(node);
      const bool products = node.op == Op::add && (joins(terms[0], s) || joins(terms[1], s));
      std::vector<int32_t> x;
      for (int32_t term : terms) {
        if (products && joins(term, s)) {
          for (int32_t factor : work.operands(term)) x.push_back(use(factor));
        } else {
          x.push_back(use(term));
          if (products) x.push_back(sub.constant(1).id());
        }
      }
      for (int32_t operand : x) sub.operand(operand);
      local[size_t(y)] = sub.record(products ? Op::dot : node.op);
      if (needed[size_t(y)] > s) results.push_back(y);
    }
    if (!members.empty()) {
      std::vector<int32_t> wanted;
      const Simplified simple = simplify(sub, precision);
      for (int32_t y : results) wanted.push_back(simple.same[size_t(local[size_t(y)])]);
      const Stream stream = assemble(sub, simple.level, wanted, int32_t(sub.nodes().size()), false, precision);
      operations += size_t(stream.operations);
      std::vector<int32_t> global(size_t(stream.slots), none);
      for (size_t i = 0; i < inputs.size(); ++i) {
        const int32_t at = stream.slot_of[size_t(local[size_t(inputs[i])])];
        if (at != none) global[size_t(at)] = slot[size_t(inputs[i])];
      }
      for (const auto& [at, value] : stream.constants) global[size_t(at)] = constant(value, of_rows);
      std::vector<int32_t> temporary;
      for (size_t i = 0; i < results.size(); ++i) {
        int32_t& at = global[size_t(stream.slot_of[size_t(wanted[i])])];
        if (sub.nodes()[size_t(wanted[i])].op == Op::constant) needed[size_t(results[i])] = last_stage + 1;
        if (at == none) at = pool.take();
        slot[size_t(results[i])] = at;
      }
      for (int32_t& at : global)
        if (at == none) temporary.push_back(at = pool.take());
      const size_t begin = words.size();
      for (size_t w = 0; w < stream.words.size();) {
        const Header header{stream.words[w]};
        words.push_back(stream.words[w++]);
        for (uint32_t k = header.results() + header.operands(); k-- > 0; ++w)
          words.push_back(uint32_t(global[stream.words[w]]));
      }
      steps.push_back({of_rows ? Step::rows : Step::elements, begin});
      pool.free.insert(pool.free.end(), temporary.begin(), temporary.end());
    }
    // slots that nobody reads after this stage; two values may share one
    std::map<int32_t, int> last[2];
    for (int32_t y = 0; y < n; ++y) {
      if (slot[size_t(y)] == none || node_at(y).op == Op::constant) continue;
      int& until = last[size_t(by_row[size_t(y)])].try_emplace(slot[size_t(y)], -2).first->second;
      until = std::max(until, needed[size_t(y)]);
    }
    for (int32_t y = 0; y < n; ++y) {
      if (slot[size_t(y)] == none || stage[size_t(y)] > s) continue;
      const auto which = size_t(by_row[size_t(y)]);
      const auto found = last[which].find(slot[size_t(y)]);
      if (found == last[which].end() || found->second > s) continue;
      (which ? row : full).free.push_back(slot[size_t(y)]);
      last[which].erase(found);
      const int32_t freed = slot[size_t(y)];
      for (int32_t other = 0; other < n; ++other)
        if (slot[size_t(other)] == freed && size_t(by_row[size_t(other)]) == which) slot[size_t(other)] = none;
    }
  }
  slots = full.count;
  row_slots = row.count;
  for (size_t i = 0; i < places.size(); ++i) {
    const Node& node = node_at(places[i]);
    const bool number = node.op == Op::constant;
    const auto& output = spec.outputs[i];
    stores.push_back({int(i),
                      number ? none : slot[size_t(places[i])],
                      number ? work.constant_value(node) : 0,
                      output.keep,
                      !number && by_row[size_t(places[i])],
                      output.view.offset,
                      0,
                      {},
                      false});
    if (output.keep == Keep::rows && !number && !by_row[size_t(places[i])] && !space.empty() && space.back() > 1)
      fail("map: expected one value a row");
  }
}

Fused::Fused(const Tape& tape, FusedSpec spec, Isa isa, int threads) : parts_(std::make_unique<Parts>()) {
  Parts& p = *parts_;
  p.spec = std::move(spec);
  p.threads = threads;
  p.interpreter = p.spec.wide ? f64_interpreter(isa) : f32_interpreter(isa);
  p.f32 = elements_f32(isa);
  p.f64 = elements_f64(isa);
  p.build(tape);
  p.choose_space();
  const auto is_dense = [&](const Shape& strides, int64_t column_stride) {
    return (column_stride == 1 || p.columns == 1) && strides.size() == 1 && strides[0] == p.columns &&
           p.block_columns == p.columns;
  };
  for (auto& load : p.loads) {
    const auto& strides = p.spec.operands[size_t(load.operand)].view.strides;
    load.column_stride = strides.back();
    load.strides.assign(strides.begin(), strides.end() - 1);
    load.dense = is_dense(load.strides, load.column_stride);
  }
  for (auto& store : p.stores) {
    const auto& strides = p.spec.outputs[size_t(store.output)].view.strides;
    store.column_stride = strides.back();
    store.strides.assign(strides.begin(), strides.end() - 1);
    store.dense = is_dense(store.strides, store.column_stride) && !store.row && store.slot != none;
    if (store.keep == Keep::columns) store.sums = p.sums, p.sums += p.columns;
  }
  // a slot for numbers that are stored as they are
  for (auto& store : p.stores) {
    if (store.slot != none) continue;
    store.row = store.keep == Keep::rows;
    (store.row ? p.row_constants : p.constants)
        .push_back({store.slot = (store.row ? p.row_slots : p.slots)++, store.number});
  }
}

Fused::~Fused() = default;
Fused::Fused(Fused&&) noexcept = default;
size_t Fused::operations() const { return parts_->operations; }

size_t Fused::scratch_bytes() const {
  const Parts& p = *parts_;
  return size_t(p.threads) * p.thread_bytes() + size_t(p.row_tasks) * p.task_sums_bytes() + p.task_sums_bytes();
}

template <class T>
void Fused::Parts::run(const Elements<T>& elements, std::span<const std::byte* const> operands,
                       std::span<std::byte* const> outputs, std::byte* scratch, Threads& pool) const {
  std::byte* const sums_memory = scratch + size_t(threads) * thread_bytes();
  const auto task_sums = [&](int64_t row_task) {
    return reinterpret_cast<T*>(sums_memory + size_t(row_task) * task_sums_bytes());
  };
  const auto tasks = int(row_tasks * column_tasks);

  pool.run(tasks, [&](int task, int thread) {
    T* const memory = reinterpret_cast<T*>(scratch + size_t(thread) * thread_bytes());
    T* const row_memory = memory + slots * width;
    const int64_t row_task = task / column_tasks, column_task = task % column_tasks;
    const int64_t row_begin = row_task * row_chunk, row_end = std::min(row_count, row_begin + row_chunk);
    const int64_t column_begin = column_task * column_chunk,
                  column_end = std::min(columns, column_begin + column_chunk);
    for (const auto& [slot, value] : constants) std::fill_n(memory + slot * width, width, T(value));
    for (const auto& [slot, value] : row_constants) std::fill_n(row_memory + slot * row_width, row_width, T(value));
    T* const column_sums = task_sums(row_task);
    if (partial_sums)
      for (const Store& store : stores)
        if (store.keep == Keep::columns)
          std::fill(column_sums + store.sums + column_begin, column_sums + store.sums + column_end, T(0));

    // n elements from number `at` on, or what stands for them
    const auto fetch = [&](const Load& load, int64_t at, int64_t stride, int64_t n, T* to) {
      const auto& operand = spec.operands[size_t(load.operand)];
      if (operand.kind == Kind::counter) {
        for (int64_t i = 0; i < n; ++i) to[i] = T(at + i * stride);
      } else if (operand.kind == Kind::random) {
        uint64_t key;
        std::memcpy(&key, operands[size_t(load.operand)], 8);
        elements.random(operand.seed, key, uint64_t(at), stride, n, to);
      } else {
        elements.load(operands[size_t(load.operand)] + at * int64_t(size_of(operand.dtype)), operand.dtype, stride, n,
                      to);
      }
    };
    // f(row, number of rows, offset) for the rows of a block, those together that follow each other `step` apart.
    const auto runs = [&](int64_t row, int64_t count, const Shape& strides, int64_t step, const auto& f) {
      const int64_t inner = rows.empty() ? 1 : rows.back();
      for (int64_t r = 0; r < count;) {
        int64_t offset = 0, rest = row + r;
        for (size_t i = rows.size(); i-- > 0;) {
          const int64_t above = rest / rows[i];
          offset += (rest - above * rows[i]) * strides[i];
          rest = above;
        }
        const bool together = !rows.empty() && strides.back() == step;
        const int64_t length = together ? std::min(count - r, inner - (row + r) % inner) : 1;
        f(r, length, offset);
        r += length;
      }
    };

    for (int64_t column = column_begin; column < column_end; column += block_columns) {
      const int64_t n = std::min(block_columns, column_end - column);
      // values that are the same in all rows
      for (const Load& load : loads) {
        if (!load.fixed) continue;
        T* const to = memory + load.slot * width;
        fetch(load, load.offset + column * load.column_stride, load.column_stride, n, to);
        for (int64_t done = n, all = block_rows * n; done < all; done *= 2)
          std::copy_n(to, std::min(done, all - done), to + done);
      }
      for (int64_t row = row_begin; row < row_end; row += block_rows) {
        const int64_t m = std::min(block_rows, row_end - row);
        for (const Load& load : loads) {
          if (load.fixed) continue;
          T* const to = load.row ? row_memory + load.slot * row_width : memory + load.slot * width;
          if (load.dense) {
            fetch(load, load.offset + row * columns, 1, m * n, to);
          } else if (load.row) {
            runs(row, m, load.strides, rows.empty() ? 0 : load.strides.back(),
                 [&](int64_t r, int64_t length, int64_t offset) {
                   fetch(load, load.offset + offset, rows.empty() ? 0 : load.strides.back(), length, to + r);
                 });
          } else {
            runs(row, m, load.strides, load.column_stride == 1 ? n : none,
                 [&](int64_t r, int64_t length, int64_t offset) {
                   fetch(load, load.offset + offset + column * load.column_stride, load.column_stride, length * n,
                         to + r * n);
                 });
          }
        }
        for (const Step& step : steps) {
          switch (step.kind) {
            case Step::elements: interpreter.many(words.data() + step.begin, memory, size_t(width)); break;
            case Step::rows: interpreter.many(words.data() + step.begin, row_memory, size_t(row_width)); break;
            case Step::sum: elements.row_sum(memory + step.from * width, m, n, row_memory + step.to * row_width); break;
            case Step::max: elements.row_max(memory + step.from * width, m, n, row_memory + step.to * row_width); break;
            case Step::across:
              elements.across(row_memory + step.from * row_width, m, n, memory + step.to * width);
              break;
          }
        }
        for (const Store& store : stores) {
          const T* const from = store.row ? row_memory + store.slot * row_width : memory + store.slot * width;
          const Dtype type = spec.outputs[size_t(store.output)].dtype;
          const auto size = int64_t(size_of(type));
          std::byte* const to = outputs[size_t(store.output)];
          if (store.keep == Keep::columns) {
            elements.add_rows(from, m, n, column_sums + store.sums + column);
          } else if (store.dense) {
            elements.store(from, m * n, to + (store.offset + row * columns) * size, type, 1);
          } else {
            const bool one_a_row = store.keep == Keep::rows;
            const int64_t step = one_a_row                  ? (rows.empty() ? 0 : store.strides.back())
                                 : store.column_stride == 1 ? n
                                                            : none;
            runs(row, m, store.strides, store.row == one_a_row ? step : none,
                 [&](int64_t r, int64_t length, int64_t offset) {
                   const int64_t at = store.offset + offset + (one_a_row ? 0 : column * store.column_stride);
                   if (one_a_row) {
                     if (store.row) elements.store(from + r, length, to + at * size, type, step);
                     else elements.store(from + r * n, 1, to + at * size, type, 1);
                   } else if (store.row) {  // one value for all columns
                     for (int64_t c = 0; c < n; ++c)
                       elements.store(from + r, 1, to + (at + c * store.column_stride) * size, type, 1);
                   } else {
                     elements.store(from + r * n, length * n, to + at * size, type, store.column_stride);
                   }
                 });
          }
        }
      }
    }
  });

  if (!partial_sums) return;
  for (const Store& store : stores) {
    if (store.keep != Keep::columns) continue;
    T* const total = task_sums(0) + store.sums;
    for (int64_t t = 1; t < row_tasks; ++t) elements.add_rows(task_sums(t) + store.sums, 1, columns, total);
    const Dtype type = spec.outputs[size_t(store.output)].dtype;
    elements.store(total, columns, outputs[size_t(store.output)] + store.offset * int64_t(size_of(type)), type,
                   store.column_stride);
  }
}

void Fused::run(std::span<const std::byte* const> operands, std::span<std::byte* const> outputs, std::byte* scratch,
                Threads& threads) const {
  if (parts_->spec.wide) parts_->run(parts_->f64, operands, outputs, scratch, threads);
  else parts_->run(parts_->f32, operands, outputs, scratch, threads);
}

}  // namespace dense
