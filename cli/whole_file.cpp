#include "cli/whole_file.h"

#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>

#include "dense/scalar/error.h"

namespace dense::cli {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_to_write(const std::string& path) { fail(path, ": cannot write: ", std::strerror(errno)); }

// What `path` leads to now. Throws Error when that cannot be a file to write.
struct Target {
  struct stat info {};
  bool exists = false;
  std::FILE* stream = nullptr;  // stdout or stderr if they go there, as with /dev/stdout: replacing it would lose text

  explicit Target(const std::string& path) {
    exists = stat(path.c_str(), &info) == 0;
    if (!exists && errno != ENOENT) fail_to_write(path);
    if (!exists) return;
    if (S_ISDIR(info.st_mode)) fail(path, ": is a folder");
    if (access(path.c_str(), W_OK) != 0) fail_to_write(path);
    for (std::FILE* standard : {stdout, stderr}) {
      struct stat open {};
      if (fstat(fileno(standard), &open) != 0 || open.st_dev != info.st_dev || open.st_ino != info.st_ino) continue;
      stream = standard;
      break;
    }
  }
  bool in_place() const { return exists && !S_ISREG(info.st_mode); }
};

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

void write(std::FILE* file, std::string_view text, const std::string& path) {
  if (std::fwrite(text.data(), 1, text.size(), file) != text.size() || std::fflush(file) != 0) fail_to_write(path);
}

// A new, empty file in the folder of the file that `path` names or links to. Removed at the end unless renamed.
class Draft {
 public:
  explicit Draft(const std::string& path) : name_(path), target_(path) {
    while (fs::is_symlink(target_)) target_ = target_.parent_path() / fs::read_symlink(target_);
    draft_ = target_.parent_path() / fmt::format(".dense-{:08x}.tmp", std::random_device{}());
    file_.reset(std::fopen(draft_.c_str(), "wbx"));
    if (!file_) fail_to_write(name_);
  }
  ~Draft() {
    file_.reset();
    if (!draft_.empty()) std::remove(draft_.c_str());
  }
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;

  std::FILE* file() { return file_.get(); }
  void rename() {
    if (std::fclose(file_.release()) != 0 || std::rename(draft_.c_str(), target_.c_str()) != 0) fail_to_write(name_);
    draft_.clear();
  }

 private:
  std::string name_;  // as given, for errors
  fs::path target_, draft_;
  File file_;
};

}  // namespace

void check_writable(const std::string& path) {
  const Target target(path);
  if (!target.stream && !target.in_place()) Draft{path};
}

void write_whole_file(const std::string& path, std::string_view text) {
  const Target target(path);
  if (target.stream) return write(target.stream, text, path);
  if (target.in_place()) {
    const File file(std::fopen(path.c_str(), "wb"));
    if (!file) fail_to_write(path);
    return write(file.get(), text, path);
  }
  Draft draft(path);
  write(draft.file(), text, path);
  if (target.exists) fchmod(fileno(draft.file()), target.info.st_mode & 07777);
  draft.rename();
}

}  // namespace dense::cli
