// The reward model: layout, inference, files. Training is in reward_train.cc.
#include <algorithm>
#include <cstring>
#include <map>

#include "base/check.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/text.h"
#include "cascade/reward_impl.h"

namespace frugal::cascade {

std::array<float, kBases> count_bases(double count, double least, double largest, bool multi_basis) {
  if (!multi_basis) return {0, static_cast<float>(std::log1p(9 * count / largest) / std::log(10.0)), 0, 0, 0};
  // Clicks saturate early: most of what a queue can give comes with the first step of the grid. So the bases
  // rise over the logarithm of the count, from 0 at the least to 1 at the largest, at different speeds.
  const double u = largest > least ? std::log(count / least) / std::log(largest / least) : 0;
  const auto saturating = [&](double speed) {
    return static_cast<float>((1 - std::exp(-speed * u)) / (1 - std::exp(-speed)));
  };
  return {1, static_cast<float>(u), static_cast<float>(u * u), saturating(5), saturating(20)};
}

namespace {

uint64_t hash_spec(const CascadeSpec& spec) {
  std::string text;
  for (const auto& feature : spec.features) text += feature + "\n";
  for (const Stage& stage : spec.stages) {
    text += stage.name + ":";
    for (const auto& model : stage.models) text += model.name + ",";
    for (const int count : stage.counts) text += std::to_string(count) + ",";
  }
  for (const auto& chain : spec.chains) {
    for (const int action : chain) text += std::to_string(action) + ".";
    text += ";";
  }
  return fnv1a(std::as_bytes(std::span(text)));
}

}  // namespace

std::unique_ptr<RewardModel::Impl> RewardModel::Impl::lay_out(const CascadeSpec& spec,
                                                              const RewardOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->n_features = spec.n_features();
  impl->n_chains = spec.n_chains();
  impl->n_stages = static_cast<int>(spec.stages.size());
  impl->spec_hash = hash_spec(spec);
  std::vector<std::vector<std::vector<int>>> gain_of;  // [stage][model][count]
  for (const Stage& stage : spec.stages) {
    impl->first_head.emplace_back();
    gain_of.emplace_back();
    for (size_t m = 0; m < stage.models.size(); ++m) {
      impl->first_head.back().push_back(impl->n_heads);
      gain_of.back().emplace_back();
      for (const int count : stage.counts) {
        gain_of.back().back().push_back(static_cast<int>(impl->gains.size()));
        const auto bases = count_bases(count, stage.counts.front(), stage.counts.back(), options.multi_basis);
        Gain gain{impl->n_heads, {}};
        std::copy(bases.begin(), bases.end(), gain.phi);
        impl->gains.push_back(gain);
      }
      impl->n_heads += kBases + 1;
    }
  }
  impl->value_head = impl->n_heads++;
  impl->padded_heads = (impl->n_heads + 7) / 8 * 8;
  impl->levels.resize(spec.stages.size());
  std::vector<std::map<std::vector<int>, int>> known(spec.stages.size());
  for (int j = 0; j < impl->n_chains; ++j) {
    const auto& actions = spec.chains[static_cast<size_t>(j)];
    impl->chain_gains.emplace_back();
    impl->chain_alphas.emplace_back();
    int parent = 0;
    for (size_t k = 0; k < spec.stages.size(); ++k) {
      const auto model = static_cast<size_t>(actions[2 * k]), count = static_cast<size_t>(actions[2 * k + 1]);
      const int gain = gain_of[k][model][count], alpha = impl->first_head[k][model] + kBases;
      impl->chain_gains.back().push_back(gain);
      impl->chain_alphas.back().push_back(alpha);
      const bool leaf = k + 1 == spec.stages.size();
      const std::vector<int> prefix(actions.begin(),
                                    actions.begin() + static_cast<std::ptrdiff_t>(2 * k + 2));
      const auto found = known[k].find(prefix);
      if (!leaf && found != known[k].end()) {
        parent = found->second;
        continue;
      }
      impl->levels[k].push_back({parent, gain, alpha});
      parent = static_cast<int>(impl->levels[k].size()) - 1;
      known[k][prefix] = parent;
      if (leaf) impl->chain_of_leaf.push_back(j);
    }
  }
  for (const auto& level : impl->levels) impl->widest_level = std::max(impl->widest_level, level.size());
  return impl;
}

PredictView RewardModel::Impl::view() const {
  PredictView v;
  v.weights = weights.data();
  v.z_dim = z_dim();
  v.padded_heads = padded_heads;
  v.gains = gains.data();
  v.n_gains = gains.size();
  v.n_levels = levels.size();
  for (size_t k = 0; k < levels.size(); ++k) {
    v.nodes[k] = levels[k].data();
    v.n_nodes[k] = levels[k].size();
  }
  v.widest_level = widest_level;
  v.chain_of_leaf = chain_of_leaf.data();
  v.scale = scale;
  v.offset = offset;
  v.value = value_head;
  v.recursive = options.recursive;
  v.monotone = options.monotone;
  return v;
}

void RewardModel::Impl::embed(std::span<const float> x, float* z) const {
  const auto d = static_cast<size_t>(n_features);
  z[0] = 1;
  // Beyond five standard deviations lies what training has not seen: held at the edge. NaN stays NaN.
  for (size_t i = 0; i < d; ++i) {
    const float value = (x[i] - mean[i]) * inverse_sd[i];
    z[1 + i] = value < -5 ? -5 : (value > 5 ? 5 : value);
  }
  for (size_t h = 0; h < static_cast<size_t>(options.hidden); ++h) {
    const float* row = &mix[h * (1 + d)];
    float sum = 0;
    for (size_t i = 0; i < 1 + d; ++i) sum += row[i] * z[i];
    z[1 + d + h] = sum < 0 ? 0 : sum;
  }
}

void RewardModel::predict(std::span<const float> features, std::span<float> rewards) const {
  const Impl& m = *impl_;
  FRUGAL_CHECK(features.size() == static_cast<size_t>(m.n_features));
  FRUGAL_CHECK(rewards.size() == static_cast<size_t>(m.n_chains));
  thread_local std::vector<float> scratch;  // grows to the largest model of the thread, then stays
  const size_t need = static_cast<size_t>(m.z_dim() + m.padded_heads) + m.gains.size() + 2 * m.widest_level;
  if (scratch.size() < need) scratch.resize(need);
  float* z = scratch.data();
  m.embed(features, z);
  thread_local const PredictKernel kernel = predict_kernel();
  kernel(m.view(), z, z + m.z_dim(), rewards.data());
}

double RewardModel::predict_slowly(std::span<const float> features, int chain) const {
  const Impl& m = *impl_;
  std::vector<double> z{1};
  for (size_t i = 0; i < features.size(); ++i) {
    z.push_back(std::clamp((static_cast<double>(features[i]) - static_cast<double>(m.mean[i])) *
                               static_cast<double>(m.inverse_sd[i]),
                           -5.0, 5.0));
  }
  for (int h = 0; h < m.options.hidden; ++h) {
    double sum = 0;
    for (int i = 0; i <= m.n_features; ++i)
      sum += static_cast<double>(m.mix[static_cast<size_t>(h * (m.n_features + 1) + i)]) *
             z[static_cast<size_t>(i)];
    z.push_back(std::max(sum, 0.0));
  }
  const auto head = [&](int p) {
    double sum = 0;
    for (size_t i = 0; i < z.size(); ++i)
      sum += z[i] *
             static_cast<double>(m.weights[i * static_cast<size_t>(m.padded_heads) + static_cast<size_t>(p)]);
    return m.options.monotone ? softplus(sum) : sum;
  };
  double state = m.options.recursive ? 1 : 0;
  for (size_t k = 0; k < static_cast<size_t>(m.n_stages); ++k) {
    const Impl::Gain& gain = m.gains[static_cast<size_t>(m.chain_gains[static_cast<size_t>(chain)][k])];
    double s = 0;
    for (int b = 0; b < kBases; ++b)
      s += head(gain.head + b) * static_cast<double>(gain.phi[static_cast<size_t>(b)]);
    state = m.options.recursive ? s * state + head(m.chain_alphas[static_cast<size_t>(chain)][k]) : state + s;
  }
  return static_cast<double>(m.scale) * head(m.value_head) * state + static_cast<double>(m.offset);
}

RewardModel::RewardModel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RewardModel::RewardModel(RewardModel&&) noexcept = default;
RewardModel& RewardModel::operator=(RewardModel&&) noexcept = default;
RewardModel::~RewardModel() = default;
int RewardModel::n_features() const { return impl_->n_features; }
int RewardModel::n_chains() const { return impl_->n_chains; }
int RewardModel::n_parameters() const { return impl_->n_parameters(); }

double RewardModel::flops() const {
  const Impl& m = *impl_;
  size_t nodes = 0;
  for (const auto& level : m.levels) nodes += level.size();
  constexpr double kSoftplusFlops = 34;
  return 2.0 * (1 + m.n_features) * m.options.hidden + 2.0 * m.z_dim() * m.padded_heads +
         (m.options.monotone ? kSoftplusFlops * m.padded_heads : 0) +
         2.0 * kBases * static_cast<double>(m.gains.size()) + 2.0 * static_cast<double>(nodes) +
         2.0 * m.n_chains;
}

// --- Files: docs/formats/reward.md
// ---------------------------------------------------------------------------

namespace {

constexpr char kMagic[8] = {'F', 'R', 'G', 'L', 'R', 'W', 'D', '\n'};
constexpr uint32_t kVersion = 2;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t flags;  // 1 recursive, 2 multi-basis, 4 monotone
  uint64_t spec_hash;
  uint32_t n_features, hidden, padded_heads, reserved;
  float scale, offset;
  uint64_t checksum;  // of this header with 0 here, and of the arrays that follow
};
static_assert(sizeof(Header) == 56);

uint64_t checksum_of(Header header, std::span<const float> arrays) {
  header.checksum = 0;
  return fnv1a(std::as_bytes(arrays), fnv1a(std::as_bytes(std::span(&header, 1))));
}

}  // namespace

