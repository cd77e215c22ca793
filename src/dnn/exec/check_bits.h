#pragma once

#include "dnn/exec/network.h"

namespace frugal::dnn {

// Whether the part compiled of a tile gives the bits that its segment gives uncut, on noise. Executors choose
// their kernels by shapes, and some add in another order for a small plane than for a large one; they do not
// look at values, so what agrees in all of one frame does in all frames. kUnsupported: it does not. The
// segment reads one tensor.
Status check_bits(const Network& network, const Segment& segment, const Tile& tile, int n_threads,
                  Part& part);

}  // namespace frugal::dnn
