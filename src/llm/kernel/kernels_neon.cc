#include "llm/kernel/kernels.inc.h"
#include "llm/kernel/simd_neon.h"

namespace frugal::llm {
extern const Kernels kNeonKernels;
constinit const Kernels kNeonKernels = KernelSet<neon::Simd>::table();
}  // namespace frugal::llm
