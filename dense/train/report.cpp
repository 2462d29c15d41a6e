#include "dense/train/report.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "dense/io/files.h"
#include "dense/io/json.h"
#include "dense/scalar/error.h"
#include "dense/train/records.h"

namespace dense {

namespace fs = std::filesystem;

extern const std::string_view report_page;  // report.html and the chart library; made by CMakeLists.txt

namespace {

constexpr size_t most_points = 2000, most_samples = 200;

// ---- JSON for the page, written as text

std::string digits(double value, int precision) {
  char buffer[32];
  return {buffer, std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::general, precision).ptr};
}

std::string list(const auto& items, const auto& text_of) {
  std::string all = "[";
  for (const auto& item : items) {
    if (all.size() > 1) all += ',';
    all += text_of(item);
  }
  return all + "]";
}

// Of numbers: as precise as a screen; steps are whole.
std::string list(const std::vector<double>& numbers, int precision = 6) {
  return list(numbers, [&](double number) { return digits(number, precision); });
}

// ---- curves

struct Series {
  std::vector<double> steps, values, low, high;

  void add(double step, double value, double least, double greatest) {
    steps.push_back(step), values.push_back(value), low.push_back(least), high.push_back(greatest);
  }
  // Neighbours as one point, at the last of them: their mean, the least and the greatest of them.
  Series binned() const {
    if (steps.size() <= most_points) return *this;
    Series bins;
    for (size_t bin = 0, begin = 0; bin < most_points; ++bin) {
      const size_t end = (bin + 1) * steps.size() / most_points;
      double sum = 0, least = low[begin], greatest = high[begin];
      for (size_t i = begin; i < end; ++i) {
        sum += values[i];
        least = std::min(least, low[i]), greatest = std::max(greatest, high[i]);
      }
      bins.add(steps[end - 1], sum / double(end - begin), least, greatest);
      begin = end;
    }
    return bins;
  }
  std::string json() const {
    const Series s = binned();
    std::string all = "{\"steps\":" + list(s.steps, 15) + ",\"values\":" + list(s.values);
    if (s.low != s.values || s.high != s.values) all += ",\"low\":" + list(s.low) + ",\"high\":" + list(s.high);
    return all + "}";
  }
};

// What metrics.jsonl says, in the order of its first lines.
struct Metrics {
  std::vector<std::pair<std::string, Series>> series;
  std::vector<std::pair<double, std::string>> samples;

  void add(double step, std::string_view name, double value) {
    auto same = series.begin();
    while (same != series.end() && same->first != name) ++same;
    if (same == series.end()) same = series.insert(same, {std::string(name), {}});
    same->second.add(step, value, value, value);
  }
  std::string json() const {
    std::string all = "{";
    for (const auto& [name, each] : series) all += (all.size() > 1 ? "," : "") + json_string(name) + ":" + each.json();
    return all + "}";
  }
  // Evenly chosen from first to last, where there are many.
  std::string samples_json() const {
    std::vector<size_t> chosen;
    for (size_t i = 0, n = std::min(samples.size(), most_samples); i < n; ++i)
      chosen.push_back(n < 2 ? 0 : i * (samples.size() - 1) / (n - 1));
    return list(chosen, [&](size_t i) {
      return "[" + digits(samples[i].first, 15) + "," + json_string(samples[i].second) + "]";
    });
  }
};

Metrics read_metrics(const fs::path& file) {
  Metrics metrics;
  each_metric(file, [&](const Metric& m) {
    if (m.text.data()) metrics.samples.emplace_back(m.step, m.text);
    else if (!std::isnan(m.value)) metrics.add(m.step, m.name, m.value);
  });
  return metrics;
}

// ---- folders

struct Found {
  std::vector<fs::path> runs, differences;
};

void find_runs(const fs::path& folder, int levels, Found& found) {
  if (fs::exists(folder / "differences.json")) found.differences.push_back(folder / "differences.json");
  if (fs::exists(folder / "metrics.jsonl")) return found.runs.push_back(folder);
  std::set<fs::path> below;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; levels > 0 && !error && entry != end; entry.increment(error))
    if (entry->is_directory()) below.insert(entry->path());
  for (const fs::path& each : below) find_runs(each, levels - 1, found);
}

