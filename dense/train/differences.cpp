#include "dense/train/differences.h"

#include <algorithm>
#include <cmath>

#include "dense/tensor/elements.h"

namespace dense {

namespace {

constexpr size_t most_points = 2000, least_window = 16, blocks = 8, draws = 400;

// Means of neighbours: sums[i] is that of the first i, of which each is the mean of `width` losses.
std::vector<double> running_sums(std::span<const double> losses, size_t width) {
  std::vector<double> sums{0};
  for (size_t i = 0; i + width <= losses.size(); i += width) {
    double sum = 0;
    for (size_t k = 0; k < width; ++k) sum += losses[i + k];
    sums.push_back(sums.back() + sum / double(width));
  }
  return sums;
}

}  // namespace

Differences differences(std::span<const double> a, std::span<const double> b, bool same_batches) {
  const size_t total = std::min(a.size(), b.size());
  size_t width = 1;
  while (total / width > most_points) width *= 2;
  const std::vector<double> a_sums = running_sums(a.first(total), width), b_sums = running_sums(b.first(total), width);
  const size_t points = a_sums.size() - 1, window = std::max(least_window, points / 8), block = window / blocks;
  Differences result;
  if (points < window) return result;

  std::vector<double> d_sums;
  for (size_t i = 0; i <= points; ++i) d_sums.push_back(b_sums[i] - a_sums[i]);
  const size_t starts = window - block + 1;
  std::vector<size_t> drawn;  // where blocks begin in a window, the same for each
  for (size_t i = 0; i < draws * blocks; ++i) drawn.push_back(size_t(mixed(mixed(1) + i) % starts));
  const auto mean = [&](const std::vector<double>& sums, size_t end, size_t length) {
    return (sums[end] - sums[end - length]) / double(length);
  };
  std::vector<int> better;  // at each point: +1: a, -1: b, 0: it is not clear
  std::vector<double> of_blocks(starts), distances(draws);
  for (size_t end = window; end <= points; ++end) {
    double expected = 0;
    for (size_t s = 0; s < starts; ++s)
      expected += (of_blocks[s] = mean(d_sums, end - window + s + block, block)) / double(starts);
    for (size_t draw = 0; draw < draws; ++draw) {
      double sum = 0;
      for (size_t k = 0; k < blocks; ++k) sum += of_blocks[drawn[draw * blocks + k]];
      distances[draw] = std::abs(sum / double(blocks) - expected);
    }
    const auto quantile = distances.begin() + std::ptrdiff_t(draws * 95 / 100);
    std::ranges::nth_element(distances, quantile);
    const double band = *quantile * std::sqrt(double(blocks) / (blocks - 1)), difference = mean(d_sums, end, window);
    result.steps.push_back(int64_t(end * width));
    result.difference.push_back(difference);
    result.low.push_back(difference - band);
    result.high.push_back(difference + band);
    const std::vector<double>& leader = difference > 0 ? a_sums : b_sums;
    const size_t earlier = std::max(window, same_batches ? end - end / 4 : end - end / 2);
    const double luck = std::max(0.0, mean(leader, earlier, window) - mean(leader, end, window));
    better.push_back(difference - band - luck > 0 ? 1 : difference + band + luck < 0 ? -1 : 0);
  }
  size_t first = better.size();
  while (first > 0 && better[first - 1] == better.back()) --first;
  if (better.back() != 0 && better.size() - first >= window) result.settled = result.steps[first];
  return result;
}

}  // namespace dense
