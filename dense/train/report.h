// Runs to be looked at: their records as one HTML page, which needs no network and no other file.
#pragma once

#include <filesystem>
#include <span>
#include <string>

namespace dense {

// The page of runs: curves of all that metrics.jsonl has, samples, configs side by side, what run.json says. A folder is
// a run's, or one of runs at most two levels below, as sweeps and twins leave them, with differences.json if there is
// one. Long curves are drawn as means of neighbouring steps between the least and the greatest of them. The page of a
// run that goes on reloads itself. Throws Error for a folder without runs and for records that are none.
std::string report(std::span<const std::filesystem::path> folders);

}  // namespace dense
