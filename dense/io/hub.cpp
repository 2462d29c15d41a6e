#include "dense/io/hub.h"

#include <cstdlib>

#include "dense/io/files.h"
#include "dense/io/json.h"
#include "dense/scalar/error.h"

namespace dense {

static std::filesystem::path cache() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  if (const std::string hub = variable("HF_HUB_CACHE"); !hub.empty()) return hub;
  if (const std::string home = variable("HF_HOME"); !home.empty()) return std::filesystem::path(home) / "hub";
  const std::string base = variable("XDG_CACHE_HOME");
  return (base.empty() ? std::filesystem::path(variable("HOME")) / ".cache" : std::filesystem::path(base)) /
         "huggingface" / "hub";
}

std::filesystem::path find_model(const std::string& model) {
  if (auto trained = std::filesystem::path(model) / "model"; std::filesystem::exists(trained / "config.json"))
    return trained;
  if (std::filesystem::is_directory(model)) return model;
  const bool is_path = model.starts_with('.') || model.starts_with('/') || model.ends_with('/');
  if (is_path)
    fail(model, ": expected the folder of a model, ", std::filesystem::exists(model) ? "got a file" : "missing");
  const size_t at = model.find('@');
  const std::string revision = at == std::string::npos ? "main" : model.substr(at + 1);
  std::string name = "models--" + model.substr(0, at);
  if (const size_t slash = name.find('/'); slash != std::string::npos) name.replace(slash, 1, "--");
  const bool is_name = !model.empty() && name.find('/') == std::string::npos && name.find("..") == std::string::npos &&
                       revision.find("..") == std::string::npos && !revision.starts_with('/');
  const std::filesystem::path folder = cache() / name;
  if (!is_name || !std::filesystem::is_directory(folder))
    fail("model: expected a folder, or a name in the cache ", shown(cache().string()), ", got ", shown(model));
  std::string commit = revision;
  if (const auto ref = folder / "refs" / revision; std::filesystem::is_regular_file(ref)) commit = read_file(ref);
  while (!commit.empty() && (commit.back() == '\n' || commit.back() == ' ')) commit.pop_back();
  std::filesystem::path snapshot = folder / "snapshots" / commit;
  if (commit.empty() || !std::filesystem::is_directory(snapshot))
    fail(shown(folder.string()), ": expected a snapshot of revision ", shown(revision), ", missing");
  return snapshot;
}

}  // namespace dense
