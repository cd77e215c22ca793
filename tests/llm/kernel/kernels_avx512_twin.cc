// The AVX-512 set over 512-bit intrinsics in plain C++: the same source, run on any processor with AVX2.
#define FRUGAL_FLATTEN
#include "llm/kernel/avx512_twin.h"
//
#include "llm/kernel/kernels.inc.h"
#include "llm/kernel/simd_avx512.h"

namespace frugal::llm {
extern const Kernels kTwinAvx512Kernels;
constinit const Kernels kTwinAvx512Kernels = KernelSet<avx512::Simd>::table();
}  // namespace frugal::llm
