// What the machine can do at most, measured beside what we reach.
#pragma once

#include <chrono>

#include "dense/tensor/threads.h"

namespace dense::cli {

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The best rate that oneDNN shows for products of GPT-2's sizes, each thread on one of its own, in FLOP/s. 0: it
// has none in bf16 for this processor.
double matmul_rate(bool bf16, int threads);

// The rate at which all threads together read memory from end to end, in bytes/s: the best of several short passes over
// 1 GiB of ordinary pages, which it holds while it runs. It changes from minute to minute: measure before and after.
double read_bandwidth(Threads& threads);

// The most memory that this process has had so far, in bytes.
double peak_memory();

}  // namespace dense::cli
