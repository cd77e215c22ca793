#include "cli/kv_dictionary.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "base/file.h"
#include "base/team.h"
#include "base/text.h"
#include "cli/console.h"
#include "cli/kv_sensitivity.h"
#include "cli/recall_text.h"
#include "llm/kv/dict_train.h"
#include "llm/model/forward.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::cli {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 28;
constexpr uint64_t kLargestWidened = 1'500'000'000;  // parameters: 6 GB as floats

// The i-th of n windows that lie as far apart as they come.
const std::vector<llm::Token>& spread_window(const std::vector<std::vector<llm::Token>>& windows, size_t i,
                                             size_t n) {
  return windows[(2 * i + 1) * windows.size() / (2 * n)];
}

std::vector<llm::Token> beginning(const std::vector<llm::Token>& window, size_t n) {
  return {window.begin(), window.begin() + static_cast<ptrdiff_t>(std::min(n, window.size()))};
}

// What the weights are measured on: beginnings of windows, and facts in them.
Result<SensitivityTexts> probe_texts(const llm::Tokenizer& tokenizer,
                                     const std::vector<std::vector<llm::Token>>& windows) {
  constexpr size_t kProbes = 3, kProbeTokens = 512;
  constexpr size_t kRecalls = 4, kLeastTokens = 512;
  constexpr int kMostFacts = 12, kTokensOfFact = 160;  // of the window, at least
  SensitivityTexts texts;
  for (size_t i = 0; i < std::min(kProbes, windows.size()); ++i)
    texts.windows.push_back(
        beginning(spread_window(windows, i, std::min(kProbes, windows.size())), kProbeTokens));
  std::vector<std::vector<llm::Token>> long_ones;
  for (const auto& window : windows) {
    if (window.size() >= kLeastTokens) long_ones.push_back(window);
  }
  for (size_t i = 0; i < std::min(kRecalls, long_ones.size()); ++i) {
    const auto& window = spread_window(long_ones, i, std::min(kRecalls, long_ones.size()));
    const int facts = std::min(kMostFacts, static_cast<int>(window.size()) / kTokensOfFact);
    FRUGAL_TRY(auto recall, recall_text(tokenizer, beginning(window, window.size() * 5 / 8), facts, i + 1));
    texts.recalls.push_back(std::move(recall));
  }
  return texts;
}

}  // namespace

Result<std::vector<std::vector<llm::Token>>> training_windows(const llm::Model& model,
                                                              const DictionaryTraining& training) {
  if (training.texts.empty())
    return Error{ErrorCode::kInvalidArgument, "there is no text to train on: give --text FILE"};
  std::vector<std::vector<llm::Token>> texts;
  for (const std::string& path : training.texts) {
    FRUGAL_TRY(std::string text, read_file(path, kMaxTextBytes));
    // About 3 bytes a token and never more than 20: what is beyond is not read for nothing.
    text.resize(std::min(text.size(), static_cast<size_t>(training.tokens) * 20));
    while (!text.empty() && !utf8_valid(text) && text.size() % 4 != 0) text.pop_back();
    if (!utf8_valid(text)) return Error{ErrorCode::kCorrupt, "'" + path + "' is not UTF-8 text"};
    FRUGAL_TRY(auto tokens, model.tokenizer().encode(text, /*add_special=*/false, /*parse_special=*/false));
    if (!tokens.empty()) texts.push_back(std::move(tokens));
  }
  std::vector<std::vector<llm::Token>> windows;
  int left = training.tokens;
  for (size_t i = 0; i < texts.size(); ++i) {
    // What shorter texts leave of their share goes to those after them.
    int share = left / static_cast<int>(texts.size() - i);
    for (size_t at = 0; share > 0 && at < texts[i].size();) {
      std::vector<llm::Token> window;
      if (model.tokenizer().adds_bos()) window.push_back(model.tokenizer().bos());
      const size_t n = std::min({texts[i].size() - at, static_cast<size_t>(share),
                                 static_cast<size_t>(training.window) - window.size()});
      window.insert(window.end(), texts[i].begin() + static_cast<ptrdiff_t>(at),
                    texts[i].begin() + static_cast<ptrdiff_t>(at + n));
      at += n;
      share -= static_cast<int>(n);
      left -= static_cast<int>(n);
      windows.push_back(std::move(window));
    }
  }
  return windows;
}

