// bench cascade: eight allocators, each `frugal cascade serve` in a process of its own, that share one budget
// through a nats-server, under load, through the death of their leader.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cascade/export.h"
#include "cli/bench_cascade.h"
#include "meter/http/http.h"

namespace frugal::cli {
namespace {

constexpr int kAllocators = 8;

// Processes of this bench, killed when it ends, however it ends.
class Children {
 public:
  explicit Children(std::string folder) : folder_(std::move(folder)) {}
  ~Children() {
    for (const pid_t pid : pids_) end(pid);
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  Result<pid_t> start(std::vector<std::string> words, const std::string& log) {
    const int fd = open((folder_ + "/" + log).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(127);
      dup2(fd, STDOUT_FILENO);
      dup2(fd, STDERR_FILENO);
      execvp(argv[0], argv.data());
      _exit(127);
    }
    if (fd >= 0) close(fd);
    if (pid < 0) return Error{ErrorCode::kIo, "cannot start " + words[0]};
    pids_.push_back(pid);
    return pid;
  }
  static void end(pid_t pid) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  // The number that follows `before` in a child's output, once it is there.
  Result<int> number_in(const std::string& log, const std::string& before) const {
    for (int tries = 0; tries < 1200; ++tries) {
      const auto text = read_file(folder_ + "/" + log, size_t{1} << 20);
      const size_t at = text.ok() ? text->find(before) : std::string::npos;
      if (at != std::string::npos) return std::atoi(text->c_str() + at + before.size());
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return {ErrorCode::kUnavailable, log + " never said '" + before + "': is nats-server installed?"};
  }
  const std::string& folder() const { return folder_; }

 private:
  std::string folder_;
  std::vector<pid_t> pids_;
};

// What was served, as the answers said it, by second of the wall clock.
struct Served {
  std::mutex mutex;
  std::map<int64_t, double> flops;  // by second
  std::map<int64_t, double> requests;
  double failed = 0;
};

struct Plan {
  double window_s = 10, rps = 400, budget_share = 0.2;
  int windows = 9, kill_in = 4;
};

class Fleet {
 public:
  Fleet(const Plan& plan, Children& children) : plan_(plan), children_(children) {}

  Status start() {
    const auto world = cascade::SyntheticWorld::create({}).value();
    cascade::TrainOptions train;
    train.epochs = 4;
    FRUGAL_TRY(const auto model, cascade::RewardModel::train(world.spec(), world.logs(5000, 1), train));
    const std::string folder = children_.folder();
    FRUGAL_TRY_STATUS(cascade::save_cascade(world.spec(), folder + "/cascade"));
    FRUGAL_TRY_STATUS(model.save(folder + "/reward.frm"));
    FRUGAL_TRY_STATUS(write_file_atomically(
        folder + "/nats.conf",
        strf("host: 127.0.0.1\nport: -1\njetstream { store_dir: \"%s/store\" }\n", folder.c_str())));
    FRUGAL_TRY(nats_, children_.start({"nats-server", "-c", folder + "/nats.conf"}, "nats.log"));
    FRUGAL_TRY(const int nats_port,
               children_.number_in("nats.log", "Listening for client connections on 127.0.0.1:"));
    const auto table = cascade::chain_table(world.spec(), {}).value();
    rate_ = plan_.budget_share * plan_.rps * table->costs(0)[static_cast<size_t>(table->dearest_in(0))];
    for (int i = 0; i < kAllocators; ++i) {
      const std::string log = strf("serve%d.log", i);
      FRUGAL_TRY(pids_[i], children_.start(
                               {"/proc/self/exe", "cascade", "serve", folder + "/cascade", "-m",
                                folder + "/reward.frm", "--budget", strf("%.17g", rate_), "--window",
                                strf("%g", plan_.window_s), "--share", strf("nats://127.0.0.1:%d", nats_port),
                                "--share-id", strf("a%d", i), "--port", "0", "--no-ledger"},
                               log));
    }
    for (int i = 0; i < kAllocators; ++i) {
      FRUGAL_TRY(ports_[i], children_.number_in(strf("serve%d.log", i), "http://127.0.0.1:"));
      alive_[i] = true;
    }
    return {};
  }

  // Everybody's load until `end_s` on the wall clock.
  void load(double end_s) {
    std::vector<std::thread> clients;
    for (int i = 0; i < kAllocators; ++i) clients.emplace_back([this, i, end_s] { client(i, end_s); });
    for (auto& one : clients) one.join();
  }

  nlohmann::json state(int i) const {
    const auto text = meter::http_get(strf("http://127.0.0.1:%d/v1/state", ports_[i].load()), http_);
    return text.ok() ? nlohmann::json::parse(*text, nullptr, false) : nlohmann::json();
  }
  int leader() const {
    for (int i = 0; i < kAllocators; ++i) {
      if (!alive_[i]) continue;
      const auto json = state(i);
      if (json.is_object() && json.contains("share") && json["share"].value("leading", false)) return i;
    }
    return -1;
  }
  void kill_allocator(int i) {
    alive_[i] = false;
    kill(pids_[i], SIGKILL);
  }
  double rate() const { return rate_; }
  Served& served() { return served_; }

 private:
  // Poisson arrivals in bunches of 50 ms. Who is dead hands its load to the next that lives.
  void client(int mine, double end_s) {
    const auto world = cascade::SyntheticWorld::create({}).value();
    Rng rng(static_cast<uint64_t>(mine) + 1, 81);
    std::vector<float> features(static_cast<size_t>(world.spec().n_features()));
    double due = wall_seconds();
    while (clock_seconds(CLOCK_REALTIME) < end_s) {
      due += 0.05;
      const double wait = due - wall_seconds();
      if (wait > 0) std::this_thread::sleep_for(std::chrono::duration<double>(wait));
      const int n = cascade::SyntheticWorld::clicks(plan_.rps / kAllocators * 0.05, rng);  // Poisson
      if (n == 0) continue;
      auto requests = nlohmann::json::array();
      for (int r = 0; r < n; ++r) {
        world.features(world.draw(rng), features);
        requests.push_back(features);
      }
      send(mine, nlohmann::json{{"requests", requests}}.dump(), n);
    }
  }
  void send(int mine, const std::string& body, int n) {
    for (int tries = 0; tries < kAllocators; ++tries) {
      const int to = (mine + tries) % kAllocators;
      if (!alive_[to]) continue;
      const auto text = meter::http_post(strf("http://127.0.0.1:%d/v1/decide", ports_[to].load()), body,
                                         "application/json", http_);
      const auto json = text.ok() ? nlohmann::json::parse(*text, nullptr, false) : nlohmann::json();
      if (!json.is_object() || !json.contains("decisions")) continue;
      double flops = 0;
      for (const auto& decision : json["decisions"]) flops += decision.value("flops", 0.0);
      const auto second = static_cast<int64_t>(std::floor(clock_seconds(CLOCK_REALTIME)));
      const std::lock_guard lock(served_.mutex);
      served_.flops[second] += flops;
      served_.requests[second] += n;
      return;
    }
    const std::lock_guard lock(served_.mutex);
    served_.failed += n;
  }

  static meter::HttpOptions patience() {
    meter::HttpOptions options;
    options.timeout_s = 2;
    return options;
  }

  const meter::HttpOptions http_ = patience();
  Plan plan_;
  Children& children_;
  Served served_;
  double rate_ = 0;
  pid_t nats_ = 0;
  std::array<pid_t, kAllocators> pids_{};
  std::array<std::atomic<int>, kAllocators> ports_{};
  std::array<std::atomic<bool>, kAllocators> alive_{};
};

struct Use {
  double mean = 0, worst = 0, least = 1e9, requests = 0;  // of the budget, over windows
  int n = 0;
};

}  // namespace

Status bench_cascade_share(CascadeBench& bench) {
  Children children(
      (std::filesystem::temp_directory_path() / strf("frugal_bench_share_%d", getpid())).string());
  std::error_code error;
  std::filesystem::create_directories(children.folder(), error);
  if (error) return {ErrorCode::kIo, children.folder() + ": " + error.message()};
  Plan plan;
  if (bench.quick) plan.windows = 5, plan.kill_in = 2;
  Fleet fleet(plan, children);
  bench.say(strf("%d allocators under one budget; %d windows of %.0f s, the leader is killed in window %d",
                 kAllocators, plan.windows, plan.window_s, plan.kill_in + 1));
  FRUGAL_TRY_STATUS(fleet.start());
  // Two windows to come to a common price, then those that count.
  const double now = clock_seconds(CLOCK_REALTIME);
  const double first = (std::floor(now / plan.window_s) + 3) * plan.window_s;
  const double end = first + plan.windows * plan.window_s;
  std::thread load([&] { fleet.load(end); });
  double election_s = -1;
  int dead = -1;
  while (clock_seconds(CLOCK_REALTIME) < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (clock_seconds(CLOCK_REALTIME) < first + (plan.kill_in + 0.4) * plan.window_s || dead >= 0) continue;
    dead = fleet.leader();
    if (dead < 0) continue;
    fleet.kill_allocator(dead);
    const double killed = wall_seconds();
    while (fleet.leader() < 0 && wall_seconds() - killed < 30)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    election_s = wall_seconds() - killed;
  }
  load.join();
  if (dead < 0) return {ErrorCode::kUnavailable, "no allocator ever led the shared price"};
  Use use;
  std::string shares;
  double through_kill = 0;
  for (int w = 0; w < plan.windows; ++w) {
    const auto from = static_cast<int64_t>(first + w * plan.window_s);
    double flops = 0;
    for (int64_t s = from; s < from + static_cast<int64_t>(plan.window_s); ++s) {
      flops += fleet.served().flops[s];
      use.requests += fleet.served().requests[s];
    }
    const double share = flops / (fleet.rate() * plan.window_s);
    use.mean += share / plan.windows;
    use.worst = std::max(use.worst, share);
    use.least = std::min(use.least, share);
    if (w == plan.kill_in) through_kill = share;
    shares += strf(" %.2f", 100 * share);
  }
  BenchRow row;
  row.name = "joint_use";
  row.unit = "% of the budget";
  row.ours = 100 * use.mean;
  row.n = plan.windows;
  row.more = {{"window_of_the_kill", 100 * through_kill}, {"worst_window", 100 * use.worst},
              {"least_window", 100 * use.least},          {"election_s", election_s},
              {"unanswered", fleet.served().failed},      {"requests", use.requests}};
  row.how = strf(
      "%d processes of `frugal cascade serve` share a price over one nats-server, %.0f requests a second in "
      "all, as the answers said; the leader was killed (SIGKILL) in window %d of:%s",
      kAllocators, plan.rps, plan.kill_in + 1, shares.c_str());
  bench.rows.push_back(row);
  return {};
}

}  // namespace frugal::cli
