#define FRUGAL_FLATTEN
#include "llm/kernel/kernels.inc.h"
#include "llm/kernel/simd_generic.h"

namespace frugal::llm {
extern const Kernels kGenericKernels;
constinit const Kernels kGenericKernels = KernelSet<generic::Simd>::table();
}  // namespace frugal::llm
