// The synthetic world as a cascade's folder, so that every command can be tried without data of one's own.
#pragma once

#include <string>

#include "cascade/synthetic.h"

namespace frugal::cascade {

// DIR/cascade.json of any cascade, as load_cascade() reads it. kIo.
Status save_cascade(const CascadeSpec& spec, const std::string& folder);

struct ExportOptions {
  int n_fit = 4000, n_test = 2000;  // requests with clicks of every chain
  uint64_t seed = 1;
};
// Writes cascade.json and features_*.npy, rewards_*.npy, user_*.npy of `fit` and `test`: what `frugal cascade
// train` and `report` read. Its stages have no models: it decides, and cannot give items. kIo,
// kInvalidArgument.
Status export_world(const SyntheticWorld& world, const std::string& folder, const ExportOptions& options);

}  // namespace frugal::cascade
