// What the dnn commands share: the model, the cluster to plan for, values in and out.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dnn/exec/network.h"
#include "dnn/link/tier.h"
#include "frugal/dnn.h"

namespace CLI {
class App;
}

namespace frugal::cli {

struct DnnModelOptions {
  std::string model;
  std::vector<std::string> shapes;  // "1x3x224x224", one for each input
  int n_threads = 1;
};
void add_dnn_model_options(CLI::App& app, DnnModelOptions& options);
Result<std::shared_ptr<const dnn::Network>> open_network(const DnnModelOptions& options);

struct DnnClusterOptions {
  std::string profile;                       // file; empty = measure now
  std::vector<double> slowdown = {8, 2, 1};  // of device, edge and cloud against this host
  std::string near = "wifi", far = "4g";
  std::string objective = "latency", algorithm = "exact";
  int n_edge_workers = 1;
  bool private_input = false, no_pack = false;
};
void add_dnn_cluster_options(CLI::App& app, DnnClusterOptions& options);

struct DnnPlanning {
  dnn::Cluster cluster;
  dnn::PlanRequest request;
  dnn::Algorithm algorithm = dnn::Algorithm::kExact;
};
// `inputs`: the frame to measure packing on; empty: a sample.
Result<DnnPlanning> open_planning(const dnn::Network& network, const DnnModelOptions& model,
                                  const DnnClusterOptions& options, const dnn::Values& inputs = {});

// A tensor from a file: a picture (JPEG, PNG, PPM; fitted to the input's size, scaled to [0, 1] and
// normalised with ImageNet's means) or raw little-endian values of just the right number.
Result<dnn::HostTensor> read_input(const dnn::Tensor& tensor, const std::string& path);

// Tensors of the same sizes come and go with every frame: giving their pages back to the system and having
// them cleared again costs more than copying them.
void keep_freed_memory();

}  // namespace frugal::cli
