#include "llm/kernel/kernels.inc.h"
#include "llm/kernel/simd_avx512.h"

namespace frugal::llm {
extern const Kernels kAvx512Kernels;
constinit const Kernels kAvx512Kernels = KernelSet<avx512::Simd>::table();
}  // namespace frugal::llm
