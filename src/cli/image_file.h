// Pictures from files, for networks that take one.
#pragma once

#include <string>

#include "frugal/result.h"

namespace frugal::cli {

struct Image {
  int width = 0, height = 0;
  std::string pixels;  // [height, width, 3], red, green, blue
};

// A JPEG, PNG or binary PPM, told by its first bytes. kUnsupported: none of these. kCorrupt: what is wrong
// with it.
bool is_image(const std::string& data);
Result<Image> parse_image(const std::string& data, const std::string& path);

}  // namespace frugal::cli
