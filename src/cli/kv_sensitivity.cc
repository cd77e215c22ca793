#include "cli/kv_sensitivity.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "base/hash.h"

#include "llm/kernel/kernel.h"
#include "llm/kv/kv_cache.h"

namespace frugal::cli {
namespace {

using llm::KvCache;
using llm::KvQueries;
using llm::KvShape;
using llm::KvSide;
using llm::KvWeights;

constexpr double kProbedBits = 2;
constexpr size_t kRowsAtOnce = 64;
constexpr double kRecall = 0.3;     // what a token of an answer counts beside one of ordinary text
constexpr double kMostRecall = 64;  // three bits more
// What is measured is measured on text that the dictionary is fitted to; of other text values lose more than
// training foretells, keys hardly (docs/design/kv-codec.md).
constexpr double kKeysUnseen = 0.5;

// The layer and side that is coded, all its heads or one; all others are whole. Changed between forward
// passes.
struct Probe {
  static constexpr int kAll = -1;
  int layer = -1, head = kAll;
  KvSide side = KvSide::kKeys;
  bool stores_all = false;  // codes of all layers, for probes to come
  bool is(int l, KvSide s, int h) const { return l == layer && s == side && (head == kAll || head == h); }
};

class ProbeCache final : public KvCache {
 public:
  ProbeCache(const KvShape& shape, std::unique_ptr<KvCache> whole, std::unique_ptr<KvCache> coded,
             const Probe* probe)
      : KvCache(shape, llm::KvFormat::kF32),
        whole_(std::move(whole)),
        coded_(std::move(coded)),
        probe_(probe) {}
  void store(int layer, int position, const float* k, const float* v) override {
    whole_->store(layer, position, k, v);
    if (layer == probe_->layer || probe_->stores_all) coded_->store(layer, position, k, v);
  }
  bool can_rewind(int n_held, int n_past) const override { return coded_->can_rewind(n_held, n_past); }
  int max_rows_ahead() const override { return coded_->max_rows_ahead(); }
  size_t query_scratch_bytes(int n) const override { return coded_->query_scratch_bytes(n); }
  void prepare(int layer, int head, const KvQueries& queries) const override {
    of(layer, KvSide::kKeys, head).prepare(layer, head, queries);
  }
  void score_chunk(int layer, int head, int block, int n, const KvQueries& queries, float* scores,
                   size_t stride) const override {
    of(layer, KvSide::kKeys, head).score_chunk(layer, head, block, n, queries, scores, stride);
  }
  void add_values(int layer, int head, int block, int n, const KvQueries& queries, const KvWeights& weights,
                  float* out, float* scratch) const override {
    of(layer, KvSide::kValues, head).add_values(layer, head, block, n, queries, weights, out, scratch);
  }
  int sum_width(int layer, int head) const override {
    return of(layer, KvSide::kValues, head).sum_width(layer, head);
  }
  void restore(int layer, int head, const float* sums, int n_cols, float* out) const override {
    of(layer, KvSide::kValues, head).restore(layer, head, sums, n_cols, out);
  }
  uint64_t bytes_used(int n) const override { return whole_->bytes_used(n); }
  uint64_t save_bytes(int) const override { return 0; }
  void save(int, std::byte*) const override {}
  void load(int, const std::byte*) override {}

 private:
  const KvCache& of(int layer, KvSide side, int head) const {
    return probe_->is(layer, side, head) ? *coded_ : *whole_;
  }

  std::unique_ptr<KvCache> whole_, coded_;
  const Probe* probe_;
};

class ProbeSource final : public llm::KvSource {
 public:
  ProbeSource(std::shared_ptr<const llm::KvSource> coded, const Probe* probe)
      : coded_(std::move(coded)), probe_(probe) {}
  std::string name() const override { return "probe"; }
  uint64_t content_hash() const override { return coded_->content_hash(); }
  Result<std::unique_ptr<KvCache>> make(const KvShape& shape) const override {
    FRUGAL_TRY(auto whole, llm::make_kv_cache(llm::KvFormat::kF32, shape));
    FRUGAL_TRY(auto coded, coded_->make(shape));
    return std::unique_ptr<KvCache>(
        std::make_unique<ProbeCache>(shape, std::move(whole), std::move(coded), probe_));
  }

