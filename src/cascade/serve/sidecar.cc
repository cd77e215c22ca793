#include "cascade/serve/sidecar.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "cascade/pricing.h"
#include "cascade/serve/answer.h"

namespace frugal::cascade {
namespace {

constexpr size_t kMaxBatch = 4096;

int64_t modified_at(const std::string& path) {
  std::error_code error;
  const auto time = std::filesystem::last_write_time(path, error);
  return error ? 0 : static_cast<int64_t>(time.time_since_epoch().count());
}

void add(std::atomic<double>& to, double amount) {
  double old = to.load(std::memory_order_relaxed);
  while (!to.compare_exchange_weak(old, old + amount, std::memory_order_relaxed)) {
  }
}

}  // namespace

Sidecar::Answer error_answer(int status, ErrorCode code, const std::string& why) {
  return {status, nlohmann::json{{"error", {{"code", error_code_name(code)}, {"message", why}}}}.dump(
                      -1, ' ', false, nlohmann::json::error_handler_t::replace)};
}

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
  Lane& operator*() { return *lane_; }

 private:
  Sidecar& sidecar_;
  std::unique_ptr<Lane> lane_;
};

Result<std::unique_ptr<Sidecar>> Sidecar::create(CascadeSpec spec, SidecarOptions options) {
  auto sidecar = std::unique_ptr<Sidecar>(new Sidecar());
  if (options.shadow_chain >= spec.n_chains())
    return {ErrorCode::kInvalidArgument,
            strf("shadow chain %d; there are %d", options.shadow_chain, spec.n_chains())};
  for (const int j : options.menu) {
    if (j < 0 || j >= spec.n_chains())
      return {ErrorCode::kInvalidArgument, strf("chain %d on the menu; there are %d", j, spec.n_chains())};
  }
  FRUGAL_TRY(sidecar->budgets_, make_budgets(spec, options.budgets, clock_seconds(CLOCK_REALTIME)));
  sidecar->model_time_ = modified_at(options.model_path);
  FRUGAL_TRY(auto model, RewardModel::load(options.model_path, spec));
  sidecar->model_.store(std::make_shared<const RewardModel>(std::move(model)));
  if (options.share) options.governor.align_windows = true;
  FRUGAL_TRY(sidecar->governor_, budget::Governor::create(sidecar->budgets_.table,
                                                          sidecar->budgets_.resources, options.governor));
  if (!options.items_folder.empty()) {
    FRUGAL_TRY(sidecar->items_, ItemService::start(options.items_folder, spec, options.items));
  }
  if (options.share) {
    FRUGAL_TRY(sidecar->share_, budget::PriceShare::start(sidecar->governor_, *options.share));
  }
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

Sidecar::Answer Sidecar::refuse(const std::string& why) {
  bad_requests_.fetch_add(1, std::memory_order_relaxed);
  return error_answer(400, ErrorCode::kInvalidArgument, why);
}

Result<double> Sidecar::limit_of(const nlohmann::json& json) const {
  const auto found = json.find("limit_ms");
  if (found == json.end() || found->is_null()) return 0.0;
  const double limit_ms = found->is_number() ? found->get<double>() : -1;
  if (!std::isfinite(limit_ms) || limit_ms <= 0)
    return Error{ErrorCode::kInvalidArgument, "'limit_ms' is not a positive number"};
  if (budgets_.latency < 0)
    return Error{ErrorCode::kInvalidArgument, "'limit_ms' needs a budget of latency to be served with"};
  return 1e-3 * limit_ms;
}

Result<Sidecar::Picked> Sidecar::pick(const nlohmann::json& features, double limit_s,
                                      const RewardModel& model, Lane& lane) {
  if (!features.is_array() || features.size() != lane.features.size()) {
    return {ErrorCode::kInvalidArgument,
            strf("%zu features; the cascade needs %zu", features.is_array() ? features.size() : 0,
                 lane.features.size())};
  }
  for (size_t f = 0; f < lane.features.size(); ++f) {
    // null is how JSON writes NaN: the request is served by the cheapest chain.
    if (features[f].is_number())
      lane.features[f] = features[f].get<float>();
    else if (features[f].is_null())
      lane.features[f] = NAN;
    else
      return {ErrorCode::kInvalidArgument, "feature '" + spec_.features[f] + "' is not a number"};
  }
  model.predict(lane.features, lane.rewards);
  const double shadow_reward =
      options_.shadow_chain < 0
          ? 0
          : static_cast<double>(lane.rewards[static_cast<size_t>(options_.shadow_chain)]);
  if (!options_.menu.empty()) keep_menu(lane.rewards, lane.rewards.size(), options_.menu);
  Picked picked;
  if (limit_s > 0) {
    budget::Request request;
    request.rewards = lane.rewards;
    request.limits[static_cast<size_t>(budgets_.latency)] = limit_s;
    picked.decision = lane.decider->decide(request);
  } else {
    picked.decision = lane.decider->decide(lane.rewards);
  }
  picked.answered = picked.decision.chain;
  if (options_.shadow_chain >= 0) {
    picked.answered = options_.shadow_chain;
    add(shadow_flops_, budgets_.table->costs(0)[static_cast<size_t>(picked.answered)]);
    if (std::isfinite(shadow_reward)) add(shadow_reward_, shadow_reward);
  }
  return picked;
}

std::string Sidecar::picked_json(const Picked& picked, const Lane& lane) const {
  const budget::Decision& decision = picked.decision;
  std::string out = chain_json_[static_cast<size_t>(picked.answered)];
  out += strf(",\"price\":%.6g,\"kind\":\"%s\",\"reward\":%.6g,\"score\":%.6g", lane.decider->prices()[0],
              std::string(budget::decision_kind_name(decision.kind)).c_str(),
              static_cast<double>(decision.reward), static_cast<double>(decision.score));
  if (options_.shadow_chain >= 0) out += strf(",\"shadow\":true,\"would_be\":%d", decision.chain);
  return out;
}

Sidecar::Answer Sidecar::decide(std::string_view body) {
  const auto json = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) return refuse("the body is not a JSON object");
  const bool batch = json.contains("requests");
  if (!batch && !json.contains("features")) return refuse("the body has neither 'features' nor 'requests'");
  const nlohmann::json& given = batch ? json["requests"] : json["features"];
  if (!given.is_array()) return refuse(batch ? "'requests' is not an array" : "'features' is not an array");
  if (batch && given.size() > kMaxBatch)
    return refuse(strf("%zu requests at once; at most %zu", given.size(), kMaxBatch));
  const auto limit_s = limit_of(json);
  if (!limit_s.ok()) return refuse(limit_s.error().message);
  LaneLease lane(*this);
  const std::shared_ptr<const RewardModel> model = model_.load();
  std::string out = batch ? "{\"decisions\":[" : "";
  for (size_t i = 0; i < (batch ? given.size() : 1); ++i) {
    const auto picked = pick(batch ? given[i] : given, *limit_s, *model, *lane);
    if (!picked.ok()) return refuse(strf("request %zu: %s", i, picked.error().message.c_str()));
    if (i > 0) out += ',';
    out += picked_json(*picked, *lane) + '}';
  }
  if (batch) out += "]}";
  return {200, std::move(out)};
}

