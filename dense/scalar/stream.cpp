#include "dense/scalar/stream.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "dense/scalar/error.h"
#include "dense/scalar/passes.h"
#include "dense/scalar/rules.h"

namespace dense {

namespace {

constexpr int32_t none = Stream::none, forever = std::numeric_limits<int32_t>::max(), some = forever - 1;

// Writes one operation after the other. A result takes a slot that is free; after its last reader it is free again.
class Assembler {
 public:
  Assembler(const Tape& work, std::span<const int32_t> results, int32_t forward, bool again, Precision precision)
      : work_(work), n_(int32_t(work.nodes().size())), forward_(forward), again_(again) {
    exact_ = precision == Precision::exact;
    stream_.slot_of.assign(n_, none);
    stream_.words.reserve(4 * size_t(n_));
    find_live(results);
    if (!exact_) find_pairs();
  }

  Stream assemble(std::span<const int32_t> level) {
    for (int32_t y = 0; y < n_; ++y)
      if (last_reader_[y] != none && is_given(work_.nodes()[y])) give(y);
    const std::vector<int32_t> order = order_of_operations(level);
    for (now_ = 0; now_ < int32_t(order.size()); ++now_) {
      const auto x = work_.operands(order[now_]);
      for (size_t k = 0; k < x.size(); ++k)
        if (last_reader_[x[k]] != forever && !dropped(work_.nodes()[order[now_]], x, k)) last_reader_[x[k]] = now_;
    }
    stream_.backward = none;
    for (now_ = 0; now_ < int32_t(order.size()); ++now_) {
      y_ = order[now_];
      if (y_ >= forward_ && stream_.backward == size_t(none)) end_forward();
      const Node& node = work_.nodes()[y_];
      const int32_t results = result_count(node);
      if (slot(y_) == none) write(node, results);  // it has one where its partner came first
      for (int32_t x : work_.operands(node)) release(x);
      for (int32_t i = 0; i < results; ++i)
        if (last_reader_[y_ + i] == none) free_.push_back(slot(y_ + i));
    }
    if (stream_.backward == size_t(none)) end_forward();
    word(Header::stop);
    return std::move(stream_);
  }

 private:
  static bool is_given(const Node& node) {
    return node.op == Op::constant || node.op == Op::input || node.op == Op::shared;
  }
  static int32_t result_count(const Node& node) {
    return node.op == Op::softmax ? node.count : node.op == Op::softmax_grad ? node.count / 2 : 1;
  }

  // Roughly, in units of an addition.
  static int32_t latency(Op op) {
    switch (op) {
      case Op::add:
      case Op::sub:
      case Op::mul:
      case Op::sum:
      case Op::dot: return 1;
      case Op::softplus:
      case Op::sigmoid:
      case Op::softmax: return 16;
      case Op::softmax_grad: return 4;
      default: return 8;
    }
  }

  // last_reader_ becomes `some` for what a result depends on, `forever` for results.
  void find_live(std::span<const int32_t> results) {
    last_reader_.assign(n_, none);
    for (int32_t y : results) last_reader_[y] = forever;
    for (int32_t y = n_ - 1; y >= 0; --y) {
      const Node& node = work_.nodes()[y];
      if (node.count == 0 || node.index > 0 || !is_live(y)) continue;
      const auto x = work_.operands(node);
      for (size_t k = 0; k < x.size(); ++k)
        if (last_reader_[x[k]] == none && !dropped(node, x, k)) last_reader_[x[k]] = some;
    }
  }
  bool is_live(int32_t y) const {
    const auto read = std::span(last_reader_).subspan(y, result_count(work_.nodes()[y]));
    return std::ranges::any_of(read, [](int32_t reader) { return reader != none; });
  }

