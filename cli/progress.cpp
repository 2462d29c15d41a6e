#include "cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "cli/interrupt.h"

namespace dense::cli {

Progress::Progress(int steps, std::string unit, int before)
    : terminal_(isatty(STDERR_FILENO)), steps_(steps), unit_(std::move(unit)), before_(before) {}

void Progress::step(int step, double loss) {
  step_ = step;
  loss_ = loss;
  mean_ += (loss - mean_) * std::max(0.02, 1.0 / (step - before_));
  if (terminal_) {
    if (const auto now = Clock::now(); now >= next_draw_) {
      draw();
      next_draw_ = now + std::chrono::milliseconds(50);
    }
  } else if (const int every = steps_ / 10 + (steps_ % 10 != 0); step % every == 0) {
    const std::string total = std::to_string(steps_);
    say("{} {:>{}}/{}  loss {:.4f}  {}\n", unit_.substr(0, unit_.size() - 1), step, total.size(), total, loss, rate());
  }
}

void Progress::finish() {
  clear();
  if (step_ == before_) return;
  say("trained {} of {} steps in {:.2f} s, {}; loss {:.4f}, mean {:.4f}\n", with_commas(step_), with_commas(steps_),
      seconds(), rate(), loss_, mean_);
}

void Progress::draw() {
  drawn_ = true;
  const auto left = std::llround(seconds() / (step_ - before_) * (steps_ - step_));
  const std::string text = fmt::format("{}/{}  loss {:.4f}, mean {:.4f}  {}  {}:{:02} left", step_, steps_, loss_,
                                       mean_, rate(), left / 60, left % 60);
  winsize window{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0;
  const int columns = (known ? window.ws_col : 80) - 1;  // a full line would wrap
  const int bar = std::clamp(columns - 4 - static_cast<int>(text.size()), 0, 30);
  const int done = static_cast<int>(static_cast<int64_t>(bar) * step_ / steps_);
  const std::string line = fmt::format("[{:#<{}}{:-<{}}]  {}", "", done, "", bar - done, text);
  say("\r{}\x1b[K", bar > 0 ? line : text.substr(0, static_cast<size_t>(columns)));
}

void Progress::clear() {
  if (drawn_) say("\r\x1b[K");
  drawn_ = false;
}

std::string Progress::rate() const {
  const double speed = (step_ - before_) / std::max(seconds(), 1e-9);
  return (speed < 10 ? fmt::format("{:.2f}", speed) : with_commas(static_cast<int64_t>(speed))) + " " + unit_ + "/s";
}

bool ReadingProgress::operator()(int64_t bytes, int64_t of) {
  clear();
  if (bytes < of && (drawn_ = isatty(STDERR_FILENO))) say("tokens of {} of {} MB of text", bytes >> 20, of >> 20);
  return stop_signal() == 0;
}

void ReadingProgress::clear() {
  if (drawn_) say("\r\x1b[K");
  drawn_ = false;
}

std::string with_commas(int64_t number) {
  std::string digits = std::to_string(number);
  const size_t first = number < 0 ? 1 : 0;
  for (size_t i = digits.size(); i > first + 3;) digits.insert(i -= 3, ",");
  return digits;
}

}  // namespace dense::cli
