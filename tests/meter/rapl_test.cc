// Every fault that a counter can have: the right figure, or a refusal that says why.
#include "meter/rapl.h"

#include <gtest/gtest.h>

#include "meter/fake_host.h"

namespace frugal::meter {
namespace {

std::string all_notes(const RaplDomains& found) {
  std::string text;
  for (const std::string& note : found.notes) text += note + "\n";
  return text;
}

TEST(RaplDiscovery, TwoSocketsAndDramWithoutPsysCoreOrMmioTwins) {
  FakeHost host;
  host.set_zone("intel-rapl:0", "package-0", 1);
  host.set_zone("intel-rapl:0:0", "core", 1);
  host.set_zone("intel-rapl:0:1", "dram", 1);
  host.set_zone("intel-rapl:1", "package-1", 1);
  host.set_zone("intel-rapl:1:0", "dram", 1);
  host.set_zone("intel-rapl:2", "psys", 1);
  host.set_zone("intel-rapl-mmio:0", "package-0", 1);
  const RaplDomains found = discover_rapl(host.sysfs());
  ASSERT_EQ(found.domains.size(), 4u);
  EXPECT_EQ(found.domains[0].name, "package-0");
  EXPECT_EQ(found.domains[1].name, "package-0/dram");
  EXPECT_EQ(found.domains[1].kind, DomainKind::kDram);
  EXPECT_EQ(found.domains[2].name, "package-1");
  EXPECT_EQ(found.domains[3].name, "package-1/dram");
  EXPECT_NE(all_notes(found).find("psys"), std::string::npos);
}

TEST(RaplDiscovery, MmioStandsInWhereMsrHasNoSuchPackage) {
  FakeHost host;
  host.set_zone("intel-rapl-mmio:0", "package-0", 1);
  EXPECT_EQ(discover_rapl(host.sysfs()).domains.size(), 1u);
}

TEST(RaplDiscovery, AbsentPowercapIsSaidNotFailed) {
  FakeHost host;
  const RaplDomains found = discover_rapl(host.sysfs());
  EXPECT_TRUE(found.domains.empty());
  EXPECT_NE(all_notes(found).find("no RAPL zones"), std::string::npos);
}

TEST(RaplDiscovery, UnreadableCounterNamesTheWayOut) {
  FakeHost host;
  host.set_zone("intel-rapl:0", "package-0", 1);
  // A folder in place of the file gives an error on read for every user, root too.
  host.remove("sys/class/powercap/intel-rapl:0/energy_uj");
  host.write("sys/class/powercap/intel-rapl:0/energy_uj/x", "");
  const RaplDomains found = discover_rapl(host.sysfs());
  EXPECT_TRUE(found.domains.empty());
  EXPECT_NE(all_notes(found).find("package-0"), std::string::npos);
}

TEST(RaplDiscovery, PermissionDenied) {
  FakeHost host;
  host.set_zone("intel-rapl:0", "package-0", 1);
  std::filesystem::permissions(host.root(), std::filesystem::perms(0755));
  std::filesystem::permissions(host.sysfs() + "/class/powercap/intel-rapl:0/energy_uj",
                               std::filesystem::perms::none);
  // Root reads everything: be nobody meanwhile.
  const bool root = ::geteuid() == 0;
  if (root) {
    ASSERT_EQ(::seteuid(65534), 0);
  }
  const RaplDomains found = discover_rapl(host.sysfs());
  if (root) {
    ASSERT_EQ(::seteuid(0), 0);
  }
  EXPECT_TRUE(found.domains.empty());
  EXPECT_NE(all_notes(found).find("chmod g+r"), std::string::npos);
}

TEST(RaplDiscovery, AZoneWithoutRangeIsRefused) {
  FakeHost host;
  host.set_zone("intel-rapl:0", "package-0", 1);
  host.remove("sys/class/powercap/intel-rapl:0/max_energy_range_uj");
  const RaplDomains found = discover_rapl(host.sysfs());
  EXPECT_TRUE(found.domains.empty());
  EXPECT_NE(all_notes(found).find("max_energy_range_uj"), std::string::npos);
}

class Counter : public ::testing::Test {
 protected:
  Counter() {
    host_.set_zone("intel-rapl:0", "package-0", 1000000, kRange);
    counter_ = std::make_unique<EnergyCounter>(discover_rapl(host_.sysfs()).domains.at(0));
    EXPECT_EQ(counter_->update(0).value(), 0);
  }
  static constexpr uint64_t kRange = 65532610987;  // 65.5 kJ, as a Threadripper has
  FakeHost host_;
  std::unique_ptr<EnergyCounter> counter_;
};

TEST_F(Counter, CountsJoules) {
  host_.set_energy("intel-rapl:0", 43500000);
  EXPECT_DOUBLE_EQ(counter_->update(1).value(), 42.5);
  EXPECT_DOUBLE_EQ(counter_->update(1).value(), 0);
}

TEST_F(Counter, WrapIsUnwrapped) {
  host_.set_energy("intel-rapl:0", kRange - 10000000);
  ASSERT_TRUE(counter_->update(600).ok());
  host_.set_energy("intel-rapl:0", 5000000);
  EXPECT_DOUBLE_EQ(counter_->update(1).value(), 15);
}

TEST_F(Counter, AFailedReadLosesNothingAndAddsNoWrap) {
  host_.remove("sys/class/powercap/intel-rapl:0/energy_uj");
  EXPECT_FALSE(counter_->update(1).ok());
  host_.set_energy("intel-rapl:0", 101000000);
  EXPECT_DOUBLE_EQ(counter_->update(1).value(), 100);  // both seconds, and not the range less them
}

TEST_F(Counter, GarbageIsAFailedRead) {
  host_.write("sys/class/powercap/intel-rapl:0/energy_uj", "-5\n");
  EXPECT_EQ(counter_->update(1).error().code, ErrorCode::kCorrupt);
  host_.write("sys/class/powercap/intel-rapl:0/energy_uj", "");
  EXPECT_EQ(counter_->update(1).error().code, ErrorCode::kCorrupt);
}

TEST_F(Counter, AResetIsNoWrap) {
  host_.set_energy("intel-rapl:0", 30000000000);
  ASSERT_TRUE(counter_->update(300).ok());
  host_.set_energy("intel-rapl:0", 1000);  // as a wrap this would be 35.5 kJ within a second
  EXPECT_EQ(counter_->update(1).error().code, ErrorCode::kUnavailable);
  host_.set_energy("intel-rapl:0", 21000);
  EXPECT_DOUBLE_EQ(counter_->update(1).value(), 0.02);  // sound again
}

TEST_F(Counter, ASuspendThatClearsItCostsOneInterval) {
  // The monotonic clock stands still meanwhile; firmware may clear the counter.
  host_.set_energy("intel-rapl:0", 50000000);
  ASSERT_DOUBLE_EQ(counter_->update(1).value(), 49);
  host_.set_energy("intel-rapl:0", 7000000);
  EXPECT_EQ(counter_->update(1).error().code, ErrorCode::kUnavailable);  // no wrap of 65 kJ
  host_.set_energy("intel-rapl:0", 9000000);
  EXPECT_DOUBLE_EQ(counter_->update(1).value(), 2);
}

TEST_F(Counter, AnImpossibleJumpForwardIsRefused) {
  host_.set_energy("intel-rapl:0", 60000000000);
  EXPECT_EQ(counter_->update(1).error().code, ErrorCode::kUnavailable);
}

TEST_F(Counter, UnpluggedIsNotFound) {
  host_.remove("sys/class/powercap/intel-rapl:0");
  EXPECT_EQ(counter_->update(1).error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace frugal::meter
