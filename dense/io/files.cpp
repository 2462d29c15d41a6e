#include "dense/io/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <random>

#include "dense/scalar/error.h"

namespace dense {
namespace {

namespace fs = std::filesystem;

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

[[noreturn]] void fail_to(const char* what, const fs::path& file) {
  fail(file.string(), ": cannot ", what, ": ", std::strerror(errno));
}

File open(const fs::path& file) {
  std::error_code ignored;
  if (fs::is_directory(file, ignored)) fail(file.string(), ": is a folder");
  File opened(std::fopen(file.c_str(), "rb"));
  if (!opened) fail_to("open", file);
  return opened;
}

}  // namespace

Bytes load_file(const fs::path& file, bool map) {
  const File opened = open(file);
  struct stat info {};
  if (fstat(fileno(opened.get()), &info) != 0) fail_to("read", file);
  if (!S_ISREG(info.st_mode)) fail(file.string(), ": expected a regular file");
  const size_t size = size_t(info.st_size);
  if (map && size > 0) {
    // Without NORESERVE the kernel refuses files larger than memory, since every page of this mapping may get a copy.
    const int flags = MAP_PRIVATE | MAP_NORESERVE;
    void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fileno(opened.get()), 0);
    if (start != MAP_FAILED)
      return {{static_cast<std::byte*>(start), size}, {start, [size](void* mapped) { munmap(mapped, size); }}};
  }
  constexpr std::align_val_t line{64};
  const std::shared_ptr<void> owner(::operator new(size, line), [](void* memory) { ::operator delete(memory, line); });
  if (std::fread(owner.get(), 1, size, opened.get()) != size) {
    if (std::ferror(opened.get())) fail_to("read", file);
    fail(file.string(), ": became shorter while it was read");
  }
  return {{static_cast<std::byte*>(owner.get()), size}, owner};
}

std::string read_file(const fs::path& file) {
  const File opened = open(file);
  std::string text;
  char block[1 << 16];
  while (size_t size = std::fread(block, 1, sizeof block, opened.get())) text.append(block, size);
  if (std::ferror(opened.get())) fail_to("read", file);
  return text;
}

void write_file(const fs::path& file, std::span<const std::span<const std::byte>> parts) {
  write_file(file, parts.size(), [&](size_t i) { return parts[i]; });
}

void write_file(const fs::path& file, size_t parts, const std::function<std::span<const std::byte>(size_t)>& part) {
  std::error_code ignored;
  if (fs::is_directory(file, ignored)) fail(file.string(), ": is a folder");
  fs::path folder = file.parent_path(), draft = folder / text(".dense-", std::random_device{}(), ".tmp");
  if (folder.empty()) folder = ".";
  File opened(std::fopen(draft.c_str(), "wbx"));
  if (!opened) fail_to("write", file);
  try {
    for (size_t i = 0; i < parts; ++i) {
      const std::span<const std::byte> bytes = part(i);
      if (bytes.empty()) continue;  // its address may be null
      if (std::fwrite(bytes.data(), 1, bytes.size(), opened.get()) != bytes.size()) fail_to("write", file);
    }
    if (std::fflush(opened.get()) != 0 || fsync(fileno(opened.get())) != 0) fail_to("write", file);
    if (std::fclose(opened.release()) != 0 || std::rename(draft.c_str(), file.c_str()) != 0) fail_to("write", file);
  } catch (...) {
    std::remove(draft.c_str());
    throw;
  }
  // The new name is on the disk once its folder is. Some file systems cannot sync folders, and need not.
  if (const int handle = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY); handle >= 0) fsync(handle), ::close(handle);
}

void write_file(const fs::path& file, std::string_view text) {
  const std::span<const std::byte> part = std::as_bytes(std::span(text));
  write_file(file, {&part, 1});
}

std::shared_ptr<void> lock_file(const fs::path& file) {
  File opened(std::fopen(file.c_str(), "ae"));  // e: programs that are started from here do not have it
  if (!opened) fail_to("write", file);
  if (flock(fileno(opened.get()), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return nullptr;
  return opened;
}

}  // namespace dense
