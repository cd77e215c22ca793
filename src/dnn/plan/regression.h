// Times of vertices that were never run: a regression for each kind of layer over profiles of other models on
// the same host, so that an unseen model is planned at once.
#pragma once

#include <array>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dnn/exec/network.h"
#include "frugal/dnn.h"

namespace frugal::dnn {

// What a vertex's time is explained by, and the time. In logarithms: times span four decades, and what
// matters of each is its relative error.
struct TimeSample {
  static constexpr size_t kFeatures = 6;
  std::string kind;
  std::array<double, kFeatures> features{};  // 1, FLOPs, bytes in and out, weights, rows x columns, channels
  double seconds = 0;
};
TimeSample sample_of(const Graph& graph, int v, double seconds = 0);
// The vertices of a profile as profile_to_json wrote them. kCorrupt.
Result<std::vector<TimeSample>> samples_from_profile(std::string_view json);

class TimeModel {
 public:
  // Ridge regression; a kind with few samples takes the model of all kinds. kInvalidArgument: nothing to
  // learn from.
  static Result<TimeModel> fit(std::span<const TimeSample> samples);
  double seconds(const TimeSample& sample) const;
  Measurement predict(const Graph& graph) const;

 private:
  using Coefficients = std::array<double, TimeSample::kFeatures>;
  std::map<std::string, Coefficients> by_kind_;
  Coefficients all_{};
};

}  // namespace frugal::dnn
