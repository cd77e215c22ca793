#include "dnn/plan/profile.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/text.h"
#include "dnn/exec/check_bits.h"
#include "dnn/graph/tiles.h"
#include "dnn/pack/pack.h"

namespace frugal::dnn {
namespace {

using nlohmann::json;

// [name, latency one way (s), up and down (bit/s), joules per byte, radio watts]
struct NamedLink {
  const char* name;
  double latency_seconds, up_bits, down_bits, joules_per_byte, send_watts;
};
// Energy per byte of the network: some 0.1 kWh/GB over mobile networks and a tenth of that over fixed ones,
// as assumed round figures; radios of small devices draw about a watt.
constexpr std::array kLinks = {
    NamedLink{"wifi", 0.002, 60e6, 80e6, 3.6e-5, 0.8},   NamedLink{"4g", 0.025, 12e6, 40e6, 3.6e-4, 1.2},
    NamedLink{"5g", 0.010, 50e6, 200e6, 1.8e-4, 1.5},    NamedLink{"fibre", 0.005, 300e6, 300e6, 3.6e-5, 0.0},
    NamedLink{"lan", 0.0003, 940e6, 940e6, 3.6e-6, 0.0},
};

constexpr size_t kStretch = 4;  // segments: about as deep as planned runs are

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Processor time of one thread, as vertices are timed. kUnsupported: the tile gives other bits than the
// whole.
Result<double> time_tile(const Network& network, const Segment& segment, const Tile& tile, int n_threads,
                         int repetitions) {
  FRUGAL_TRY(const std::unique_ptr<Part> part, network.compile_tile(segment, tile, n_threads));
  FRUGAL_TRY_STATUS(check_bits(network, segment, tile, n_threads, *part));
  std::vector<HostTensor> inputs, outputs;
  for (const int t : segment.inputs) {
    const Tensor& tensor = network.graph().tensors[static_cast<size_t>(t)];
    const Region& held = tile.held.at(t);
    HostTensor input{tensor.type, part_shape(tensor.shape, held), {}};
    size_t n = 1;
    for (const int64_t size : input.shape) n *= static_cast<size_t>(size);
    input.bytes.resize(n * element_bytes(tensor.type));
    for (size_t i = 0; i < n && tensor.type == "f32"; ++i) {
      const float x = static_cast<float>(static_cast<int>(i % 17) - 8) / 8.0f;
      std::memcpy(input.bytes.data() + 4 * i, &x, 4);
    }
    inputs.push_back(std::move(input));
  }
  std::vector<const HostTensor*> pointers;
  for (const HostTensor& input : inputs) pointers.push_back(&input);
  std::vector<double> seconds;
  for (int i = 0; i <= std::max(1, repetitions); ++i) {
    const double wall = wall_seconds(), cpu = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
    FRUGAL_TRY_STATUS(part->run(pointers, outputs));
    const double took = wall_seconds() - wall, busy = clock_seconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
    if (i > 0) seconds.push_back(n_threads == 1 && busy > 0.25 * took ? busy : took);
  }
  return median(std::move(seconds));
}

}  // namespace

Result<Profile> measure_profile(const Network& network, int n_threads, int repetitions) {
  Profile profile;
  profile.model_hash = network.graph().model_hash;
  profile.model = network.graph().name;
  profile.n_threads = n_threads;
  FRUGAL_TRY(profile.measurement, network.measure(n_threads, repetitions));
  return profile;
}

Status measure_tiles(const Network& network, int repetitions, Profile& profile) {
  const Graph& graph = network.graph();
  Measurement& measured = profile.measurement;
  std::vector<int> all;
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    if (graph.vertices[v].kind != "Input") all.push_back(static_cast<int>(v));
  }
  const std::vector<Segment> segments = smallest_segments(graph, all);
  measured.tile_fixed_seconds.assign(graph.vertices.size(), 0);
  for (size_t first = 0, end = 0; first < segments.size(); first = end) {
    std::vector<int> vertices;
    const auto is_dense = [&](size_t s) {
      return graph.vertices[static_cast<size_t>(segments[s].vertices[0])].is_dense;
    };
    while (end < segments.size() && end - first < kStretch &&
           (end == first ||
            (segments[end].inputs[0] == segments[end - 1].output && !is_dense(first) && !is_dense(end)))) {
      vertices.insert(vertices.end(), segments[end].vertices.begin(), segments[end].vertices.end());
      ++end;
    }
    FRUGAL_TRY(const Segment segment, make_segment(graph, vertices));
    const auto quarters =
        row_tiles(graph.tensors[static_cast<size_t>(segment.output)], std::array<double, 4>{1, 1, 1, 1});
    if (quarters.size() < 2) continue;
    FRUGAL_TRY(const Tile tile, make_tile(graph, segment, quarters[1]));
    const Result<double> timed = time_tile(network, segment, tile, profile.n_threads, repetitions);
    if (!timed.ok() && timed.error().code == ErrorCode::kUnsupported) {  // never worth it
      for (const int v : tile.vertices)
        measured.tile_fixed_seconds[static_cast<size_t>(v)] = measured.vertex_seconds[static_cast<size_t>(v)];
      continue;
    }
    FRUGAL_TRY(const double seconds, timed);
    // What it takes beyond its share, spread over the rest of its vertices.
    double shares = 0, rest = 0;
    for (const int v : tile.vertices) {
      const int t = graph.vertices[static_cast<size_t>(v)].outputs[0];
      const double share = static_cast<double>(tile.held.at(t).area()) /
                           static_cast<double>(whole_region(graph.tensors[static_cast<size_t>(t)]).area());
      shares += share * measured.vertex_seconds[static_cast<size_t>(v)];
      rest += (1 - share) * measured.vertex_seconds[static_cast<size_t>(v)];
    }
    const double fixed = rest > 0 ? std::clamp((seconds - shares) / rest, 0.0, 1.0) : 0;
    for (const int v : tile.vertices)
      measured.tile_fixed_seconds[static_cast<size_t>(v)] =
          fixed * measured.vertex_seconds[static_cast<size_t>(v)];
  }
  return {};
}

