// Where models are: folders, and what Hugging Face's own programs have downloaded.
#pragma once

#include <filesystem>
#include <string>

namespace dense {

// `model` where it is a folder, or the model in it where it is a run of `dense train`; else the snapshot of that name in
// the local cache of the Hub ("gpt2", "org/name", "org/name@revision"): HF_HUB_CACHE, HF_HOME/hub,
// XDG_CACHE_HOME/huggingface/hub or ~/.cache/huggingface/hub. Nothing is downloaded. Throws Error that says where it
// looked.
std::filesystem::path find_model(const std::string& model);

}  // namespace dense