// The deepest folder that all of these lie in.
fs::path common_folder(const std::vector<fs::path>& runs) {
  fs::path common = runs.front().parent_path();
  for (const fs::path& run : runs)
    while (std::mismatch(common.begin(), common.end(), run.begin(), run.end()).first != common.end())
      common = common.parent_path();
  return common;
}

// [name, text] of everything in a file of JSON, nested names joined by dots; nothing where there is no file.
void add_facts(const Json& json, const std::string& prefix, std::vector<std::pair<std::string, std::string>>& to) {
  for (const Json& item : json.items)
    if (item.kind == Json::object) add_facts(item, prefix + item.name + ".", to);
    else if (item.name == "git_changes") to.emplace_back(item.name, item.text.empty() ? "none" : "see run.json");
    else to.emplace_back(prefix + item.name, item.kind == Json::string ? item.text : to_text(item));
}

std::string facts_json(const fs::path& file) {
  std::vector<std::pair<std::string, std::string>> facts;
  if (fs::exists(file)) add_facts(parse_json(read_file(file), file.string()), "", facts);
  return list(facts,
              [](const auto& fact) { return "[" + json_string(fact.first) + "," + json_string(fact.second) + "]"; });
}

std::string run_json(const fs::path& run, const std::string& name) {
  const Metrics metrics = read_metrics(run / "metrics.jsonl");
  return "{\"name\":" + json_string(name) + ",\"config\":" + facts_json(run / "config.json") +
         ",\"facts\":" + facts_json(run / "run.json") + ",\"metrics\":" + metrics.json() +
         ",\"samples\":" + metrics.samples_json() + "}\n";
}

// The pairs of a file differences.json, each with its curve and the step at which it has settled.
std::string differences_json(const fs::path& file) {
  const Json json = parse_json(read_file(file), file.string());
  const auto item = [&](const Json& object, const char* name) -> const Json& {
    const Json* const value = object.find(name);
    if (!value) fail(file.string(), ": expected pairs with ", name, ", got ", shown(object));
    return *value;
  };
  return list(item(json, "pairs").items, [&](const Json& pair) {
    Series series;
    const std::vector<Json>&steps = item(pair, "steps").items, &values = item(pair, "difference").items;
    const std::vector<Json>&low = item(pair, "low").items, &high = item(pair, "high").items;
    if (values.size() != steps.size() || low.size() != steps.size() || high.size() != steps.size())
      fail(file.string(), ": expected as many of difference, low and high as steps");
    const auto number = [&](const Json& value) { return number_of(value, file.string()); };
    for (size_t i = 0; i < steps.size(); ++i)
      if (values[i].kind != Json::null)
        series.add(number(steps[i]), number(values[i]), number(low[i]), number(high[i]));
    return "{\"a\":" + json_string(item(pair, "a").text) + ",\"b\":" + json_string(item(pair, "b").text) +
           ",\"settled\":" + to_text(item(pair, "settled")) + ",\"series\":" + series.json() + "}";
  });
}

}  // namespace

std::string report(std::span<const fs::path> folders) {
  Found found;
  for (const fs::path& folder : folders) {
    const size_t before = found.runs.size();
    const fs::path whole = (fs::absolute(folder) / "").lexically_normal().parent_path();
    find_runs(whole, 2, found);
    if (found.runs.size() == before)
      fail(folder.string(), ": expected a run's folder, with metrics.jsonl, or a folder of such");
  }
  std::vector<fs::path> runs;
  for (const fs::path& run : found.runs)
    if (std::ranges::find(runs, run) == runs.end()) runs.push_back(run);
  const fs::path common = common_folder(runs);
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string data = "{\"written\":" + digits(now.count(), 15) + ",\"runs\":" + list(runs, [&](const fs::path& run) {
                       return run_json(run, run.lexically_relative(common).string());
                     });
  data += ",\"differences\":" + list(found.differences, differences_json) + "}";

  // All of this is ASCII, and without < nothing in it can end the element that it stands in.
  constexpr std::string_view mark = "REPORT_DATA";
  std::string page(report_page);
  const size_t at = page.find(mark);
  std::string safe;
  for (char c : data) c == '<' ? safe += "\\u003c" : safe += c;
  return page.replace(at, mark.size(), safe);
}

}  // namespace dense
