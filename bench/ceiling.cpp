#include "bench/ceiling.h"

#include <algorithm>
#include <chrono>
#include <dnnl.hpp>
#include <thread>
#include <vector>

extern "C" void omp_set_num_threads(int count);  // of the OpenMP library that oneDNN uses

namespace dense::cli {

using Clock = std::chrono::steady_clock;
static double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double matmul_rate(bool bf16, int threads) {
  const int64_t m = 1024, n = 3072, k = 768;
  const auto type = bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  const auto f32 = dnnl::memory::data_type::f32;
  using tag = dnnl::memory::format_tag;
  double best = 0;
  std::vector<std::thread> pool;
  std::vector<double> rates(static_cast<size_t>(threads), 0);
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      omp_set_num_threads(1);  // oneDNN's own threads, of this thread alone
      const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
      dnnl::stream stream(engine);
      const dnnl::memory::desc a({m, k}, type, tag::ab), b({k, n}, type, tag::ab), c({m, n}, f32, tag::ab);
      const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), engine);
      const dnnl::matmul product(description);
      dnnl::memory x(a, engine), w(b, engine), y(c, engine);
      std::fill_n(static_cast<char*>(x.get_data_handle()), a.get_size(), char(0));
      std::fill_n(static_cast<char*>(w.get_data_handle()), b.get_size(), char(0));
      double fastest = 1e9;
      for (const auto begin = Clock::now(); seconds_since(begin) < 1;) {
        const auto start = Clock::now();
        product.execute(stream, {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, y}});
        stream.wait();
        fastest = std::min(fastest, seconds_since(start));
      }
      rates[size_t(t)] = 2.0 * double(m) * double(n) * double(k) / fastest;
    });
  }
  for (std::thread& thread : pool) thread.join();
  for (double rate : rates) best += rate;
  return best;
}

}  // namespace dense::cli