Status Sidecar::pick_for(const nlohmann::json& json, bool batch, std::vector<std::string>& answers,
                         std::vector<ItemService::Job>& jobs) {
  FRUGAL_TRY(const double limit_s, limit_of(json));
  LaneLease lane(*this);
  const std::shared_ptr<const RewardModel> model = model_.load();
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto picked = pick((batch ? json["requests"][i] : json)["features"], limit_s, *model, *lane);
    if (!picked.ok())
      return {picked.error().code, strf("request %zu: %s", i, picked.error().message.c_str())};
    jobs[i].chain = picked->answered;
    answers[i] = picked_json(*picked, *lane);
  }
  return {};
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
  for (int k = 0; k < budgets_.table->n_resources(); ++k) {
    const auto i = static_cast<size_t>(k);
    nlohmann::json& one = json["resources"][budgets_.table->resource(k)];
    one = {{"price", state.prices[i]}, {"spent", state.spent[i]}, {"window_spent", state.window_spent[i]}};
    if (std::isfinite(state.window_budget[i])) one["window_budget"] = state.window_budget[i];
  }
  for (const int j : options_.menu) json["menu"].push_back(chain_name(spec_, j));
  if (items_ != nullptr) json["recommended"] = recommended_.load(), json["failed"] = failed_.load();
  if (share_ != nullptr) {
    const budget::ShareState shared = share_->state();
    json["share"] = {{"id", shared.id},
                     {"connected", shared.connected},
                     {"leading", shared.leading},
                     {"isolated", shared.isolated},
                     {"leader", shared.leader},
                     {"price_age_s", shared.price_age_s},
                     {"allocators", shared.allocators},
                     {"elections", shared.elections},
                     {"syncs", shared.syncs},
                     {"failures", shared.failures}};
  }
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
  if (budgets_.carbon >= 0) {
    metric("gco2e_total", "counter", "Grams of CO2 equivalent of the chains decided on.",
           state.spent[static_cast<size_t>(budgets_.carbon)]);
    metric("carbon_price", "gauge", "Reward that a gram has to earn.",
           state.prices[static_cast<size_t>(budgets_.carbon)]);
  }
  if (budgets_.latency >= 0) {
    metric("latency_price", "gauge", "Reward that a second has to earn.",
           state.prices[static_cast<size_t>(budgets_.latency)]);
  }
  if (items_ != nullptr) {
    metric("recommended_total", "counter", "Requests answered with items.",
           static_cast<double>(recommended_.load()));
    metric("failed_total", "counter", "Requests that a stage failed.", static_cast<double>(failed_.load()));
  }
  if (share_ != nullptr) {
    const budget::ShareState shared = share_->state();
    metric("share_connected", "gauge", "1 while the shared price's server is there.",
           shared.connected ? 1 : 0);
    metric("share_leading", "gauge", "1 while this allocator sets the shared price.", shared.leading ? 1 : 0);
    metric("share_isolated", "gauge", "1 while this allocator steers its own price for want of news.",
           shared.isolated ? 1 : 0);
    metric("share_allocators", "gauge", "Allocators heard of, this one included.", shared.allocators);
    metric("share_price_age_seconds", "gauge", "Since the leader was last heard.", shared.price_age_s);
  }
  return {200, std::move(text), "text/plain; version=0.0.4"};
}

Sidecar::Totals Sidecar::totals() const {
  const budget::GovernorState state = governor_->state();
  return {static_cast<uint64_t>(state.requests), state.spent[0]};
}

void Sidecar::log_shadow() const {
  const double served = shadow_flops_.load(), reward = shadow_reward_.load();
  if (options_.shadow_chain < 0 || served <= 0) return;
  const budget::GovernorState state = governor_->state();
  log(LogLevel::kInfo,
      strf("shadow: %llu requests served by '%s'; the allocator would have spent %.1f %% fewer FLOPs at %.4f "
           "of the "
           "predicted reward",
           static_cast<unsigned long long>(state.requests), chain_name(spec_, options_.shadow_chain).c_str(),
           100 * (1 - state.spent[0] / served), reward > 0 ? state.reward / reward : 0.0));
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
