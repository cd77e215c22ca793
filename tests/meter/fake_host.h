// A fake /sys and /proc in a temporary folder, for tests of the meter.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

namespace frugal::meter {

class FakeHost {
 public:
  FakeHost() {
    std::string pattern = (std::filesystem::temp_directory_path() / "frugal-host-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
    write("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\n");
  }
  ~FakeHost() {
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }
  FakeHost(const FakeHost&) = delete;
  FakeHost& operator=(const FakeHost&) = delete;

  std::string sysfs() const { return root_ + "/sys"; }
  std::string procfs() const { return root_ + "/proc"; }
  const std::string& root() const { return root_; }

  void write(const std::string& path, const std::string& contents) {
    const std::filesystem::path at = std::filesystem::path(root_) / path;
    std::filesystem::create_directories(at.parent_path());
    std::ofstream(at) << contents;
  }
  void remove(const std::string& path) { std::filesystem::remove_all(std::filesystem::path(root_) / path); }

  void set_cpu(const std::string& name, int sockets, int threads_per_socket, bool virtual_machine = false,
               const std::string& vendor = "GenuineIntel", int family = 6, int model = 85) {
    std::string text;
    for (int i = 0; i < sockets * threads_per_socket; ++i) {
      text += "processor\t: " + std::to_string(i) + "\nvendor_id\t: " + vendor +
              "\ncpu family\t: " + std::to_string(family) + "\nmodel\t\t: " + std::to_string(model) +
              "\nmodel name\t: " + name + "\nphysical id\t: " + std::to_string(i / threads_per_socket) +
              "\nflags\t\t: fpu sse2" + (virtual_machine ? " hypervisor" : "") + "\n\n";
    }
    write("proc/cpuinfo", text);
  }

  // Busy CPU time since boot, in ticks of 10 ms.
  void set_busy_ticks(uint64_t ticks) {
    write("proc/stat", "cpu  " + std::to_string(ticks) + " 0 0 0 0 0 0 0 0 0\n");
  }

  // A powercap zone; `zone` as in "intel-rapl:0" or "intel-rapl:0:1".
  void set_zone(const std::string& zone, const std::string& name, uint64_t energy_uj,
                uint64_t range_uj = 262143328850) {
    const std::string folder = "sys/class/powercap/" + zone + "/";
    write(folder + "name", name + "\n");
    write(folder + "max_energy_range_uj", std::to_string(range_uj) + "\n");
    write(folder + "energy_uj", std::to_string(energy_uj) + "\n");
  }
  void set_energy(const std::string& zone, uint64_t energy_uj) {
    write("sys/class/powercap/" + zone + "/energy_uj", std::to_string(energy_uj) + "\n");
  }

  void set_frequency(uint64_t khz, uint64_t max_khz) {
    const std::string folder = "sys/devices/system/cpu/cpufreq/policy0/";
    write(folder + "scaling_cur_freq", std::to_string(khz) + "\n");
    write(folder + "cpuinfo_max_freq", std::to_string(max_khz) + "\n");
  }

 private:
  std::string root_;
};

}  // namespace frugal::meter