Status measure_packing(const Network& network, const Values& sample, int repetitions, Profile& profile) {
  const Graph& graph = network.graph();
  profile.packing = {};
  std::vector<double> bytes(graph.tensors.size(), 0), pack(bytes), unpack(bytes);
  Values values = sample;
  const auto measure = [&](int t) -> Status {
    const HostTensor& tensor = values.at(t);
    const Planes planes = planes_of(tensor.shape);
    std::vector<std::byte> packed, again(tensor.bytes.size());
    std::vector<double> there, back;
    for (int i = 0; i < std::max(1, repetitions) && element_bytes(tensor.type) == 4; ++i) {
      const double start = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
      packed = pack_words(tensor.bytes, planes);
      const double done = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
      if (packed.empty()) return {};
      FRUGAL_TRY_STATUS(unpack_words(packed, planes, again));
      back.push_back(clock_seconds(CLOCK_THREAD_CPUTIME_ID) - done);
      there.push_back(done - start);
    }
    if (there.empty()) return {};
    const auto at = static_cast<size_t>(t);
    bytes[at] = static_cast<double>(packed.size());
    pack[at] = median(there);
    unpack[at] = median(back);
    return {};
  };
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    const Vertex& vertex = graph.vertices[v];
    if (vertex.kind != "Input") {
      const int only[] = {static_cast<int>(v)};
      FRUGAL_TRY(const std::unique_ptr<Part> part, network.compile(only, profile.n_threads));
      std::vector<const HostTensor*> inputs;
      for (const int t : part->inputs()) inputs.push_back(&values.at(t));
      std::vector<HostTensor> outputs;
      FRUGAL_TRY_STATUS(part->run(inputs, outputs));
      for (size_t i = 0; i < outputs.size(); ++i) values[part->outputs()[i]] = std::move(outputs[i]);
    }
    for (const int t : vertex.outputs) {
      if (values.contains(t)) FRUGAL_TRY_STATUS(measure(t));
    }
    for (const int t : vertex.inputs) {  // no longer needed
      const std::vector<int>& consumers = graph.tensors[static_cast<size_t>(t)].consumers;
      if (*std::max_element(consumers.begin(), consumers.end()) == static_cast<int>(v)) values.erase(t);
    }
  }
  profile.packing = {std::move(bytes), std::move(pack), std::move(unpack)};
  return {};
}

