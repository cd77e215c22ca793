#include "cascade/serve/sidecar.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/text.h"

namespace frugal::cascade {
namespace {

constexpr size_t kMaxBatch = 4096;

int64_t modified_at(const std::string& path) {
  std::error_code error;
  const auto time = std::filesystem::last_write_time(path, error);
  return error ? 0 : static_cast<int64_t>(time.time_since_epoch().count());
}

Sidecar::Answer refusal(const std::string& why) {
  return {400, nlohmann::json{{"error", {{"code", "invalid_argument"}, {"message", why}}}}.dump(
                   -1, ' ', false, nlohmann::json::error_handler_t::replace)};
}

void add(std::atomic<double>& to, double amount) {
  double old = to.load(std::memory_order_relaxed);
  while (!to.compare_exchange_weak(old, old + amount, std::memory_order_relaxed)) {
  }
}

}  // namespace

struct Sidecar::Lane {
  std::unique_ptr<budget::Decider> decider;
  std::vector<float> features, rewards;
};

Sidecar::Sidecar() = default;
Sidecar::~Sidecar() = default;

class Sidecar::LaneLease {
 public:
  explicit LaneLease(Sidecar& sidecar) : sidecar_(sidecar) {
    {
      const std::lock_guard lock(sidecar.lanes_mutex_);
      if (!sidecar.idle_lanes_.empty()) {
        lane_ = std::move(sidecar.idle_lanes_.back());
        sidecar.idle_lanes_.pop_back();
      }
    }
    if (lane_ != nullptr) return;
    lane_ = std::make_unique<Lane>();
    lane_->decider = sidecar.governor_->open_decider();
    lane_->features.resize(static_cast<size_t>(sidecar.spec_.n_features()));
    lane_->rewards.resize(static_cast<size_t>(sidecar.spec_.n_chains()));
  }
  ~LaneLease() {
    const std::lock_guard lock(sidecar_.lanes_mutex_);
    sidecar_.idle_lanes_.push_back(std::move(lane_));
  }
  Lane* operator->() { return lane_.get(); }

 private:
  Sidecar& sidecar_;
  std::unique_ptr<Lane> lane_;
};

Result<std::unique_ptr<Sidecar>> Sidecar::create(CascadeSpec spec, SidecarOptions options) {
  auto sidecar = std::unique_ptr<Sidecar>(new Sidecar());
  FRUGAL_TRY(sidecar->table_, chain_table(spec, {}));
  if (options.shadow_chain >= spec.n_chains())
    return {ErrorCode::kInvalidArgument,
            strf("shadow chain %d; there are %d", options.shadow_chain, spec.n_chains())};
  if (!(options.flops_per_s >= 0)) return {ErrorCode::kInvalidArgument, "the budget is not negative"};
  sidecar->model_time_ = modified_at(options.model_path);
  FRUGAL_TRY(auto model, RewardModel::load(options.model_path, spec));
  sidecar->model_.store(std::make_shared<const RewardModel>(std::move(model)));
  budget::ResourceOptions flops;
  if (options.flops_per_s > 0) flops.budget = budget::Schedule::constant(options.flops_per_s);
  FRUGAL_TRY(sidecar->governor_, budget::Governor::create(sidecar->table_, {flops}, options.governor));
  for (int j = 0; j < spec.n_chains(); ++j) {
    std::vector<int> counts;
    for (size_t k = 0; k < spec.stages.size(); ++k)
      counts.push_back(
          spec.stages[k].counts[static_cast<size_t>(spec.chains[static_cast<size_t>(j)][2 * k + 1])]);
    const nlohmann::json json = {{"chain", chain_name(spec, j)},
                                 {"index", j},
                                 {"actions", spec.chains[static_cast<size_t>(j)]},
                                 {"counts", counts},
                                 {"flops", chain_flops(spec, j)}};
    std::string text = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    text.pop_back();  // the closing brace: the request's own figures follow
    sidecar->chain_json_.push_back(std::move(text));
  }
  sidecar->spec_ = std::move(spec);
  sidecar->options_ = std::move(options);
  return sidecar;
}

Sidecar::Answer Sidecar::decide(std::string_view body) {
  const auto bad = [&](const std::string& why) {
    bad_requests_.fetch_add(1, std::memory_order_relaxed);
    return refusal(why);
  };
  const auto json = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) return bad("the body is not a JSON object");
  const bool batch = json.contains("requests");
  if (!batch && !json.contains("features")) return bad("the body has neither 'features' nor 'requests'");
  const nlohmann::json& given = batch ? json["requests"] : json["features"];
  if (!given.is_array()) return bad(batch ? "'requests' is not an array" : "'features' is not an array");
  if (batch && given.size() > kMaxBatch)
    return bad(strf("%zu requests at once; at most %zu", given.size(), kMaxBatch));
  LaneLease lane(*this);
  const std::shared_ptr<const RewardModel> model = model_.load();
  std::string out = batch ? "{\"decisions\":[" : "";
  const size_t n = batch ? given.size() : 1;
  for (size_t i = 0; i < n; ++i) {
    const nlohmann::json& row = batch ? given[i] : given;
    if (!row.is_array() || row.size() != lane->features.size()) {
      return bad(strf("request %zu has %zu features, the cascade needs %zu", i,
                      row.is_array() ? row.size() : 0, lane->features.size()));
    }
    for (size_t f = 0; f < row.size(); ++f) {
      // null is how JSON writes NaN: the request is served by the cheapest chain.
      if (row[f].is_number())
        lane->features[f] = row[f].get<float>();
      else if (row[f].is_null())
        lane->features[f] = NAN;
      else
        return bad(strf("request %zu: feature '%s' is not a number", i, spec_.features[f].c_str()));
    }
    model->predict(lane->features, lane->rewards);
    const budget::Decision decision = lane->decider->decide(lane->rewards);
    const bool shadow = options_.shadow_chain >= 0;
    const int answered = shadow ? options_.shadow_chain : decision.chain;
    if (shadow) {
      add(shadow_flops_, table_->costs(0)[static_cast<size_t>(answered)]);
      const double reward = static_cast<double>(lane->rewards[static_cast<size_t>(answered)]);
      if (std::isfinite(reward)) add(shadow_reward_, reward);
    }
    if (i > 0) out += ',';
    out += chain_json_[static_cast<size_t>(answered)];
    out += strf(",\"kind\":\"%s\",\"reward\":%.6g,\"score\":%.6g",
                std::string(budget::decision_kind_name(decision.kind)).c_str(),
                static_cast<double>(decision.reward), static_cast<double>(decision.score));
    if (shadow) out += strf(",\"shadow\":true,\"would_be\":%d", decision.chain);
    out += '}';
  }
  if (batch) out += "]}";
  return {200, std::move(out)};
}

