// What a run leaves to be looked at, in its folder:
//   config.json      everything that was asked for, defaults included
//   page.h           the source of the page that was trained, as it was built
//   metrics.jsonl    {"step": 1, "loss": 5.54, "norm": 1.2, "lr": 0.0003, "tokens_per_second": 9000}, a line a step
//   events.out.tfevents.*    the same for TensorBoard
//   report.html      what there is to see, rewritten every few seconds
//   run.json         the command, the machine, the state of git; status: running, done, stopped or failed
#pragma once

#include <cstdio>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dense {

class Records {
 public:
  // Of a run that has taken `steps` steps: what is said of later ones is taken out of metrics.jsonl. Throws Error where
  // the folder cannot be written.
  Records(const std::filesystem::path& folder, int64_t steps, const std::string& command);

  using Value = std::pair<const char*, double>;
  void add(int64_t step, std::initializer_list<Value> values);
  void add_text(int64_t step, const char* name, std::string_view text);
  void flush();                            // from memory to the files
  bool failed() const { return failed_; }  // whether something could not be written; training goes on
  void status(const std::string& status);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  using File = std::unique_ptr<std::FILE, Close>;
  void event(int64_t step, std::string_view summary, double seconds);
  void write_report();

  std::filesystem::path folder_;
  std::string command_, started_;
  File metrics_, events_;
  std::string metrics_text_, events_text_;  // not yet in the files
  double flushed_ = 0, report_due_ = 0;     // when, in seconds
  bool failed_ = false;
};

struct Metric {
  double step;
  std::string_view name;
  double value;  // NaN: it was not finite, or is a text
  std::string_view text = {};
};

// What metrics.jsonl says, line by line. A last line without an end is still being written. Throws Error.
void each_metric(const std::filesystem::path& file, const std::function<void(const Metric&)>& f);

}  // namespace dense
