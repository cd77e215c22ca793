// Dictionaries at the command: training one, finding the default one, and turning --kv into a cache.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/llm_options.h"
#include "llm/kv/dict_train.h"
#include "llm/kv/dictionary.h"

namespace frugal::cli {

struct DictionaryTraining {
  std::vector<std::string> texts;  // files
  int tokens = 40960;              // taken from them in all, evenly
  int window = 2048;               // tokens of a sequence
  int threads = 0;
  std::string partial;  // file that an interrupted training goes on from (weigh_by_sensitivity)
};

// Bases from keys, values and queries, then weights from what errors do; minutes on two cores.
// kNotFound and others for a text, kInvalidArgument for too little of it, kCancelled.
Result<llm::Dictionary> train_dictionary(std::shared_ptr<const llm::Model> model,
                                         const DictionaryTraining& training, bool show_progress);

// What a dictionary is fitted to: the windows, read with the model. kCancelled, and what the engine says.
Result<std::unique_ptr<llm::DictionaryTrainer>> tapped_windows(
    std::shared_ptr<const llm::Model> model, std::span<const std::vector<llm::Token>> windows, int threads,
    bool show_progress);

// Each text's share of the tokens, cut into sequences of at most `window`.
Result<std::vector<std::vector<llm::Token>>> training_windows(const llm::Model& model,
                                                              const DictionaryTraining& training);

// Texts of other kinds than those: what `kv eval` takes when it is given none.
std::vector<std::string> default_evaluation_texts();

// Texts that machines have: licences, Python's library, C and C++ headers, documents of Debian packages.
std::vector<std::string> default_training_texts();

// <cache folder>/dictionaries/<model hash>.v<version>.spread.dict
std::string default_dictionary_path(const llm::ModelInfo& info);
// The dictionary at `path`, checked against the model; an empty path is the default one, trained when
// missing.
Result<std::shared_ptr<const llm::Dictionary>> open_dictionary(std::shared_ptr<const llm::Model> model,
                                                               const std::string& path, int threads,
                                                               bool show_progress);

// Whether `kv` needs a dictionary: "csr:2", "auto".
bool is_coded_cache(const std::string& kv);
// Bits of "csr:2.6"; kInvalidArgument.
Result<double> parse_csr_bits(const std::string& kv);
// "256M" -> bytes; kInvalidArgument.
Result<uint64_t> parse_memory_size(const std::string& text);

// Sets the cache of `options` as flags.kv and flags.kv_memory say.
Status choose_cache(const EngineFlags& flags, std::shared_ptr<const llm::Model> model,
                    llm::EngineOptions& options, bool show_progress);

}  // namespace frugal::cli
