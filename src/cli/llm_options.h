// The option groups that the commands of the LLM plane share, each declared once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/console.h"
#include "frugal/llm.h"
#include "llm/decode/sampler.h"

namespace CLI {
class App;
}

namespace frugal::cli {

struct ModelFlags {
  std::string model;     // path or name; empty: the default
  float rope_scale = 1;  // llm::ModelOptions::rope_scale, where a command offers it
};
void add_model_options(CLI::App& app, ModelFlags& flags);

struct EngineFlags {
  int threads = 0;
  int ctx = 0;
  int chunk = 512;
  std::string kv = "f16";
  std::string kv_memory, kv_dict;
  bool profile = false;  // Engine::step_times()
};
void add_engine_options(CLI::App& app, EngineFlags& flags);

struct SamplingFlags {
  llm::SamplerOptions sampler;
  int max_tokens = 256;
  std::vector<std::string> stop;
  bool ignore_end = false;
};
void add_sampling_options(CLI::App& app, SamplingFlags& flags);

// Where models are looked for: $FRUGAL_CACHE/models, or ~/.cache/frugal/models.
std::string models_folder();
// The .gguf files there, sorted.
std::vector<std::string> installed_models();
// Path of the model that is meant: an existing file, an installed name, or for an empty one the default.
// kNotFound, with the models that there are.
Result<std::string> resolve_model(const std::string& model);

// kInvalidArgument for a thread count or context out of range.
Result<llm::EngineOptions> engine_options(const EngineFlags& flags);

struct LoadedEngine {
  std::shared_ptr<const llm::Model> model;
  std::unique_ptr<llm::Engine> engine;
  double load_s = 0;
};
// Loads the model with a progress bar.
Result<std::shared_ptr<const llm::Model>> load_model(const ModelFlags& flags, int n_threads,
                                                     bool show_progress);
// The same, and makes an engine.
Result<LoadedEngine> load_engine(const ModelFlags& model, const EngineFlags& engine, bool show_progress);

// Peak resident memory of this process, bytes; 0 when the host does not tell.
double peak_memory_bytes();

}  // namespace frugal::cli
