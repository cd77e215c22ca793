// The regression finds the law behind times that follow one, and predicts vertices that it has not seen.
#include "dnn/plan/regression.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/rng.h"
#include "dnn/plan/profile.h"
#include "dnn/plan/synthetic.h"

namespace frugal::dnn {
namespace {

TEST(Regression, PredictsUnseenVerticesOfAKnownLaw) {
  Rng rng(1);
  const auto draw = [&](const std::string& kind, double factor) {
    TimeSample s;
    s.kind = kind;
    s.features = {1,
                  10 + 8 * rng.uniform(),
                  8 + 6 * rng.uniform(),
                  6 + 6 * rng.uniform(),
                  8 * rng.uniform(),
                  3 + 4 * rng.uniform()};
    s.seconds = factor * std::exp(0.9 * s.features[1] + 0.1 * s.features[2] - 20);
    return s;
  };
  std::vector<TimeSample> samples;
  for (int i = 0; i < 100; ++i) {
    samples.push_back(draw("Convolution", 1));
    samples.push_back(draw("MaxPool", 10));
  }
  const TimeModel model = TimeModel::fit(samples).value();
  for (int i = 0; i < 50; ++i) {
    const TimeSample conv = draw("Convolution", 1), pool = draw("MaxPool", 10);
    EXPECT_NEAR(model.seconds(conv) / conv.seconds, 1, 0.1);  // the ridge pulls a little
    EXPECT_NEAR(model.seconds(pool) / pool.seconds, 1, 0.1);
  }
}

TEST(Regression, TooFewSamplesAndOtherFilesAreRefused) {
  EXPECT_FALSE(TimeModel::fit({}).ok());
  for (const char* text : {"", "[]", "{}", "{\"vertices\": [{}]}", "{\"vertices\": 3}"}) {
    EXPECT_FALSE(samples_from_profile(text).ok()) << text;
  }
}

TEST(Regression, ProfilesComeBackAsSamples) {
  Rng rng(2);
  const Graph graph = random_graph(rng, 8);
  Profile profile;
  for (size_t v = 0; v < graph.vertices.size(); ++v)
    profile.measurement.vertex_seconds.push_back(0.001 * static_cast<double>(v));
  const auto samples = samples_from_profile(profile_to_json(graph, profile));
  ASSERT_TRUE(samples.ok()) << samples.error().message;
  ASSERT_EQ(samples->size(), graph.vertices.size() - 1);
  for (size_t v = 1; v < graph.vertices.size(); ++v) {
    const TimeSample direct = sample_of(graph, static_cast<int>(v), profile.measurement.vertex_seconds[v]);
    EXPECT_EQ((*samples)[v - 1].features, direct.features);
    EXPECT_EQ((*samples)[v - 1].seconds, direct.seconds);
  }
}

}  // namespace
}  // namespace frugal::dnn
