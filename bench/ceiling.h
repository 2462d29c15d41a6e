// What the machine can do at most, measured beside what we reach.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "dense/tensor/threads.h"

namespace dense::cli {

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Of at least one; of an even number the mean of the middle two.
inline double median(std::vector<double> x) {
  std::ranges::sort(x);
  return (x.at((x.size() - 1) / 2) + x.at(x.size() / 2)) / 2;
}

// The rate that oneDNN shows for products of that one of GPT-2's sizes that it is best at, each thread on one of its own,
// in FLOP/s. 0: it has none in bf16 for this processor.
double matmul_rate(bool bf16, int threads);

// Memory that all threads together read from end to end, over and over, with no more arithmetic than a sum.
class Reading {
 public:
  Reading(Threads& threads, const std::vector<std::span<const std::byte>>& parts);
  double seconds();  // of one more pass; on a shared machine they differ within a second, and from page to page

 private:
  Threads& threads_;
  std::vector<std::span<const std::byte>> pieces_;
  std::vector<uint64_t> sums_;
};

// The rate at which all threads together read memory, in bytes/s: in the middle of passes over 1 GiB of ordinary pages,
// which it holds while it runs. It changes from minute to minute: measure before and after.
double read_bandwidth(Threads& threads);

// The most memory that this process has had so far, in bytes.
double peak_memory();

}  // namespace dense::cli
