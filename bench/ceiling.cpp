#include "bench/ceiling.h"

#include <sys/resource.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <dnnl.hpp>
#include <numeric>
#include <thread>
#include <vector>

#include "dense/scalar/error.h"

extern "C" void omp_set_num_threads(int count);  // of the OpenMP library that oneDNN uses

namespace dense::cli {

namespace {

// m x n x k on each thread, over and over for a while: the sum of their middle rates. 0: oneDNN has no such product here.
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
      const char byte = 0x3f;  // of 0.75 in either type: zeros draw less power
      std::fill_n(static_cast<char*>(x.get_data_handle()), a.get_size(), byte);
      std::fill_n(static_cast<char*>(w.get_data_handle()), b.get_size(), byte);
      std::vector<double> times;
      for (const auto begin = Clock::now(); seconds_since(begin) < 0.4;) {
        const auto start = Clock::now();
        product.execute(stream, {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, y}});
        stream.wait();
        times.push_back(seconds_since(start));
      }
      rates[size_t(t)] = 2.0 * double(m) * double(n) * double(k) / median(times);
    });
  }
  for (std::thread& thread : pool) thread.join();
  double total = 0;
  for (double rate : rates) total += rate;
  return total;
}

// The sum of so many lines of 64 bytes, of each at least a word. Where whole lines are summed, up to a tenth more of them
// comes from memory.
using Sum = uint64_t (*)(const std::byte* p, size_t lines);

uint64_t sum_any(const std::byte* p, size_t lines) {
  uint64_t sum = 0, word;
  for (size_t i = 0; i < lines; ++i) std::memcpy(&word, p + 64 * i, sizeof word), sum += word;
  return sum;
}
#if defined(__x86_64__)
__attribute__((target("avx2"))) uint64_t sum_avx2(const std::byte* p, size_t lines) {
  const auto* const vectors = reinterpret_cast<const __m256i*>(p);
  __m256i sum[8] = {};
  for (size_t i = 0; i + 4 <= lines; i += 4)
    for (size_t j = 0; j < 8; ++j) sum[j] = _mm256_add_epi64(sum[j], _mm256_loadu_si256(vectors + 2 * i + j));
  for (size_t j = 1; j < 8; ++j) sum[0] = _mm256_add_epi64(sum[0], sum[j]);
  uint64_t words[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), sum[0]);
  return std::accumulate(words, words + 4, sum_any(p + lines / 4 * 256, lines % 4));
}
__attribute__((target("avx512f"))) uint64_t sum_avx512(const std::byte* p, size_t lines) {
  __m512i sum[4] = {};
  for (size_t i = 0; i + 4 <= lines; i += 4)
    for (size_t j = 0; j < 4; ++j) {
      __builtin_prefetch(p + 64 * (i + j + 64));
      sum[j] = _mm512_add_epi64(sum[j], _mm512_loadu_si512(p + 64 * (i + j)));
    }
  for (size_t j = 1; j < 4; ++j) sum[0] = _mm512_add_epi64(sum[0], sum[j]);
  uint64_t words[8];
  _mm512_storeu_si512(words, sum[0]);
  return std::accumulate(words, words + 8, sum_any(p + lines / 4 * 256, lines % 4));
}
#endif

Sum best_sum() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return sum_avx512;
  if (__builtin_cpu_supports("avx2")) return sum_avx2;
#endif
  return sum_any;
}

}  // namespace

Reading::Reading(Threads& threads, const std::vector<std::span<const std::byte>>& parts) : threads_(threads) {
  constexpr size_t most = size_t(1) << 20;
  for (std::span<const std::byte> part : parts)
    for (; !part.empty(); part = part.subspan(std::min(most, part.size())))
      pieces_.push_back(part.first(std::min(most, part.size())));
}

double Reading::seconds() {
  const Sum sum = best_sum();
  std::vector<uint64_t> sums(pieces_.size());
  const auto start = Clock::now();
  threads_.run(int(pieces_.size()),
               [&](int i) { sums[size_t(i)] = sum(pieces_[size_t(i)].data(), pieces_[size_t(i)].size() / 64); });
  const double seconds = seconds_since(start);
  if (!sums_.empty() && sums != sums_) fail("memory changed while it was read");  // so nothing may be left out
  sums_ = sums;
  return seconds;
}

double read_bandwidth(Threads& threads) {
  const std::vector<std::byte> memory(size_t(1) << 30);  // zeros, but pages of their own: each is written
  Reading reading(threads, {memory});
  return double(memory.size()) / median({reading.seconds(), reading.seconds(), reading.seconds()});
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
