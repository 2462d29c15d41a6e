// Files as wholes: read or mapped at once, written completely or not at all. Every function throws Error, in one line.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace dense {

// Memory that lives as long as any copy of `owner`.
struct Bytes {
  std::span<std::byte> bytes;
  std::shared_ptr<void> owner;
};

// A file's bytes, writable: writing copies the page written to and never reaches the file. Mapped, so that only what
// is touched takes memory; read as a whole where mapping does not work or `map` is false. A file that another program
// cuts short while it is mapped ends this one, so files are replaced (as write_file does), not rewritten.
Bytes load_file(const std::filesystem::path& file, bool map = true);

std::string read_file(const std::filesystem::path& file);

// Writes the parts, one after the other, to a new file beside `file`, and renames it over `file` once it is on the
// disk. Whoever has the old file open or mapped keeps it. A link is replaced, not followed: in the Hugging Face cache
// the file behind it belongs to other revisions too.
void write_file(const std::filesystem::path& file, std::span<const std::span<const std::byte>> parts);
void write_file(const std::filesystem::path& file, std::string_view text);
// The same with parts that are made one by one: part(0), part(1) ... are asked for once each, and only the last one
// asked for must still be there. What `part` throws leaves no file behind.
void write_file(const std::filesystem::path& file, size_t parts,
                const std::function<std::span<const std::byte>(size_t)>& part);

// Takes a file, which is made where there is none, for this process alone while a copy of the result lives, however the
// process ends; none where somebody has it. Where the file system knows of no locks, nobody ever has.
std::shared_ptr<void> lock_file(const std::filesystem::path& file);

}  // namespace dense
