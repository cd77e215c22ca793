// A frame for measuring when the user gives none.
#pragma once

#include <cstdint>

#include "dnn/exec/network.h"

namespace frugal::dnn {

// Values of all model inputs. A colour image [n, 3, rows, columns] of f32 gets a drawn picture of 8 bits a
// channel, with a camera's noise, scaled by ImageNet's mean and deviation as photos are; other f32 inputs
// normal deviates, other types zeros. The same seed gives the same bits.
Values sample_frame(const Graph& graph, uint64_t seed);

}  // namespace frugal::dnn