std::string profile_to_json(const Graph& graph, const Profile& profile) {
  json vertices = json::array();
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    const Vertex& vertex = graph.vertices[v];
    double bytes = 0;
    for (const int t : vertex.inputs)
      bytes += static_cast<double>(graph.tensors[static_cast<size_t>(t)].bytes);
    for (const int t : vertex.outputs)
      bytes += static_cast<double>(graph.tensors[static_cast<size_t>(t)].bytes);
    const std::vector<int64_t> shape = vertex.outputs.empty()
                                           ? std::vector<int64_t>()
                                           : graph.tensors[static_cast<size_t>(vertex.outputs[0])].shape;
    vertices.push_back({{"name", vertex.name},
                        {"kind", vertex.kind},
                        {"flops", vertex.flops},
                        {"tensor_bytes", bytes},
                        {"weight_bytes", vertex.weight_bytes},
                        {"plane", shape.size() == 4 ? shape[2] * shape[3] : 1},
                        {"channels", shape.size() > 1 ? shape[1] : 1},
                        {"seconds", profile.measurement.vertex_seconds[v]}});
    if (!profile.measurement.tile_fixed_seconds.empty())
      vertices.back()["tile_fixed_seconds"] = profile.measurement.tile_fixed_seconds[v];
  }
  json tensors = json::array();
  for (size_t t = 0; t < profile.packing.bytes.size(); ++t) {
    tensors.push_back({{"name", graph.tensors[t].name},
                       {"packed_bytes", profile.packing.bytes[t]},
                       {"pack_seconds", profile.packing.pack_seconds[t]},
                       {"unpack_seconds", profile.packing.unpack_seconds[t]}});
  }
  return json{{"format", "frugal-dnn-profile"},
              {"version", 1},
              {"model", profile.model},
              {"model_hash", strf("%016lx", profile.model_hash)},
              {"threads", profile.n_threads},
              {"predicted", profile.predicted},
              {"whole_seconds", profile.measurement.whole_seconds},
              {"vertices", vertices},
              {"tensors", tensors}}
             .dump(1, ' ', false, json::error_handler_t::replace) +
         "\n";
}

Result<Profile> profile_from_json(const Graph& graph, std::string_view text) {
  const json root = json::parse(text, nullptr, false);
  const auto corrupt = [](const char* what) {
    return Error{ErrorCode::kCorrupt,
                 std::string("the profile ") + what + "; make it again with frugal dnn profile"};
  };
  if (!root.is_object()) return corrupt("is not JSON");
  try {
    if (root.value("format", "") != "frugal-dnn-profile") return corrupt("has another format");
    if (root.value("version", 0) != 1) return corrupt("has a version that this frugal does not know");
    if (root.value("model_hash", "") != strf("%016lx", graph.model_hash))
      return corrupt("is of another model");
    const json& vertices = root.at("vertices");
    if (!vertices.is_array() || vertices.size() != graph.vertices.size())
      return corrupt("has other vertices");
    Profile profile;
    profile.model_hash = graph.model_hash;
    profile.model = root.value("model", "");
    profile.n_threads = root.value("threads", 1);
    profile.predicted = root.value("predicted", false);
    profile.measurement.whole_seconds = root.at("whole_seconds").get<double>();
    for (const json& vertex : vertices) {
      const double seconds = vertex.at("seconds").get<double>();
      if (!std::isfinite(seconds) || seconds < 0)
        return corrupt("has a time that is negative or not a number");
      profile.measurement.vertex_seconds.push_back(seconds);
      if (!vertex.contains("tile_fixed_seconds")) continue;
      const double fixed = vertex.at("tile_fixed_seconds").get<double>();
      if (!std::isfinite(fixed) || fixed < 0) return corrupt("has a time that is negative or not a number");
      profile.measurement.tile_fixed_seconds.push_back(fixed);
    }
    const size_t n_fixed = profile.measurement.tile_fixed_seconds.size();
    if (n_fixed != 0 && n_fixed != graph.vertices.size())
      return corrupt("has the cost of tiles for some vertices only");
    for (const json& tensor : root.value("tensors", json::array())) {
      for (const auto& [field, to] : {std::pair{"packed_bytes", &profile.packing.bytes},
                                      std::pair{"pack_seconds", &profile.packing.pack_seconds},
                                      std::pair{"unpack_seconds", &profile.packing.unpack_seconds}}) {
        to->push_back(tensor.at(field).get<double>());
        if (!std::isfinite(to->back()) || to->back() < 0)
          return corrupt("has a cost of packing that is negative or not a number");
      }
    }
    if (const size_t n = profile.packing.bytes.size(); n != 0 && n != graph.tensors.size())
      return corrupt("has the cost of packing for some tensors only");
    return profile;
  } catch (const json::exception&) {
    return corrupt("lacks a field, or has one of the wrong type");
  }
}

Result<Link> named_link(std::string_view name) {
  for (const NamedLink& known : kLinks) {
    if (name != known.name) continue;
    Link link;
    link.name = known.name;
    link.latency_seconds = known.latency_seconds;
    link.up_bytes_per_second = known.up_bits / 8;
    link.down_bytes_per_second = known.down_bits / 8;
    link.joules_per_byte = known.joules_per_byte;
    link.send_watts = known.send_watts;
    return link;
  }
  std::string names;
  for (const std::string& known : link_names()) names += (names.empty() ? "" : ", ") + known;
  return Error{ErrorCode::kInvalidArgument,
               strf("there is no link '%s'; there are %s", std::string(name).c_str(), names.c_str())};
}

std::vector<std::string> link_names() {
  std::vector<std::string> names;
  for (const NamedLink& link : kLinks) names.push_back(link.name);
  return names;
}

