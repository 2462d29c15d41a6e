// dense report: the page of a run or several says what their records say, whatever the records hold; in Chromium, where
// that is installed, it draws them.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/process.h"

namespace {

using namespace std::chrono_literals;
using nlohmann::json;

constexpr const char* nasty = "</script><img src=x onerror=\"document.body.textContent=1\">&lt; \x01\x7f \u2028 \u00e9";

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (size_t at = 0; (at = text.find(part, at)) != text.npos; at += part.size()) ++found;
  return found;
}

class Report : public InFolder {
 protected:
  // A run whose loss is 1, 2, 3 ..., its norm minus that, and twice that on the validation data, at every tenth step.
  void write_run(const std::string& name, int steps, const json& config, const std::string& status = "done",
                 const char* sample = nasty) {
    std::string metrics;
    for (int step = 1; step <= steps; ++step) {
      const std::string n = std::to_string(step);
      metrics += "{\"step\": " + n + ", \"loss\": " + n + ", \"norm\": -" + n + ", \"lr\": 0.001, \"other\": 9e3}\n";
      if (step % 10 == 0) metrics += json{{"step", step}, {"validation", 2 * step}}.dump() + "\n";
    }
    metrics += json{{"step", steps}, {"sample", sample}}.dump() + "\n";
    write(name + "/metrics.jsonl", metrics);
    write(name + "/config.json", config.dump());
    write(name + "/run.json", json{{"status", status}, {"command", "dense train <b>"}, {"git", "abc"}}.dump());
  }
  std::string report(const Args& args) {
    const Outcome outcome = run(Args{"report"} + args);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_TRUE(outcome.err.starts_with("wrote ")) << outcome.err;
    return contents(folder / outcome.err.substr(6, outcome.err.size() - 7));
  }
  // What is between <script ... id="data"> and </script>.
  static json data_of(const std::string& page) {
    const std::string begin = "<script type=\"application/json\" id=\"data\">";
    const size_t at = page.find(begin) + begin.size();
    return json::parse(page.substr(at, page.find("</script>", at) - at));
  }
  void refused(const Args& args, const std::string& says) {
    expect_refused(Args{"report"} + args, says, "dense report");
  }
};

TEST_F(Report, APageHoldsWhatTheRecordsSay) {
  write_run("r", 20, {{"model_type", "gpt2"}, {"optimizer", {{"lr", 1e-3}}}, {"seed", 9007199254740993}});
  const std::string page = report({"r"});
  EXPECT_EQ(page, contents(folder / "r/report.html"));
  const json run = data_of(page)["runs"][0];
  EXPECT_EQ(run["name"], "r");
  EXPECT_EQ(run["config"],
            json::parse(R"([["model_type","gpt2"],["optimizer.lr","0.001"],["seed","9007199254740993"]])"));
  EXPECT_EQ(run["facts"], json::parse(R"([["command","dense train <b>"],["git","abc"],["status","done"]])"));
  EXPECT_EQ(run["metrics"]["loss"]["steps"].size(), 20u);
  EXPECT_EQ(run["metrics"]["loss"]["values"][6], 7);
  EXPECT_EQ(run["metrics"]["validation"], json::parse(R"({"steps": [10, 20], "values": [20, 40]})"));
  EXPECT_EQ(run["samples"], json::array({{20, nasty}}));
}

TEST_F(Report, APageNeedsNothingElseAndNothingBreaksOutOfItsText) {
  write_run("r", 20, {{"out", "<!--<script>alert(1)</script>"}});
  write_run("plain", 20, {}, "done", "text");
  const std::string page = report({"r"}), plain = report({"plain"});
  for (const char* part : {"<script", "</script", "<img", "<!--"})
    EXPECT_EQ(count(page, part), count(plain, part)) << part;
  for (const char* part :
       {" src=", "<link", "@import", "url(", "sourceMappingURL", "@dygraph.", "@dygraphs_", "REPORT_DATA"})
    EXPECT_FALSE(contains(plain, part)) << part;
  EXPECT_TRUE(contains(page, "default-src 'none'"));
  EXPECT_TRUE(contains(page, "Permission is hereby granted")) << "the license of dygraphs";
}

TEST_F(Report, LongCurvesAreMeansBetweenTheLeastAndTheGreatest) {
  write_run("r", 5000, {});
  const json metrics = data_of(report({"r"}))["runs"][0]["metrics"];
  EXPECT_EQ(metrics["loss"]["steps"].size(), 2000u);
  const auto point = [&](const char* name, int i) {
    const json& m = metrics[name];
    return std::vector<double>{m["steps"][i], m["values"][i], m["low"][i], m["high"][i]};
  };
  EXPECT_EQ(point("loss", 0), (std::vector<double>{2, 1.5, 1, 2}));
  EXPECT_EQ(point("loss", 1), (std::vector<double>{5, 4, 3, 5}));
  EXPECT_EQ(point("loss", 1999), (std::vector<double>{5000, 4999, 4998, 5000}));
  EXPECT_EQ(point("norm", 1), (std::vector<double>{5, -4, -5, -3}));
  EXPECT_FALSE(metrics["validation"].contains("low"));
}

