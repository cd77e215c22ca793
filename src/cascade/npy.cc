#include "cascade/npy.h"

#include <charconv>
#include <cmath>
#include <cstring>

#include "base/file.h"
#include "base/text.h"

namespace frugal::cascade {
namespace {

template <typename T>
Result<Array2<T>> parse(std::string_view bytes, const std::string& name, int columns, std::string_view type) {
  const auto corrupt = [&](const std::string& what) {
    return Error{ErrorCode::kCorrupt, name + ": " + what};
  };
  if (bytes.size() < 12 || bytes.substr(0, 6) != "\x93NUMPY") return corrupt("not an .npy file");
  const auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<unsigned char>(bytes[i])); };
  const bool wide = byte(6) >= 2;
  const size_t length =
      wide ? byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24 : byte(8) | byte(9) << 8;
  const size_t begin = (wide ? 12 : 10) + length;
  if (begin > bytes.size()) return corrupt("its header is cut off");
  const std::string_view header = bytes.substr(wide ? 12 : 10, length);
  if (header.find("'" + std::string(type) + "'") == std::string_view::npos ||
      header.find("False") == std::string_view::npos) {
    return corrupt("holds something other than " + std::string(type) + " in C order");
  }
  const size_t open = header.find('(');
  if (open == std::string_view::npos) return corrupt("its header has no shape");
  uint64_t n = 0, m = 0;
  const char* const end = header.data() + header.size();
  const auto rows = std::from_chars(header.data() + open + 1, end, n);
  const char* at = rows.ptr;
  while (at < end && (*at == ',' || *at == ' ')) ++at;
  const auto wide_as = std::from_chars(at, end, m);
  if (rows.ec != std::errc() || wide_as.ec != std::errc() || n == 0 || m == 0 || n > (1u << 26) ||
      m > (1u << 20)) {
    return corrupt("its shape is not that of a table");
  }
  if (columns > 0 && m != static_cast<uint64_t>(columns))
    return corrupt(
        strf("has %llu columns, the cascade needs %d", static_cast<unsigned long long>(m), columns));
  if (bytes.size() - begin != n * m * sizeof(T))
    return corrupt("its size is not what its shape says: truncated?");
  Array2<T> array{static_cast<int>(n), static_cast<int>(m), std::vector<T>(static_cast<size_t>(n * m))};
  std::memcpy(array.values.data(), bytes.data() + begin, array.values.size() * sizeof(T));
  return array;
}

template <typename T>
std::string write(const Array2<T>& array, const char* type) {
  std::string header =
      strf("{'descr': '%s', 'fortran_order': False, 'shape': (%d, %d), }", type, array.rows, array.columns);
  header.append((118 - header.size() % 64) % 64, ' ');  // 10 bytes before and a newline after make it n * 64
  header += '\n';
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes += static_cast<char>(header.size() & 0xff);
  bytes += static_cast<char>(header.size() >> 8);
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(array.values.data()), array.values.size() * sizeof(T));
  return bytes;
}

constexpr size_t kLargest = size_t{2} << 30;

}  // namespace

Result<Array2<float>> parse_floats(std::string_view bytes, const std::string& name, int columns) {
  FRUGAL_TRY(auto array, parse<float>(bytes, name, columns, "<f4"));
  for (size_t i = 0; i < array.values.size(); ++i) {
    if (!std::isfinite(array.values[i])) {
      return {ErrorCode::kCorrupt, strf("%s: row %zu holds a value that is not finite", name.c_str(),
                                        i / static_cast<size_t>(array.columns))};
    }
  }
  return array;
}

Result<Array2<int32_t>> parse_integers(std::string_view bytes, const std::string& name, int columns) {
  return parse<int32_t>(bytes, name, columns, "<i4");
}

Result<Array2<float>> read_floats(const std::string& path, int columns) {
  FRUGAL_TRY(const std::string bytes, read_file(path, kLargest));
  return parse_floats(bytes, path, columns);
}

Result<Array2<int32_t>> read_integers(const std::string& path, int columns) {
  FRUGAL_TRY(const std::string bytes, read_file(path, kLargest));
  return parse_integers(bytes, path, columns);
}

std::string npy_bytes(const Array2<float>& array) { return write(array, "<f4"); }
std::string npy_bytes(const Array2<int32_t>& array) { return write(array, "<i4"); }

}  // namespace frugal::cascade
