// Profiles: what a model costs on a host, kept as JSON, and turned with named links into a cluster to plan
// for.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dnn/exec/network.h"
#include "frugal/dnn.h"

namespace frugal::dnn {

// What packing tensors for a slow link takes and saves, on a sample frame. Empty: not measured.
struct Packing {
  std::vector<double> bytes;                         // [n_tensors]; 0: packing does not help
  std::vector<double> pack_seconds, unpack_seconds;  // [n_tensors], processor time
};

struct Profile {
  uint64_t model_hash = 0;
  std::string model;
  int n_threads = 1;
  bool predicted = false;  // from other models' profiles (regression.h), not measured
  Measurement measurement;
  Packing packing;
};

Result<Profile> measure_profile(const Network& network, int n_threads, int repetitions);

// Adds what tiles cost: quarters of short stretches are compiled and timed. Takes about as long as
// compiling the model once.
Status measure_tiles(const Network& network, int repetitions, Profile& profile);

// Adds what packing takes and saves: runs `sample` (values of all model inputs) vertex by vertex. Takes about
// as long as compiling the model once.
Status measure_packing(const Network& network, const Values& sample, int repetitions, Profile& profile);

// docs/formats/dnn-profile.md. A profile of another model, or with other vertices, is refused.
std::string profile_to_json(const Graph& graph, const Profile& profile);
Result<Profile> profile_from_json(const Graph& graph, std::string_view json);

// Links by name: "wifi", "4g", "5g", "fibre", "lan". Round figures of ours for what such links commonly give,
// not taken from any paper.
Result<Link> named_link(std::string_view name);
std::vector<std::string> link_names();

// A three-tier cluster from one host's profile: tier k is `slowdown[k]` times slower than that host.
Cluster scaled_cluster(const Profile& profile, std::span<const double> slowdown, const Link& near,
                       const Link& far);

// "latency", "energy", "bytes", "carbon", or a weighted sum: "latency=1,energy=0.2".
Result<Objective> parse_objective(std::string_view text);

// A plan as JSON, and back: docs/formats/dnn-profile.md.
std::string plan_to_json(const Graph& graph, const Cluster& cluster, const Plan& plan);

}  // namespace frugal::dnn
