#include "cascade/export.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"
#include "cascade/npy.h"

namespace frugal::cascade {

Status save_cascade(const CascadeSpec& spec, const std::string& folder) {
  nlohmann::ordered_json stages = nlohmann::ordered_json::array(), chains = stages;
  for (const Stage& stage : spec.stages) {
    nlohmann::ordered_json models = nlohmann::ordered_json::array();
    for (const StageModel& model : stage.models) {
      models.push_back({{"name", model.name},
                        {"file", model.file},
                        {"flops_fixed", model.flops_fixed},
                        {"flops_item", model.flops_item}});
    }
    stages.push_back({{"name", stage.name}, {"counts", stage.counts}, {"models", models}});
  }
  for (const auto& actions : spec.chains) chains.push_back({{"actions", actions}});
  const nlohmann::ordered_json json = {{"format", "frugal-cascade"},
                                       {"version", 1},
                                       {"source", spec.source},
                                       {"shown", spec.shown},
                                       {"history_length", spec.history_length},
                                       {"n_items", spec.n_items},
                                       {"features", spec.features},
                                       {"stages", stages},
                                       {"chains", chains}};
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return {ErrorCode::kIo, folder + ": " + error.message()};
  return write_file_atomically(folder + "/cascade.json",
                               json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

Status export_world(const SyntheticWorld& world, const std::string& folder, const ExportOptions& options) {
  if (options.n_fit < 1 || options.n_test < 1 || options.n_fit > 1'000'000 || options.n_test > 1'000'000)
    return {ErrorCode::kInvalidArgument, "1 to 1000000 requests are written for each split"};
  FRUGAL_TRY_STATUS(save_cascade(world.spec(), folder));
  const auto n_features = static_cast<size_t>(world.spec().n_features());
  const auto n_chains = static_cast<size_t>(world.spec().n_chains());
  for (const auto& [split, n] : {std::pair("fit", options.n_fit), std::pair("test", options.n_test)}) {
    Array2<float> features{n, world.spec().n_features(),
                           std::vector<float>(static_cast<size_t>(n) * n_features)};
    Array2<float> rewards{n, world.spec().n_chains(), std::vector<float>(static_cast<size_t>(n) * n_chains)};
    Array2<int32_t> users{n, 1, {}};
    Rng rng(options.seed, split[0]);
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      const auto request = world.draw(rng);
      world.features(request, std::span(features.values).subspan(i * n_features, n_features));
      const auto row = std::span(rewards.values).subspan(i * n_chains, n_chains);
      world.truth(request, row);
      for (float& reward : row)
        reward = static_cast<float>(SyntheticWorld::clicks(static_cast<double>(reward), rng));
      users.values.push_back(static_cast<int32_t>(request.user));
    }
    const std::string end = std::string("_") + split + ".npy";
    FRUGAL_TRY_STATUS(write_file_atomically(folder + "/features" + end, npy_bytes(features)));
    FRUGAL_TRY_STATUS(write_file_atomically(folder + "/rewards" + end, npy_bytes(rewards)));
    FRUGAL_TRY_STATUS(write_file_atomically(folder + "/user" + end, npy_bytes(users)));
  }
  return {};
}

}  // namespace frugal::cascade
