// Files that appear whole or not at all.
#pragma once

#include <string>
#include <string_view>

namespace dense::cli {

// Throws Error unless write_whole_file(path, ...) can be expected to work. Leaves nothing behind, changes nothing.
void check_writable(const std::string& path);

// Writes a file beside `path` and renames it over `path`, so that what was there stays until the new file is complete.
// Pipes, terminals, devices and the files behind stdout and stderr are written in place. Throws Error.
void write_whole_file(const std::string& path, std::string_view text);

}  // namespace dense::cli
