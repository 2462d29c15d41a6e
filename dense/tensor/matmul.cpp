#include "dense/tensor/matmul.h"

#include <algorithm>

#include "dense/scalar/error.h"

namespace dense {

namespace {

// f64 exists for gradient checks: each sum in order of k, then the bias, then what C held.
void gemm_f64(const Gemm& g, float*) {
  constexpr int64_t width = 64;
  const double *const a = static_cast<const double*>(g.a), *const b = static_cast<const double*>(g.b);
  const double* const bias = static_cast<const double*>(g.bias);
  for (int64_t i = 0; i < g.m; ++i)
    for (int64_t j0 = 0; j0 < g.n; j0 += width) {
      const int64_t here = std::min(width, g.n - j0);
      double sum[width] = {};
      for (int64_t k = 0; k < g.k; ++k)
        for (int64_t j = 0; j < here; ++j) sum[j] += a[i * g.a_row + k * g.a_col] * b[k * g.b_row + (j0 + j) * g.b_col];
      double* const c = static_cast<double*>(g.c) + i * g.c_row + j0;
      for (int64_t j = 0; j < here; ++j) {
        const double y = bias ? sum[j] + bias[j0 + j] : sum[j];
        c[j] = g.accumulate ? c[j] + y : y;
      }
    }
}

void check(const MatmulSpec& s, int threads) {
  const auto shape = [&] { return text("matmul (", s.m, ", ", s.k, ") (", s.k, ", ", s.n, ")"); };
  for (int64_t size : {s.m, s.n, s.k})
    if (size < 0) fail(shape(), ": expected sizes of 0 or more, got ", size);
  for (const auto& [size, a, b, c] : s.batch)
    if (size < 0) fail(shape(), ": expected batch sizes of 0 or more, got ", size);
  const bool types = s.type == Dtype::f32    ? s.c_type == Dtype::f32
                     : s.type == Dtype::f64  ? s.c_type == Dtype::f64
                     : s.type == Dtype::bf16 ? s.c_type == Dtype::f32 || s.c_type == Dtype::bf16
                                             : false;
  if (!types)
    fail(shape(), ": expected f32 giving f32, bf16 giving f32 or bf16, or f64 giving f64, got ", name(s.type),
         " giving ", name(s.c_type));
  if (s.b_bf16 && s.type != Dtype::f32) fail(shape(), ": expected A in f32 with B in bf16, got ", name(s.type));
  if (s.a_row != 1 && s.a_col != 1) fail(shape(), ": expected a stride of 1 in A, got ", s.a_row, " and ", s.a_col);
  if (s.b_row != 1 && s.b_col != 1) fail(shape(), ": expected a stride of 1 in B, got ", s.b_row, " and ", s.b_col);
  if (s.m > 1 && s.c_row < s.n) fail(shape(), ": expected rows of C at least ", s.n, " apart, got ", s.c_row);
  if (threads < 1) fail(shape(), ": expected at least 1 thread, got ", threads);
}

// Below this many multiplications, waking the others takes longer than the work.
constexpr int64_t worth_sharing = 1 << 18;
// Blocks for each thread: enough for those that finish early to take over from the others.
constexpr int64_t tasks_each = 4;
// But each block copies all of its A and B. With rows of its own a thread finds A in its cache, where the product before
// left it, but every thread copies all of B: worth it for up to this many columns for each row, fewer where the copy of B
// transposes. These blocks are cut along n where many_n columns remain.
constexpr int64_t columns_for_a_row = 8, columns_transposed = 2, many_n = 2048;
// Else, where n alone gives every thread a block of fair_n columns, m stays whole, and the threads have more than one
// block each if those are of wide_n columns.
constexpr int64_t wide_n = 1024, fair_n = 384;
// Blocks are not cut smaller than this to make more of them.
constexpr int64_t least_m = 192, least_n = 64;
// Nor larger than this where C is bf16 and its sums wait in scratch.
constexpr int64_t most_m = 504;
// Their columns make whole tiles; of rows, a third of a tile at the edge is nearly as good.
constexpr int64_t step_m = 4, step_n = 32;

}  // namespace

Matmul::Matmul(const MatmulSpec& spec, Isa isa, int threads)
    : spec_(spec), isa_(isa), threads_(threads), run_(spec.type == Dtype::f64 ? gemm_f64 : gemm_for(isa)) {
  check(spec, threads);
  for (const MatmulSpec::Batch& dim : spec_.batch) batch_ *= dim.size;
  const int64_t m = spec_.m, n = spec_.n, products = m * n * std::max<int64_t>(spec_.k, 1);
  alone_ = threads == 1 || batch_ * products < worth_sharing;
  gemm_ = {.m = m, .n = n, .k = spec_.k, .a_row = spec_.a_row, .a_col = spec_.a_col, .b_row = spec_.b_row};
  gemm_.b_col = spec_.b_col, gemm_.c_row = spec_.c_row;
  gemm_.type = spec_.type, gemm_.c_type = spec_.c_type;
  gemm_.b_type = spec_.b_bf16 ? Dtype::bf16 : spec_.type;
  gemm_.accumulate = spec_.accumulate;
  if (batch_ * products == 0) return;

  const bool sums_wait = spec_.c_type == Dtype::bf16;
  int64_t m_blocks = sums_wait ? ceil_div(m, most_m) : 1, n_blocks = sums_wait ? ceil_div(n, n_block) : 1;
  const int64_t equal_n = threads * std::clamp<int64_t>(n / (threads * wide_n), 1, tasks_each);
  const int64_t most_n = m * (spec_.b_col == 1 ? columns_for_a_row : columns_transposed);
  if (!alone_ && batch_ == 1 && m >= threads * least_m && n <= most_n) {
    m_shares_ = threads;
    m_blocks = round_up(m_blocks, m_shares_);
    n_blocks = std::max(n_blocks, std::clamp<int64_t>(n / many_n, 1, tasks_each));
  } else if (!alone_ && batch_ == 1 && n >= equal_n * fair_n) {
    n_blocks = std::max(n_blocks, equal_n);
  } else if (!alone_) {  // cut n, then m, then n again
    const int64_t want = tasks_each * threads;
    n_blocks = ceil_div(n, n_block);
    m_blocks = std::max(m_blocks, std::min(ceil_div(want, batch_ * n_blocks), m / least_m));
    n_blocks = std::max(n_blocks, std::min(ceil_div(want, batch_ * m_blocks), n / least_n));
  }
  if (m_blocks > 1) gemm_.m = round_up(ceil_div(m, m_blocks), step_m);
  if (n_blocks > 1) gemm_.n = round_up(ceil_div(n, n_blocks), step_n);
  n_blocks_ = ceil_div(n, gemm_.n);
  if (ceil_div(m, gemm_.m) * n_blocks_ == 1)
    batch_of_task_ = std::clamp<int64_t>(worth_sharing / 4 / products, 1, batch_);
  if (spec_.type != Dtype::f64) scratch_stride_ = size_t(gemm_scratch(gemm_)) * sizeof(float);
}

std::string Matmul::path() const { return spec_.type == Dtype::f64 ? "own loops" : text("own ", dense::name(isa_)); }

Matmul::Operands Matmul::batch_element(int64_t index, Operands x) const {
  const int64_t size = int64_t(size_of(spec_.type)), c_size = int64_t(size_of(spec_.c_type));
  const int64_t b_size = int64_t(size_of(gemm_.b_type));
  for (size_t i = spec_.batch.size(); i-- > 0;) {
    const MatmulSpec::Batch& dim = spec_.batch[i];
    const int64_t at = index % dim.size;
    index /= dim.size;
    x.a += at * dim.a * size;
    x.b += at * dim.b * b_size;
    x.c += at * dim.c * c_size;
  }
  return x;
}

void Matmul::run_task(int64_t task, const Operands& all, std::byte* scratch) const {
  const int64_t size = int64_t(size_of(spec_.type)), c_size = int64_t(size_of(spec_.c_type));
  const int64_t b_size = int64_t(size_of(gemm_.b_type));
  const int64_t m_blocks = ceil_div(all.m, all.block_m);
  const int64_t i = task / n_blocks_ % m_blocks * all.block_m, j = task % n_blocks_ * gemm_.n;
  const int64_t first = task / (m_blocks * n_blocks_) * batch_of_task_;
  Gemm g = gemm_;
  g.m = std::min(all.block_m, all.m - i);
  g.n = std::min(g.n, spec_.n - j);
  g.k = all.k;
  for (int64_t index = first; index < std::min(first + batch_of_task_, batch_); ++index) {
    const Operands x = spec_.batch.empty() ? all : batch_element(index, all);
    g.a = x.a + i * g.a_row * size;
    g.b = x.b + j * g.b_col * b_size;
    g.c = x.c + (i * g.c_row + j) * c_size;
    g.bias = spec_.bias ? x.bias + j * c_size : nullptr;
    run_(g, reinterpret_cast<float*>(scratch));
  }
}

void Matmul::run(const void* a, const void* b, void* c, const void* bias, std::byte* scratch, Threads& threads,
                 int64_t m, int64_t k) const {
  if (k > spec_.k) fail("matmul: planned for sums of up to ", spec_.k, ", got ", k);
  if (batch_ * m * spec_.n == 0) return;
  const int64_t m_blocks = round_up(ceil_div(m, gemm_.m), m_shares_);
  const int64_t block_m = std::min(gemm_.m, round_up(ceil_div(m, m_blocks), step_m));
  const Operands all{static_cast<const std::byte*>(a),
                     static_cast<const std::byte*>(b),
                     static_cast<std::byte*>(c),
                     static_cast<const std::byte*>(bias),
                     m,
                     k,
                     block_m};
  const int64_t tasks = ceil_div(batch_, batch_of_task_) * ceil_div(m, block_m) * n_blocks_;
  if (alone_) {
    for (int64_t task = 0; task < tasks; ++task) run_task(task, all, scratch);
    return;
  }
  if (threads.count() > threads_) fail("matmul: planned for ", threads_, " threads, got ", threads.count());
  threads.run(int(tasks),
              [&](int task, int thread) { run_task(task, all, scratch + size_t(thread) * scratch_stride_); });
}

}  // namespace dense
