// One run of the dense program, and the folder of its own in which a test runs it.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "tests/temporary.h"

namespace fs = std::filesystem;
using Args = std::vector<std::string>;

inline Args lines(const std::string& text) {
  Args result;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) result.push_back(line);
  return result;
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

inline Args operator+(Args a, const Args& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// One run of the program. What it reads and prints are unnamed temporary files, so no pipe can fill up.
class Process {
 public:
  struct Options {
    int out_fd = -1, err_fd = -1;                         // -1: captured
    std::string in = {};                                  // standard input
    std::map<std::string, std::string> environment = {};  // more of it
  };
  Process(const fs::path& folder, const Args& args, const Options& options) {
    std::vector<char*> argv = {const_cast<char*>("dense")};
    for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
    argv.push_back(nullptr);
    const File in(std::tmpfile(), std::fclose);
    std::fwrite(options.in.data(), 1, options.in.size(), in.get());
    std::rewind(in.get());
    pid_ = fork();
    if (pid_ != 0) return;
    alarm(60);  // survives exec: a run that hangs is killed
    for (int signal : {SIGINT, SIGTERM, SIGPIPE}) std::signal(signal, SIG_DFL);
    for (const auto& [name, value] : options.environment) setenv(name.c_str(), value.c_str(), 1);
    dup2(fileno(in.get()), 0);
    dup2(options.out_fd < 0 ? fileno(out_.get()) : options.out_fd, 1);
    dup2(options.err_fd < 0 ? fileno(err_.get()) : options.err_fd, 2);
    if (chdir(folder.c_str()) == 0) execv(DENSE_CLI, argv.data());
    _exit(127);
  }
  Process(const fs::path& folder, const Args& args) : Process(folder, args, Options()) {}
  ~Process() {
    if (pid_ > 0) kill(pid_, SIGKILL), wait();
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void send(int signal) { kill(pid_, signal); }
  int wait() {  // the exit code, or minus the signal that killed it
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
  }
  std::string out() const { return text(out_.get()); }
  std::string err() const { return text(err_.get()); }

 private:
  using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;
  static std::string text(std::FILE* file) {
    std::string result(static_cast<size_t>(lseek(fileno(file), 0, SEEK_END)), '\0');
    if (pread(fileno(file), result.data(), result.size(), 0) < 0) ADD_FAILURE() << "cannot read the output back";
    return result;
  }
  File out_{std::tmpfile(), std::fclose}, err_{std::tmpfile(), std::fclose};
  pid_t pid_ = -1;
};

// Each test has a folder of its own, in which the program runs.
class InFolder : public testing::Test {
 protected:
  struct Outcome {
    int exit_code;
    std::string out, err;
  };
  const TemporaryFolder temporary;
  const fs::path folder = temporary.path();

  void write(const std::string& name, const std::string& text) {
    fs::create_directories((folder / name).parent_path());
    std::ofstream(folder / name, std::ios::binary) << text;
  }
  Outcome run(const Args& args, const Process::Options& options = {}) {
    Process process(folder, args, options);
    const int exit_code = process.wait();
    return {exit_code, process.out(), process.err()};
  }

  std::map<std::string, std::string> snapshot() {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      const bool regular = fs::is_regular_file(entry.symlink_status());
      files[entry.path()] = regular ? contents(entry.path()) : "";
      files[entry.path()] += std::to_string(regular ? entry.last_write_time().time_since_epoch().count() : 0);
    }
    return files;
  }
  void expect_refused(const Args& args, const std::string& says, const std::string& program,
                      const Process::Options& options = {}) {
    const auto files = snapshot();
    const Outcome outcome = run(args, options);
    const std::string call = testing::PrintToString(args) + "\n" + outcome.err;
    EXPECT_EQ(outcome.exit_code, 2) << call;
    EXPECT_EQ(outcome.out, "") << call;
    EXPECT_EQ(lines(outcome.err).size(), 1u) << call;
    EXPECT_TRUE(outcome.err.starts_with(program + ": ") && outcome.err.ends_with("\n")) << call;
    EXPECT_TRUE(contains(outcome.err, says)) << call << "does not say: " << says;
    EXPECT_TRUE(snapshot() == files) << call << "changed files";
  }
};
