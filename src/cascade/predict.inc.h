// The body of predict_<set>(); FRUGAL_PREDICT names the function. See predict.h.
#include <cstring>

#include "cascade/predict.h"

namespace frugal::cascade {
namespace {

constexpr int kLanes = 8;
using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Ints = int __attribute__((vector_size(kLanes * sizeof(int))));

// A macro: a function that returns a vector has an ABI that depends on flags.
#define FRUGAL_SPLAT(x) ((x)-Floats{})

// log(1 + exp(x)) to within 2e-6 relative of softplus(): max(x, 0) + log1p(t), t = exp(-|x|). exp by range
// reduction to |r| <= ln 2 / 2 and its Taylor series to r^6 (error 1.2e-7); log1p(t) = 2 atanh(t / (2 + t)),
// the argument at most 1/3, by the series to y^11 (error 2 / 13 / 3^13 = 1e-7). Reference: libm in the tests.
inline void vector_softplus(float* values, int n) {
  for (int i = 0; i < n; i += kLanes) {
    Floats x;
    std::memcpy(&x, values + i, sizeof x);
    const Floats positive = x > 0 ? x : Floats{};
    Floats minus = x > 0 ? -x : x;
    minus = minus < -87 ? FRUGAL_SPLAT(-87.0f) : minus;  // exp(-87) is the last normal float; NaN passes
    const Floats scaled = minus * 1.44269504f - 0.5f;
    const Ints whole = __builtin_convertvector(scaled, Ints);  // truncates: rounds to nearest, as scaled <= 0
    const Floats n_ln2 = __builtin_convertvector(whole, Floats);
    const Floats r = (minus - n_ln2 * 0.693359375f) + n_ln2 * 2.12194440e-4f;
    Floats e = FRUGAL_SPLAT(1.0f / 720);
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    const Ints bits = (whole + 127) << 23;
    Floats power;
    std::memcpy(&power, &bits, sizeof power);
    const Floats t = e * power;
    const Floats y = t / (t + 2.0f), y2 = y * y;
    Floats series = FRUGAL_SPLAT(1.0f / 11);
    series = series * y2 + 1.0f / 9;
    series = series * y2 + 1.0f / 7;
    series = series * y2 + 1.0f / 5;
    series = series * y2 + 1.0f / 3;
    series = series * y2 + 1.0f;
    const Floats result = positive + 2.0f * y * series;
    std::memcpy(values + i, &result, sizeof result);
  }
}

}  // namespace

void FRUGAL_PREDICT(const PredictView& view, const float* z, float* scratch, float* rewards) {
  float* heads = scratch;
  float* gain = heads + view.padded_heads;
  float* above = gain + view.n_gains;
  float* here = above + view.widest_level;
  for (int p = 0; p < view.padded_heads; p += kLanes) {
    Floats sum{};
    const float* w = view.weights + p;
    for (int i = 0; i < view.z_dim; ++i, w += view.padded_heads) {
      Floats row;
      std::memcpy(&row, w, sizeof row);
      sum += row * z[i];
    }
    std::memcpy(heads + p, &sum, sizeof sum);
  }
  if (view.monotone) vector_softplus(heads, view.padded_heads);
  for (size_t g = 0; g < view.n_gains; ++g) {
    const PredictView::Gain& one = view.gains[g];
    float sum = 0;
    for (int b = 0; b < kBases; ++b) sum += heads[one.head + b] * one.phi[b];
    gain[g] = sum;
  }
  above[0] = view.recursive ? 1 : 0;
  for (size_t k = 0; k < view.n_levels; ++k) {
    const PredictView::Node* node = view.nodes[k];
    const size_t n = view.n_nodes[k];
    if (view.recursive) {
      for (size_t i = 0; i < n; ++i)
        here[i] = gain[node[i].gain] * above[node[i].parent] + heads[node[i].alpha];
    } else {
      for (size_t i = 0; i < n; ++i) here[i] = gain[node[i].gain] + above[node[i].parent];
    }
    float* swapped = above;
    above = here;
    here = swapped;
  }
  const size_t n = view.n_nodes[view.n_levels - 1];
  const float scale = view.scale * heads[view.value];
  for (size_t i = 0; i < n; ++i) rewards[view.chain_of_leaf[i]] = scale * above[i] + view.offset;
}

}  // namespace frugal::cascade
