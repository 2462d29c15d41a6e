// Progress of training, or of what else has steps and losses, on stderr: a bar when it is a terminal, else about ten
// lines in all.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace dense::cli {

class Progress {
 public:
  // `before`: steps that were taken earlier.
  explicit Progress(int steps, std::string unit = "steps", int before = 0);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(int step, double loss);  // `step` counts from 1
  void finish();                     // clears the bar and says how training went
  void clear();                      // the bar

 private:
  using Clock = std::chrono::steady_clock;
  void draw();
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  std::string rate() const;

  const bool terminal_;
  const int steps_;
  const std::string unit_;
  bool drawn_ = false;  // a bar is on the screen
  const int before_;
  int step_ = before_;
  double loss_ = 0, mean_ = 0;  // mean: of about the last 50 losses, later ones weigh more
  Clock::time_point start_ = Clock::now(), next_draw_ = start_;
};

// How much text has become tokens, on a terminal; whether to go on, which nobody has asked to stop.
class ReadingProgress {
 public:
  ~ReadingProgress() { clear(); }
  bool operator()(int64_t bytes, int64_t of);
  void clear();

 private:
  bool drawn_ = false;
};

// Prints to stderr. That nobody can read it (a full disk, a closed terminal) is no reason to stop working.
template <class... Args>
void say(fmt::format_string<Args...> format, Args&&... args) {
  std::fputs(fmt::format(format, std::forward<Args>(args)...).c_str(), stderr);
}

std::string with_commas(int64_t number);  // 1,234,567

}  // namespace dense::cli
