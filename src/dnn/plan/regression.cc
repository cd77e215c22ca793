#include "dnn/plan/regression.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/text.h"

namespace frugal::dnn {
namespace {

constexpr size_t kN = TimeSample::kFeatures;
constexpr size_t kFewSamples = 12;
constexpr double kRidge = 0.05;  // pulls exponents towards none where samples do not say otherwise
constexpr double kLeastSeconds = 1e-7;

TimeSample sample(const std::string& kind, double flops, double bytes, double weight_bytes, double plane,
                  double channels, double seconds) {
  const auto log1 = [](double x) { return std::log(std::max(0.0, x) + 1); };
  return {kind, {1, log1(flops), log1(bytes), log1(weight_bytes), log1(plane), log1(channels)}, seconds};
}

// Solves a * x = b for a symmetric positive definite a, by Cholesky's factors.
std::array<double, kN> solve(std::array<std::array<double, kN>, kN> a, std::array<double, kN> b) {
  for (size_t i = 0; i < kN; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      double sum = a[i][j];
      for (size_t k = 0; k < j; ++k) sum -= a[i][k] * a[j][k];
      a[i][j] = i == j ? std::sqrt(std::max(sum, 1e-12)) : sum / a[j][j];
    }
  }
  for (size_t i = 0; i < kN; ++i) {
    for (size_t k = 0; k < i; ++k) b[i] -= a[i][k] * b[k];
    b[i] /= a[i][i];
  }
  for (size_t i = kN; i-- > 0;) {
    for (size_t k = i + 1; k < kN; ++k) b[i] -= a[k][i] * b[k];
    b[i] /= a[i][i];
  }
  return b;
}

std::array<double, kN> ridge(std::span<const TimeSample* const> samples) {
  std::array<std::array<double, kN>, kN> a{};
  std::array<double, kN> b{};
  for (const TimeSample* s : samples) {
    const double y = std::log(std::max(kLeastSeconds, s->seconds));
    // Long layers weigh more: the sum of times is what a plan is made of.
    const double weight = std::sqrt(std::max(kLeastSeconds, s->seconds) / kLeastSeconds);
    for (size_t i = 0; i < kN; ++i) {
      b[i] += weight * s->features[i] * y;
      for (size_t j = 0; j < kN; ++j) a[i][j] += weight * s->features[i] * s->features[j];
    }
  }
  double scale = 0;
  for (size_t i = 0; i < kN; ++i) scale += a[i][i] / kN;
  for (size_t i = 0; i < kN; ++i) a[i][i] += (i == 0 ? 1e-6 : kRidge) * scale * 1e-3 + 1e-9;
  return solve(a, b);
}

}  // namespace

TimeSample sample_of(const Graph& graph, int v, double seconds) {
  const Vertex& vertex = graph.vertices[static_cast<size_t>(v)];
  double bytes = 0, plane = 1, channels = 1;
  for (const int t : vertex.inputs) bytes += static_cast<double>(graph.tensors[static_cast<size_t>(t)].bytes);
  for (const int t : vertex.outputs)
    bytes += static_cast<double>(graph.tensors[static_cast<size_t>(t)].bytes);
  if (!vertex.outputs.empty()) {
    const std::vector<int64_t>& shape = graph.tensors[static_cast<size_t>(vertex.outputs[0])].shape;
    if (shape.size() > 1) channels = static_cast<double>(shape[1]);
    if (shape.size() == 4) plane = static_cast<double>(shape[2] * shape[3]);
  }
  return sample(vertex.kind, vertex.flops, bytes, static_cast<double>(vertex.weight_bytes), plane, channels,
                seconds);
}

Result<std::vector<TimeSample>> samples_from_profile(std::string_view text) {
  const nlohmann::json root = nlohmann::json::parse(text, nullptr, false);
  const Error corrupt{ErrorCode::kCorrupt,
                      "not a profile to learn from; make it again with frugal dnn profile"};
  if (!root.is_object()) return corrupt;
  std::vector<TimeSample> samples;
  try {
    for (const auto& row : root.at("vertices")) {
      const auto kind = row.at("kind").get<std::string>();
      const double seconds = row.at("seconds").get<double>();
      if (kind == "Input") continue;
      if (!std::isfinite(seconds) || seconds < 0) return corrupt;
      samples.push_back(sample(kind, row.at("flops").get<double>(), row.at("tensor_bytes").get<double>(),
                               row.at("weight_bytes").get<double>(), row.at("plane").get<double>(),
                               row.at("channels").get<double>(), seconds));
    }
  } catch (const nlohmann::json::exception&) {
    return corrupt;
  }
  return samples;
}

Result<TimeModel> TimeModel::fit(std::span<const TimeSample> samples) {
  std::map<std::string, std::vector<const TimeSample*>> by_kind;
  std::vector<const TimeSample*> all;
  for (const TimeSample& s : samples) {
    if (s.seconds <= 0) continue;  // fused away: no time of its own
    by_kind[s.kind].push_back(&s);
    all.push_back(&s);
  }
  if (all.size() < kFewSamples) {
    return Error{
        ErrorCode::kInvalidArgument,
        strf("%zu measured vertices are too few to learn from; %zu are needed", all.size(), kFewSamples)};
  }
  TimeModel model;
  model.all_ = ridge(all);
  for (const auto& [kind, own] : by_kind) {
    if (own.size() >= kFewSamples) model.by_kind_[kind] = ridge(own);
  }
  return model;
}

double TimeModel::seconds(const TimeSample& sample) const {
  const auto at = by_kind_.find(sample.kind);
  const Coefficients& c = at == by_kind_.end() ? all_ : at->second;
  double y = 0;
  for (size_t i = 0; i < kN; ++i) y += c[i] * sample.features[i];
  return std::exp(std::min(y, 20.0));
}

Measurement TimeModel::predict(const Graph& graph) const {
  Measurement measurement;
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    const bool input = graph.vertices[v].kind == "Input";
    measurement.vertex_seconds.push_back(input ? 0 : seconds(sample_of(graph, static_cast<int>(v))));
    measurement.whole_seconds += measurement.vertex_seconds.back();
  }
  return measurement;
}

}  // namespace frugal::dnn