 private:
  std::shared_ptr<const llm::KvSource> coded_;
  const Probe* probe_;
};

// e[i] = exp(x[i] - the largest), with zeros up to a multiple of 16; returns the log of the sum of exp(x).
double exponentials(std::span<const float> x, std::vector<float>& e) {
  const float largest = *std::max_element(x.begin(), x.end());
  e.assign((x.size() + 15) / 16 * 16, -1000.0f);
  for (size_t i = 0; i < x.size(); ++i) e[i] = x[i] - largest;
  llm::kernels().exp(e.data(), e.size());
  double sum = 0;
  for (size_t i = 0; i < e.size(); i += 16) {
    float part = 0;
    for (size_t lane = 0; lane < 16; ++lane) part += e[i + lane];
    sum += static_cast<double>(part);
  }
  return static_cast<double>(largest) + std::log(sum);
}

// Appends tokens to a sequence; `row(i, logits)` for what follows token i, from `first` on.
template <typename F>
Status score(llm::Engine& engine, llm::SequenceId sequence, std::span<const llm::Token> tokens, size_t first,
             F row) {
  for (size_t begin = 0; begin < tokens.size(); begin += kRowsAtOnce) {
    const size_t n = std::min(kRowsAtOnce, tokens.size() - begin);
    const llm::BatchItem item{sequence, tokens.subspan(begin, n), llm::LogitRows::kAll};
    FRUGAL_TRY_STATUS(engine.forward({&item, 1}));
    for (size_t i = 0; i < n; ++i) {
      if (begin + i >= first) row(begin + i, engine.logits(static_cast<int>(i)));
    }
  }
  return {};
}

// Runs a window; `row(logits)` for each row of its second half.
template <typename F>
Status score_window(llm::Engine& engine, const std::vector<llm::Token>& window, F row) {
  const std::span<const llm::Token> tokens(window);
  const size_t half = window.size() / 2;
  FRUGAL_TRY(const llm::SequenceId sequence, engine.open_sequence());
  FRUGAL_TRY_STATUS(engine.prefill(sequence, tokens.first(half), nullptr));
  FRUGAL_TRY_STATUS(score(engine, sequence, tokens.subspan(half), 0,
                          [&](size_t, std::span<const float> logits) { row(logits); }));
  engine.close_sequence(sequence);
  return {};
}

// Asks all that a text is asked; `row(logits)` for what comes before each token of an answer.
template <typename F>
Status score_answers(llm::Engine& engine, llm::SequenceId sequence, const RecallText& recall, F row) {
  for (const RecallText::Question& question : recall.questions) {
    FRUGAL_TRY_STATUS(engine.truncate(sequence, static_cast<int>(recall.text.size())));
    const std::span<const llm::Token> tokens(question.tokens);
    FRUGAL_TRY_STATUS(score(engine, sequence, tokens.first(tokens.size() - 1), question.answer - 1,
                            [&](size_t, std::span<const float> logits) { row(logits); }));
  }
  return {};
}

// What a model says with whole keys and values, and how far from it what it says otherwise is.
class Expected {
 public:
  void add(std::span<const float> logits) {
    const double shift = exponentials(logits, e_);
    const auto whole = static_cast<float>(
        std::exp(shift - static_cast<double>(*std::max_element(logits.begin(), logits.end()))));
    std::vector<float>& p = shares_.emplace_back(logits.size());
    double& entropy = entropy_.emplace_back(0.0);
    for (size_t t = 0; t < logits.size(); ++t) {
      p[t] = e_[t] / whole;
      entropy -= static_cast<double>(p[t]) * (static_cast<double>(logits[t]) - shift);
    }
  }
  // KL divergence of row i.
  double divergence(size_t i, std::span<const float> logits) {
    double mean = 0;
    for (size_t t = 0; t < logits.size(); ++t)
      mean += static_cast<double>(shares_[i][t]) * static_cast<double>(logits[t]);
    return std::max(0.0, exponentials(logits, e_) - mean - entropy_[i]);
  }
  size_t rows() const { return entropy_.size(); }

