#include "cli/dnn_setup.h"

#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/file.h"
#include "base/text.h"
#include "cli/image_file.h"
#include "dnn/plan/profile.h"
#include "dnn/plan/sample.h"

namespace frugal::cli {
namespace {

Result<std::vector<int64_t>> parse_shape(const std::string& text) {
  std::vector<int64_t> shape;
  for (const std::string& word : split(text, 'x')) {
    char* end = nullptr;
    const long long size = std::strtoll(word.c_str(), &end, 10);
    if (word.empty() || *end != 0 || size < 1 || size > (1 << 24)) {
      return Error{ErrorCode::kInvalidArgument, strf("'%s' is not a shape; write 1x3x224x224", text.c_str())};
    }
    shape.push_back(size);
  }
  return shape;
}

}  // namespace

void add_dnn_model_options(CLI::App& app, DnnModelOptions& options) {
  app.add_option("model", options.model, "ONNX (.onnx) or OpenVINO IR (.xml) file")->required();
  app.add_option("--shape", options.shapes,
                 "fixed shape of an input, 1x3x224x224; one for each input, in order");
  app.add_option("--threads", options.n_threads, "threads that compute")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
}

Result<std::shared_ptr<const dnn::Network>> open_network(const DnnModelOptions& options) {
  dnn::NetworkOptions network;
  network.n_threads = options.n_threads;
  for (const std::string& text : options.shapes) {
    FRUGAL_TRY(std::vector<int64_t> shape, parse_shape(text));
    network.input_shapes.push_back(std::move(shape));
  }
  return dnn::Network::load(options.model, network);
}

void add_dnn_cluster_options(CLI::App& app, DnnClusterOptions& options) {
  app.add_option("--profile", options.profile,
                 "times measured by frugal dnn profile; without it they are measured now");
  app.add_option("--edge-workers", options.n_edge_workers,
                 "edge workers that share feature maps tile by tile")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--slowdown", options.slowdown,
                 "how many times slower than this host device, edge and cloud are")
      ->expected(3)
      ->delimiter(',')
      ->check(CLI::Range(1.0, 1e4))
      ->capture_default_str();
  app.add_option("--near", options.near, "link from device to edge: wifi, 4g, 5g, fibre, lan")
      ->capture_default_str();
  app.add_option("--far", options.far, "link from edge to cloud, by the same names")->capture_default_str();
  app.add_option("--objective", options.objective,
                 "latency, energy, bytes, carbon, or a sum: latency=1,energy=0.2")
      ->capture_default_str();
  app.add_option("--algorithm", options.algorithm,
                 "exact, hpa, neurosurgeon, dads, device-only, edge-only or cloud-only")
      ->capture_default_str();
  app.add_flag("--no-pack", options.no_pack, "send all tensors as they are, also over slow links");
  app.add_flag("--private-input", options.private_input, "keep what reads the raw input on the device");
}

Result<DnnPlanning> open_planning(const dnn::Network& network, const DnnModelOptions& model,
                                  const DnnClusterOptions& options, const dnn::Values& inputs) {
  DnnPlanning planning;
  FRUGAL_TRY(const dnn::Link near, dnn::named_link(options.near));
  FRUGAL_TRY(const dnn::Link far, dnn::named_link(options.far));
  FRUGAL_TRY(planning.request.objective, dnn::parse_objective(options.objective));
  FRUGAL_TRY(planning.algorithm, dnn::parse_algorithm(options.algorithm));
  planning.request.keep_input_private = options.private_input;
  dnn::Profile profile;
  if (options.profile.empty()) {
    FRUGAL_TRY(profile, dnn::measure_profile(network, model.n_threads, 5));
    if (options.n_edge_workers > 1) FRUGAL_TRY_STATUS(dnn::measure_tiles(network, 3, profile));
    const dnn::Values sample = inputs.empty() ? dnn::sample_frame(network.graph(), 1) : inputs;
    if (!options.no_pack) FRUGAL_TRY_STATUS(dnn::measure_packing(network, sample, 3, profile));
  } else {
    FRUGAL_TRY(const std::string text, read_file(options.profile, size_t{64} << 20));
    auto parsed = dnn::profile_from_json(network.graph(), text);
    if (!parsed.ok()) return std::move(parsed).error().in(options.profile);
    profile = *std::move(parsed);
  }
  planning.cluster = dnn::scaled_cluster(profile, options.slowdown, near, far);
  if (options.no_pack) planning.cluster.packed_bytes.clear();
  if (options.n_edge_workers > 1)
    planning.cluster.tiers[1].worker_speeds.assign(static_cast<size_t>(options.n_edge_workers), 1);
  return planning;
}

