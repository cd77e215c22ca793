#include "cli/dnn_nats.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "dnn/plan/profile.h"

namespace frugal::cli {

void add_dnn_nats_options(CLI::App& app, dnn::BusOptions& options, const char* what) {
  options.url.clear();
  app.add_option("--nats", options.url, what);
  app.add_option("--tls-ca", options.ca,
                 "certificates that the server's own is checked with (PEM); makes it TLS");
  app.add_option("--tls-cert", options.certificate, "this client's certificate (PEM)");
  app.add_option("--tls-key", options.key, "and its key");
  app.add_option("--creds", options.credentials, "credentials file of the NATS account");
  app.add_option("--user", options.user, "user name, if the server asks for one");
  app.add_option("--password", options.password, "and its password");
  app.add_option("--token", options.token, "token, if the server asks for one");
  app.add_option("--js-domain", options.js_domain,
                 "JetStream domain that keeps health and plan, across leaf nodes");
}

Result<dnn::Cluster> survey_cluster(const dnn::Network& network, int n_threads, double slowdown,
                                    int repetitions, const dnn::Values& inputs, dnn::RemoteHop& edge) {
  FRUGAL_TRY_STATUS(edge.connect());
  FRUGAL_TRY(const nlohmann::json rows, edge.survey(repetitions));
  FRUGAL_TRY(const dnn::LinkProbe near, edge.probe());
  FRUGAL_TRY(dnn::Profile own, dnn::measure_profile(network, n_threads, repetitions));
  if (!inputs.empty()) FRUGAL_TRY_STATUS(dnn::measure_packing(network, inputs, repetitions, own));
  // Watts and carbon are the assumed ones of the emulated tiers; times and links are measured.
  const double slowdowns[] = {slowdown, 1, 1};
  FRUGAL_TRY(const dnn::Link wired, dnn::named_link("lan"));
  dnn::Cluster cluster = dnn::scaled_cluster(own, slowdowns, wired, wired);
  const auto set_link = [](dnn::Link& link, double latency, double up, double down) {
    link.latency_seconds = latency;
    link.up_bytes_per_second = up;
    link.down_bytes_per_second = down;
  };
  set_link(cluster.links[0], near.latency_seconds, near.up_bytes_per_second, near.down_bytes_per_second);
  try {
    for (size_t i = 0; i < rows.size() && i < 2; ++i) {
      dnn::Tier& tier = cluster.tiers[i + 1];
      tier.name = rows[i].at("name").get<std::string>();
      tier.vertex_seconds = rows[i].at("vertex_seconds").get<std::vector<double>>();
      const double whole = std::accumulate(tier.vertex_seconds.begin(), tier.vertex_seconds.end(), 0.0);
      for (auto* costs : {&tier.pack_seconds, &tier.unpack_seconds}) {
        for (double& seconds : *costs) seconds *= whole / std::max(1e-9, own.measurement.whole_seconds);
      }
      tier.tile_fixed_seconds = rows[i].value("tile_fixed_seconds", std::vector<double>());
      tier.worker_speeds = rows[i].at("worker_speeds").get<std::vector<double>>();
      if (tier.worker_speeds.size() < 2) tier.worker_speeds.clear();
      tier.peer_latency_seconds = rows[i].value("peer_latency_seconds", tier.peer_latency_seconds);
      tier.peer_bytes_per_second = rows[i].value("peer_bytes_per_second", tier.peer_bytes_per_second);
      if (i + 1 < rows.size() && i + 1 < cluster.links.size()) {
        const nlohmann::json& link = rows[i].at("link");
        set_link(cluster.links[i + 1], link.at("latency_seconds").get<double>(),
                 link.at("up_bytes_per_second").get<double>(),
                 link.at("down_bytes_per_second").get<double>());
      }
    }
  } catch (const nlohmann::json::exception&) {
    return Error{ErrorCode::kCorrupt, "a worker's survey lacks a field, or has one of the wrong type"};
  }
  cluster.tiers.resize(1 + std::min<size_t>(2, rows.size()));
  cluster.links.resize(cluster.tiers.size() - 1);
  cluster.links[0].name = "device-edge";
  if (cluster.links.size() > 1) cluster.links[1].name = "edge-cloud";
  return cluster;
}

}  // namespace frugal::cli
