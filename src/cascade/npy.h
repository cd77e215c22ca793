// Arrays of two dimensions in the .npy format (NumPy enhancement proposal 1), versions 1 and 2,
// little-endian, C order.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "frugal/result.h"

namespace frugal::cascade {

template <typename T>
struct Array2 {
  int rows = 0, columns = 0;
  std::vector<T> values;  // [rows, columns]
};

// float32. kNotFound; kCorrupt: another format, type or number of columns (0: any), cut off, a value that is
// not finite. `name` is for messages.
Result<Array2<float>> read_floats(const std::string& path, int columns);
Result<Array2<float>> parse_floats(std::string_view bytes, const std::string& name, int columns);
// int32.
Result<Array2<int32_t>> read_integers(const std::string& path, int columns);
Result<Array2<int32_t>> parse_integers(std::string_view bytes, const std::string& name, int columns);

// The file that the above read.
std::string npy_bytes(const Array2<float>& array);
std::string npy_bytes(const Array2<int32_t>& array);

}  // namespace frugal::cascade
