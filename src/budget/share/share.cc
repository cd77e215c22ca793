#include "budget/share/share.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "budget/share/bucket.h"

namespace frugal::budget {
namespace {

constexpr char kLeaderKey[] = "leader";
constexpr char kUsePrefix[] = "use.";

std::string random_id() {
  std::random_device device;
  return strf("%08x%08x", device(), device());
}

// What another allocator has reported. Cumulative counts never fall; what it had spent before this allocator
// came is left out.
struct Peer {
  Amounts base{}, spent{}, rate{};
  double base_requests = 0, requests = 0, requests_rate = 0;
  int deciders = 1;
  double heard_s = 0;  // by this allocator's steady clock
  double said_s = 0;   // by the wall clock of who reported
};

// The rate that goes on until the next report. An interval too short to tell anything leaves it as it is.
double smoothed_rate(double rate, double amount, double dt) {
  if (!(dt > 1e-3) || !(dt < 60)) return rate;
  return rate == 0 ? amount / dt : 0.5 * rate + 0.5 * amount / dt;
}

class PriceShareImpl final : public PriceShare {
 public:
  PriceShareImpl(std::shared_ptr<Governor> governor, ShareOptions options)
      : governor_(std::move(governor)), options_(std::move(options)) {
    governor_->follow(true);
    heard_s_ = leader_seen_s_ = wall_seconds();
    thread_ = std::thread([this] { run(); });
  }
  ~PriceShareImpl() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  ShareState state() const override {
    const std::lock_guard lock(mutex_);
    return state_;
  }

 private:
  void run() {
    double next = wall_seconds();
    while (true) {
      sync();
      // Early ticks that a decider asks for do not wait for the bucket.
      next = std::max(next + options_.sync_s, wall_seconds());
      std::unique_lock lock(mutex_);
      while (!stop_ && wall_seconds() < next) {
        wake_.wait_for(lock, std::chrono::duration<double>(
                                 std::clamp(next - wall_seconds(), 0.001, options_.sync_s / 5)));
        if (!stop_ && governor_->tick_wanted()) {
          lock.unlock();
          tick();
          lock.lock();
        }
      }
      if (stop_) return;
    }
  }

  // Everything that touches the bucket. A fault anywhere drops the connection; the next sync makes a new one.
  void sync() {
    const Status talked = talk();
    const double now = wall_seconds();
    if (talked.ok()) {
      heard_s_ = now;
    } else {
      bucket_.reset();
      leader_revision_ = 0;
    }
    if (leading_ && now - heard_s_ > options_.lease_s) lead(false);  // others will have taken over by now
    const bool isolated = now - std::min(heard_s_, leading_ ? now : leader_seen_s_) > options_.max_stale_s;
    if (isolated != isolated_) {
      isolated_ = isolated;
      governor_->follow(!isolated_ && !leading_);
      log(LogLevel::kWarning,
          isolated ? strf("nothing heard of the shared price for %.1f s: this allocator steers its own",
                          options_.max_stale_s)
                   : "the shared price is back");
    }
    tick();
    const std::lock_guard lock(mutex_);
    ++state_.syncs;
    state_.failures += talked.ok() ? 0 : 1;
    state_.connected = talked.ok();
    state_.leading = leading_;
    state_.isolated = isolated_;
    state_.id = options_.id;
    state_.leader = leader_;
    state_.elections = elections_;
    state_.price_age_s = leading_ ? 0 : now - leader_seen_s_;
    state_.allocators = 1;
    for (const auto& [id, peer] : peers_) state_.allocators += now - peer.heard_s < options_.lease_s ? 1 : 0;
  }

  Status talk() {
    if (bucket_ == nullptr) {
      // A server that is not there is asked again at every sync, at most once a second.
      if (wall_seconds() < retry_s_) return {ErrorCode::kUnavailable, "waiting to connect again"};
      retry_s_ = wall_seconds() + std::max(1.0, options_.sync_s);
      FRUGAL_TRY(bucket_, Bucket::open(options_.url, options_.bucket));
      leader_seen_s_ = std::max(leader_seen_s_, wall_seconds() - options_.max_stale_s / 2);
    }
    FRUGAL_TRY(const auto changes, bucket_->changes());
    for (const Bucket::Change& change : changes) take(change);
    first_look_ = false;
    FRUGAL_TRY_STATUS(report_use());
    return keep_lease();
  }

  void take(const Bucket::Change& change) {
    const double now = wall_seconds();
    const auto json = nlohmann::json::parse(change.value, nullptr, false);
    if (!json.is_object()) return;  // not ours: ignored
    try {
      if (change.key == kLeaderKey) {
        leader_revision_ = change.revision;
        leader_ = json.at("id").get<std::string>();
        // What the bucket held before this allocator looked may be of a leader long dead: its price is better
        // than none, but its lease starts to run out now.
        leader_seen_s_ = now;
        if (leader_ == options_.id) return;
        if (leading_) lead(false);
        const auto prices = json.at("prices").get<std::vector<double>>();
        if (const Status set = governor_->set_prices(prices); !set.ok())
          log(LogLevel::kWarning, "the leader's prices are refused: " + set.error().message);
      } else if (change.key.starts_with(kUsePrefix)) {
        const std::string id = change.key.substr(sizeof kUsePrefix - 1);
        if (id == options_.id) return;
        const auto spent = json.at("spent").get<std::vector<double>>();
        const double requests = json.at("requests").get<double>();
        if (spent.size() != static_cast<size_t>(governor_->table().n_resources())) return;
        for (const double s : spent) {
          if (!std::isfinite(s) || s < 0) return;
        }
        if (!std::isfinite(requests) || requests < 0) return;
        const bool known = peers_.contains(id);
        Peer& peer = peers_[id];
        // Rates go by the reporter's clock: two reports may be read in one look.
        const double said_s = json.value("at_s", 0.0), dt = said_s - peer.said_s;
        for (size_t k = 0; k < spent.size(); ++k) {
          if (!known) peer.base[k] = first_look_ ? spent[k] : 0;
          const double before = peer.spent[k];
          peer.spent[k] = std::max(before, spent[k] - peer.base[k]);
          if (known) peer.rate[k] = smoothed_rate(peer.rate[k], peer.spent[k] - before, dt);
        }
        if (!known) peer.base_requests = first_look_ ? requests : 0;
        const double before = peer.requests;
        peer.requests = std::max(before, requests - peer.base_requests);
        if (known) peer.requests_rate = smoothed_rate(peer.requests_rate, peer.requests - before, dt);
        peer.deciders = std::clamp(json.value("deciders", 1), 1, 1 << 16);
        peer.heard_s = now;
        peer.said_s = said_s;
      }
    } catch (const nlohmann::json::exception&) {
      // A value of another shape: another program writes to this bucket. It is left out of the accounts.
    }
  }

