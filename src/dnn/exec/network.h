// The one door to the DNN executor (OpenVINO, whose headers no other room includes): a model file becomes a
// Network, any set of its vertices a Part that runs on this host.
//
// Precision is f32 throughout: it is asked for, read back, and a part that would run in less is refused.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dnn/graph/tiles.h"
#include "frugal/dnn.h"

namespace frugal::dnn {

// A value in host memory, dense and row-major.
struct HostTensor {
  std::string type;  // "f32", "i64"
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
  bool packed = false;  // bytes are in the form of dnn/pack, for the way between hosts only
};

using Values = std::map<int, HostTensor>;  // tensor of a graph -> its value

// Bytes of one element; 0 for types that have no whole number of them, or that are unknown.
size_t element_bytes(const std::string& type);

struct NetworkOptions {
  int n_threads = 1;  // that importing may use
  // Fixed sizes for models with dynamic inputs: a shape for each input, in their order; empty = as the model
  // says.
  std::vector<std::vector<int64_t>> input_shapes;
};

// What measuring the uncut model on this host gave.
struct Measurement {
  std::vector<double> vertex_seconds;  // [n_vertices], sums to whole_seconds; 0 for inputs
  double whole_seconds = 0;            // median of the runs, from call to return
  // [n_vertices], what a tile costs however small it is: weights are read, edges cut out. Empty: not
  // measured.
  std::vector<double> tile_fixed_seconds;
};

// A compiled set of vertices, or a tile of one. Owns its weights in the executor's layout. run() may be
// called from one thread at a time.
class Part {
 public:
  virtual ~Part() = default;
  // Tensors that run() takes and gives, in order.
  virtual const std::vector<int>& inputs() const = 0;
  virtual const std::vector<int>& outputs() const = 0;
  // kInvalidArgument: number, type or shape of an input is wrong. Outputs are resized as needed.
  virtual Status run(std::span<const HostTensor* const> inputs, std::vector<HostTensor>& outputs) = 0;
  // The precision that the executor says it computes in; "f32".
  virtual std::string precision() const = 0;
};

class Network {
 public:
  // An ONNX or OpenVINO IR (.xml) file. kNotFound; kCorrupt: not a sound model; kUnsupported: dynamic shapes
  // without input_shapes, an operator that the executor does not have (named), or a stateful model.
  static Result<std::shared_ptr<const Network>> load(const std::string& path,
                                                     const NetworkOptions& options = {});
  // An ONNX model in memory.
  static Result<std::shared_ptr<const Network>> load_memory(std::string_view onnx, const std::string& name,
                                                            const NetworkOptions& options = {});
  virtual ~Network() = default;

  virtual const Graph& graph() const = 0;

  // The same model with other input shapes, one for each input. Constants are shared, not copied: what is run
  // by turns in several shapes then finds its weights in the cache. Errors as load().
  virtual Result<std::shared_ptr<const Network>> reshaped(
      const std::vector<std::vector<int64_t>>& input_shapes) const = 0;

  // The vertices (inputs are left out) as one program. `outputs` are the tensors to give; empty = those that
  // vertices outside or the caller of the model read.
  virtual Result<std::unique_ptr<Part>> compile(std::span<const int> vertices, int n_threads,
                                                std::span<const int> outputs = {}) const = 0;
  // The model as it came, uncut: what everything else is compared with.
  virtual Result<std::unique_ptr<Part>> compile_whole(int n_threads) const = 0;
  // Times the uncut model over `repetitions` runs after one warm-up. Steps of the executor that belong to no
  // vertex (its own changes of layout) are shared out in proportion.
  virtual Result<Measurement> measure(int n_threads, int repetitions) const = 0;
  // One tile of a segment: takes and gives the regions in tile.held.
  virtual Result<std::unique_ptr<Part>> compile_tile(const Segment& segment, const Tile& tile,
                                                     int n_threads) const = 0;
};

// The shape of a part of a feature map [n, channels, rows, columns], or of [1, columns].
std::vector<int64_t> part_shape(std::vector<int64_t> whole, const Region& part);
// The region `part` of a feature map held for `held`, copied out; and put into a whole one.
HostTensor slice(const HostTensor& tensor, const Region& held, const Region& part);
void paste(const HostTensor& tile, const Region& at, HostTensor& whole);

}  // namespace frugal::dnn
