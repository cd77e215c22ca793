// What the commands that speak NATS share: the connection's options.
#pragma once

#include "dnn/link/bus.h"
#include "dnn/link/remote.h"

namespace CLI {
class App;
}

namespace frugal::cli {

// --nats, TLS, credentials. The address is empty unless given.
void add_dnn_nats_options(CLI::App& app, dnn::BusOptions& options, const char* what);

// Device, edge and cloud as frames from here see them: this host's own times, the workers' as they measured
// them, links as probed. Tiers that do not answer are left out. Packing is measured on `inputs`, here; others
// are taken to be as much slower at it as at the network. No inputs: nothing is packed.
Result<dnn::Cluster> survey_cluster(const dnn::Network& network, int n_threads, double slowdown,
                                    int repetitions, const dnn::Values& inputs, dnn::RemoteHop& edge);

}  // namespace frugal::cli
