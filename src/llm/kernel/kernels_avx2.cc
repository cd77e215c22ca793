#include "llm/kernel/kernels.inc.h"
#include "llm/kernel/simd_avx2.h"

namespace frugal::llm {
extern const Kernels kAvx2Kernels;
constinit const Kernels kAvx2Kernels = KernelSet<avx2::Simd>::table();
}  // namespace frugal::llm
