#include "dense/tensor/matvec.h"

#include <algorithm>

#include "dense/scalar/denormals.h"
#include "dense/scalar/error.h"
#include "dense/tensor/gemm.h"
#include "dense/tensor/quantised.h"

namespace dense {

namespace {

void check(const MatvecSpec& s, int threads) {
  const auto shape = [&] {
    return text("matvec (", s.m, ", ", s.k, ") ", name(s.weights), " ",
                s.by_row ? text("(", s.n, ", ", s.k, ")^T") : text("(", s.k, ", ", s.n, ")"));
  };
  for (int64_t size : {s.m, s.n, s.k})
    if (size < 0) fail(shape(), ": expected sizes of 0 or more, got ", size);
  if (threads < 1) fail(shape(), ": expected at least 1 thread, got ", threads);
  if (is_quantised(s.weights)) {
    if (!s.by_row) fail(shape(), ": expected weights by row");
    return;
  }
  if (s.weights != Dtype::f32 && s.weights != Dtype::bf16 && s.weights != Dtype::f16)
    fail(shape(), ": expected weights of f32, bf16, f16, int8 or int4");
  const int64_t stored = s.by_row ? s.k : s.n, rows = s.by_row ? s.n : s.k;
  if (rows > 1 && s.row_stride < stored)
    fail(shape(), ": expected rows of W at least ", stored, " apart, got ", s.row_stride);
}

// Below this many bytes, and this many multiplications, waking the others takes longer than the work.
constexpr int64_t bytes_worth_sharing = 128 << 10, products_worth_sharing = 1 << 19;
// Of weights by row, ranges of columns for each thread: enough for those that finish early to take over from the others,
// in pieces that are worth a start of their own.
constexpr int64_t most_tasks_each = 8, least_bytes = 64 << 10;
// Rows of x up to which sums of blocks of k are worth their memory.
constexpr int64_t most_m_by_k = 8;
// Values of x worth sharing when they are quantised.
constexpr int64_t x_worth_sharing = 1 << 16;

}  // namespace

Matvec::Matvec(const MatvecSpec& spec, Isa isa, int threads)
    : spec_(spec), kernels_(matvec_kernels(isa)), threads_(threads) {
  check(spec, threads);
  const int64_t m = spec_.m, n = spec_.n, k = spec_.k;
  const bool quantised = is_quantised(spec_.weights);
  if (quantised) scratch_bytes_ = size_t(round_up(m * ceil_div(k, quantised_block) * int64_t(sizeof(QuantisedX)), 64));
  if (spec_.by_row && spec_.weights == Dtype::bf16 && kernels_.pair)
    paired_row_ = round_up(k, 32), scratch_bytes_ = size_t(round_up(m * paired_row_ * int64_t(sizeof(float)), 64));
  if (m * n == 0) return;
  const int64_t bytes =
      quantised ? int64_t(quantised_bytes(spec_.weights, n, k)) : n * k * int64_t(size_of(spec_.weights));
  alone_ = threads == 1 || (bytes < bytes_worth_sharing && m * n * k < products_worth_sharing);
  k_ = k;
  if (!alone_ && !spec_.by_row && k > k_block &&
      m <= most_m_by_k) {  // whole rows of W: memory likes to be read in order
    k_ = k_block;
    scratch_bytes_ = size_t(round_up(ceil_div(k, k_) * m * n * int64_t(sizeof(float)), 64));
  }
  if (alone_ || spec_.by_row) {
    tasks_ = alone_ ? 1 : threads * std::clamp<int64_t>(bytes / threads / least_bytes, 1, most_tasks_each);
    columns_ = round_up(ceil_div(n, tasks_), quantised ? strip_rows : 4);
    tasks_ = ceil_div(n, columns_);
  } else {  // each thread has as many whole blocks as the others, and a range of columns of those that are left
    whole_ = k_ < k ? k / k_block / threads : 0;
    blocks_ = whole_ + ceil_div(k, k_) - whole_ * threads;
    columns_ = round_up(ceil_div(n, threads), 32);
    tasks_ = threads * blocks_;
  }
}

Matvec::Piece Matvec::piece(int64_t task) const {
  const int64_t n = spec_.n;
  if (alone_ || spec_.by_row) return {task * columns_, std::min((task + 1) * columns_, n), 0};
  const int64_t thread = task / blocks_, i = task % blocks_;
  if (i < whole_) return {0, n, thread * whole_ + i};
  return {std::min(thread * columns_, n), std::min((thread + 1) * columns_, n), threads_ * whole_ + i - whole_};
}

std::string Matvec::path() const {
  return text("own ", is_quantised(spec_.weights) ? kernels_.quantised_name : kernels_.name);
}

void Matvec::run(const float* x, int64_t x_row, const void* w, float* y, int64_t y_row, const float* bias,
                 std::byte* scratch, Threads& threads, int64_t m) const {
  if (m > spec_.m) fail("matvec: planned for up to ", spec_.m, " rows, got ", m);
  if (tasks_ == 0 || m == 0) return;
  if (!alone_ && threads.count() > threads_) fail("matvec: planned for ", threads_, " threads, got ", threads.count());
  const DenormalsAsZero scope;  // as in tasks
  const bool quantised = is_quantised(spec_.weights);
  auto* const quantised_x = reinterpret_cast<QuantisedX*>(scratch);
  if (quantised) {
    const auto quantise = [&](int64_t first, int64_t last) {
      kernels_.quantise(x, x_row, first, std::min(last, m), spec_.k, spec_.weights, quantised_x);
    };
    const int64_t tile = kernels_.quantised_tile;
    if (alone_ || m <= tile || m * spec_.k < x_worth_sharing) quantise(0, m);
    else threads.run(int(ceil_div(m, tile)), [&](int i) { quantise(i * tile, (i + 1) * tile); });
  }
  if (paired_row_ > 0) {
    auto* const paired = reinterpret_cast<float*>(scratch);
    for (int64_t i = 0; i < m; ++i) kernels_.pair(x + i * x_row, spec_.k, paired + i * paired_row_);
    x = paired, x_row = paired_row_;
  }
  auto* const parts = k_ < spec_.k ? reinterpret_cast<float*>(scratch) : nullptr;
  const auto run_task = [&](int task) {
    const auto [first, last, part] = piece(task);
    const int64_t k = part * k_;
    const MatvecBlock block{
        .m = m,
        .k = std::min(k_, spec_.k - k),
        .first = first,
        .last = last,
        .type = spec_.weights,
        .x = x + k,
        .quantised_x = quantised_x,
        .x_row = x_row,
        .w = k == 0 ? w : static_cast<const std::byte*>(w) + k * spec_.row_stride * int64_t(size_of(spec_.weights)),
        .w_row = spec_.row_stride,
        .y = parts ? parts + part * m * spec_.n : y,
        .y_row = parts ? spec_.n : y_row,
        .bias = spec_.bias && !parts ? bias : nullptr};
    (quantised ? kernels_.quantised : spec_.by_row ? kernels_.by_row : kernels_.by_column)(block);
  };
  if (alone_) run_task(0);
  else threads.run(int(tasks_), run_task);
  if (parts) kernels_.add_parts(parts, ceil_div(spec_.k, k_), m, spec_.n, y, y_row, spec_.bias ? bias : nullptr);
}

}  // namespace dense
