#include "frugal/meter.h"

#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "meter/cpu_info.h"
#include "meter/fake_host.h"
#include "meter/power_model.h"

namespace frugal::meter {
namespace {

MeterOptions fake_options(const FakeHost& host) {
  MeterOptions options;
  options.sysfs = host.sysfs();
  options.procfs = host.procfs();
  options.sample_interval_s = 0;
  return options;
}

std::unique_ptr<PowerMeter> open_meter(const MeterOptions& options) {
  auto meter = PowerMeter::open(options);
  EXPECT_TRUE(meter.ok()) << meter.error().message;
  return std::move(meter).value();
}

void wait_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

TEST(Meter, CountersGiveAMeasuredFigureSharedByCpuTime) {
  FakeHost host;
  host.set_cpu("Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz", 2, 4);
  host.set_zone("intel-rapl:0", "package-0", 1000000);
  host.set_zone("intel-rapl:1", "package-1", 1000000);
  host.set_zone("intel-rapl:0:0", "dram", 0);
  auto meter = open_meter(fake_options(host));
  EXPECT_EQ(meter->source().kind, SourceKind::kRapl);
  EXPECT_EQ(meter->source().sockets, 2);
  const Snapshot start = meter->snapshot();
  wait_ms(20);
  host.set_energy("intel-rapl:0", 4000000);  // 3 J
  host.set_energy("intel-rapl:1", 2000000);  // 1 J
  host.set_energy("intel-rapl:0:0", 500000);
  host.set_busy_ticks(400);  // 4 CPU-seconds of all
  Usage usage;
  usage.cpu_seconds = 1;
  const Charge charge = meter->charge(start, usage);
  EXPECT_NEAR(charge.host_cpu_j.value, 4, 1e-9);
  EXPECT_NEAR(charge.share, 0.25, 1e-9);
  EXPECT_NEAR(charge.cpu_j.value, 1, 1e-9);
  EXPECT_NEAR(charge.memory_j.value, 0.125, 1e-9);
  EXPECT_NEAR(usage.energy_j.value, 1.125, 1e-9);
  EXPECT_EQ(usage.energy_j.provenance, Provenance::kModelled);  // a quarter by CPU time is not measured
  EXPECT_FALSE(usage.carbon_gco2e.known());                     // no place was given, none is guessed
  EXPECT_LE(usage.energy_j.low, usage.energy_j.value);
  EXPECT_GE(usage.energy_j.high, usage.energy_j.value);

  Usage alone;
  alone.cpu_seconds = 4;
  meter->charge(start, alone);
  EXPECT_EQ(alone.energy_j.provenance, Provenance::kMeasured);
}

TEST(Meter, RunsSumToTheHost) {
  FakeHost host;
  host.set_cpu("part", 1, 8);
  host.set_zone("intel-rapl:0", "package-0", 0);
  auto meter = open_meter(fake_options(host));
  const Snapshot start = meter->snapshot();
  wait_ms(20);
  host.set_energy("intel-rapl:0", 9000000);
  host.set_busy_ticks(3600);
  double sum = 0;
  for (int run = 1; run <= 8; ++run) {
    Usage usage;
    usage.cpu_seconds = run;
    sum += meter->charge(start, usage).cpu_j.value;
  }
  EXPECT_NEAR(sum, 9, 9 * 0.02);
}

TEST(Meter, ALostPackageIsFilledByTheModelAndSaysSo) {
  FakeHost host;
  host.set_cpu("part", 2, 2);
  host.set_zone("intel-rapl:0", "package-0", 0);
  host.set_zone("intel-rapl:1", "package-1", 0);
  MeterOptions options = fake_options(host);
  options.tdp_w = 100;
  auto meter = open_meter(options);
  const Snapshot start = meter->snapshot();
  host.remove("sys/class/powercap/intel-rapl:1");
  wait_ms(300);
  host.set_energy("intel-rapl:0", 2000000);
  host.set_busy_ticks(60);
  Usage usage;
  usage.cpu_seconds = 0.6;
  const Charge charge = meter->charge(start, usage);
  EXPECT_GT(charge.cpu_j.value, 2.0);
  EXPECT_EQ(charge.cpu_j.provenance, Provenance::kModelled);
}

TEST(Meter, ModelledRunHasABandAndCarbonOnlyWithAnIntensity) {
  FakeHost host;
  host.set_cpu("AMD EPYC", 1, 2, true, "AuthenticAMD", 25, 1);
  MeterOptions options = fake_options(host);
  options.intensity = {{400, 380, 420, Provenance::kAssumed}, "XX", "given"};
  options.pue = 1.5;
  auto meter = open_meter(options);
  EXPECT_EQ(meter->source().kind, SourceKind::kThreads);
  EXPECT_TRUE(meter->source().virtual_machine);
  const Snapshot start = meter->snapshot();
  wait_ms(20);
  Usage usage;
  usage.cpu_seconds = 0.01;
  usage.bytes_held = 1e9;
  const Charge charge = meter->charge(start, usage);
  EXPECT_GT(charge.cpu_j.value, 0);
  EXPECT_LT(charge.cpu_j.low, charge.cpu_j.value);
  EXPECT_GT(charge.cpu_j.high, charge.cpu_j.value);
  EXPECT_NEAR(charge.total_j.value, 1.5 * (charge.cpu_j.value + charge.memory_j.value), 1e-9);
  EXPECT_NEAR(usage.carbon_gco2e.value, usage.energy_j.value * 400 / 3.6e6, 1e-12);
  EXPECT_EQ(usage.carbon_gco2e.provenance, Provenance::kAssumed);
}

TEST(Meter, OptionsOutOfRangeAreRefused) {
  const auto refused = [](auto&& change) {
    MeterOptions options;
    options.sample_interval_s = 0;
    change(options);
    const auto meter = PowerMeter::open(options);
    return !meter.ok() && meter.error().code == ErrorCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](MeterOptions& o) { o.tdp_w = -1; }));
  EXPECT_TRUE(refused([](MeterOptions& o) { o.tdp_w = std::nan(""); }));
  EXPECT_TRUE(refused([](MeterOptions& o) { o.pue = 0.9; }));
  EXPECT_TRUE(refused([](MeterOptions& o) { o.sample_interval_s = -1; }));
  EXPECT_TRUE(refused([](MeterOptions& o) { o.calibration = {{0, 10}}; }));
  EXPECT_TRUE(refused([](MeterOptions& o) { o.calibration = {{0, 50}, {1, 10}}; }));
  EXPECT_TRUE(refused([](MeterOptions& o) { o.intensity.g_per_kwh = {-5, -5, -5, Provenance::kAssumed}; }));
}

