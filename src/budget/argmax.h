// argmax_net_reward compiled once for each instruction set; the answers are the same. Plain pointers only: no
// inline function of the standard library is to be compiled with flags that the processor may lack.
#pragma once

#include <cstddef>

namespace frugal::budget {

using ArgmaxKernel = int (*)(const float* rewards, const float* priced_costs, size_t n);
// "generic" or "avx2"; null: this processor or build lacks it.
ArgmaxKernel find_argmax_kernel(const char* name);

}  // namespace frugal::budget
