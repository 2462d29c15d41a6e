#include "dense/scalar/code.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>

#include "dense/scalar/error.h"
#include "dense/scalar/passes.h"
#include "dense/scalar/rules.h"

namespace dense {

namespace {

constexpr int32_t none = Code::none;

// Operations that may run as one instruction: of one kind, with as many operands, none of which waits for another.
struct Group {
  Op op;
  int32_t terms, begin, end;  // nodes order[begin, end)
};

enum class Live : uint8_t { no, yes };  // a char would let the compiler expect any pointer to change

struct Schedule {
  std::vector<Live> live;  // whether a result depends on the node
  std::vector<Group> groups;
  std::vector<int32_t> order;
};

int32_t terms(Op kind, const Node& node) { return rule(kind).arity == any_number ? node.count : rule(kind).arity; }

Schedule schedule(const Tape& work, std::span<const int32_t> level, std::span<const int32_t> owner,
                  std::span<const int32_t> results) {
  const auto n = int32_t(work.nodes().size());
  Schedule result;
  std::vector<Live>& live = result.live;
  live.assign(n, Live::no);
  for (int32_t y : results) live[y] = Live::yes;
  for (int32_t y = n - 1; y >= 0; --y)
    if (live[y] == Live::yes)
      for (int32_t x : work.operands(y)) live[x] = Live::yes;

  // neighbours in memory: nodes in the order of the tape, then gradients in the order of what they are gradients of
  std::vector<int32_t> ids, key(n, 0);
  for (int32_t y = 0; y < n; ++y) {
    key[y] = owner.empty() || owner[y] == y ? 0 : owner[y] + 1;
    if (live[y] == Live::yes && work.nodes()[y].count > 0) ids.push_back(y);
  }
  ids = counting_sort(ids, key);

  // a group: neighbours in the order of level, then kind and number of operands; where two groups share a key they mix and
  // fall into more instructions, no worse
  std::vector<int32_t> shape(n);
  for (int32_t y : ids) {
    const Op op = kind(work, work.nodes()[y]);
    shape[y] = int32_t((64 * int64_t(terms(op, work.nodes()[y])) + int64_t(op)) % 8191);
  }
  result.order = counting_sort(counting_sort(ids, shape), level);
  int32_t current = -1;
  for (int32_t i = 0; i < int32_t(result.order.size()); ++i) {
    const int32_t y = result.order[i];
    const Op op = kind(work, work.nodes()[y]);
    const int32_t count = terms(op, work.nodes()[y]);
    if (level[y] != current || op != result.groups.back().op || count != result.groups.back().terms)
      result.groups.push_back({op, count, i, i});
    current = level[y];
    ++result.groups.back().end;
  }
  return result;
}

// Emits the instructions of one group after the other.
class Emitter {
 public:
  Emitter(const Tape& work, Code& code) : work_(work), code_(code) {}

  // Writes either one instruction for each stretch of operations in which every operand moves by a constant number of
  // slots, or one for the whole group: whatever seems faster. Operands that move by more than one slot are gathered.
  void emit(const Group& group, std::span<const int32_t> nodes) {
    const auto count = int32_t(nodes.size());
    terms_ = group.terms;
    rows_.resize(size_t(count) * terms_);
    int32_t* to = rows_.data();
    for (int32_t y : nodes)
      for (int32_t x : work_.operands(y).first(terms_)) *to++ = code_.slot_of[x];
    const int32_t out = allocate(count);
    for (int32_t i = 0; i < count; ++i) code_.slot_of[nodes[i]] = out + i;

    ends_.clear();
    Columns& stretch = columns_[0];
    double cost = 0;
    for (int32_t begin = 0, i; begin < count; begin = i) {
      stretch.start(row(begin), row(std::min(begin + 1, count - 1)));
      for (i = begin + 1; i < count && stretch.holds(row(i - 1), row(i));) ++i;
      if (i == begin + 2 && i < count && !stretch.in_place())
        i = begin + 1;  // any two make a stretch: try the second with the third
      cost += price(stretch, i - begin);
      ends_.push_back(i);
    }
    if (ends_.size() == 1) return instruction(group, stretch, out, 0, count);
    if (ends_.size() * 8 > size_t(count)) {
      Columns& whole = columns_[1];
      whole.start(row(0), row(1));
      for (int32_t i = 2; i < count; ++i) whole.restrict(row(i - 1), row(i));
      if (price(whole, count) < cost) return instruction(group, whole, out, 0, count);
    }
    int32_t begin = 0;
    for (int32_t end : ends_) {
      stretch.start(row(begin), row(std::min(begin + 1, end - 1)));
      instruction(group, stretch, out, begin, end);
      begin = end;
    }
  }

 private:
  // How each operand moves from one operation to the next: by `step` slots where `steady` is -1, anyhow where it is 0.
  struct Columns {
    std::vector<int32_t> step, steady;

    void start(std::span<const int32_t> a, std::span<const int32_t> b) {
      step.resize(a.size());
      for (size_t k = 0; k < a.size(); ++k) step[k] = b[k] - a[k];
      steady.assign(a.size(), -1);
    }
    bool holds(std::span<const int32_t> a, std::span<const int32_t> b) const {
      int32_t off = 0;
      for (size_t k = 0; k < a.size(); ++k) off |= b[k] - a[k] - step[k];
      return off == 0;
    }
    void restrict(std::span<const int32_t> a, std::span<const int32_t> b) {
      for (size_t k = 0; k < a.size(); ++k) steady[k] &= -int32_t(b[k] - a[k] == step[k]);
    }
    bool in_place(size_t k) const { return steady[k] && uint32_t(step[k]) < 2; }
    bool in_place() const {
      for (size_t k = 0; k < step.size(); ++k)
        if (!in_place(k)) return false;
      return true;
    }
  };

