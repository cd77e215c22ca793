// The testbed's hosts: a device, edge workers and a cloud as processes of this machine, each in a network
// namespace of its own when we are root, joined by links of a given rate and delay. All of it is made here
// and taken down here.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "dnn/link/relay.h"
#include "frugal/dnn.h"

namespace frugal::cli {

struct TestbedOptions {
  int n_edge_workers = 4;
  std::vector<double> slowdown = {16, 4, 1};  // of device, edge and cloud against this host
  bool namespaces = true;  // else everything is on loopback, and the relays keep the rates, too
};

// Device -- near link -- NATS server of the edge -- far link (leaf node) -- NATS server of the cloud. Rates
// are kept by the kernel (tbf) between namespaces, delays by relays in user space.
class TestbedHosts {
 public:
  // kUnavailable, kIo: nats-server, ip or tc is missing or says no; what it said.
  static Result<std::unique_ptr<TestbedHosts>> make(const TestbedOptions& options);
  // The same, but without namespaces when they cannot be made.
  ~TestbedHosts();

  const std::string& url() const { return url_; }  // for the device
  const std::string& weights_folder() const {
    return cache_;
  }  // the workers'; models put here need not travel
  // Held by whoever computes: the hosts have this machine's processor one at a time.
  std::string turns_file() const { return folder_ + "/turns"; }
  Status set_links(const dnn::Link& near, const dnn::Link& far);
  void cut_near(bool cut) { near_relay_->set_cut(cut); }
  void cut_far(bool cut) { far_relay_->set_cut(cut); }

  // Worker 0 .. n_edge_workers - 1 are edge's, the last is the cloud's.
  int n_workers() const { return static_cast<int>(workers_.size()); }
  void kill_worker(int i);  // as a power cut would
  Status start_worker(int i);

 private:
  explicit TestbedHosts(const TestbedOptions& options) : options_(options) {}
  Status build();
  Status join(const std::string& a, const std::string& b, int net, double bits_per_second);
  Status shape(const std::string& host, const std::string& device, double bytes_per_second);
  Status start_servers();
  Status start_relays();
  std::string host_name(const std::string& role) const;
  Result<pid_t> spawn(const std::string& host, std::vector<std::string> command, const std::string& log);
  int edge_port() const { return options_.namespaces ? 4222 : base_port_; }
  int cloud_port() const { return options_.namespaces ? 4222 : base_port_ + 1; }
  int leaf_port() const { return options_.namespaces ? 7422 : base_port_ + 2; }
  int far_relay_port() const { return options_.namespaces ? 7500 : base_port_ + 3; }

  TestbedOptions options_;
  std::string prefix_, folder_, cache_, url_;
  int base_port_ = 0;
  std::vector<std::string> made_;  // namespaces
  std::vector<pid_t> servers_, workers_;
  std::unique_ptr<dnn::Relay> near_relay_, far_relay_;
};

}  // namespace frugal::cli
