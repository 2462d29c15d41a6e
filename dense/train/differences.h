// Whether one run learns better than another on the same batches: the difference of their losses, with a band.
//
// The difference of each step, b - a, is averaged over the last W steps, an eighth of all. A moving block bootstrap says
// how far noise takes that mean: blocks of W / 8 neighbouring steps, whose dependence stays whole, are drawn with
// replacement 400 times; the band is the mean +- 95% quantile of |mean of drawn blocks - their expectation|, times
// sqrt(8 / 7) for there being only eight of them.                 Kuensch 1989, Annals of Statistics 17; Lahiri 2003
//
// That band is about noise of batches. Two runs also differ by luck: chaos parts trajectories that differ in the last
// bit, and one of them leaves a plateau earlier. Luck is worth some share of a run's steps, so a difference counts as
// settled only where the run that is behind has not even reached what the other one was a quarter of its steps ago
// (half of them, where batches differ, too), and if so for W steps or more, to the end. tools/false_alarms.py has the
// rates of false alarms.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace dense {

struct Differences {
  std::vector<int64_t> steps;                 // from 1, the last of each mean; some 2,000 of them at most
  std::vector<double> difference, low, high;  // b - a: the mean, and its band
  std::optional<int64_t> settled = {};        // from which on one is better to the end
};
// Of losses step by step, as far as both go. The same numbers for the same losses: what is random depends on nothing
// else.
Differences differences(std::span<const double> a, std::span<const double> b, bool same_batches = true);

}  // namespace dense
