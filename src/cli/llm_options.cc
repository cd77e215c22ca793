#include "cli/llm_options.h"

#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "base/clock.h"
#include "base/team.h"
#include "base/text.h"
#include "cli/kv_dictionary.h"

namespace frugal::cli {

namespace {

constexpr const char* kDefaultModel = "smollm2-135m-instruct-q4_1";

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

}  // namespace

void add_model_options(CLI::App& app, ModelFlags& flags) {
  app.add_option("-m,--model", flags.model,
                 "a GGUF file, or the name of an installed model (default: $FRUGAL_MODEL, or else the "
                 "installed SmolLM2)")
      ->type_name("MODEL");
}

void add_engine_options(CLI::App& app, EngineFlags& flags) {
  app.add_option("-t,--threads", flags.threads, "threads; 0 = one for each usable processor")
      ->capture_default_str();
  app.add_option("-c,--ctx", flags.ctx,
                 "positions that the context holds; 0 = what the model was trained for")
      ->capture_default_str();
  app.add_option("--chunk", flags.chunk, "prompt tokens of one forward pass; does not change any answer")
      ->capture_default_str();
  app.add_option(
         "--kv", flags.kv,
         "how keys and values are held: f32, f16, bf16, q8_0; csr:BITS with bits a channel, as csr:2; or "
         "auto, the best for --kv-memory")
      ->capture_default_str();
  app.add_option("--kv-memory", flags.kv_memory, "what --kv auto may use for a full context: 256M, 1.5G")
      ->type_name("SIZE");
  app.add_option("--kv-dict", flags.kv_dict,
                 "dictionary of a csr cache (default: the model's own, trained at its first use)")
      ->type_name("FILE");
}

void add_sampling_options(CLI::App& app, SamplingFlags& flags) {
  llm::SamplerOptions& sampler = flags.sampler;
  app.add_option("-n,--max-tokens", flags.max_tokens, "length of the answer; 0 = until the model ends it")
      ->capture_default_str();
  app.add_option("--temperature", sampler.temperature, "0 = greedy: always the likeliest token")
      ->capture_default_str();
  app.add_option("--top-k", sampler.top_k, "draw from the k likeliest tokens; 0 = off")
      ->capture_default_str();
  app.add_option("--top-p", sampler.top_p,
                 "draw from the likeliest tokens that have this probability together; 1 = off")
      ->capture_default_str();
  app.add_option("--min-p", sampler.min_p,
                 "drop tokens below this share of the likeliest one's probability; 0 = off")
      ->capture_default_str();
  app.add_option("--repeat-penalty", sampler.repeat_penalty, "weakens tokens that were seen; 1 = off")
      ->capture_default_str();
  app.add_option("--frequency-penalty", sampler.frequency_penalty, "the same, once for each time; 0 = off")
      ->capture_default_str();
  app.add_option("--presence-penalty", sampler.presence_penalty, "the same, once for all times; 0 = off")
      ->capture_default_str();
  app.add_option("--penalty-last-n", sampler.penalty_last_n, "how many of the last tokens count as seen")
      ->capture_default_str();
  app.add_option("--seed", sampler.seed, "of the draws: the same seed gives the same answer")
      ->capture_default_str();
  app.add_option("--stop", flags.stop, "end the answer before this text; may be given more than once")
      ->allow_extra_args(false)
      ->type_name("TEXT");
  app.add_flag("--ignore-end", flags.ignore_end, "go on when the model says that it is done");
}

std::string models_folder() {
  std::string cache = environment("FRUGAL_CACHE");
  if (cache.empty()) cache = environment("HOME") + "/.cache/frugal";
  return cache + "/models";
}

std::vector<std::string> installed_models() {
  std::vector<std::string> models;
  std::error_code ignored;
  for (std::filesystem::directory_iterator it(models_folder(), ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    if (it->path().extension() == ".gguf") models.push_back(it->path().string());
  }
  std::sort(models.begin(), models.end());
  return models;
}

Result<std::string> resolve_model(const std::string& model) {
  std::string wanted = model.empty() ? environment("FRUGAL_MODEL") : model;
  if (wanted.empty()) wanted = kDefaultModel;
  std::error_code ignored;
  if (std::filesystem::exists(wanted, ignored)) return wanted;
  std::string known;
  for (const std::string& path : installed_models()) {
    const std::string name = std::filesystem::path(path).stem().string();
    if (name == wanted) return path;
    known += (known.empty() ? "" : ", ") + name;
  }
  return {ErrorCode::kNotFound, "there is no model '" + wanted + "': neither a file nor installed in " +
                                    models_folder() +
                                    (known.empty() ? "; `make` installs one" : " (there: " + known + ")")};
}

Result<llm::EngineOptions> engine_options(const EngineFlags& flags) {
  llm::EngineOptions options;
  if (flags.threads < 0 || flags.threads > 256) {
    return {
        ErrorCode::kInvalidArgument,
        strf("--threads is %d, but must be from 1 to 256, or 0 for one on each of the %d usable processors",
             flags.threads, usable_processors())};
  }
  if (flags.ctx < 0) {
    return {ErrorCode::kInvalidArgument,
            strf("--ctx is %d, but must be 1 or more, or 0 for what the model was trained for", flags.ctx)};
  }
  if (flags.chunk < 1 || flags.chunk > 65536) {
    return {ErrorCode::kInvalidArgument, strf("--chunk is %d, but must be from 1 to 65536", flags.chunk)};
  }
  options.n_threads = flags.threads;
  options.n_ctx = flags.ctx;
  options.max_rows = flags.chunk;
  options.profile = flags.profile;
  options.max_sequences = 1;
  if (!is_coded_cache(flags.kv)) {
    FRUGAL_TRY(options.kv, llm::parse_kv_format(flags.kv));
  } else if (flags.kv != "auto") {
    if (const auto bits = parse_csr_bits(flags.kv); !bits.ok()) return bits.error();
  }
  return options;
}

Result<std::shared_ptr<const llm::Model>> load_model(const ModelFlags& flags, int n_threads,
                                                     bool show_progress) {
  FRUGAL_TRY(const std::string path, resolve_model(flags.model));
  ProgressBar bar("loading", "%", show_progress);
  llm::ModelOptions options;
  options.n_threads = n_threads;
  options.rope_scale = flags.rope_scale;
  options.progress = [&bar](double share) {
    bar.update(100 * share, 100);
    return !interrupted();
  };
  return llm::Model::load(path, options);
}

Result<LoadedEngine> load_engine(const ModelFlags& model, const EngineFlags& engine, bool show_progress) {
  FRUGAL_TRY(llm::EngineOptions options, engine_options(engine));
  LoadedEngine loaded;
  const double begin = wall_seconds();
  FRUGAL_TRY(loaded.model, load_model(model, options.n_threads, show_progress));
  FRUGAL_TRY_STATUS(choose_cache(engine, loaded.model, options, show_progress));
  FRUGAL_TRY(loaded.engine, llm::Engine::create(loaded.model, options));
  loaded.load_s = wall_seconds() - begin;
  return loaded;
}

double peak_memory_bytes() {
  rusage usage = {};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? static_cast<double>(usage.ru_maxrss) * 1024 : 0;
}

}  // namespace frugal::cli
