// Sources beside powercap: on a fake tree, or refused with the reason.
#include "meter/other_sensors.h"

#include <gtest/gtest.h>

#include "frugal/meter.h"
#include "meter/fake_host.h"
#include "meter/host_load.h"
#include "meter/power_model.h"

namespace frugal::meter {
namespace {

std::string all_notes(const std::vector<std::string>& notes) {
  std::string text;
  for (const std::string& note : notes) text += note + "\n";
  return text;
}

TEST(Hwmon, SocketsAreCountedAndTheirCoresAreNot) {
  FakeHost host;
  const std::string chip = "sys/class/hwmon/hwmon3/";
  host.write(chip + "name", "amd_energy\n");
  host.write(chip + "energy1_input", "5000000\n");
  host.write(chip + "energy1_label", "Ecore000\n");
  host.write(chip + "energy2_input", "90000000\n");
  host.write(chip + "energy2_label", "Esocket0\n");
  FoundSensors found = discover_hwmon(host.sysfs());
  ASSERT_EQ(found.sensors.size(), 1u);
  EnergySensor& socket = *found.sensors[0];
  EXPECT_EQ(socket.component(), Component::kCpu);
  EXPECT_EQ(socket.update(0).value(), 0);
  host.write(chip + "energy2_input", "132000000\n");
  EXPECT_DOUBLE_EQ(socket.update(1).value(), 42);
  host.write(chip + "energy2_input", "1000000\n");  // the driver was loaded anew
  EXPECT_EQ(socket.update(1).error().code, ErrorCode::kUnavailable);
  host.write(chip + "energy2_input", "3000000\n");
  EXPECT_DOUBLE_EQ(socket.update(1).value(), 2);
  host.remove(chip + "energy2_input");
  EXPECT_FALSE(socket.update(1).ok());
  host.write(chip + "energy2_input", "9000000\n");  // the gap is covered
  EXPECT_DOUBLE_EQ(socket.update(1).value(), 6);
}

TEST(Hwmon, AGpuIsIntegratedAndTheWholeMachineLeftOut) {
  FakeHost host;
  host.write("sys/class/hwmon/hwmon0/name", "amdgpu\n");
  host.write("sys/class/hwmon/hwmon0/power1_average", "60000000\n");
  host.write("sys/class/hwmon/hwmon1/name", "power_meter\n");
  host.write("sys/class/hwmon/hwmon1/power1_average", "300000000\n");
  FoundSensors found = discover_hwmon(host.sysfs());
  ASSERT_EQ(found.sensors.size(), 1u);
  EXPECT_EQ(found.sensors[0]->component(), Component::kGpu);
  EXPECT_EQ(found.sensors[0]->update(0).value(), 0);
  host.write("sys/class/hwmon/hwmon0/power1_average", "80000000\n");
  EXPECT_DOUBLE_EQ(found.sensors[0]->update(2).value(), 140);  // 70 W on the way from 60 to 80
  EXPECT_NE(all_notes(found.notes).find("whole machine"), std::string::npos);
}

TEST(Sensors, WhatIsNotThereIsRefusedWithTheReason) {
  FakeHost host;
  EXPECT_NE(all_notes(discover_perf(host.sysfs()).notes).find("perf"), std::string::npos);
  EXPECT_NE(all_notes(discover_hwmon(host.sysfs()).notes).find("hwmon"), std::string::npos);
  const FoundSensors gpu = discover_nvml("libfrugal-no-such-nvml.so");
  EXPECT_TRUE(gpu.sensors.empty());
  EXPECT_NE(all_notes(gpu.notes).find("no NVIDIA GPU is metered"), std::string::npos);
  // A library that is there and is another.
  EXPECT_NE(all_notes(discover_nvml("libm.so.6").notes).find("lacks NVML"), std::string::npos);
}

TEST(Perf, AnEventThatTheKernelRefusesIsTold) {
  FakeHost host;
  const std::string root = "sys/bus/event_source/devices/power/";
  host.write(root + "type", "4294967295\n");  // of no kernel
  host.write(root + "cpumask", "0\n");
  host.write(root + "events/energy-pkg", "event=0x02\n");
  host.write(root + "events/energy-pkg.scale", "2.3283064365386962890625e-10\n");
  const FoundSensors found = discover_perf(host.sysfs());
  EXPECT_TRUE(found.sensors.empty());
  EXPECT_NE(all_notes(found.notes).find("energy-pkg"), std::string::npos);
  host.write(root + "events/energy-pkg.scale", "much\n");
  EXPECT_NE(all_notes(discover_perf(host.sysfs()).notes).find("no number"), std::string::npos);
}

TEST(Meter, HwmonStandsInForPowercapAndAGpuAloneLeavesTheProcessorsToTheModel) {
  FakeHost host;
  host.set_cpu("Some CPU", 1, 4);
  host.write("sys/class/hwmon/hwmon0/name", "amdgpu\n");
  host.write("sys/class/hwmon/hwmon0/power1_average", "60000000\n");
  MeterOptions options;
  options.sysfs = host.sysfs();
  options.procfs = host.procfs();
  options.sample_interval_s = 0;
  options.tdp_w = 65;
  auto meter = PowerMeter::open(options);
  ASSERT_TRUE(meter.ok());
  EXPECT_EQ((*meter)->source().kind, SourceKind::kLoadModel);
  EXPECT_TRUE((*meter)->source().gpu_counter);
  host.write("sys/class/hwmon/hwmon1/name", "amd_energy\n");
  host.write("sys/class/hwmon/hwmon1/energy1_input", "90000000\n");
  host.write("sys/class/hwmon/hwmon1/energy1_label", "Esocket0\n");
  meter = PowerMeter::open(options);
  ASSERT_TRUE(meter.ok());
  EXPECT_EQ((*meter)->source().kind, SourceKind::kHwmon);
}

TEST(Packing, TellsPinnedThreadsFromALoadThatIsSpread) {
  EXPECT_DOUBLE_EQ(packing_of({0, 0, 0, 0}, {1, 0, 0, 0}, 1), 1);
  EXPECT_DOUBLE_EQ(packing_of({0, 0, 0, 0}, {0.25, 0.25, 0.25, 0.25}, 1), 0.25);
  EXPECT_DOUBLE_EQ(packing_of({0, 0}, {0, 0}, 1), 1);
  EXPECT_DOUBLE_EQ(packing_of({0, 0}, {1}, 1), 1);  // a processor went offline
  FakeHost host;
  host.write("proc/stat",
             "cpu  30 0 0 0 0 0 0 0 0 0\ncpu0 10 0 0 5 0 0 0 0 0 0\ncpu1 20 0 0 5 0 0 0 0 0 0\nintr 5\n");
  EXPECT_EQ(read_busy_by_cpu(host.procfs()).value(), (std::vector<double>{0.1, 0.2}));
  host.write("proc/stat", "intr 5\n");
  EXPECT_EQ(read_busy_by_cpu(host.procfs()).error().code, ErrorCode::kCorrupt);
}

TEST(Packing, ASpreadLoadRunsSlowerThanItsReadingSays) {
  const PowerModel model = PowerModel::from_rating(100, {});
  const double pinned = model.watts(0.5, FrequencyShare{1, 0.4, 1}).value;
  EXPECT_LT(model.watts(0.5, FrequencyShare{1, 0.4, 0.5}).value, pinned);
  EXPECT_DOUBLE_EQ(model.watts(0.5, FrequencyShare{1, 0.4, 0.8}).value, pinned);  // the governors' full speed
}

}  // namespace
}  // namespace frugal::meter