TEST_F(Report, RunsMayLieInFolders) {
  for (const char* run : {"sweep/lr=1", "sweep/lr=2", "sweep/deep/er", "sweep/not/so/deep", "other/lr=1"})
    write_run(run, 3, {});
  const json difference = {{"a", "x"},       {"b", "y"},       {"steps", {1, 2}},   {"difference", {0.5, -0.5}},
                           {"low", {0, -1}}, {"high", {1, 0}}, {"settled", nullptr}};
  write("sweep/differences.json", json{{"pairs", {difference}}}.dump());
  const auto names = [](const json& data) {
    std::vector<std::string> all;
    for (const json& run : data["runs"]) all.push_back(run["name"]);
    return all;
  };
  const json sweep = data_of(report({"sweep"}));
  EXPECT_TRUE(fs::exists(folder / "sweep/report.html"));
  EXPECT_EQ(names(sweep), (Args{"deep/er", "lr=1", "lr=2"}));
  EXPECT_EQ(sweep["differences"][0][0]["series"],
            json::parse(R"({"steps": [1, 2], "values": [0.5, -0.5], "low": [0, -1], "high": [1, 0]})"));
  EXPECT_EQ(names(data_of(report({"sweep/lr=1/", "./other", "sweep/lr=1"}))), (Args{"sweep/lr=1", "other/lr=1"}));
  EXPECT_TRUE(fs::exists(folder / "report.html"));
  report({"other", "sweep", "--out", "all.html"});
}

TEST_F(Report, WhatIsNoRecordIsRefusedInALine) {
  const std::string line = "{\"step\": 1, \"loss\": 2}\n";
  write("r/metrics.jsonl", line + "{\"step\": 2, \"loss\": in");  // being written
  EXPECT_EQ(data_of(report({"r"}))["runs"][0]["metrics"]["loss"]["steps"], json::array({1}));
  fs::create_directory(folder / "empty");
  refused({}, "expected RUN...");
  refused({"empty"}, "empty: expected a run's folder, with metrics.jsonl, or a folder of such");
  refused({"none"}, "none: expected a run's folder");
  const std::pair<std::string, std::string> broken[] = {
      {"{\"step\": 2, \"loss\": in\n", "line 2: not JSON"},
      {"{\"step\": 2, \"loss\": inf}\n", "line 2: not JSON"},
      {"{\"step\": 2, \"loss\": 1}}\n", "line 2: not JSON"},
      {"{\"loss\": 2}\n", "line 2: expected an object with a \"step\", got {\"loss\":2}"},
      {"{\"step\": 2, \"loss\": [2]}\n", "line 2: expected a number, got [2]"},
      {"{\"step\": \"2\"}\n", "line 2: expected a number, got \"2\""},
      {"}\n", "line 2: not JSON"},
      {"\n", "line 2: not JSON"}};
  for (const auto& [text, says] : broken) {
    write("r/metrics.jsonl", line + text + line);
    refused({"r"}, "r/metrics.jsonl: " + says);
  }
  write("r/metrics.jsonl", line + "{\"step\": 2, \"loss\": null}\n{\"loss\": 3, \"step\": 3}\n");
  EXPECT_EQ(data_of(report({"r"}))["runs"][0]["metrics"]["loss"]["steps"], json::array({1, 3}));
  write("r/config.json", "{");
  refused({"r"}, "r/config.json: not JSON");
}

