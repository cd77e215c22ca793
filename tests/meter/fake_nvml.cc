// NVML as a library that the meter opens by name, for faults and shapes that no GPU is at hand for. The
// folder $FRUGAL_FAKE_NVML holds `gpuN` (millijoules, or an error as "-6"), `usersN` (lines "pid use") and
// `init`.
#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

int g_device[8] = {0, 1, 2, 3, 4, 5, 6, 7};
unsigned long long g_time_us = 1;

FILE* open_file(const char* name, int device) {
  const char* folder = std::getenv("FRUGAL_FAKE_NVML");
  const std::string path = std::string(folder != nullptr ? folder : ".") + "/" + name +
                           (device >= 0 ? std::to_string(device) : std::string());
  return std::fopen(path.c_str(), "r");
}

// The number in a file; `missing` without one.
long long number(const char* name, int device, long long missing) {
  FILE* file = open_file(name, device);
  long long value = missing;
  if (file == nullptr) return missing;
  if (std::fscanf(file, "%lld", &value) != 1) value = missing;
  std::fclose(file);
  return value;
}

}  // namespace

extern "C" {

struct Sample {
  unsigned pid;
  unsigned long long time_us;
  unsigned sm, memory, encoder, decoder;
};

int nvmlInit_v2() { return static_cast<int>(number("init", -1, 0)); }
int nvmlDeviceGetCount_v2(unsigned* n) {
  *n = 0;
  while (*n < 8 && number("gpu", static_cast<int>(*n), -1000) != -1000) ++*n;
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void** device) {
  *device = &g_device[i];
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void* device, unsigned long long* millijoules) {
  const long long value = number("gpu", *static_cast<int*>(device), -1);
  if (value < 0) return static_cast<int>(-value);
  *millijoules = static_cast<unsigned long long>(value);
  return 0;
}
int nvmlDeviceGetProcessUtilization(void* device, Sample* samples, unsigned* n, unsigned long long) {
  FILE* file = open_file("users", *static_cast<int*>(device));
  if (file == nullptr) return 3;  // not supported
  unsigned found = 0, pid = 0, use = 0;
  while (std::fscanf(file, "%u %u", &pid, &use) == 2) {
    if (samples != nullptr && found < *n) samples[found] = {pid, ++g_time_us, use, 0, 0, 0};
    ++found;
  }
  std::fclose(file);
  if (found == 0) return 6;  // no samples
  const bool room = samples != nullptr && found <= *n;
  *n = found;
  return room ? 0 : 7;
}
}