  std::span<const int32_t> row(int32_t i) const { return {rows_.data() + size_t(i) * terms_, size_t(terms_)}; }

  // Nanoseconds, roughly: an instruction, a term, a vector of eight, a gathered operand.
  static double price(const Columns& columns, int32_t count) {
    const auto terms = double(columns.step.size());
    double gathered = 0;
    for (size_t k = 0; k < columns.step.size(); ++k) gathered += !columns.in_place(k);
    return 10 + 0.5 * terms + count * (0.1 * terms + 0.7 * gathered);
  }

  void instruction(const Group& group, const Columns& columns, int32_t out, int32_t begin, int32_t end) {
    gathered_.clear();
    places_.clear();
    if (!columns.in_place()) align();
    const int32_t temporary = code_.slots;
    for (int32_t k = 0; k < terms_; ++k)
      places_.push_back(columns.in_place(k) ? 2 * row(begin)[k] + columns.step[k] : 2 * gathered(begin, end, k) + 1);
    if (!gathered_.empty()) {
      append({Op::gather, temporary, int32_t(gathered_.size()), 1, 0}, gathered_);
      allocate(int32_t(gathered_.size()));
    }
    Instruction next{group.op, out + begin, end - begin, terms_, 0};
    if (group.op == Op::dot) {
      next.rows = true;
      for (int32_t k = 0; k < terms_; k += 2) {
        if (!(places_[k] & 1)) std::swap(places_[k], places_[k + 1]);  // products commute
        next.rows &= (places_[k] & 1) && !(places_[k + 1] & 1);
      }
    }
    if (begin > 0) {  // not the first of its group, so independent of the one before
      Instruction& last = code_.instructions.back();
      last.with_next = last.rows && next.rows && last.count == next.count && last.terms == next.terms;
    }
    append(next, places_);
  }

  // The slot of a copy of column k, made by this instruction's gather unless an earlier one has it.
  int32_t gathered(int32_t begin, int32_t end, int32_t k) {
    column_.clear();
    uint64_t hash = 0;
    for (int32_t i = begin; i < end; ++i) {
      column_.push_back(row(i)[k]);
      hash = (hash ^ uint64_t(column_.back() + 1)) * 0x9e3779b97f4a7c15;
      hash ^= hash >> 32;
    }
    const auto [copy, fresh] =
        copies_.try_emplace(hash, Copy{code_.slots + int32_t(gathered_.size()), copied_.size(), column_.size()});
    const std::span<const int32_t> known(copied_.data() + copy->second.begin, fresh ? 0 : copy->second.count);
    if (!fresh && std::ranges::equal(known, column_)) return copy->second.slot;
    const int32_t slot = code_.slots + int32_t(gathered_.size());
    gathered_.insert(gathered_.end(), column_.begin(), column_.end());
    if (fresh) copied_.insert(copied_.end(), column_.begin(), column_.end());
    return slot;
  }

  void append(Instruction instruction, const std::vector<int32_t>& args) {
    if (code_.args.size() + args.size() > INT32_MAX) fail("compile: expected fewer than 2^31 operands");
    instruction.args = int32_t(code_.args.size());
    code_.args.insert(code_.args.end(), args.begin(), args.end());
    code_.instructions.push_back(instruction);
  }

  int32_t allocate(int32_t count) {
    if (count >= 8) align();
    if (int64_t{code_.slots} + count > (1 << 30) - 8) fail("compile: expected fewer than 2^30 results");
    const int32_t slot = code_.slots;
    code_.slots += count;
    return slot;
  }
  void align() { code_.slots = (code_.slots + 7) / 8 * 8; }  // to a cache line

  const Tape& work_;
  Code& code_;
  int32_t terms_ = 0;
  std::vector<int32_t> rows_;  // (operations, terms): slots of the operands
  Columns columns_[2];         // of a stretch, of the whole group
  std::vector<int32_t> ends_, places_, gathered_;
  struct Copy {
    int32_t slot;
    size_t begin, count;  // of what is in copied_
  };
  std::unordered_map<uint64_t, Copy> copies_;  // by a hash of their places
  std::vector<int32_t> column_, copied_;
};

}  // namespace

Code generate(const Tape& work, std::span<const int32_t> level, std::span<const int32_t> owner,
              std::span<const int32_t> results) {
  Code code;
  code.slot_of.assign(work.nodes().size(), none);
  code.first_shared = (work.inputs() + 7) / 8 * 8;
  for (int32_t i = 0; i < work.inputs(); ++i) code.slot_of[i] = i;
  for (int32_t i = 0; i < int32_t(work.shared_values().size()); ++i)
    code.slot_of[work.inputs() + i] = code.first_shared + i;
  code.slots = code.first_shared + int32_t(work.shared_values().size() + 7) / 8 * 8;
  const Schedule plan = schedule(work, level, owner, results);
  for (size_t y = 0; y < work.nodes().size(); ++y)
    if (work.nodes()[y].op == Op::constant && plan.live[y] == Live::yes) {
      code.constants.push_back({code.slots, work.constant_value(work.nodes()[y])});
      code.slot_of[y] = code.slots++;
    }
  code.first_result = code.slots = (code.slots + 7) / 8 * 8;
  Emitter emitter(work, code);
  for (const Group& group : plan.groups)
    emitter.emit(group, std::span(plan.order).subspan(group.begin, group.end - group.begin));
  return code;
}

}  // namespace dense
