// The smallest program on top of frugal: reports what went wrong, or sums the cost of two pieces of work.
#include <cstdio>

#include "frugal/log.h"
#include "frugal/result.h"
#include "frugal/usage.h"

namespace {

frugal::Result<frugal::Usage> work(double flops) {
  if (flops < 0) return frugal::Error{frugal::ErrorCode::kInvalidArgument, "work cannot be negative"};
  frugal::Usage usage;
  usage.flops = flops;
  return usage;
}

frugal::Result<frugal::Usage> both() {
  FRUGAL_TRY(frugal::Usage sum, work(2e9));
  FRUGAL_TRY(const frugal::Usage more, work(1e9));
  sum += more;
  return sum;
}

}  // namespace

int main() {
  frugal::set_log_sink([](frugal::LogLevel, std::string_view message) {
    std::fprintf(stderr, "%.*s\n", static_cast<int>(message.size()), message.data());
  });
  const auto usage = both();
  if (!usage.ok()) {
    std::fprintf(stderr, "hello: %s\n", usage.error().message.c_str());
    return 1;
  }
  std::printf("%.0f FLOPs\n", usage->flops);
  return 0;
}