Cluster scaled_cluster(const Profile& profile, std::span<const double> slowdown, const Link& near,
                       const Link& far) {
  static constexpr const char* kNames[] = {"device", "edge", "cloud"};
  // Assumed round figures: a phone-class board, a small server, a share of a large one; a European mix.
  constexpr double kCallSeconds = 0.0002;  // waking a thread and starting a part, on this host
  static constexpr double kActive[] = {5, 60, 150}, kIdle[] = {1.5, 0, 0};
  Cluster cluster;
  for (size_t k = 0; k < 3; ++k) {
    Tier tier;
    tier.name = kNames[k];
    for (const double seconds : profile.measurement.vertex_seconds)
      tier.vertex_seconds.push_back(seconds * slowdown[k]);
    for (const double seconds : profile.measurement.tile_fixed_seconds)
      tier.tile_fixed_seconds.push_back(seconds * slowdown[k]);
    for (const double seconds : profile.packing.pack_seconds)
      tier.pack_seconds.push_back(seconds * slowdown[k]);
    for (const double seconds : profile.packing.unpack_seconds)
      tier.unpack_seconds.push_back(seconds * slowdown[k]);
    tier.call_seconds = kCallSeconds * slowdown[k];
    tier.active_watts = kActive[k];
    tier.idle_watts = kIdle[k];
    tier.gco2e_per_kwh = 250;
    cluster.tiers.push_back(std::move(tier));
  }
  cluster.packed_bytes = profile.packing.bytes;
  cluster.links = {near, far};
  cluster.links[0].name = "device-edge " + near.name;
  cluster.links[1].name = "edge-cloud " + far.name;
  cluster.links[1].backbone = true;
  return cluster;
}

Result<Objective> parse_objective(std::string_view text) {
  Objective objective{0, 0, 0, 0};
  for (const std::string& term : split(text, ',')) {
    const size_t equals = term.find('=');
    const std::string name = term.substr(0, equals);
    double weight = 1;
    if (equals != std::string::npos) {
      char* end = nullptr;
      weight = std::strtod(term.c_str() + equals + 1, &end);
      if (end == term.c_str() + equals + 1 || *end != 0 || !std::isfinite(weight) || weight < 0) {
        return Error{ErrorCode::kInvalidArgument,
                     strf("'%s' is not a weight; write latency=1,energy=0.2", term.c_str())};
      }
    }
    if (name == "latency") {
      objective.seconds += weight;
    } else if (name == "energy") {
      objective.device_joules += weight;
    } else if (name == "bytes") {
      objective.backbone_bytes += weight;
    } else if (name == "carbon") {
      objective.gco2e += weight;
    } else {
      return Error{
          ErrorCode::kInvalidArgument,
          strf("there is no objective '%s'; there are latency, energy, bytes, carbon", name.c_str())};
    }
  }
  return objective;
}

std::string plan_to_json(const Graph& graph, const Cluster& cluster, const Plan& plan) {
  json tiers = json::array(), links = json::array(), vertices = json::array();
  for (size_t k = 0; k < plan.tiers.size(); ++k) {
    const TierShare& share = plan.tiers[k];
    tiers.push_back({{"name", cluster.tiers[k].name},
                     {"vertices", share.n_vertices},
                     {"seconds", share.seconds},
                     {"joules", share.joules},
                     {"gco2e", share.gco2e},
                     {"weight_bytes", share.weight_bytes}});
  }
  for (size_t k = 0; k < plan.links.size(); ++k) {
    const LinkShare& share = plan.links[k];
    links.push_back({{"name", cluster.links[k].name},
                     {"tensors", share.n_tensors},
                     {"packed", share.n_packed},
                     {"up_bytes", share.up_bytes},
                     {"down_bytes", share.down_bytes},
                     {"seconds", share.seconds}});
  }
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    vertices.push_back({{"name", graph.vertices[v].name}, {"tier", plan.tier[v]}});
  }
  return json{{"format", "frugal-dnn-plan"},
              {"version", 1},
              {"model_hash", strf("%016lx", graph.model_hash)},
              {"algorithm", plan.algorithm},
              {"objective", plan.objective},
              {"lower_bound", std::isfinite(plan.lower_bound) ? json(plan.lower_bound) : json(nullptr)},
              {"seconds", plan.seconds},
              {"device_joules", plan.device_joules},
              {"backbone_bytes", plan.backbone_bytes},
              {"gco2e", plan.gco2e},
              {"energy_provenance", "assumed"},
              {"tiers", tiers},
              {"links", links},
              {"vertices", vertices}}
             .dump(1, ' ', false, json::error_handler_t::replace) +
         "\n";
}

}  // namespace frugal::dnn