Status RewardModel::save(const std::string& path) const {
  const Impl& m = *impl_;
  std::vector<float> arrays;
  for (const auto* array : {&m.mean, &m.inverse_sd, &m.mix, &m.weights})
    arrays.insert(arrays.end(), array->begin(), array->end());
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.flags =
      (m.options.recursive ? 1u : 0u) | (m.options.multi_basis ? 2u : 0u) | (m.options.monotone ? 4u : 0u);
  header.spec_hash = m.spec_hash;
  header.n_features = static_cast<uint32_t>(m.n_features);
  header.hidden = static_cast<uint32_t>(m.options.hidden);
  header.padded_heads = static_cast<uint32_t>(m.padded_heads);
  header.scale = m.scale;
  header.offset = m.offset;
  header.checksum = checksum_of(header, arrays);
  std::string bytes(sizeof header + arrays.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), &header, sizeof header);
  std::memcpy(bytes.data() + sizeof header, arrays.data(), arrays.size() * sizeof(float));
  return write_file_atomically(path, bytes);
}

Result<RewardModel> RewardModel::load(const std::string& path, const CascadeSpec& spec) {
  FRUGAL_TRY_STATUS(check_cascade(spec));
  FRUGAL_TRY(const std::string bytes, read_file(path, size_t{256} << 20));
  const auto corrupt = [&](const char* what) { return Error{ErrorCode::kCorrupt, path + ": " + what}; };
  Header header;
  if (bytes.size() < sizeof header) return corrupt("too short for a reward model");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    return corrupt("not a reward model (wrong magic)");
  if (header.version != kVersion)
    return Error{ErrorCode::kUnsupported,
                 strf("%s: version %u, this build reads %u", path.c_str(), header.version, kVersion)};
  if (header.hidden > 32) return corrupt("more hidden units than there can be");
  RewardOptions options{(header.flags & 1) != 0, (header.flags & 2) != 0, (header.flags & 4) != 0,
                        static_cast<int>(header.hidden)};
  auto impl = Impl::lay_out(spec, options);
  if (header.spec_hash != impl->spec_hash || header.n_features != static_cast<uint32_t>(impl->n_features) ||
      header.padded_heads != static_cast<uint32_t>(impl->padded_heads)) {
    return corrupt(
        "trained for another cascade (other stages, chains or features): train it again for this one");
  }
  const auto d = static_cast<size_t>(impl->n_features), z_dim = static_cast<size_t>(impl->z_dim());
  const size_t sizes[] = {d, d, static_cast<size_t>(options.hidden) * (1 + d),
                          z_dim * static_cast<size_t>(impl->padded_heads)};
  const size_t n = sizes[0] + sizes[1] + sizes[2] + sizes[3];
  if (bytes.size() != sizeof header + n * sizeof(float))
    return corrupt("its size is not what its header says: truncated?");
  std::vector<float> arrays(n);
  std::memcpy(arrays.data(), bytes.data() + sizeof header, n * sizeof(float));
  if (checksum_of(header, arrays) != header.checksum) return corrupt("checksum does not match: damaged");
  for (const float value : arrays) {
    if (!std::isfinite(value)) return corrupt("a parameter is not finite");
  }
  if (!std::isfinite(header.scale) || header.scale < 0 || !std::isfinite(header.offset))
    return corrupt("its calibration is not finite");
  size_t at = 0;
  std::vector<float>* targets[] = {&impl->mean, &impl->inverse_sd, &impl->mix, &impl->weights};
  for (size_t i = 0; i < 4; ++i) {
    targets[i]->assign(arrays.begin() + static_cast<std::ptrdiff_t>(at),
                       arrays.begin() + static_cast<std::ptrdiff_t>(at + sizes[i]));
    at += sizes[i];
  }
  impl->scale = header.scale;
  impl->offset = header.offset;
  return RewardModel(std::move(impl));
}

}  // namespace frugal::cascade
