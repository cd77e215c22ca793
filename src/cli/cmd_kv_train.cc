// frugal kv train: a dictionary for csr caches of a model, from text.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/kv_dictionary.h"

namespace frugal::cli {
namespace {

struct TrainFlags {
  ModelFlags model;
  DictionaryTraining training;
  std::string out;
  bool json = false;
};

int run(const TrainFlags& flags) {
  install_interrupt_handler();
  const double begin = wall_seconds();
  DictionaryTraining training = flags.training;
  if (training.tokens < 1024 || training.tokens > (1 << 20))
    return fail({ErrorCode::kInvalidArgument,
                 strf("--tokens is %d, but must be from 1024 to %d", training.tokens, 1 << 20)});
  if (training.texts.empty()) training.texts = default_training_texts();
  EngineFlags engine;
  engine.threads = training.threads;
  const auto options = engine_options(engine);
  if (!options.ok()) return fail(options.error());
  const auto model = load_model(flags.model, options->n_threads, !flags.json);
  if (!model.ok()) return fail(model.error());
  training.window = std::min(training.window, (*model)->info().n_ctx_train);
  const std::string path = flags.out.empty() ? default_dictionary_path((*model)->info()) : flags.out;
  std::error_code ignored;
  if (flags.out.empty())
    std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  training.partial = path + ".partial";
  const auto dictionary = train_dictionary(*model, training, !flags.json);
  if (!dictionary.ok()) return fail(dictionary.error());
  if (const Status status = llm::write_dictionary(*dictionary, path); !status.ok())
    return fail(status.error());
  const auto bytes = std::filesystem::file_size(path, ignored);
  const double seconds = wall_seconds() - begin;
  bool printed;
  if (flags.json) {
    printed = print(nlohmann::ordered_json{{"dictionary", path},
                                           {"bytes", bytes},
                                           {"bytes_in_memory", dictionary->bytes()},
                                           {"texts", training.texts},
                                           {"seconds", seconds}}
                        .dump(1, ' ', false, nlohmann::json::error_handler_t::replace) +
                    "\n");
  } else {
    printed =
        print(strf("%s: %.1f MiB in memory, from %zu texts in %.0f s\n", path.c_str(),
                   static_cast<double>(dictionary->bytes()) / (1 << 20), training.texts.size(), seconds));
  }
  return printed ? kExitOk : fail({ErrorCode::kIo, "the result could not be written to stdout"});
}

}  // namespace

Action add_kv_train(CLI::App& app) {
  auto flags = std::make_shared<TrainFlags>();
  add_model_options(app, flags->model);
  app.add_option("--text", flags->training.texts,
                 "texts of the kinds that the model will read (default: what this machine has)")
      ->type_name("FILE");
  app.add_option("-o,--out", flags->out, "the dictionary (default: where --kv csr:BITS looks for it)")
      ->type_name("FILE");
  app.add_option("--tokens", flags->training.tokens, "tokens to train on, evenly from all texts")
      ->capture_default_str();
  app.add_option("-t,--threads", flags->training.threads, "threads; 0 = one for each usable processor")
      ->capture_default_str();
  app.add_flag("--json", flags->json, "one JSON object");
  return [flags] { return run(*flags); };
}

}  // namespace frugal::cli