Result<std::unique_ptr<llm::DictionaryTrainer>> tapped_windows(
    std::shared_ptr<const llm::Model> model, std::span<const std::vector<llm::Token>> windows, int threads,
    bool show_progress) {
  const llm::ModelInfo& info = model->info();
  int n_tokens = 0;
  size_t longest = 0;
  for (const auto& window : windows) {
    n_tokens += static_cast<int>(window.size());
    longest = std::max(longest, window.size());
  }
  llm::Dictionary empty;
  empty.model_hash = info.file_hash;
  empty.n_layers = info.n_layers;
  empty.n_kv_heads = info.n_kv_heads;
  empty.head_dim = info.head_dim;
  const llm::ModelConfig& config = model->impl().config;
  empty.n_rot = config.n_rot;
  empty.interleaved = config.rope_layout == llm::RopeLayout::kInterleaved;
  for (int layer = 0; layer < info.n_layers; ++layer) {
    const std::vector<float> turns = llm::rope_turns(config, model->impl().weights, layer);
    empty.turns.insert(empty.turns.end(), turns.begin(), turns.end());
  }
  if (info.head_dim % 32 != 0 || info.head_dim > llm::kMaxCodedDim) {
    return Error{ErrorCode::kUnsupported,
                 strf("a csr cache wants a head size that is a multiple of 32 up to %d, and "
                      "this model's is %d",
                      llm::kMaxCodedDim, info.head_dim)};
  }
  auto trainer = std::make_unique<llm::DictionaryTrainer>(std::move(empty), n_tokens, info.n_ctx_train);
  llm::EngineOptions options;
  options.n_threads = threads;
  options.n_ctx = static_cast<int>(longest);
  options.max_sequences = 1;
  options.kv_source = trainer->source();
  FRUGAL_TRY(const auto engine, llm::Engine::create(model, options));
  ProgressBar bar("reading", "tokens", show_progress);
  int done = 0;
  for (const auto& window : windows) {
    trainer->begin_text(static_cast<int>(window.size()));
    FRUGAL_TRY(const llm::SequenceId sequence, engine->open_sequence());
    FRUGAL_TRY_STATUS(engine->prefill(sequence, window, [&](int part, int) {
      bar.update(done + part, n_tokens);
      return !interrupted();
    }));
    engine->close_sequence(sequence);
    done += static_cast<int>(window.size());
  }
  return trainer;
}

Result<llm::Dictionary> train_dictionary(std::shared_ptr<const llm::Model> model,
                                         const DictionaryTraining& training, bool show_progress) {
  const llm::ModelInfo& info = model->info();
  FRUGAL_TRY(const auto windows, training_windows(*model, training));
  FRUGAL_TRY(const SensitivityTexts probes, probe_texts(model->tokenizer(), windows));
  FRUGAL_TRY(const auto trainer, tapped_windows(model, windows, training.threads, show_progress));
  ProgressBar bar("fitting", "%", show_progress);
  const int threads = training.threads > 0 ? training.threads : usable_processors();
  FRUGAL_TRY(auto dictionary, trainer->fit(threads, [&](double share) {
    bar.update(100 * share, 100);
    return !interrupted();
  }));
  bar.finish();
  ProgressBar weighing("weighing", "%", show_progress);
  // With rounded activations every change, however small, moves the logits by as much as a layer's codes do.
  std::shared_ptr<const llm::Model> exact = model;
  if (info.n_parameters <= kLargestWidened) {
    FRUGAL_TRY(exact, llm::Model::load(info.path, {.n_threads = training.threads,
                                                   .progress = {},
                                                   .widen = true,
                                                   .rope_scale = info.rope_scale}));
  }
  FRUGAL_TRY_STATUS(
      weigh_by_sensitivity(exact, probes, training.threads, training.partial, dictionary, [&](double share) {
        weighing.update(100 * share, 100);
        return !interrupted();
      }));
  return dictionary;
}

