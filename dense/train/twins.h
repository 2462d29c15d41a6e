// Twins: several runs in one process on the same batches, so that what differs is what their configs say.
//
//   Twins twins({{"a", page_a, config_a}, {"b", page_b, config_b}}, "runs/ab", names);
//   twins.run({.step = [](size_t twin, const Trainer::Step& s) { ... }});
//
// Each has a run's folder of its own in that of the twins, which also holds differences.json. New parameters of equal
// name and shape begin with the same random numbers, which are a function of seed, name and place alone.
#pragma once

#include <chrono>
#include <deque>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "dense/train/differences.h"
#include "dense/train/trainer.h"

namespace dense {

class Twins {
 public:
  struct Twin {
    std::string name;  // of its folder
    Page page;
    TrainConfig config;
  };
  // The first one's seed is that of all. Throws Error for twins that would not have the same batches (data.seed may
  // differ: for a control, which then reads batches of its own) and for whatever a Trainer refuses. With `resume` all
  // go on from their last checkpoints.
  Twins(std::vector<Twin> twins, const std::filesystem::path& folder, std::string_view built_in, bool resume = false,
        const Warn& warn = {}, const Reading& reading = {});

  struct Events {
    std::function<void(size_t twin, const Trainer::Step&)> step = {};
    std::function<void(size_t twin, int64_t step, double loss)> evaluated = {};
    std::function<bool()> stop = {};  // asked after each step that all have taken
    Warn warn = {};
  };
  // Trains them all to their last steps or until asked to stop; whether they reached these. One that is behind, its
  // last checkpoint being older, catches up first.
  bool run(const Events& events);

  size_t size() const { return trainers_.size(); }
  Trainer& trainer(size_t twin) { return trainers_[twin]; }
  const std::string& name(size_t twin) const { return names_[twin]; }
  Differences between(size_t a, size_t b) const;  // of the losses of two, so far

 private:
  void write_differences();

  std::filesystem::path folder_;
  std::vector<std::string> names_;
  std::deque<Trainer> trainers_;
  std::vector<std::vector<double>> losses_;  // of each, step by step
  std::chrono::steady_clock::time_point write_next_ = {};
};

// The names of the twins in a folder, in their order. Throws Error where it holds none.
std::vector<std::string> twins_in(const std::filesystem::path& folder);

}  // namespace dense
