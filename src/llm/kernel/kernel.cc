// Chooses the kernel set for this processor.
#include "llm/kernel/kernel.h"

#include <atomic>
#include <cstring>
#ifdef FRUGAL_HAVE_AVX2
#include <cpuid.h>
#endif
#ifdef FRUGAL_HAVE_NEON
#include <sys/auxv.h>
#endif

namespace frugal::llm {

extern const Kernels kGenericKernels;
#ifdef FRUGAL_HAVE_AVX2
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif
#ifdef FRUGAL_HAVE_NEON
extern const Kernels kNeonKernels;
#endif

#ifdef FRUGAL_HAVE_AVX2
namespace {

bool has_f16c() {  // clang 14 has no has_f16c()
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

}  // namespace
#endif

const Kernels* find_kernels(const char* name) {
  if (std::strcmp(name, "generic") == 0) return &kGenericKernels;
#ifdef FRUGAL_HAVE_AVX2
  __builtin_cpu_init();
  if (std::strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      has_f16c()) {
    return &kAvx2Kernels;
  }
  if (std::strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && has_f16c()) {
    return &kAvx512Kernels;
  }
#endif
#ifdef FRUGAL_HAVE_NEON
  if (std::strcmp(name, "neon") == 0 && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) return &kNeonKernels;
#endif
  return nullptr;
}

namespace {

const Kernels* best_kernels() {
  for (const char* name : {"avx512", "avx2", "neon"}) {
    if (const Kernels* set = find_kernels(name)) return set;
  }
  return &kGenericKernels;
}

std::atomic<const Kernels*> current{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* set = current.load(std::memory_order_acquire);
  if (set == nullptr) {
    set = best_kernels();
    current.store(set, std::memory_order_release);  // two threads would store the same
  }
  return *set;
}

void use_kernels(const Kernels* set) { current.store(set, std::memory_order_release); }

float f16_to_f32(uint16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000) << 16;
  const uint32_t exponent = (value >> 10) & 31, mantissa = value & 0x3ff;
  float result;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
    result = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -result : result;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | mantissa << 13;
  std::memcpy(&result, &bits, 4);
  return result;
}

uint16_t f32_to_f16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
  if (magnitude >= 0x477fe000) return static_cast<uint16_t>(sign | 0x7bff);  // beyond 65504: saturates
  if (magnitude < 0x38800000) {                                              // below 2^-14: subnormal
    float scaled;
    std::memcpy(&scaled, &magnitude, 4);
    // Adding 2^-1 puts the last bit of the half, 2^-24, at the end of a float's mantissa: the addition
    // rounds.
    const float rounded = scaled + 0.5f;
    uint32_t rounded_bits;
    std::memcpy(&rounded_bits, &rounded, 4);
    return static_cast<uint16_t>(sign | (rounded_bits - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  const uint32_t half = (rounded - 0x38000000) >> 13;
  return static_cast<uint16_t>(sign | (half > 0x7bff ? 0x7bff : half));
}

}  // namespace frugal::llm
