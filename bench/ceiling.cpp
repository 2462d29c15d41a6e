#include "bench/ceiling.h"

#include <sys/resource.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <chrono>
#include <dnnl.hpp>
#include <numeric>
#include <thread>
#include <vector>

extern "C" void omp_set_num_threads(int count);  // of the OpenMP library that oneDNN uses

namespace dense::cli {

namespace {

// m x n x k on each thread, over and over for a while: the sum of their best rates. 0: oneDNN has no such product here.
double rate_of(bool bf16, int threads, int64_t m, int64_t n, int64_t k) {
  const auto type = bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  const auto f32 = dnnl::memory::data_type::f32;
  using tag = dnnl::memory::format_tag;
  std::vector<std::thread> pool;
  std::vector<double> rates(static_cast<size_t>(threads), 0);
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      omp_set_num_threads(1);  // oneDNN's own threads, of this thread alone
      const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
      dnnl::stream stream(engine);
      const dnnl::memory::desc a({m, k}, type, tag::ab), b({k, n}, type, tag::ab), c({m, n}, f32, tag::ab);
      const dnnl::matmul::primitive_desc way(dnnl::matmul::desc(a, b, c), engine, true);  // true: may be empty
      if (!way) return;
      const dnnl::matmul product(way);
      dnnl::memory x(a, engine), w(b, engine), y(c, engine);
      std::fill_n(static_cast<char*>(x.get_data_handle()), a.get_size(), char(0));
      std::fill_n(static_cast<char*>(w.get_data_handle()), b.get_size(), char(0));
      double fastest = 1e9;
      for (const auto begin = Clock::now(); seconds_since(begin) < 0.4;) {
        const auto start = Clock::now();
        product.execute(stream, {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, y}});
        stream.wait();
        fastest = std::min(fastest, seconds_since(start));
      }
      rates[size_t(t)] = 2.0 * double(m) * double(n) * double(k) / fastest;
    });
  }
  for (std::thread& thread : pool) thread.join();
  double total = 0;
  for (double rate : rates) total += rate;
  return total;
}

struct alignas(64) Line {
  uint64_t words[8];
};

// The sum of so many lines, a multiple of four, so that nobody can leave out a load.
uint64_t sum_any(const Line* p, size_t lines) {
  uint64_t sum = 0;
  for (size_t i = 0; i < lines; ++i) sum += p[i].words[0];
  return sum;
}
#if defined(__x86_64__)  // a line at a time reaches what memory gives
__attribute__((target("avx512f"))) uint64_t sum_512(const Line* p, size_t lines) {
  __m512i sum[4] = {};
  for (size_t i = 0; i < lines; i += 4)
    for (size_t j = 0; j < 4; ++j) {
      __builtin_prefetch(p + i + j + 64);
      sum[j] = _mm512_add_epi64(sum[j], _mm512_load_si512(p + i + j));
    }
  const __m512i both = _mm512_add_epi64(_mm512_add_epi64(sum[0], sum[1]), _mm512_add_epi64(sum[2], sum[3]));
  Line words;
  _mm512_store_si512(&words, both);
  return std::accumulate(words.words, words.words + 8, uint64_t(0));
}
#endif

}  // namespace

double read_bandwidth(Threads& threads) {
  auto* sum = sum_any;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) sum = sum_512;
#endif
  constexpr int tasks = 16, passes = 32;
  constexpr size_t lines = size_t(1) << 15;          // 2 MiB for each task, 32 for each pass
  std::vector<Line> memory(passes * tasks * lines);  // all zeros, but pages of their own: each is written
  std::array<uint64_t, tasks> sums{};
  double fastest = 1e9;
  for (int pass = 0; pass < 2 * passes; ++pass) {  // short ones: some are not disturbed
    const Line* const here = memory.data() + size_t(pass % passes) * tasks * lines;
    const auto start = Clock::now();
    threads.run(tasks, [&](int task) { sums[size_t(task)] += sum(here + size_t(task) * lines, lines); });
    fastest = std::min(fastest, seconds_since(start));
  }
  const bool all_zero = std::all_of(sums.begin(), sums.end(), [](uint64_t s) { return s == 0; });
  return all_zero ? double(tasks * lines * sizeof(Line)) / fastest : 0;
}

double peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) * 1024;
}

double matmul_rate(bool bf16, int threads) {
  double best = 0;
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1024, 768, 768}, {1024, 2304, 768}, {1024, 768, 3072}})
    best = std::max(best, rate_of(bf16, threads, m, n, k));
  return best;
}

}  // namespace dense::cli
