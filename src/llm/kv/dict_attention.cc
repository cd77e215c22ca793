// What attention makes of the keys that a dictionary is trained on.
#include <algorithm>
#include <cmath>

#include "llm/kernel/kernel.h"
#include "llm/kv/dict_train.h"

namespace frugal::llm {
namespace {

constexpr int kSeenWhole = 96;  // tokens nearer to a query than this are whole, on average
// What attention looks at weighs more in its basis: this share of a key's or value's weight is its part in
// what errors of scores or values do, held below kLargestShare times the mean so that a few tokens do not
// make the basis.
constexpr double kAttendedKeys = 0.8, kAttendedValues = 0.8;
constexpr double kLargestShare = 200;

float dot(const float* a, const float* b, size_t n) {
  float lanes[16] = {}, sum = 0;  // n is a multiple of 16
  for (size_t i = 0; i < n; i += 16) {
    for (size_t lane = 0; lane < 16; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  }
  for (const float lane : lanes) sum += lane;
  return sum;
}

}  // namespace

// Whose query stands at a place of queries_.
size_t DictionaryTrainer::token_of(size_t place, int group) {
  return place * kQueryStride / static_cast<size_t>(std::max(1, group));
}

std::vector<double> DictionaryTrainer::query_moment(int layer, int head) const {
  const auto dim = static_cast<size_t>(empty_.head_dim);
  const auto idx = static_cast<size_t>(layer * empty_.n_kv_heads + head);
  const auto& queries = queries_[idx];
  std::vector<double> moment(dim * dim, 0.0);
  std::vector<float> q(dim), turned(dim);
  double n = 0;  // each query counts where it stands and, as keys do, at a position anywhere
  for (size_t place = 0; place < queries.size() / dim; ++place) {
    const size_t token = token_of(place, groups_[idx]);
    if (queries[place * dim] == kNoQuery || token >= static_cast<size_t>(end_)) continue;
    for (size_t i = 0; i < dim; ++i) q[i] = f16_to_f32(queries[place * dim + i]);
    turn_to(empty_, layer, spread_position(place) - positions_[token], q.data(), turned.data());
    n += 2;
    for (size_t i = 0; i < dim; ++i) {
      for (size_t j = 0; j < dim; ++j)
        moment[i * dim + j] += static_cast<double>(q[i]) * static_cast<double>(q[j]) +
                               static_cast<double>(turned[i]) * static_cast<double>(turned[j]);
    }
  }
  if (n == 0) return {};
  for (double& m : moment) m /= n;
  return moment;
}

// To first order an error e of token t's score moves a head's output by p e (v_t - o): p its weight, o the
// output. So a key counts by the sum over queries of p^2 |v_t - o|^2, and a value, whose error e moves the
// output by p e, by that of p^2.
std::vector<double> DictionaryTrainer::shares_of(int layer, KvSide side, int head) const {
  const double attended = side == KvSide::kKeys ? kAttendedKeys : kAttendedValues;
  const auto dim = static_cast<size_t>(empty_.head_dim);
  const auto idx = static_cast<size_t>(layer * empty_.n_kv_heads + head);
  std::vector<double> shares(static_cast<size_t>(end_), 0.0);
  const std::vector<float> keys = vectors(layer, KvSide::kKeys, head),
                           values = vectors(layer, KvSide::kValues, head);
  std::vector<float> q(dim), p, out(dim);
  for (size_t place = 0; place < queries_[idx].size() / dim; ++place) {
    const uint16_t* from = &queries_[idx][place * dim];
    const size_t token = token_of(place, groups_[idx]);
    if (from[0] == kNoQuery || token >= static_cast<size_t>(end_)) continue;
    const int position = positions_[token];
    if (position < 2 * kSeenWhole) continue;
    for (size_t i = 0; i < dim; ++i) q[i] = f16_to_f32(from[i]);
    const int seen = windows_[idx] > 0 ? std::min(windows_[idx], position + 1) : position + 1;
    const auto n = static_cast<size_t>(seen);
    const size_t first = token + 1 - n;
    p.resize(n);
    float largest = -1e30f, sum = 0;
    for (size_t t = 0; t < n; ++t)
      largest = std::max(largest, p[t] = dot(q.data(), &keys[(first + t) * dim], dim));
    for (float& x : p) sum += x = std::exp(x - largest);
    std::fill(out.begin(), out.end(), 0.0f);
    for (float& x : p) x /= sum;
    for (size_t t = 0; side == KvSide::kKeys && t < n; ++t) {
      if (p[t] < 1e-7f) continue;
      for (size_t i = 0; i < dim; ++i) out[i] += p[t] * values[(first + t) * dim + i];
    }
    for (size_t t = 0; t + kSeenWhole < n; ++t) {
      if (p[t] < 1e-5f) continue;
      float away = side == KvSide::kKeys ? 0 : 1;
      for (size_t i = 0; side == KvSide::kKeys && i < dim; ++i) {
        const float d = values[(first + t) * dim + i] - out[i];
        away += d * d;
      }
      shares[first + t] += static_cast<double>(p[t] * p[t] * away);
    }
  }
  double mean = 0;
  size_t n = 0;
  for (size_t t = 0; t < shares.size(); ++t) {
    if (positions_[t] < kSkipped) continue;
    mean += shares[t];
    ++n;
  }
  mean /= static_cast<double>(std::max<size_t>(1, n));
  for (double& share : shares) {
    const double relative = mean > 0 ? std::min(kLargestShare, share / mean) : 1;
    share = 1 - attended + attended * relative;
  }
  return shares;
}

}  // namespace frugal::llm
