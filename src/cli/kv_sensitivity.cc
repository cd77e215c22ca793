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

constexpr double kProbedBits = 2;
constexpr size_t kRowsAtOnce = 64;

// The layer and side that is coded; all others are whole. Changed between forward passes.
struct Probe {
  int layer = -1;
  KvSide side = KvSide::kKeys;
  bool is(int l, KvSide s) const { return l == layer && s == side; }
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
    if (layer == probe_->layer) coded_->store(layer, position, k, v);
  }
  int max_rows_ahead() const override { return coded_->max_rows_ahead(); }
  size_t query_scratch_bytes(int n) const override { return coded_->query_scratch_bytes(n); }
  void prepare(int layer, int head, const KvQueries& queries) const override {
    of(layer, KvSide::kKeys).prepare(layer, head, queries);
  }
  void score_chunk(int layer, int head, int block, int n, const KvQueries& queries, float* scores,
                   size_t stride) const override {
    of(layer, KvSide::kKeys).score_chunk(layer, head, block, n, queries, scores, stride);
  }
  void add_values(int layer, int head, int block, int n, const KvQueries& queries, const float* weights,
                  size_t stride, float* out, float* scratch) const override {
    of(layer, KvSide::kValues).add_values(layer, head, block, n, queries, weights, stride, out, scratch);
  }
  int sum_width(int layer, int head) const override {
    return of(layer, KvSide::kValues).sum_width(layer, head);
  }
  void restore(int layer, int head, const float* sums, int n_cols, float* out) const override {
    of(layer, KvSide::kValues).restore(layer, head, sums, n_cols, out);
  }
  uint64_t bytes_used(int n) const override { return whole_->bytes_used(n); }
  uint64_t save_bytes(int) const override { return 0; }
  void save(int, std::byte*) const override {}
  void load(int, const std::byte*) override {}

 private:
  const KvCache& of(int layer, KvSide side) const { return probe_->is(layer, side) ? *coded_ : *whole_; }

  std::unique_ptr<KvCache> whole_, coded_;
  const Probe* probe_;
};