 private:
  std::vector<std::vector<float>> shares_;
  std::vector<double> entropy_;
  std::vector<float> e_;
};

// What the weights foretell of the errors of bases [first, last): heads, keys or values.
double foretold(const llm::Dictionary& dictionary, const llm::Allotment& allotted, size_t first,
                size_t last) {
  const auto n_groups = static_cast<size_t>(dictionary.head_dim / llm::kAtomGroup);
  double cost = 0;
  for (size_t base = first; base < last; ++base) {
    const llm::CoefficientLevels& levels =
        dictionary.levels[base / static_cast<size_t>(dictionary.n_kv_heads)];
    for (size_t g = 0; g < n_groups; ++g)
      cost += llm::Allotment::group_cost(dictionary, base, g, allotted.books[base] != 0) *
              static_cast<double>(levels.error[allotted.bits[base * n_groups + g]]);
  }
  return cost;
}

// What was measured so far: KL sums of the probes that are done, window after window.
struct Measured {
  static constexpr char kMagic[8] = {'f', 'r', 'g', 'l', 'S', 'E', 'N', '2'};
  uint64_t key = 0;  // of what it was measured on
  uint64_t done = 0;
  std::vector<double> kl;  // [n_layers, 2] on windows, then [n_layers, 2, n_kv_heads] of answers