TEST(Meter, AnUnknownProcessorIsModelledByItsThreadsAndSaysWhatWouldHelp) {
  FakeHost host;
  host.set_cpu("Imaginary 9000", 1, 8);
  host.write("table.csv", "Name,TDP\nAMD EPYC 9654,360\n");
  MeterOptions options;
  options.sysfs = host.sysfs();
  options.procfs = host.procfs();
  options.sample_interval_s = 0;
  options.cpu_table = host.root() + "/table.csv";
  const auto meter = PowerMeter::open(options);
  ASSERT_TRUE(meter.ok()) << meter.error().message;
  const SourceInfo& source = (*meter)->source();
  EXPECT_EQ(source.kind, SourceKind::kThreads);
  EXPECT_GT(source.max_watts, 0);
  std::string notes;
  for (const std::string& note : source.notes) notes += note + "\n";
  EXPECT_NE(notes.find("imaginary 9000"), std::string::npos) << notes;
  EXPECT_NE(notes.find("--tdp"), std::string::npos) << notes;
}

TEST(CpuTable, NamesMatchWithoutTrademarksAndClocks) {
  const std::string table =
      "Name,TDP\nIntel Xeon E3-1240 V2,69\nAMD Ryzen Threadripper 1950X,180\nAMD EPYC "
      "9654,360\nTwin,10\nTwin,20\n";
  EXPECT_EQ(find_tdp_in(table, "t", "Intel(R) Xeon(R) CPU E3-1240 V2 @ 3.40GHz").value(), 69);
  EXPECT_EQ(find_tdp_in(table, "t", "AMD Ryzen Threadripper 1950X 16-Core Processor").value(), 180);
  EXPECT_EQ(find_tdp_in(table, "t", "AMD EPYC").error().code,
            ErrorCode::kNotFound);                                                // no guess at one of many
  EXPECT_EQ(find_tdp_in(table, "t", "Twin").error().code, ErrorCode::kNotFound);  // two TDPs: neither
  EXPECT_EQ(find_tdp_in("Name,TDP\nbroken\n", "t", "x").error().code, ErrorCode::kCorrupt);
}

TEST(PowerModel, GrowsWithLoadAndFrequencyAndIsConcave) {
  const PowerModel model = PowerModel::from_rating(100, {});
  for (double u = 0.1; u <= 1; u += 0.1) {
    EXPECT_GT(model.watts(u, {}).value, model.watts(u - 0.1, {}).value);
    EXPECT_GE(model.watts(u, FrequencyShare{0.9, 0.4}).value, model.watts(u, FrequencyShare{0.5, 0.4}).value);
  }
  EXPECT_GT(model.watts(0.5, {}).value, (model.watts(0, {}).value + model.watts(1, {}).value) / 2);
}

TEST(PowerModel, CalibrationPassesThroughItsPoints) {
  const std::vector<CalibrationPoint> points = {{1, 50}, {0, 6}, {0.5, 41}};
  const auto model = PowerModel::from_points(points);
  ASSERT_TRUE(model.ok());
  for (const CalibrationPoint& point : points)
    EXPECT_NEAR(model->watts(point.load, {}).value, point.watts, 1e-9);
}

}  // namespace
}  // namespace frugal::meter