std::vector<std::string> default_training_texts() {
  std::vector<std::string> found;
  const auto add = [&](const char* folder, const char* extension, uintmax_t least, size_t most) {
    std::vector<std::string> here;
    std::error_code ignored;
    for (std::filesystem::directory_iterator it(folder, ignored), end; !ignored && it != end;
         it.increment(ignored)) {
      if (it->is_regular_file(ignored) && it->path().extension() == extension &&
          it->file_size(ignored) >= least)
        here.push_back(it->path().string());
    }
    std::sort(here.begin(), here.end());
    for (size_t i = 0; i < std::min(most, here.size()); ++i)
      found.push_back(here[i * here.size() / std::min(most, here.size())]);
  };
  for (const char* name : {"Apache-2.0", "GFDL-1.3", "LGPL-2.1", "MPL-2.0", "Artistic"}) {
    const std::string path = std::string("/usr/share/common-licenses/") + name;
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored)) found.push_back(path);
  }
  for (const char* folder : {"/usr/lib/python3.11", "/usr/lib/python3.12", "/usr/lib/python3.13"})
    add(folder, ".py", 20000, 3);
  add("/usr/include/c++/12/bits", ".h", 20000, 2);
  add("/usr/share/doc/git/RelNotes", ".txt", 10000, 3);
  add("/usr/share/doc/dpkg/spec", ".txt", 5000, 2);
  add("/usr/include", ".h", 10000, 1);
  return found;
}

std::vector<std::string> default_evaluation_texts() {
  std::vector<std::string> found;
  for (const char* path : {"/usr/share/common-licenses/GPL-2", "/usr/share/perl/5.36.0/perl5db.pl",
                           "/usr/lib/python3.11/pydoc_data/topics.py", "/usr/include/sqlite3.h"}) {
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored)) found.push_back(path);
  }
  return found;
}

std::string default_dictionary_path(const llm::ModelInfo& info) {
  const std::filesystem::path cache = std::filesystem::path(models_folder()).parent_path();
  return (cache / "dictionaries" /
          strf("%016llx.v%u.spread.dict", static_cast<unsigned long long>(info.file_hash),
               llm::kDictionaryVersion))
      .string();
}

Result<std::shared_ptr<const llm::Dictionary>> open_dictionary(std::shared_ptr<const llm::Model> model,
                                                               const std::string& given, int threads,
                                                               bool show_progress) {
  const std::string path = given.empty() ? default_dictionary_path(model->info()) : given;
  std::error_code ignored;
  if (given.empty() && !std::filesystem::exists(path, ignored)) {
    if (show_progress)
      std::fprintf(stderr, "frugal: training a dictionary for this model, once (%s)\n", path.c_str());
    DictionaryTraining training;
    training.texts = default_training_texts();
    training.threads = threads;
    training.partial = path + ".partial";
    std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
    FRUGAL_TRY(const llm::Dictionary trained, train_dictionary(model, training, show_progress));
    FRUGAL_TRY_STATUS(llm::write_dictionary(trained, path));
  }
  FRUGAL_TRY(llm::Dictionary dictionary, llm::read_dictionary(path));
  FRUGAL_TRY_STATUS(llm::check_model(dictionary, model->info(), path));
  return std::make_shared<const llm::Dictionary>(std::move(dictionary));
}

bool is_coded_cache(const std::string& kv) { return kv == "auto" || kv == "csr" || kv.rfind("csr:", 0) == 0; }