  // magic, key, probes done, KL sums, checksum of all that
  std::string bytes() const {
    std::string out(kMagic, sizeof kMagic);
    out.append(reinterpret_cast<const char*>(&key), sizeof key);
    out.append(reinterpret_cast<const char*>(&done), sizeof done);
    out.append(reinterpret_cast<const char*>(kl.data()), kl.size() * sizeof(double));
    const uint64_t sum = fnv1a(std::as_bytes(std::span(out)));
    out.append(reinterpret_cast<const char*>(&sum), sizeof sum);
    return out;
  }
  // Takes a file up if it is of the same key and whole.
  void take_up(const std::string& path) {
    const auto file = read_file(path, 1 << 20);
    if (!file.ok()) return;
    Measured found;
    found.kl.resize(kl.size());
    if (file->size() != bytes().size()) return;
    const char* at = file->data() + sizeof kMagic;
    std::memcpy(&found.key, at, sizeof key);
    std::memcpy(&found.done, at + sizeof key, sizeof done);
    std::memcpy(found.kl.data(), at + sizeof key + sizeof done, kl.size() * sizeof(double));
    if (found.key == key && found.bytes() == *file) *this = found;
  }
};

}  // namespace

Status weigh_by_sensitivity(std::shared_ptr<const llm::Model> model, const SensitivityTexts& texts,
                            int threads, const std::string& partial, llm::Dictionary& dictionary,
                            const std::function<bool(double)>& progress) {
  Probe probe;
  llm::EngineOptions options;
  options.n_threads = threads;
  options.max_sequences = 1;
  std::string read;  // all that is read and asked
  const auto add = [&](const std::vector<llm::Token>& tokens) {
    read.append(reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(llm::Token));
  };
  for (const auto& window : texts.windows) {
    add(window);
    options.n_ctx = std::max(options.n_ctx, static_cast<int>(window.size()));
  }
  for (const RecallText& recall : texts.recalls) {
    add(recall.text);
    for (const auto& question : recall.questions) {
      add(question.tokens);
      options.n_ctx = std::max(options.n_ctx, static_cast<int>(recall.text.size() + question.tokens.size()));
    }
  }
  // An engine whose probed heads have the codes that the dictionary gives them as it is now.
  const auto coding = [&]() -> Result<std::unique_ptr<llm::Engine>> {
    FRUGAL_TRY(auto coded,
               llm::make_csr_source(std::make_shared<const llm::Dictionary>(dictionary), kProbedBits));
    options.kv_source = std::make_shared<ProbeSource>(std::move(coded), &probe);
    return llm::Engine::create(model, options);
  };
  FRUGAL_TRY(auto engine, coding());

  const auto n_heads = static_cast<size_t>(dictionary.n_kv_heads),
             n_sides = 2 * static_cast<size_t>(dictionary.n_layers), n_bases = n_sides * n_heads;
  const size_t of_windows = texts.windows.size() * n_sides,
               total = of_windows + texts.recalls.size() * n_bases;
  Measured measured;
  measured.key =
      fnv1a(std::as_bytes(std::span(read)),
            fnv1a(std::as_bytes(std::span(&dictionary.model_hash, 1)), options.kv_source->content_hash()));
  measured.kl.assign(n_sides + n_bases, 0.0);
  if (!partial.empty()) measured.take_up(partial);
  const auto finish = [&](size_t target, double kl) -> Status {
    measured.kl[target] += kl;
    ++measured.done;
    if (!partial.empty()) FRUGAL_TRY_STATUS(write_file_atomically(partial, measured.bytes()));
    if (!progress(static_cast<double>(measured.done) / static_cast<double>(total)))
      return Error{ErrorCode::kCancelled, "stopped; the same command goes on from here"};
    return {};
  };
  const auto code = [&](size_t side, int head) {
    probe.layer = static_cast<int>(side / 2);
    probe.side = side % 2 == 0 ? KvSide::kKeys : KvSide::kValues;
    probe.head = head;
  };
  const auto multiply = [&](size_t base, double factor) {
    for (float& weight : dictionary.bases[base].weight)
      weight = static_cast<float>(static_cast<double>(weight) * factor);
  };

  size_t n_rows = 0, n_answers = 0;
  for (size_t i = 0; i < texts.windows.size(); ++i) {
    const auto& window = texts.windows[i];
    n_rows += window.size() - window.size() / 2;
    if (measured.done >= (i + 1) * n_sides) continue;
    Expected expected;
    probe.layer = -1;
    FRUGAL_TRY_STATUS(
        score_window(*engine, window, [&](std::span<const float> logits) { expected.add(logits); }));
    for (size_t side = measured.done % n_sides; side < n_sides; ++side) {
      code(side, Probe::kAll);
      double kl = 0;
      size_t row = 0;
      FRUGAL_TRY_STATUS(score_window(
          *engine, window, [&](std::span<const float> logits) { kl += expected.divergence(row++, logits); }));
      FRUGAL_TRY_STATUS(finish(side, kl));
    }
  }
  llm::Allotment allotted = llm::allot_bits(dictionary, kProbedBits);
  for (size_t side = 0; side < n_sides; ++side) {
    const double cost = foretold(dictionary, allotted, side * n_heads, (side + 1) * n_heads);
    if (!(cost > 0 && measured.kl[side] > 0)) continue;
    for (size_t base = side * n_heads; base < (side + 1) * n_heads; ++base)
      multiply(base, measured.kl[side] / cost);
  }

  // With the codes that come of it. The text is read once with all whole, and then asked with the codes of
  // one head after the other.
  if (!texts.recalls.empty()) {
    FRUGAL_TRY(engine, coding());
  }
  for (size_t i = 0; i < texts.recalls.size(); ++i) {
    const RecallText& recall = texts.recalls[i];
    for (const auto& question : recall.questions) n_answers += question.tokens.size() - question.answer;
    const size_t first = of_windows + i * n_bases;
    if (measured.done >= first + n_bases) continue;
    probe.layer = -1;
    probe.stores_all = true;
    FRUGAL_TRY(const llm::SequenceId sequence, engine->open_sequence());
    FRUGAL_TRY_STATUS(engine->prefill(sequence, recall.text, nullptr));
    Expected expected;
    FRUGAL_TRY_STATUS(score_answers(*engine, sequence, recall,
                                    [&](std::span<const float> logits) { expected.add(logits); }));
    for (size_t base = measured.done - first; base < n_bases; ++base) {
      code(base / n_heads, static_cast<int>(base % n_heads));
      double kl = 0;
      size_t row = 0;
      FRUGAL_TRY_STATUS(score_answers(*engine, sequence, recall, [&](std::span<const float> logits) {
        kl += expected.divergence(row++, logits);
      }));
      FRUGAL_TRY_STATUS(finish(n_sides + base, kl));
    }
    engine->close_sequence(sequence);
  }
  allotted = llm::allot_bits(dictionary, kProbedBits);
  std::vector<double> factors(n_bases, 1.0);
  for (size_t base = 0; base < n_bases && n_answers > 0 && n_rows > 0; ++base) {
    const double cost = foretold(dictionary, allotted, base, base + 1) / static_cast<double>(n_rows),
                 lost = measured.kl[n_sides + base] / static_cast<double>(n_answers);
    if (cost > 0) factors[base] = std::min(kMostRecall, 1 + kRecall * lost / cost);
  }
  for (size_t base = 0; base < n_bases; ++base)
    multiply(base, factors[base] * (base / n_heads % 2 == 0 ? kKeysUnseen : 1));
  std::error_code ignored;
  if (!partial.empty()) std::filesystem::remove(partial, ignored);
  return {};
}

}  // namespace frugal::cli