class ProbeSource final : public llm::KvSource {
 public:
  ProbeSource(std::shared_ptr<const llm::KvSource> coded, const Probe* probe)
      : coded_(std::move(coded)), probe_(probe) {}
  std::string name() const override { return "probe"; }
  uint64_t content_hash() const override { return 0; }
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

// Runs a window; `row(i, logits)` for each row of its second half.
template <typename F>
Status score(llm::Engine& engine, const std::vector<llm::Token>& window, F row) {
  const std::span<const llm::Token> tokens(window);
  const size_t first = window.size() / 2;
  FRUGAL_TRY(const llm::SequenceId sequence, engine.open_sequence());
  FRUGAL_TRY_STATUS(engine.prefill(sequence, tokens.first(first), nullptr));
  for (size_t begin = first; begin < window.size(); begin += kRowsAtOnce) {
    const size_t n = std::min(kRowsAtOnce, window.size() - begin);
    const llm::BatchItem item{sequence, tokens.subspan(begin, n), llm::LogitRows::kAll};
    FRUGAL_TRY_STATUS(engine.forward({&item, 1}));
    for (size_t i = 0; i < n; ++i) row(begin - first + i, engine.logits(static_cast<int>(i)));
  }
  engine.close_sequence(sequence);
  return {};
}

// What the weights foretell of the probed side's error.
double foretold(const llm::Dictionary& dictionary, const llm::Allotment& allotted, int layer, KvSide side) {
  const llm::CoefficientLevels& levels = dictionary.levels_of(layer, side);
  const auto n_groups = static_cast<size_t>(dictionary.head_dim / llm::kAtomGroup);
  double cost = 0;
  for (int head = 0; head < dictionary.n_kv_heads; ++head) {
    const size_t base = dictionary.basis_index(layer, side, head);
    for (size_t g = 0; g < n_groups; ++g)
      cost += llm::Allotment::group_cost(dictionary, base, g, allotted.books[base] != 0) *
              static_cast<double>(levels.error[allotted.bits[base * n_groups + g]]);
  }
  return cost;
}

// What was measured so far: KL sums of the probes that are done, window after window.
struct Measured {
  static constexpr char kMagic[8] = {'f', 'r', 'g', 'l', 'S', 'E', 'N', '1'};
  uint64_t key = 0;  // of what it was measured on
  uint64_t done = 0;
  std::vector<double> kl;  // [n_layers, 2]

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

Status weigh_by_sensitivity(std::shared_ptr<const llm::Model> model,
                            std::span<const std::vector<llm::Token>> windows, int threads,
                            const std::string& partial, llm::Dictionary& dictionary,
                            const std::function<bool(double)>& progress) {
  Probe probe;
  FRUGAL_TRY(auto coded,
             llm::make_csr_source(std::make_shared<const llm::Dictionary>(dictionary), kProbedBits));
  uint64_t key = fnv1a(std::as_bytes(std::span(&dictionary.model_hash, 1)), coded->content_hash());
  for (const auto& window : windows) key = fnv1a(std::as_bytes(std::span(window)), key);
  llm::EngineOptions options;
  options.n_threads = threads;
  options.max_sequences = 1;
  for (const auto& window : windows) options.n_ctx = std::max(options.n_ctx, static_cast<int>(window.size()));
  options.kv_source = std::make_shared<ProbeSource>(std::move(coded), &probe);
  FRUGAL_TRY(const auto engine, llm::Engine::create(model, options));

  Measured measured;
  measured.key = key;
  measured.kl.assign(static_cast<size_t>(2 * dictionary.n_layers), 0.0);
  if (!partial.empty()) measured.take_up(partial);
  const size_t n_probes = measured.kl.size(), total = windows.size() * n_probes;
  std::vector<std::vector<float>> expected;
  std::vector<double> entropy;
  std::vector<float> e;
  while (measured.done < total) {
    const auto& window = windows[measured.done / n_probes];
    const size_t target = measured.done % n_probes;
    if (expected.empty()) {
      expected.resize(window.size() - window.size() / 2);
      entropy.assign(expected.size(), 0.0);
      probe.layer = -1;
      FRUGAL_TRY_STATUS(score(*engine, window, [&](size_t i, std::span<const float> logits) {
        const double shift = exponentials(logits, e);
        const auto whole = static_cast<float>(
            std::exp(shift - static_cast<double>(*std::max_element(logits.begin(), logits.end()))));
        expected[i].resize(logits.size());
        for (size_t t = 0; t < logits.size(); ++t) {
          const float p = expected[i][t] = e[t] / whole;
          entropy[i] -= static_cast<double>(p) * (static_cast<double>(logits[t]) - shift);
        }
      }));
    }
    probe.layer = static_cast<int>(target / 2);
    probe.side = target % 2 == 0 ? KvSide::kKeys : KvSide::kValues;
    double kl = 0;
    FRUGAL_TRY_STATUS(score(*engine, window, [&](size_t i, std::span<const float> logits) {
      double mean = 0;
      for (size_t t = 0; t < logits.size(); ++t)
        mean += static_cast<double>(expected[i][t]) * static_cast<double>(logits[t]);
      kl += std::max(0.0, exponentials(logits, e) - mean - entropy[i]);
    }));
    measured.kl[target] += kl;
    if (++measured.done % n_probes == 0) expected.clear();
    if (!partial.empty()) FRUGAL_TRY_STATUS(write_file_atomically(partial, measured.bytes()));
    if (!progress(static_cast<double>(measured.done) / static_cast<double>(total)))
      return Error{ErrorCode::kCancelled, "stopped; the same command goes on from here"};
  }
  const llm::Allotment allotted = llm::allot_bits(dictionary, kProbedBits);
  for (size_t target = 0; target < n_probes; ++target) {
    const int layer = static_cast<int>(target / 2);
    const KvSide side = target % 2 == 0 ? KvSide::kKeys : KvSide::kValues;
    const double cost = foretold(dictionary, allotted, layer, side);
    if (!(cost > 0 && measured.kl[target] > 0)) continue;
    for (int head = 0; head < dictionary.n_kv_heads; ++head) {
      for (float& weight : dictionary.bases[dictionary.basis_index(layer, side, head)].weight)
        weight = static_cast<float>(static_cast<double>(weight) * measured.kl[target] / cost);
    }
  }
  std::error_code ignored;
  if (!partial.empty()) std::filesystem::remove(partial, ignored);
  return {};
}

}  // namespace frugal::cli
