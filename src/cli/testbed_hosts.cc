#include "cli/testbed_hosts.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/file.h"
#include "base/text.h"

namespace frugal::cli {
namespace {

constexpr double kLanBits = 940e6;

// In the child between fork and exec, or for a command that is waited for.
[[noreturn]] void exec_or_die(const std::vector<std::string>& command, int log) {
  if (log >= 0) {
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
  }
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  execvp(words[0], words.data());
  _exit(127);
}

// Runs `ip` and `tc`: their message on failure.
Status command(const std::vector<std::string>& words) {
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return {ErrorCode::kIo, "no pipe"};
  const pid_t pid = fork();
  if (pid == 0) exec_or_die(words, pipe_fds[1]);
  close(pipe_fds[1]);
  std::string said;
  char buffer[512];
  for (ssize_t n; (n = read(pipe_fds[0], buffer, sizeof buffer)) > 0;)
    said.append(buffer, static_cast<size_t>(n));
  close(pipe_fds[0]);
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) < 0) return {ErrorCode::kIo, "cannot run " + words[0]};
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  std::string line;
  for (const std::string& word : words) line += (line.empty() ? "" : " ") + word;
  return {ErrorCode::kPermission, "`" + line + "` failed: " + std::string(trim(said))};
}

std::string bits(double bytes_per_second) { return strf("%.0fbit", 8 * bytes_per_second); }

}  // namespace

Result<std::unique_ptr<TestbedHosts>> TestbedHosts::make(const TestbedOptions& options) {
  std::unique_ptr<TestbedHosts> hosts(new TestbedHosts(options));
  FRUGAL_TRY_STATUS(hosts->build());
  return hosts;
}

std::string TestbedHosts::host_name(const std::string& role) const { return prefix_ + "-" + role; }

Status TestbedHosts::build() {
  prefix_ = strf("frugal%d", getpid());
  folder_ = std::filesystem::temp_directory_path() / prefix_;
  cache_ = folder_ + "/weights";
  std::error_code fault;
  std::filesystem::create_directories(cache_, fault);
  if (fault) return {ErrorCode::kIo, folder_ + ": " + fault.message()};
  base_port_ = 20000 + getpid() % 10000 * 4;
  if (options_.namespaces) {
    std::vector<std::string> roles = {"device", "cloud"};
    for (int i = 0; i < options_.n_edge_workers; ++i) roles.push_back(strf("edge%d", i));
    for (const std::string& role : roles) {
      FRUGAL_TRY_STATUS(command({"ip", "netns", "add", host_name(role)}));
      made_.push_back(host_name(role));
      FRUGAL_TRY_STATUS(command({"ip", "-n", host_name(role), "link", "set", "lo", "up"}));
    }
    // Everything meets at the edge's server, on edge0.
    FRUGAL_TRY_STATUS(join("edge0", "device", 1, kLanBits));
    FRUGAL_TRY_STATUS(join("edge0", "cloud", 2, kLanBits));
    for (int i = 1; i < options_.n_edge_workers; ++i)
      FRUGAL_TRY_STATUS(join("edge0", strf("edge%d", i), 10 + i, kLanBits));
  }
  FRUGAL_TRY_STATUS(start_relays());
  FRUGAL_TRY_STATUS(start_servers());
  workers_.assign(static_cast<size_t>(options_.n_edge_workers) + 1, -1);
  for (int i = 0; i < n_workers(); ++i) FRUGAL_TRY_STATUS(start_worker(i));
  url_ = strf("nats://127.0.0.1:%d", near_relay_->port());
  return {};
}

// A pair of interfaces: a has 10.77.<net>.1, b has .2.
Status TestbedHosts::join(const std::string& a, const std::string& b, int net, double bits_per_second) {
  const std::string to_b = "to-" + b, to_a = "to-" + a;
  FRUGAL_TRY_STATUS(command({"ip", "link", "add", to_b, "netns", host_name(a), "type", "veth", "peer", "name",
                             to_a, "netns", host_name(b)}));
  const std::pair<std::string, std::string> ends[] = {{a, to_b}, {b, to_a}};
  for (int i = 0; i < 2; ++i) {
    const auto& [host, device] = ends[i];
    FRUGAL_TRY_STATUS(command(
        {"ip", "-n", host_name(host), "addr", "add", strf("10.77.%d.%d/24", net, i + 1), "dev", device}));
    FRUGAL_TRY_STATUS(command({"ip", "-n", host_name(host), "link", "set", device, "up"}));
    FRUGAL_TRY_STATUS(shape(host, device, bits_per_second / 8));
  }
  return {};
}

Status TestbedHosts::shape(const std::string& host, const std::string& device, double bytes_per_second) {
  // A bucket of a millisecond, at least a few packets: what it lets through at once is free. Larger segments
  // that veth hands over are cut by the kernel.
  const double burst = std::max(6e3, bytes_per_second * 0.001);
  return command({"tc", "-n", host_name(host), "qdisc", "replace", "dev", device, "root", "tbf", "rate",
                  bits(bytes_per_second), "burst", strf("%.0f", burst), "limit", strf("%.0f", 1e6 + burst)});
}

