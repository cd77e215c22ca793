// CascadeSpec: what stages there are, and what a chain of them costs.
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"
#include "frugal/cascade.h"

namespace frugal::cascade {

Status check_cascade(const CascadeSpec& spec) {
  const auto bad = [](std::string message) {
    return Status(ErrorCode::kInvalidArgument, std::move(message));
  };
  if (spec.stages.empty() || spec.stages.size() > 8) return bad("a cascade has 1 to 8 stages");
  if (spec.features.empty() || spec.features.size() > 64) return bad("a cascade has 1 to 64 features");
  if (spec.chains.empty() || spec.chains.size() > 65536) return bad("a cascade has 1 to 65,536 chains");
  for (const Stage& stage : spec.stages) {
    if (stage.models.empty() || stage.counts.empty()) {
      return bad(strf("stage '%s' needs at least one model and one item count", stage.name.c_str()));
    }
    for (size_t i = 0; i < stage.counts.size(); ++i) {
      if (stage.counts[i] <= 0 || (i > 0 && stage.counts[i] <= stage.counts[i - 1])) {
        return bad(strf("stage '%s': item counts are positive and ascend", stage.name.c_str()));
      }
    }
    for (const StageModel& model : stage.models) {
      if (!(model.flops_fixed >= 0) || !(model.flops_item >= 0) ||
          !std::isfinite(model.flops_fixed + model.flops_item)) {
        return bad(strf("model '%s': FLOPs are finite and not negative", model.name.c_str()));
      }
    }
  }
  for (size_t j = 0; j < spec.chains.size(); ++j) {
    const auto& actions = spec.chains[j];
    if (actions.size() != 2 * spec.stages.size())
      return bad(strf("chain %zu has %zu actions for %zu stages", j, actions.size(), spec.stages.size()));
    int last = 0;
    for (size_t k = 0; k < spec.stages.size(); ++k) {
      const int model = actions[2 * k], count = actions[2 * k + 1];
      if (model < 0 || static_cast<size_t>(model) >= spec.stages[k].models.size() || count < 0 ||
          static_cast<size_t>(count) >= spec.stages[k].counts.size()) {
        return bad(strf("chain %zu, stage '%s': there is no model %d or count %d", j,
                        spec.stages[k].name.c_str(), model, count));
      }
      const int items = spec.stages[k].counts[static_cast<size_t>(count)];
      if (k > 0 && items > last)
        return bad(
            strf("chain %zu: stage '%s' passes on more items than it gets", j, spec.stages[k].name.c_str()));
      last = items;
    }
  }
  return {};
}

Result<CascadeSpec> load_cascade(const std::string& folder) {
  const std::string path = folder + "/cascade.json";
  FRUGAL_TRY(const std::string text, read_file(path, size_t{64} << 20));
  CascadeSpec spec;
  try {
    const auto json = nlohmann::json::parse(text);
    if (json.at("format") != "frugal-cascade" || json.at("version") != 1) {
      return {ErrorCode::kUnsupported, path + ": not a frugal-cascade of version 1"};
    }
    spec.source = json.at("source").get<std::string>();
    spec.shown = json.at("shown").get<int>();
    spec.history_length = json.at("history_length").get<int>();
    spec.n_items = json.at("n_items").get<int>();
    spec.features = json.at("features").get<std::vector<std::string>>();
    for (const auto& stage : json.at("stages")) {
      Stage one{stage.at("name").get<std::string>(), {}, stage.at("counts").get<std::vector<int>>()};
      for (const auto& model : stage.at("models")) {
        one.models.push_back({model.at("name").get<std::string>(), model.at("file").get<std::string>(),
                              model.at("flops_fixed").get<double>(), model.at("flops_item").get<double>()});
      }
      spec.stages.push_back(std::move(one));
    }
    for (const auto& chain : json.at("chains"))
      spec.chains.push_back(chain.at("actions").get<std::vector<int>>());
  } catch (const nlohmann::json::exception& error) {
    return {ErrorCode::kCorrupt, path + ": " + error.what()};
  }
  if (Status status = check_cascade(spec); !status.ok())
    return Error{ErrorCode::kCorrupt, path + ": " + status.error().message};
  return spec;
}

double chain_flops(const CascadeSpec& spec, int j) {
  const auto& actions = spec.chains[static_cast<size_t>(j)];
  double flops = 0;
  int items = 0;
  for (size_t k = 0; k < spec.stages.size(); ++k) {
    const StageModel& model = spec.stages[k].models[static_cast<size_t>(actions[2 * k])];
    flops += model.flops_fixed + items * model.flops_item;
    items = spec.stages[k].counts[static_cast<size_t>(actions[2 * k + 1])];
  }
  return flops;
}

std::string chain_name(const CascadeSpec& spec, int j) {
  const auto& actions = spec.chains[static_cast<size_t>(j)];
  std::string name;
  for (size_t k = 0; k < spec.stages.size(); ++k) {
    name += strf("%s%s:%d", k > 0 ? " > " : "",
                 spec.stages[k].models[static_cast<size_t>(actions[2 * k])].name.c_str(),
                 spec.stages[k].counts[static_cast<size_t>(actions[2 * k + 1])]);
  }
  return name;
}

Result<std::shared_ptr<const budget::ChainTable>> chain_table(const CascadeSpec& spec,
                                                              const CostOptions& options) {
  FRUGAL_TRY_STATUS(check_cascade(spec));
  if (!options.joules.empty() && options.joules.size() != spec.chains.size()) {
    return {ErrorCode::kInvalidArgument,
            strf("joules of %zu chains for a cascade of %zu", options.joules.size(), spec.chains.size())};
  }
  std::vector<budget::Chain> chains;
  for (int j = 0; j < spec.n_chains(); ++j) {
    budget::Chain chain{chain_name(spec, j), spec.chains[static_cast<size_t>(j)], {chain_flops(spec, j)}};
    if (!options.joules.empty()) chain.cost[1] = options.joules[static_cast<size_t>(j)];
    chains.push_back(std::move(chain));
  }
  std::vector<std::string> resources{"flops"};
  if (!options.joules.empty()) resources.push_back("joules");
  return budget::ChainTable::create(std::move(resources), std::move(chains));
}

}  // namespace frugal::cascade