  // By their first results. In the order of the tape, or where that is wide by level and kind: forward and backward each
  // on its own.
  std::vector<int32_t> order_of_operations(std::span<const int32_t> level) {
    std::vector<int32_t> order;
    ready_.assign(n_, 0);
    for (int32_t y = 0; y < n_; ++y) {
      const Node& node = work_.nodes()[y];
      if (is_given(node) || node.index > 0 || !is_live(y)) continue;
      order.push_back(y);
      int32_t start = 0;
      for (int32_t x : work_.operands(node)) start = std::max(start, ready_[x]);
      std::fill_n(ready_.begin() + y, result_count(node), start + latency(node.op));
    }
    const int32_t deepest = n_ ? *std::ranges::max_element(level) : 0;
    if (exact_ || order.size() < 16 * size_t(deepest + 1)) return order;
    std::vector<int32_t> key(n_);
    for (int32_t y : order) key[y] = 64 * std::min(work_.nodes()[y].count, 63) + int32_t(work_.nodes()[y].op);
    order = counting_sort(order, key);
    for (int32_t y : order) key[y] = level[y] + (y < forward_ ? 0 : deepest + 1);
    return counting_sort(order, key);
  }

  // Whether operand k is a factor of 1, which need not be read.
  bool dropped(const Node& node, std::span<const int32_t> x, size_t k) const {
    if (exact_ || (node.op != Op::mul && node.op != Op::dot)) return false;
    const auto is_one = [&](int32_t place) {
      const Node& factor = work_.nodes()[place];
      return factor.op == Op::constant && work_.constant_value(factor) == 1;
    };
    return is_one(x[k]) && (k % 2 == 1 || !is_one(x[k + 1]));
  }

  // softplus and sigmoid, or sin and cos, of one operand are computed together, where the first of them stands.
  void find_pairs() {
    std::vector<int32_t> first[2];  // by operand
    for (int32_t y = 0; y < n_; ++y) {
      const Op op = work_.nodes()[y].op;
      const bool wave = op == Op::sin || op == Op::cos;
      if (last_reader_[y] == none || !(wave || op == Op::softplus || op == Op::sigmoid)) continue;
      first[wave].resize(n_, none);
      int32_t& other = first[wave][work_.operands(y)[0]];
      if (other == none) {
        other = y;
      } else if (work_.nodes()[other].op != op && !(again_ && other < forward_ && y >= forward_)) {
        partner_.resize(n_, none);
        partner_[other] = y;
        partner_[y] = other;
      }
    }
  }

  void end_forward() {
    word(Header::stop);
    stream_.backward = stream_.words.size();
  }

  void give(int32_t y) {
    last_reader_[y] = forever;
    slot(y) = stream_.slots++;
    const Node& node = work_.nodes()[y];
    if (node.op == Op::constant) stream_.constants.push_back({slot(y), work_.constant_value(node)});
  }

  void write(const Node& node, int32_t results) {
    const auto x = work_.operands(node);
    ++stream_.operations;
    if (!exact_ && (node.op == Op::add || node.op == Op::sum)) return write_mix(node, 1);
    if (!exact_ && (node.op == Op::mul || node.op == Op::dot)) return write_mix(node, 2);
    const Op op = kind(work_, node);
    const int32_t partner = partner_.empty() ? none : partner_[y_];
    if (partner != none && slot(partner) == none) return write_pair(op, partner, x[0]);
    const size_t count = op == node.op ? x.size() : 1;
    const size_t shown = op == Op::softmax_grad ? size_t(results) : count;
    if (shown > Header::most_operands)
      fail("compile: ", rule(op).name, ": expected at most ", Header::most_operands, " operands, got ", shown);
    word(Header::of(op, uint32_t(shown)).word);
    // one result may take the place of an operand, of several each has to wait for all
    if (results == 1) release(x);
    order_by_time(op, results, x);
    for (int32_t i : order_) word(allocate(y_ + i));
    if (op == Op::softmax || op == Op::softmax_grad)
      for (int32_t k = 0; k < int32_t(x.size()) / results; ++k)
        for (int32_t i : order_) word(slot(x[k * results + i]));
    else
      for (int32_t operand : x.first(count)) word(slot(operand));
  }

