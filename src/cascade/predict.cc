#define FRUGAL_PREDICT predict_generic
#include "cascade/predict.inc.h"

namespace frugal::cascade {

#ifdef FRUGAL_HAVE_AVX2
void predict_avx2(const PredictView& view, const float* z, float* scratch, float* rewards);
#endif

PredictKernel find_predict_kernel(const char* name) {
  if (std::strcmp(name, "generic") == 0) return predict_generic;
#ifdef FRUGAL_HAVE_AVX2
  __builtin_cpu_init();
  if (std::strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2")) return predict_avx2;
#endif
  return nullptr;
}

PredictKernel predict_kernel() {
  const PredictKernel avx2 = find_predict_kernel("avx2");
  return avx2 != nullptr ? avx2 : predict_generic;
}

}  // namespace frugal::cascade
