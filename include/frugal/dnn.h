// The DNN plane: one network over device, edge and cloud. A graph of fused operators is cut into one part for
// each tier, so that some cost (latency, energy, bytes, carbon) is least; the parts compute what the whole
// would.
//
// Tiers form a line, tier 0 nearest to the user: 0 device, 1 edge, 2 cloud, or any other number of them. Link
// k joins tiers k and k + 1. Tiers never decrease along an edge of the graph, and a tensor crosses a link at
// most once, however many consumers lie beyond. Model outputs return to tier 0.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "frugal/result.h"

namespace frugal::dnn {

// A value that flows between vertices.
struct Tensor {
  std::string name;
  std::string type;            // element type: "f32", "i64"
  std::vector<int64_t> shape;  // [n, channels, rows, columns] for feature maps
  uint64_t bytes = 0;
  int producer = -1;           // vertex
  std::vector<int> consumers;  // vertices, ascending, each once
  bool is_output = false;      // a result of the model
};

// How a vertex's output rows and columns depend on those of one input: output i reads inputs i * stride -
// pad_begin + j * dilation, j in [0, kernel). Element-wise operators have the default. [rows, columns]
struct Window {
  std::array<int64_t, 2> kernel = {1, 1};
  std::array<int64_t, 2> stride = {1, 1};
  std::array<int64_t, 2> dilation = {1, 1};
  std::array<int64_t, 2> pad_begin = {0, 0};
};

// Operators that the executor fuses into one kernel, or one operator alone; cuts fall between vertices only.
struct Vertex {
  std::string name;              // of its main operator
  std::string kind;              // of its main operator: "Convolution", "MaxPool"; "Input" for a model input
  std::vector<std::string> ops;  // kinds of all its operators, in order: "Convolution", "Add", "Relu"
  std::vector<int> inputs;       // tensors
  std::vector<int> outputs;      // tensors
  double flops = 0;              // by formula; a multiply and an add are two
  uint64_t weight_bytes = 0;
  // For each input, when any rows and columns of the one output can be computed alone; empty when they cannot
  // (global pooling, dense layers).
  std::vector<Window> windows;
  // Any columns of the one output [1, columns] can be computed alone, each from the whole of the one input: a
  // dense layer.
  bool is_dense = false;
};

// Vertices in topological order; the model's inputs are vertices of kind "Input" with one output each.
struct Graph {
  std::string name;
  uint64_t model_hash = 0;  // of the model file: plans and profiles belong to one model
  std::vector<Vertex> vertices;
  std::vector<Tensor> tensors;
};

// kCorrupt when indices, order or the producer and consumer lists do not fit together: what and where.
Status validate(const Graph& graph);

// Longest distance of each vertex from an input, counted in vertices; inputs have 0.
std::vector<int> layers_of(const Graph& graph);

struct Tier {
  std::string name;
  std::vector<double> vertex_seconds;  // [n_vertices], measured or modelled
  // [n_vertices], what a vertex costs in any tile: a tile with share x of its area takes x * vertex_seconds +
  // (1 - x) * this. Measured (Measurement); empty = estimated by the weights that are read.
  std::vector<double> tile_fixed_seconds;
  // [n_tensors], packing a tensor for a link and unpacking it; empty = this tier cannot.
  std::vector<double> pack_seconds, unpack_seconds;
  double call_seconds = 0;  // fixed cost of using the tier for a frame at all
  double active_watts = 0;  // while it computes
  double idle_watts = 0;    // while it waits for the others; counted for tier 0 only
  double gco2e_per_kwh = 0;
  uint64_t memory_bytes = 0;  // limit on weights; 0 = none
  // Workers that can share the tiles of a feature map (VSM): their speeds, against vertex_seconds. Frames
  // arrive at the first, which hands tiles to the others. Fewer than two: nothing is tiled.
  std::vector<double> worker_speeds;
  double peer_bytes_per_second = 117.5e6;  // from the first to each other worker, and back
  double peer_latency_seconds = 0.0003;    // one way, with the cost of a message
};

struct Link {
  std::string name;
  double latency_seconds = 0;        // one way; paid once by all tensors that cross together
  double tensor_seconds = 0;         // fixed cost of each tensor that crosses
  double up_bytes_per_second = 0;    // away from tier 0
  double down_bytes_per_second = 0;  // towards tier 0
  double joules_per_byte = 0;        // spent by both ends and the network between
  double send_watts = 0;  // of the lower tier's radio, above its idle power, while it sends or receives
  bool backbone = false;  // its bytes count as backbone traffic
};

struct Cluster {
  std::vector<Tier> tiers;
  std::vector<Link> links;  // one fewer than tiers
  // [n_tensors], bytes of a tensor packed without loss, as measured on a frame; 0 where packing does not
  // help. Empty: nothing is packed.
  std::vector<double> packed_bytes;
};

// What a plan is to make small: the sum of weight * quantity. Quantities: seconds from input to output;
// joules of tier 0 (compute, radio and idle); bytes over backbone links; grams of CO2 equivalent of compute
// and links.
struct Objective {
  double seconds = 1;
  double device_joules = 0;
  double backbone_bytes = 0;
  double gco2e = 0;
};

// Keeps a vertex within [lowest, highest]: private input (highest = 0), an operator that a tier lacks.
struct Pin {
  int vertex = 0;
  int lowest = 0;
  int highest = std::numeric_limits<int>::max();
};

struct PlanRequest {
  Objective objective;
  std::vector<Pin> pins;
  // Keeps every vertex that reads a model input on tier 0, so that no raw input crosses a link.
  bool keep_input_private = false;
  // Tiles are taken only where they save at least this share of the objective: what they cost is known less
  // well than what whole vertices do.
  double least_tile_gain = 0.08;
};

// A rectangle of a feature map: rows [row_begin, row_end), columns [column_begin, column_end), all channels.
struct TileBounds {
  int64_t row_begin = 0, row_end = 0, column_begin = 0, column_end = 0;
  bool operator==(const TileBounds&) const = default;
};

// Vertices of one tier whose output is computed tile by tile, tile i by worker i.
struct TiledRun {
  int tier = 0;
  std::vector<int> vertices;      // ascending; one tensor enters and one leaves
  std::vector<TileBounds> tiles;  // of the output; together all of it
  double seconds = 0;             // predicted, from the first tile sent to the last one back
  double work_seconds = 0;        // predicted, of all workers together: halos are computed more than once
  // The tiles stay with their workers, and the next run goes on from them: it reads this output, tile i of
  // both is worker i's, and of full rows. Only rows that another worker's tile reaches into travel.
  bool stays = false;
};

// Shares of one tier in a plan.
struct TierShare {
  int n_vertices = 0;
  double seconds = 0;  // computing; of all workers together
  double joules = 0;
  double gco2e = 0;
  uint64_t weight_bytes = 0;
};

// Shares of one link in a plan.
struct LinkShare {
  int n_tensors = 0;  // that go up
  int n_packed = 0;   // of these
  uint64_t up_bytes = 0;
  uint64_t down_bytes = 0;
  double seconds = 0;
  double joules = 0;
  double gco2e = 0;
};

struct Plan {
  std::string algorithm;
  std::vector<int> tier;             // [n_vertices]
  std::vector<TiledRun> tiled_runs;  // none unless a tier has several workers
  std::vector<uint64_t> packed;      // [n_tensors], bit k: packed over link k; empty: none is
  double objective = 0;              // weighted sum
  double lower_bound = 0;  // no allowed plan costs less; equal to `objective` when the plan is proven best
  double seconds = 0;
  double device_joules = 0;
  double backbone_bytes = 0;
  double gco2e = 0;
  std::vector<TierShare> tiers;
  std::vector<LinkShare> links;
};

enum class Algorithm {
  kExact,         // minimum cut: the best of all plans
  kHpa,           // layer by layer choice and local adjustment, after D3's heuristic
  kNeurosurgeon,  // one cut of the vertex order between tier 0 and the last tier
  kDads,          // minimum cut between the last two tiers; tier 0 only sends the input
  kDeviceOnly,
  kEdgeOnly,   // tier 1
  kCloudOnly,  // the last tier
};

// "exact", "hpa", "neurosurgeon", "dads", "device-only", "edge-only", "cloud-only".
std::string_view algorithm_name(Algorithm algorithm);
// kInvalidArgument lists the names that there are.
Result<Algorithm> parse_algorithm(std::string_view name);
std::span<const Algorithm> all_algorithms();

// kInvalidArgument: cluster and graph do not fit, or a figure is negative or not finite. kOutOfRange: no plan
// keeps the pins or the memory limits. kUnsupported: the algorithm makes no sense here (edge-only with one
// tier). With memory limits kExact is a Lagrangian search: the plan keeps the limits and lower_bound tells
// the gap. Where a tier has several workers, kExact and kHpa also tile (VSM): the cut is then no longer
// proven best, and lower_bound is minus infinity.
Result<Plan> make_plan(const Graph& graph, const Cluster& cluster, const PlanRequest& request,
                       Algorithm algorithm = Algorithm::kExact);

// Adjusts a plan to a changed cluster by HPA's local rule: only `affected` vertices, and those that then
// become affected themselves, are decided again. Never costs more than keeping `current`.
Result<Plan> adjust_plan(const Graph& graph, const Cluster& cluster, const PlanRequest& request,
                         const Plan& current, std::span<const int> affected);

// A plan given by its tiers and tiled runs, priced for this cluster. kInvalidArgument when it breaks order,
// pins or limits.
Result<Plan> price_plan(const Graph& graph, const Cluster& cluster, const PlanRequest& request,
                        std::vector<int> tier, std::vector<TiledRun> tiled_runs = {});

// The plan in sentences: each tier's and link's share, and for every group of vertices what moving it to a
// neighbouring tier would cost.
std::string explain_plan(const Graph& graph, const Cluster& cluster, const PlanRequest& request,
                         const Plan& plan);

}  // namespace frugal::dnn
