#include "frugal/result.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "base/check.h"
#include "base/log.h"
#include "frugal/usage.h"

namespace frugal {
namespace {

Result<std::unique_ptr<int>> make(bool works) {
  if (!works) return Error{ErrorCode::kNotFound, "no int here"};
  return std::make_unique<int>(7);
}

Status check_positive(int value) {
  if (value <= 0) return {ErrorCode::kInvalidArgument, "not positive"};
  return {};
}

Result<int> chain(bool works) {
  FRUGAL_TRY(std::unique_ptr<int> value, make(works));
  FRUGAL_TRY_STATUS(check_positive(*value));
  return *value + 1;
}

TEST(Result, PassesValuesAndErrorsOn) {
  EXPECT_EQ(*chain(true), 8);
  const Result<int> failed = chain(false);
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(Error(failed.error()).in("counting").message, "counting: no int here");
  EXPECT_EQ(error_code_name(ErrorCode::kNoMemory), "no_memory");
}

TEST(ResultDeathTest, ValueOfAnErrorSaysTheError) {
  EXPECT_DEATH((void)chain(false).value(), "value\\(\\) of a failed Result: no int here");
}

TEST(CheckDeathTest, SaysWhereAndWhat) {
  EXPECT_DEATH(FRUGAL_CHECK(1 + 1 == 3), "result_test.cc:[0-9]+: check failed: 1 \\+ 1 == 3");
}

TEST(Log, GoesToTheSinkOfTheDayAndNowhereElse) {
  std::string seen;
  log(LogLevel::kError, "before");
  set_log_sink([&](LogLevel level, std::string_view message) {
    seen += std::to_string(static_cast<int>(level)) + std::string(message);
  });
  log(LogLevel::kWarning, "warm");
  set_log_sink({});
  log(LogLevel::kError, "after");
  EXPECT_EQ(seen, "2warm");
}

TEST(Usage, SumsKeepTheWorstProvenanceAndUnknownStaysUnknown) {
  Usage a, b;
  a.flops = 1;
  b.flops = 2;
  a.bytes_held = 5;
  b.bytes_held = 3;
  a.energy_j = {10, 8, 12, Provenance::kMeasured};
  b.energy_j = {1, 0.5, 2, Provenance::kModelled};
  a.carbon_gco2e = {1, 1, 1, Provenance::kAssumed};
  a += b;
  EXPECT_EQ(a.flops, 3);
  EXPECT_EQ(a.bytes_held, 5);  // the peak, not the sum
  EXPECT_EQ(a.energy_j.value, 11);
  EXPECT_EQ(a.energy_j.low, 8.5);
  EXPECT_EQ(a.energy_j.high, 14);
  EXPECT_EQ(a.energy_j.provenance, Provenance::kModelled);
  EXPECT_FALSE(a.carbon_gco2e.known());
  EXPECT_EQ(provenance_name(a.energy_j.provenance), "modelled");
  EXPECT_EQ(a.energy_j.scaled(2).high, 28);
}

}  // namespace
}  // namespace frugal
