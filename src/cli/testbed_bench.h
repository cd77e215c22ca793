// One network on the testbed: its way to the workers, its cluster as probed now, and frames by given plans.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/testbed_hosts.h"
#include "cli/testbed_report.h"
#include "dnn/link/coordinator.h"
#include "dnn/link/remote.h"
#include "dnn/plan/profile.h"

namespace frugal::cli {

Result<dnn::Values> run_whole(const dnn::Network& network, const dnn::Values& inputs);
// 1 when any value differs in any bit, or is missing.
int n_different(const dnn::Values& a, const dnn::Values& b);

class Bench {
 public:
  static Result<std::unique_ptr<Bench>> open(const TestbedOptions& options, const std::string& path,
                                             TestbedHosts& hosts);
  // The cluster with links as probed now. Times are this host's, by the emulated hosts' slowdowns: it is all
  // of them.
  Result<dnn::Cluster> cluster(const dnn::Link& near, const dnn::Link& far);
  // Frames by each plan, one to compile and warm up, then those that count, the plans in turn.
  Result<std::vector<PlanResult>> measure(const dnn::Cluster& cluster, std::span<const dnn::Plan> plans,
                                          int n_frames);

  std::shared_ptr<const dnn::Network> network;
  std::shared_ptr<dnn::Mailbox> mailbox;
  std::shared_ptr<dnn::RemoteHop> edge;
  std::shared_ptr<dnn::TierRunner> device;
  dnn::Profile profile;
  dnn::Values input, expected;

 private:
  // How much longer the uncut network takes now than when it was profiled: shared machines have moods.
  Result<double> mood();

  Status await();

  TestbedOptions options_;
  std::unique_ptr<dnn::Part> whole_;
};

}  // namespace frugal::cli