// In the namespace of its own side; the calling thread of the near one stays in the device's.
Status TestbedHosts::start_relays() {
  const auto enter = [&](const std::string& role) -> Status {
    if (!options_.namespaces) return {};
    const int fd = open(("/var/run/netns/" + host_name(role)).c_str(), O_RDONLY | O_CLOEXEC);
    const bool ok = fd >= 0 && setns(fd, CLONE_NEWNET) == 0;
    if (fd >= 0) close(fd);
    return ok ? Status() : Status(ErrorCode::kPermission, "cannot enter namespace " + host_name(role));
  };
  const std::string cloud = options_.namespaces ? "10.77.2.2" : "127.0.0.1";
  const std::string edge = options_.namespaces ? "10.77.1.1" : "127.0.0.1";
  Status far_status;
  std::thread far([&] {
    far_status = enter("edge0");
    if (!far_status.ok()) return;
    auto relay = dnn::Relay::start(far_relay_port(), cloud, leaf_port(), {});
    if (relay.ok())
      far_relay_ = *std::move(relay);
    else
      far_status = relay.error();
  });
  far.join();
  FRUGAL_TRY_STATUS(far_status);
  FRUGAL_TRY_STATUS(enter("device"));
  FRUGAL_TRY(near_relay_, dnn::Relay::start(0, edge, edge_port(), {}));
  return {};
}

Status TestbedHosts::start_servers() {
  const std::string listen = options_.namespaces ? "0.0.0.0" : "127.0.0.1";
  const auto config = [&](const std::string& role, int port, const std::string& leaf) {
    const std::string path = folder_ + "/" + role + ".conf";
    const std::string text = strf(
        "server_name: %s\nhost: %s\nport: %d\njetstream { store_dir: \"%s/%s\", domain: %s }\nleafnodes { %s "
        "}\n",
        role.c_str(), listen.c_str(), port, folder_.c_str(), role.c_str(), role.c_str(), leaf.c_str());
    return write_file_atomically(path, text);
  };
  FRUGAL_TRY_STATUS(config("cloud", cloud_port(), strf("host: %s, port: %d", listen.c_str(), leaf_port())));
  FRUGAL_TRY_STATUS(
      config("edge", edge_port(),
             strf("reconnect: 1, remotes: [ { url: \"nats-leaf://127.0.0.1:%d\" } ]", far_relay_port())));
  FRUGAL_TRY(const pid_t cloud,
             spawn("cloud", {"nats-server", "-c", folder_ + "/cloud.conf"}, "cloud-server.log"));
  servers_.push_back(cloud);
  FRUGAL_TRY(const pid_t edge,
             spawn("edge0", {"nats-server", "-c", folder_ + "/edge.conf"}, "edge-server.log"));
  servers_.push_back(edge);
  std::this_thread::sleep_for(std::chrono::milliseconds(700));
  for (const pid_t pid : servers_) {
    if (waitpid(pid, nullptr, WNOHANG) == pid) {
      return {ErrorCode::kUnavailable,
              "nats-server did not start: is it installed? (apt-get install nats-server)"};
    }
  }
  return {};
}

Result<pid_t> TestbedHosts::spawn(const std::string& host, std::vector<std::string> words,
                                  const std::string& log) {
  if (options_.namespaces) words.insert(words.begin(), {"ip", "netns", "exec", host_name(host)});
  const int fd = open((folder_ + "/" + log).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const pid_t parent = getpid(), pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // nothing outlives the testbed, however that ends
    if (getppid() != parent) _exit(127);
    exec_or_die(words, fd);
  }
  if (fd >= 0) close(fd);
  if (pid < 0) return Error{ErrorCode::kIo, "cannot start " + words[0]};
  return pid;
}

Status TestbedHosts::start_worker(int i) {
  pid_t& pid = workers_[static_cast<size_t>(i)];
  if (pid > 0) return {};
  const bool cloud = i == options_.n_edge_workers;
  const std::string host = cloud ? "cloud" : strf("edge%d", i);
  const std::string server =
      !options_.namespaces || cloud || i == 0 ? "127.0.0.1" : strf("10.77.%d.1", 10 + i);
  FRUGAL_TRY(pid, spawn(host,
                        {std::filesystem::read_symlink("/proc/self/exe").string(), "dnn", "worker", "--tier",
                         cloud ? "cloud" : "edge", "--name", host, "--models", "1", "--cache", cache_,
                         "--turns", turns_file(), "--slowdown", strf("%g", options_.slowdown[cloud ? 2 : 1]),
                         "--nats", strf("nats://%s:%d", server.c_str(), cloud ? cloud_port() : edge_port())},
                        host + ".log"));
  return {};
}

void TestbedHosts::kill_worker(int i) {
  pid_t& pid = workers_[static_cast<size_t>(i)];
  if (pid <= 0) return;
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  pid = -1;
}

Status TestbedHosts::set_links(const dnn::Link& near, const dnn::Link& far) {
  const auto relay_shape = [&](const dnn::Link& link) {
    if (options_.namespaces) return dnn::RelayShape{link.latency_seconds, 0, 0};
    return dnn::RelayShape{link.latency_seconds, link.up_bytes_per_second, link.down_bytes_per_second};
  };
  near_relay_->set_shape(relay_shape(near));
  far_relay_->set_shape(relay_shape(far));
  if (!options_.namespaces) return {};
  FRUGAL_TRY_STATUS(shape("device", "to-edge0", near.up_bytes_per_second));
  FRUGAL_TRY_STATUS(shape("edge0", "to-device", near.down_bytes_per_second));
  FRUGAL_TRY_STATUS(shape("edge0", "to-cloud", far.up_bytes_per_second));
  return shape("cloud", "to-edge0", far.down_bytes_per_second);
}

TestbedHosts::~TestbedHosts() {
  for (int i = 0; i < n_workers(); ++i) kill_worker(i);
  for (const pid_t pid : servers_) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  near_relay_.reset();
  far_relay_.reset();
  for (const std::string& name : made_) (void)command({"ip", "netns", "del", name});
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

}  // namespace frugal::cli
