// dense report: runs to be looked at, as one HTML page.
#include <filesystem>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/progress.h"
#include "dense/io/files.h"
#include "dense/train/report.h"

namespace dense::cli {
namespace {

struct Config {
  std::string out;
  void fields(auto&& f) { f("out", out, "the page's file (default: RUN/report.html for one RUN, else report.html)"); }
};

}  // namespace

int report_command(const Call& call) {
  Config config;
  std::vector<std::string> names;
  if (!parse_flags(config, call,
                   "Writes a page to look at runs: curves, samples, configs side by side. It needs no network.\n"
                   "RUN is a run's folder, or one of runs, such as a sweep's.",
                   call.program + " runs/small runs/large --out both.html", {{"RUN...", nullptr, &names}}))
    return 0;
  const std::vector<std::filesystem::path> runs(names.begin(), names.end());
  const std::filesystem::path one = runs.size() == 1 ? runs[0] / "report.html" : "report.html";
  const std::filesystem::path out = config.out.empty() ? one : std::filesystem::path(config.out);
  write_file(out, report(runs));
  say("wrote {}\n", out.string());
  return 0;
}

}  // namespace dense::cli