Result<dnn::HostTensor> read_input(const dnn::Tensor& tensor, const std::string& path) {
  dnn::HostTensor value{tensor.type, tensor.shape, std::vector<std::byte>(tensor.bytes)};
  const auto put = [&](size_t i, float x) { std::memcpy(value.bytes.data() + 4 * i, &x, 4); };
  FRUGAL_TRY(const std::string data, read_file(path, size_t{1} << 30));
  if (!is_image(data)) {
    if (data.size() != tensor.bytes) {
      return Error{ErrorCode::kInvalidArgument,
                   strf("%s is no JPEG, PNG or PPM and has %zu bytes; input '%s' takes %lu of %s",
                        path.c_str(), data.size(), tensor.name.c_str(), tensor.bytes, tensor.type.c_str())};
    }
    std::memcpy(value.bytes.data(), data.data(), data.size());
    return value;
  }
  FRUGAL_TRY(const Image image, parse_image(data, path));
  if (tensor.type != "f32" || tensor.shape.size() != 4 || tensor.shape[0] != 1 || tensor.shape[1] != 3) {
    return Error{ErrorCode::kUnsupported,
                 strf("input '%s' is no colour image [1, 3, rows, columns] of f32", tensor.name.c_str())};
  }
  static constexpr float kMean[] = {0.485f, 0.456f, 0.406f}, kDeviation[] = {0.229f, 0.224f, 0.225f};
  const int64_t rows = tensor.shape[2], columns = tensor.shape[3];
  for (int64_t c = 0; c < 3; ++c) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < columns; ++k) {
        // Bilinear, pixel centres aligned.
        const double y =
            std::clamp((static_cast<double>(r) + 0.5) * image.height / static_cast<double>(rows) - 0.5, 0.0,
                       image.height - 1.0);
        const double x =
            std::clamp((static_cast<double>(k) + 0.5) * image.width / static_cast<double>(columns) - 0.5, 0.0,
                       image.width - 1.0);
        const int y0 = static_cast<int>(y), x0 = static_cast<int>(x);
        const int y1 = std::min(y0 + 1, image.height - 1), x1 = std::min(x0 + 1, image.width - 1);
        const auto pixel = [&](int py, int px) {
          return static_cast<double>(static_cast<unsigned char>(
              image.pixels[(static_cast<size_t>(py) * static_cast<size_t>(image.width) +
                            static_cast<size_t>(px)) *
                               3 +
                           static_cast<size_t>(c)]));
        };
        const double top = pixel(y0, x0) + (x - x0) * (pixel(y0, x1) - pixel(y0, x0));
        const double bottom = pixel(y1, x0) + (x - x0) * (pixel(y1, x1) - pixel(y1, x0));
        // To whole levels, as image libraries resize: the picture stays one of 8 bits.
        const auto scaled = static_cast<float>(std::round(top + (y - y0) * (bottom - top)) / 255.0);
        put(static_cast<size_t>((c * rows + r) * columns + k), (scaled - kMean[c]) / kDeviation[c]);
      }
    }
  }
  return value;
}

void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that glibc takes
  mallopt(M_TRIM_THRESHOLD, 512 << 20);
  mallopt(M_ARENA_MAX, 2);
}

}  // namespace frugal::cli
