// Fuzzes the readers of carbon intensity: whatever parses is sorted, finite and answers for its own time.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "meter/carbon.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace frugal;
  using namespace frugal::meter;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto series = parse_intensity(text, "fuzz");
  if (!series.ok()) {
    FRUGAL_CHECK(!series.error().message.empty());
    return 0;
  }
  FRUGAL_CHECK(!series->points.empty());
  double last = -HUGE_VAL;
  for (const IntensityPoint& point : series->points) {
    FRUGAL_CHECK(std::isfinite(point.unix_s) && point.unix_s > last);
    FRUGAL_CHECK(std::isfinite(point.g_per_kwh) && point.g_per_kwh >= 0);
    last = point.unix_s;
  }
  const double begin = series->points.front().unix_s;
  const Estimate mean = series->mean(begin, begin + 60);
  FRUGAL_CHECK(!mean.known() || (mean.low <= mean.value && mean.value <= mean.high));
  return 0;
}