Result<double> parse_csr_bits(const std::string& kv) {
  if (kv == "csr") return 2.6;
  char* end = nullptr;
  const std::string number = kv.substr(4);
  const double bits = std::strtod(number.c_str(), &end);
  if (number.empty() || *end != 0 || !(bits >= 0.5 && bits <= 4)) {
    return Error{
        ErrorCode::kInvalidArgument,
        "--kv " + kv + ": give csr:BITS with bits a channel from 0.5 to 4, as csr:1, csr:2 or csr:2.6"};
  }
  return bits;
}

Result<uint64_t> parse_memory_size(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  double unit = 1;
  if (*end == 'K' || *end == 'k') unit = 1024;
  if (*end == 'M' || *end == 'm') unit = 1 << 20;
  if (*end == 'G' || *end == 'g') unit = 1 << 30;
  if (unit > 1) ++end;
  if (text.empty() || *end != 0 || !(value > 0 && value * unit < 1e15))
    return Error{ErrorCode::kInvalidArgument, "'" + text + "' is no size; write 256M or 1.5G"};
  return static_cast<uint64_t>(value * unit);
}

namespace {

// The best cache of which a full context, its dictionary counted, fits `memory`.
Result<std::string> cache_for(uint64_t memory, const llm::ModelInfo& info, int n_ctx) {
  const double channels = 2.0 * info.n_layers * info.n_kv_heads * info.head_dim;
  const double bits = 8.0 * static_cast<double>(memory) / (channels * n_ctx);
  if (bits >= 16) return std::string("f16");
  if (bits >= 8.5) return std::string("q8_0");
  // Two matrices of a head, as halves and floats, and its book; Dictionary::bytes().
  const double dictionary_bits =
      8.0 * (6.0 * info.head_dim + llm::kBookEntries * (1 + 4.0 / info.head_dim) + 16) / n_ctx;
  const double whole_bits = 9.0 * std::min(1.0, (192.0 + 12) / n_ctx);  // the newest tokens and the first
  const double left = std::floor((bits - dictionary_bits - whole_bits) * 10) / 10;
  if (left < 1) {
    return Error{
        ErrorCode::kOutOfRange,
        strf("--kv-memory is too small for %d tokens of this model: csr:1 takes %.0f MiB; shorten --ctx",
             n_ctx, (1 + dictionary_bits + whole_bits) * channels * n_ctx / 8 / (1 << 20))};
  }
  return strf("csr:%g", std::min(left, 3.5));
}

}  // namespace

Status choose_cache(const EngineFlags& flags, std::shared_ptr<const llm::Model> model,
                    llm::EngineOptions& options, bool show_progress) {
  if (!is_coded_cache(flags.kv)) return {};
  std::string kv = flags.kv;
  if (kv == "auto") {
    if (flags.kv_memory.empty())
      return Error{ErrorCode::kInvalidArgument,
                   "--kv auto wants to know how much memory it may use: --kv-memory 256M"};
    FRUGAL_TRY(const uint64_t memory, parse_memory_size(flags.kv_memory));
    FRUGAL_TRY(
        kv, cache_for(memory, model->info(), options.n_ctx > 0 ? options.n_ctx : model->info().n_ctx_train));
    if (show_progress) std::fprintf(stderr, "frugal: cache %s\n", kv.c_str());
    if (!is_coded_cache(kv)) {
      FRUGAL_TRY(options.kv, llm::parse_kv_format(kv));
      return {};
    }
  }
  FRUGAL_TRY(const double bits, parse_csr_bits(kv));
  FRUGAL_TRY(const auto dictionary, open_dictionary(model, flags.kv_dict, options.n_threads, show_progress));
  FRUGAL_TRY(options.kv_source, llm::make_csr_source(dictionary, bits));
  return {};
}

}  // namespace frugal::cli