  Status report_use() {
    const GovernorState state = governor_->state();
    nlohmann::json json = {
        {"at_s", clock_seconds(CLOCK_REALTIME)}, {"requests", state.requests}, {"deciders", 1}};
    for (int k = 0; k < governor_->table().n_resources(); ++k)
      json["spent"].push_back(state.spent[static_cast<size_t>(k)]);
    return bucket_->put(kUsePrefix + options_.id, json.dump());
  }

  // The leader renews its lease with its prices; anybody else takes a lease that has run out.
  Status keep_lease() {
    const double now = wall_seconds();
    if (!leading_ && !(now - leader_seen_s_ > options_.lease_s)) return {};
    const nlohmann::json json = {{"id", options_.id}, {"prices", governor_->state().prices}};
    const auto revision = bucket_->put_if(kLeaderKey, json.dump(), leader_revision_);
    if (revision.ok()) {
      leader_revision_ = *revision;
      leader_ = options_.id;
      leader_seen_s_ = now;
      if (!leading_) {
        ++elections_;
        lead(true);
      }
      return {};
    }
    if (revision.error().code != ErrorCode::kCancelled) return revision.error();
    // Somebody else's: the next look at the bucket says whose. A full lease passes before the next try.
    if (leading_) lead(false);
    leader_seen_s_ = now;
    return {};
  }

  void lead(bool leading) {
    leading_ = leading;
    governor_->follow(!leading && !isolated_);
    log(LogLevel::kInfo,
        leading ? "this allocator leads the shared price" : "this allocator follows the shared price");
  }

  // Others' use as of now: what they reported, gone on at their last rates while they are taken to live.
  void tick() {
    const double now = wall_seconds();
    const double wall_now = clock_seconds(CLOCK_REALTIME);
    Amounts spent{};
    double requests = 0;
    int deciders = 0;
    for (auto& [id, peer] : peers_) {
      const double silent = now - peer.heard_s;
      // A peer is believed alive for a lease; when nothing is heard of anybody, all are taken to go on.
      const bool alive = silent < options_.lease_s || now - heard_s_ > options_.sync_s * 2;
      // A report is as old as it says, within what two hosts' clocks may differ by without harm.
      const double age = std::clamp(wall_now - peer.said_s, silent, silent + 2 * options_.sync_s);
      const double ahead = alive ? age : 0;
      for (size_t k = 0; k < spent.size(); ++k) spent[k] += peer.spent[k] + peer.rate[k] * ahead;
      requests += peer.requests + peer.requests_rate * ahead;
      if (alive) deciders += peer.deciders;
    }
    // The accounts of others never fall: a rate that was believed too long is made good as reports come in.
    for (size_t k = 0; k < spent.size(); ++k) others_[k] = spent[k];
    governor_->set_others(others_, requests, deciders);
    governor_->tick(wall_now);
  }

  const std::shared_ptr<Governor> governor_;
  const ShareOptions options_;
  // Of the thread alone.
  std::unique_ptr<Bucket> bucket_;
  std::map<std::string, Peer> peers_;
  std::string leader_;
  uint64_t leader_revision_ = 0, elections_ = 0;
  double heard_s_ = 0, leader_seen_s_ = 0, retry_s_ = 0;
  bool leading_ = false, isolated_ = false, first_look_ = true;
  Amounts others_{};

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  ShareState state_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<PriceShare>> PriceShare::start(std::shared_ptr<Governor> governor,
                                                      const ShareOptions& options) {
  const auto bad = [](const char* message) { return Error{ErrorCode::kInvalidArgument, message}; };
  if (governor == nullptr) return bad("there is no governor to share the price of");
  if (!(options.sync_s > 0) || !std::isfinite(options.sync_s)) return bad("sync_s is positive");
  if (!(options.lease_s > 2 * options.sync_s))
    return bad("lease_s is more than two sync_s: a single late renewal is not a death");
  if (!(options.max_stale_s >= options.lease_s)) return bad("max_stale_s is at least lease_s");
  const auto plain = [](const std::string& name) {
    return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
             c == '_';
    });
  };
  if (!plain(options.bucket)) return bad("a bucket's name is letters, digits, '-' and '_'");
  if (!options.id.empty() && !plain(options.id)) return bad("an id is letters, digits, '-' and '_'");
  ShareOptions mine = options;
  if (mine.id.empty()) mine.id = random_id();
  return std::unique_ptr<PriceShare>(std::make_unique<PriceShareImpl>(std::move(governor), std::move(mine)));
}

}  // namespace frugal::budget