Sidecar::Answer Sidecar::state() const {
  const budget::GovernorState state = governor_->state();
  nlohmann::json json = {{"price", state.prices[0]},
                         {"requests", state.requests},
                         {"flops", state.spent[0]},
                         {"window_flops", state.window_spent[0]},
                         {"reward", state.reward},
                         {"no_reward", state.no_reward},
                         {"exhausted", state.exhausted},
                         {"unmeetable", state.unmeetable},
                         {"clock_jumps", state.clock_jumps},
                         {"bad_requests", bad_requests_.load()},
                         {"models_loaded", models_loaded_.load()},
                         {"models_refused", models_refused_.load()}};
  if (std::isfinite(state.window_budget[0])) json["window_budget"] = state.window_budget[0];
  if (options_.shadow_chain >= 0) {
    const double served = shadow_flops_.load();
    json["shadow"] = {
        {"chain", chain_name(spec_, options_.shadow_chain)},
        {"flops", served},
        {"flops_saved", served > 0 ? 1 - state.spent[0] / served : 0},
        {"predicted_reward_ratio", shadow_reward_.load() > 0 ? state.reward / shadow_reward_.load() : 0}};
  }
  return {200, json.dump()};
}

Sidecar::Answer Sidecar::metrics() const {
  const budget::GovernorState state = governor_->state();
  std::string text;
  const auto metric = [&](const char* name, const char* kind, const char* help, double value) {
    text += strf("# HELP frugal_cascade_%s %s\n# TYPE frugal_cascade_%s %s\nfrugal_cascade_%s %.17g\n", name,
                 help, name, kind, name, value);
  };
  metric("requests_total", "counter", "Decisions made.", static_cast<double>(state.requests));
  metric("flops_total", "counter", "FLOPs of the chains decided on.", state.spent[0]);
  metric("reward_total", "counter", "Predicted reward of the chains decided on.", state.reward);
  metric("price", "gauge", "Reward that a FLOP has to earn.", state.prices[0]);
  metric("window_flops", "gauge", "FLOPs spent in this window.", state.window_spent[0]);
  metric("no_reward_total", "counter", "Decisions for want of a finite reward.",
         static_cast<double>(state.no_reward));
  metric("exhausted_total", "counter", "Decisions because a window's budget was gone.",
         static_cast<double>(state.exhausted));
  metric("unmeetable", "gauge", "1 while the cheapest chains alone exceed the budget.",
         state.unmeetable ? 1 : 0);
  metric("bad_requests_total", "counter", "Requests refused.", static_cast<double>(bad_requests_.load()));
  metric("models_refused_total", "counter", "Reward models that were damaged or of another cascade.",
         static_cast<double>(models_refused_.load()));
  return {200, std::move(text), "text/plain; version=0.0.4"};
}

Sidecar::Totals Sidecar::totals() const {
  const budget::GovernorState state = governor_->state();
  return {static_cast<uint64_t>(state.requests), state.spent[0]};
}

bool Sidecar::reload() {
  const int64_t time = modified_at(options_.model_path);
  if (time == 0 || time == model_time_) return false;
  model_time_ = time;
  auto model = RewardModel::load(options_.model_path, spec_);
  if (!model.ok()) {
    models_refused_.fetch_add(1);
    log(LogLevel::kWarning,
        "the new reward model is refused and the old one keeps serving: " + model.error().message);
    return false;
  }
  model_.store(std::make_shared<const RewardModel>(*std::move(model)));
  models_loaded_.fetch_add(1);
  log(LogLevel::kInfo, "a new reward model serves now");
  return true;
}

}  // namespace frugal::cascade