TEST_F(Report, IsWrittenWhileTrainingAndNeverStopsIt) {
  write("names.txt", "anna\nbob\ncarol\ndave\nanna\nbob\ncarol\ndave\n");
  const Args args = {"train", "--data.path", "names.txt", "--time", "4", "--batch", "1", "--model_type", "microgpt"};
  Process process(folder, args + Args{"--steps", "100000000", "--out", "r"});
  const fs::path page = folder / "r/report.html";
  for (int i = 0; i < 1000 && !fs::exists(page); ++i) std::this_thread::sleep_for(10ms);
  const json facts = data_of(contents(page))["runs"][0]["facts"];
  EXPECT_EQ(facts[0], (json{"status", "running"}));
  process.send(SIGTERM);
  process.wait();
  const json run = data_of(contents(page))["runs"][0];
  EXPECT_EQ(run["facts"][0], (json{"status", "stopped"}));
  EXPECT_GE(run["metrics"]["loss"]["steps"].size(), 1u);

  fs::create_directories(folder / "s/report.html");
  const Outcome outcome = this->run(args + Args{"--steps", "3", "--out", "s"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
}

// The page after Chromium has run its scripts, `script` last, for 12 seconds of virtual time.
class ReportInChromium : public Report {
 protected:
  void SetUp() override {
    if (std::system("command -v chromium >/dev/null") != 0) GTEST_SKIP() << "chromium is not installed";
  }
  std::string dom(std::string page, const std::string& script) {
    write("page.html", page.insert(page.rfind("</html>"), "<script>" + script + "</script>"));
    const std::string at = folder.string();
    const std::string command =
        "timeout 60 chromium --headless --no-sandbox --disable-gpu --enable-logging=stderr --v=0 "
        "--user-data-dir=" +
        at + "/profile --virtual-time-budget=12000 --dump-dom file://" + at + "/page.html >" + at + "/dom.html 2>" +
        at + "/log.txt </dev/null";
    EXPECT_EQ(std::system(command.c_str()), 0) << contents(folder / "log.txt");
    EXPECT_FALSE(contains(contents(folder / "log.txt"), "CONSOLE")) << contents(folder / "log.txt");
    const std::string all = contents(folder / "dom.html");
    return all.substr(all.find("<header>"), all.find("<script>", all.find("<header>")) - all.find("<header>"));
  }
};

TEST_F(ReportInChromium, CurvesLegendTablesAndSamplesAreThere) {
  write_run("runs/a", 30, {{"optimizer", {{"lr", 1e-3}}}, {"seed", 1}});
  write_run("runs/b", 5000, {{"optimizer", {{"lr", 2e-3}}}, {"seed", 1}, {"more", true}});
  const json difference = {{"a", "a"},       {"b", "b"},       {"steps", {1, 2}}, {"difference", {0.5, -0.5}},
                           {"low", {0, -1}}, {"high", {1, 0}}, {"settled", 2}};
  write("runs/differences.json", json{{"pairs", {difference}}}.dump());
  const std::string page = report({"runs"});
  // A run is hidden, a logarithm taken, a part of the steps looked at; and in twelve seconds nothing was loaded again.
  const std::string drawn = dom(page, R"(
    document.querySelectorAll('#legend input')[0].click();
    document.querySelectorAll('figcaption input')[0].click();
    zoom([10, 20]);
    const order = () => [...document.querySelectorAll('#results tr')].slice(1).map((row) => row.cells[0].textContent).join();
    const orders = [order()];
    for (const column of ['optimizer.lr', 'optimizer.lr', 'more']) {
      [...document.querySelectorAll('#results th')].find((th) => th.textContent.startsWith(column)).click();
      orders.push(order());
    }
    state.loads = (state.loads ?? 0) + 1, keep();
    const { chart } = charts[0];
    document.querySelector('h1').textContent = JSON.stringify([chart.visibility(), chart.getOption('logscale'),
      charts.map(({ chart }) => chart.xAxisRange()[0]), history.state.hidden, history.state.loads, orders]);)");
  EXPECT_TRUE(contains(drawn,
                       "[[false,false,true,true,false,true],true,[10,10,10,10,10,10],[\"a\"],1,"
                       "[\"a,b\",\"a,b\",\"b,a\",\"b,a\"]]"))
      << drawn;
  EXPECT_EQ(count(drawn, "<article hidden"), 1) << "its samples";
  EXPECT_EQ(count(drawn, "<figure>"), 6);
  EXPECT_EQ(count(drawn, "<canvas"), 12) << "dygraphs draws on two";
  EXPECT_GT(count(drawn, "dygraph-axis-label-x"), 6);
  EXPECT_TRUE(contains(drawn, "settled from step 2"));
  EXPECT_EQ(count(drawn, "type=\"checkbox\""), 2 + 6) << "a run each, a logarithm each";
  EXPECT_EQ(count(drawn, " (done)</label>"), 2) << "the legend";
  EXPECT_EQ(count(drawn, "class=\"differs\""), 4) << "lr and more";
  EXPECT_TRUE(contains(drawn, "1 that are equal in all runs"));
  EXPECT_EQ(count(drawn, "&lt;/script&gt;&lt;img src=x onerror=\"document.body.textContent=1\"&gt;&amp;lt; "), 2);
  EXPECT_FALSE(contains(drawn, "<img"));
}

TEST_F(ReportInChromium, ThePageOfARunThatGoesOnReloadsItself) {
  const std::string script = R"(
    state.loads = (state.loads ?? 0) + 1, keep();
    if (state.loads === 3) for (let i = 0; i < 100; ++i) clearInterval(i);
    document.querySelector('h1').textContent = `loaded ${state.loads} times`;)";
  write_run("r", 5, {}, "running");
  EXPECT_TRUE(contains(dom(report({"r"}), script), "loaded 3 times"));
}

}  // namespace