  // The order of the results of softmax and its gradient: the one whose operand is ready last comes last, so that the
  // others need not wait for it.
  void order_by_time(Op op, int32_t results, std::span<const int32_t> x) {
    order_.resize(results);
    std::iota(order_.begin(), order_.end(), 0);
    const int32_t late = op == Op::softmax_grad ? results : 0;
    if (results > 1) std::ranges::sort(order_, {}, [&](int32_t i) { return std::pair(ready_[x[late + i]], i); });
  }

  void write_pair(Op op, int32_t partner, int32_t x) {
    const bool waves = op == Op::sin || op == Op::cos, in_order = op == Op::softplus || op == Op::sin;
    word(Header::of(waves ? Op::sin_cos : Op::softplus_sigmoid, 1).word);
    word(allocate(in_order ? y_ : partner));
    word(allocate(in_order ? partner : y_));
    word(slot(x));
  }

  // Terms of one factor or two, added: first the products, then the others.
  void write_mix(const Node& node, size_t factors) {
    const auto x = work_.operands(node);
    products_.clear();
    singles_.clear();
    for (size_t k = 0; k < x.size(); k += factors) {
      if (factors == 1 || dropped(node, x, k + 1)) singles_.push_back(x[k]);
      else if (dropped(node, x, k)) singles_.push_back(x[k + 1]);
      else products_.insert(products_.end(), {slot(x[k]), slot(x[k + 1])});
    }
    // what is ready last is added last
    if (singles_.size() < 8) std::ranges::sort(singles_, {}, [&](int32_t y) { return std::pair(ready_[y], y); });
    for (int32_t& single : singles_) single = slot(single);
    if (x.size() < Header::most_terms) release(x);  // else the result is written before the last operand is read
    const int32_t out = allocate(y_);
    size_t p = 0, s = 0;
    do {  // terms beyond the most are added to the sum so far
      const bool first = p + s == 0;
      const size_t products = std::min<size_t>((products_.size() - p) / 2, Header::most_terms);
      const size_t singles = std::min<size_t>(singles_.size() - s, Header::most_terms - 1);
      word(Header::of_mix(uint32_t(products), uint32_t(singles + !first)).word);
      word(out);
      for (const size_t end = p + 2 * products; p < end; ++p) word(products_[p]);
      if (!first) word(out);
      for (const size_t end = s + singles; s < end; ++s) word(singles_[s]);
    } while (p < products_.size() || s < singles_.size());
  }

  void release(std::span<const int32_t> x) {
    for (int32_t place : x) release(place);
  }
  void release(int32_t x) {
    if (last_reader_[x] != now_) return;
    last_reader_[x] = forever;  // once
    if (!again_ || x >= forward_ || y_ < forward_) free_.push_back(slot(x));
  }
  int32_t allocate(int32_t y) {
    if (!free_.empty()) {
      slot(y) = free_.back();
      free_.pop_back();
    } else if (stream_.slots < (1 << 30)) {
      slot(y) = stream_.slots++;
    } else {
      fail("compile: expected fewer than 2^30 results");
    }
    return slot(y);
  }
  int32_t& slot(int32_t place) { return stream_.slot_of[place]; }
  void word(int64_t w) { stream_.words.push_back(uint32_t(w)); }

  const Tape& work_;
  int32_t n_, now_ = 0, y_ = 0, forward_;  // the place in the order and on the tape
  bool again_, exact_;
  Stream stream_;
  std::vector<int32_t> last_reader_, ready_, partner_, free_, order_, products_, singles_;
};

}  // namespace

uint32_t Header::results() const {
  switch (op()) {
    case Op::softmax:
    case Op::softmax_grad: return count();
    case Op::softplus_sigmoid:
    case Op::sin_cos: return 2;
    case Op::constant: return 0;  // stop
    default: return 1;
  }
}

uint32_t Header::operands() const {
  if (op() == Op::mix) return 2 * products() + singles();
  return op() == Op::softmax_grad ? 2 * count() : count();
}

Stream assemble(const Tape& work, std::span<const int32_t> level, std::span<const int32_t> results, int32_t forward,
                bool again, Precision precision) {
  return Assembler(work, results, forward, again, precision).assemble(level);
}

}  // namespace dense
