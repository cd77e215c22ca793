#include "dnn/plan/sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/rng.h"

namespace frugal::dnn {
namespace {

// Smooth noise: random values on a grid, `step` pixels apart, and cosine blends between them.
void add_noise(Rng& rng, int64_t rows, int64_t columns, int64_t step, double amplitude,
               std::vector<double>& plane) {
  const int64_t across = columns / step + 2, down = rows / step + 2;
  std::vector<double> grid(static_cast<size_t>(across * down));
  for (double& value : grid) value = amplitude * rng.normal();
  const auto blend = [](double x) { return 0.5 - 0.5 * std::cos(x * M_PI); };
  for (int64_t r = 0; r < rows; ++r) {
    const double y = blend(static_cast<double>(r % step) / static_cast<double>(step));
    for (int64_t c = 0; c < columns; ++c) {
      const double x = blend(static_cast<double>(c % step) / static_cast<double>(step));
      const double* at = grid.data() + r / step * across + c / step;
      plane[static_cast<size_t>(r * columns + c)] +=
          (1 - y) * ((1 - x) * at[0] + x * at[1]) + y * ((1 - x) * at[across] + x * at[across + 1]);
    }
  }
}

// Clouds of all sizes, some discs with sharp edges, and noise of two or three grey levels in each channel.
void draw(Rng& rng, int64_t rows, int64_t columns, float* to) {
  static constexpr float kMean[] = {0.485f, 0.456f, 0.406f}, kDeviation[] = {0.229f, 0.224f, 0.225f};
  const auto size = static_cast<size_t>(rows * columns);
  std::vector<double> light(size, 120);
  for (int64_t step = 128; step >= 2; step /= 2)
    add_noise(rng, rows, columns, step, 1.5 * std::pow(static_cast<double>(step), 0.7), light);
  for (int i = 0; i < 6; ++i) {
    const double row = rng.uniform() * static_cast<double>(rows),
                 column = rng.uniform() * static_cast<double>(columns);
    const double radius = 0.03 * static_cast<double>(rows) * (1 + 5 * rng.uniform()),
                 step = 40 * rng.normal();
    for (size_t p = 0; p < size; ++p) {
      const double y = static_cast<double>(p / static_cast<size_t>(columns)) - row;
      const double x = static_cast<double>(p % static_cast<size_t>(columns)) - column;
      if (x * x + y * y < radius * radius) light[p] += step;
    }
  }
  for (size_t channel = 0; channel < 3; ++channel) {
    std::vector<double> plane = light;
    for (int64_t step = 64; step >= 8; step /= 2)
      add_noise(rng, rows, columns, step, 0.2 * static_cast<double>(step), plane);
    for (size_t p = 0; p < size; ++p) {
      const double level = std::clamp(std::round(plane[p] + 2.5 * rng.normal()), 0.0, 255.0);
      to[channel * size + p] = (static_cast<float>(level / 255.0) - kMean[channel]) / kDeviation[channel];
    }
  }
}

}  // namespace

Values sample_frame(const Graph& graph, uint64_t seed) {
  Values values;
  Rng rng(seed);
  for (const Vertex& vertex : graph.vertices) {
    if (vertex.kind != "Input") continue;
    for (const int t : vertex.outputs) {
      const Tensor& tensor = graph.tensors[static_cast<size_t>(t)];
      HostTensor value{tensor.type, tensor.shape, std::vector<std::byte>(tensor.bytes)};
      std::vector<float> data(tensor.type == "f32" ? tensor.bytes / 4 : 0);
      const std::vector<int64_t>& shape = tensor.shape;
      if (shape.size() == 4 && shape[1] == 3 && !data.empty()) {
        const auto image = static_cast<size_t>(3 * shape[2] * shape[3]);
        for (size_t at = 0; at + image <= data.size(); at += image)
          draw(rng, shape[2], shape[3], data.data() + at);
      } else {
        for (float& x : data) x = static_cast<float>(rng.normal());
      }
      if (!data.empty()) std::memcpy(value.bytes.data(), data.data(), 4 * data.size());
      values[t] = std::move(value);
    }
  }
  return values;
}

}  // namespace frugal::dnn
