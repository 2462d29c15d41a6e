// What the machine can do at most, measured beside what we reach.
#pragma once

namespace dense::cli {

// The best rate that oneDNN shows for products of GPT-2's sizes, each thread on one of its own, in FLOP/s.
double matmul_rate(bool bf16, int threads);

// The most memory that this process has had so far, in bytes.
double peak_memory();

}  // namespace dense::cli
