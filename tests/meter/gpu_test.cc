// GPUs by process, over a library that stands for NVML: what a run is charged, and the faults that there are.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "frugal/meter.h"
#include "meter/fake_host.h"
#include "meter/other_sensors.h"

namespace frugal::meter {
namespace {

class Gpu : public testing::Test {
 protected:
  Gpu() {
    host_.set_cpu("part", 1, 2);
    ::setenv("FRUGAL_FAKE_NVML", host_.root().c_str(), 1);
  }
  std::unique_ptr<PowerMeter> open() {
    MeterOptions options;
    options.sysfs = host_.sysfs();
    options.procfs = "/proc";  // descent is of real processes
    options.sample_interval_s = 0;
    options.nvml_library = FRUGAL_FAKE_NVML_LIBRARY;
    auto meter = PowerMeter::open(options);
    EXPECT_TRUE(meter.ok());
    return std::move(meter).value();
  }
  void users(const std::string& text) { host_.write("users0", text); }
  // Longer than the shortest interval, so that the GPU's users are looked at.
  Charge later(PowerMeter& meter, const Snapshot& from) {
    ::usleep(150000);
    Usage usage;
    usage.cpu_seconds = 0.01;
    return meter.charge(from, usage);
  }
  FakeHost host_;
};

TEST_F(Gpu, EnergyGoesToProcessesByTheirUse) {
  host_.write("gpu0", "5000000");
  const pid_t child = ::fork();
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  users("");
  auto meter = open();
  ASSERT_TRUE(meter->source().gpu_counter);
  const Snapshot start = meter->snapshot();
  host_.write("gpu0", "5030000");  // 30 J: a third ours, a sixth our child's, half of process 1
  users(std::to_string(::getpid()) + " 20\n" + std::to_string(child) + " 10\n1 30\n");
  const Charge charge = later(*meter, start);
  EXPECT_TRUE(charge.gpu_is_own);
  EXPECT_NEAR(charge.gpu_j.value, 15, 1e-9);
  EXPECT_EQ(charge.gpu_j.provenance, Provenance::kModelled);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  // A sample of the ended child comes late and is still known.
  const Snapshot next = meter->snapshot();
  host_.write("gpu0", "5040000");
  users(std::to_string(child) + " 10\n");
  EXPECT_NEAR(later(*meter, next).gpu_j.value, 10, 1e-9);
}

TEST_F(Gpu, AnIdleGpuIsNobodysAndAStrangersIsNotOurs) {
  host_.write("gpu0", "0");
  users("");
  auto meter = open();
  const Snapshot start = meter->snapshot();
  host_.write("gpu0", "9000");
  EXPECT_NEAR(later(*meter, start).gpu_j.value, 0, 1e-9);
  const Snapshot next = meter->snapshot();
  host_.write("gpu0", "19000");
  users("1 80\n");
  EXPECT_NEAR(later(*meter, next).gpu_j.value, 0, 1e-9);
}

TEST_F(Gpu, TwoGpusAreSharedOutOneByOne) {
  host_.write("gpu0", "0");
  host_.write("gpu1", "0");
  users("");
  host_.write("users1", "");
  auto meter = open();
  const Snapshot start = meter->snapshot();
  host_.write("gpu0", "10000");
  host_.write("gpu1", "40000");
  users(std::to_string(::getpid()) + " 50\n");                        // all of the first
  host_.write("users1", std::to_string(::getpid()) + " 25\n1 75\n");  // a quarter of the second
  EXPECT_NEAR(later(*meter, start).gpu_j.value, 20, 1e-9);
}

TEST_F(Gpu, WithoutUseByProcessTheWholeDeviceIsTold) {
  host_.write("gpu0", "0");  // and no `users0`: not supported
  auto meter = open();
  const Snapshot start = meter->snapshot();
  host_.write("gpu0", "7000");
  const Charge charge = later(*meter, start);
  EXPECT_FALSE(charge.gpu_is_own);
  EXPECT_NEAR(charge.gpu_j.value, 7, 1e-9);
}

TEST_F(Gpu, AGpuThatFallsOffTheBusGivesNoFigure) {
  host_.write("gpu0", "0");
  auto meter = open();
  const Snapshot start = meter->snapshot();
  host_.write("gpu0", "1000");
  EXPECT_TRUE(later(*meter, start).gpu_j.known());
  host_.write("gpu0", "500");  // its driver was loaded anew: the interval is lost, and so is the sum
  EXPECT_FALSE(later(*meter, start).gpu_j.known());
}

TEST_F(Gpu, FaultsOfTheLibraryAreTold) {
  host_.write("gpu0", "0");
  host_.write("init", "9");  // the driver is not loaded
  const FoundSensors found = discover_nvml(FRUGAL_FAKE_NVML_LIBRARY);
  EXPECT_TRUE(found.sensors.empty());
  ASSERT_FALSE(found.notes.empty());
  EXPECT_NE(found.notes[0].find("error 9"), std::string::npos);
  host_.write("init", "0");
  host_.write("gpu0", "-3");  // no energy counter, and the library has no power either
  EXPECT_TRUE(discover_nvml(FRUGAL_FAKE_NVML_LIBRARY).sensors.empty());
}

}  // namespace
}  // namespace frugal::meter
