#include "cli/image_file.h"

#include <algorithm>
#include <cctype>
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include <jpeglib.h>
#include <png.h>

#include "base/text.h"

namespace frugal::cli {
namespace {

constexpr int kMaxSide = 32768;
constexpr size_t kMaxPixels = size_t{1} << 28;

Error corrupt(const std::string& path, const std::string& what) {
  return {ErrorCode::kCorrupt, path + ": " + what};
}

bool sound_size(long width, long height) {
  return width >= 1 && height >= 1 && width <= kMaxSide && height <= kMaxSide &&
         static_cast<size_t>(width) * static_cast<size_t>(height) <= kMaxPixels;
}

Result<Image> parse_ppm(const std::string& data, const std::string& path) {
  size_t at = 2;
  long values[3];
  for (long& value : values) {
    while (at < data.size() && (std::isspace(static_cast<unsigned char>(data[at])) || data[at] == '#')) {
      at = data[at] == '#' ? std::min(data.find('\n', at), data.size()) : at + 1;
    }
    long number = -1;
    while (at < data.size() && std::isdigit(static_cast<unsigned char>(data[at])) && number < 1000000) {
      number = std::max(0L, number) * 10 + (data[at++] - '0');
    }
    if (number < 0) return corrupt(path, "the header of this PPM is cut short");
    value = number;
  }
  ++at;
  if (!sound_size(values[0], values[1])) return corrupt(path, "has no sound size");
  if (values[2] != 255) return corrupt(path, "has another depth than 8 bits");
  Image image{static_cast<int>(values[0]), static_cast<int>(values[1]), {}};
  const size_t n = static_cast<size_t>(values[0]) * static_cast<size_t>(values[1]) * 3;
  if (at > data.size() || n > data.size() - at) return corrupt(path, "is cut short");
  image.pixels = data.substr(at, n);
  return image;
}

// libjpeg leaves through a long jump; nothing with a destructor is made between setjmp and the end.
struct JpegFault {
  jpeg_error_mgr manager;
  std::jmp_buf out;
  char message[JMSG_LENGTH_MAX];
};

bool decode_jpeg(const std::string& data, Image& image, JpegFault& fault) {
  jpeg_decompress_struct info;
  info.err = jpeg_std_error(&fault.manager);
  fault.manager.error_exit = [](j_common_ptr common) {
    auto* at = reinterpret_cast<JpegFault*>(common->err);
    common->err->format_message(common, at->message);
    std::longjmp(at->out, 1);
  };
  fault.manager.output_message = [](j_common_ptr) {};
  if (setjmp(fault.out) != 0) {
    jpeg_destroy_decompress(&info);
    return false;
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(data.data()), data.size());
  jpeg_read_header(&info, TRUE);
  if (!sound_size(info.image_width, info.image_height)) {
    std::snprintf(fault.message, sizeof fault.message, "has no sound size");
    jpeg_destroy_decompress(&info);
    return false;
  }
  info.out_color_space = JCS_RGB;
  jpeg_start_decompress(&info);
  image.width = static_cast<int>(info.output_width);
  image.height = static_cast<int>(info.output_height);
  image.pixels.resize(static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * 3);
  while (info.output_scanline < info.output_height) {
    auto* row = reinterpret_cast<JSAMPROW>(image.pixels.data()) +
                static_cast<size_t>(info.output_scanline) * static_cast<size_t>(image.width) * 3;
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);
  // Data that end early are filled with grey and a warning: half a picture is no answer.
  const bool whole = fault.manager.num_warnings == 0;
  if (!whole) std::snprintf(fault.message, sizeof fault.message, "is cut short or damaged");
  jpeg_destroy_decompress(&info);
  return whole;
}

Result<Image> parse_jpeg(const std::string& data, const std::string& path) {
  Image image;
  JpegFault fault{};
  if (!decode_jpeg(data, image, fault)) return corrupt(path, fault.message);
  return image;
}

Result<Image> parse_png(const std::string& data, const std::string& path) {
  png_image info{};
  info.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_memory(&info, data.data(), data.size()) == 0)
    return corrupt(path, info.message);
  if (!sound_size(info.width, info.height)) {
    png_image_free(&info);
    return corrupt(path, "has no sound size");
  }
  info.format = PNG_FORMAT_RGB;
  Image image{static_cast<int>(info.width), static_cast<int>(info.height), {}};
  image.pixels.resize(PNG_IMAGE_SIZE(info));
  const png_color black{0, 0, 0};  // behind what is transparent
  if (png_image_finish_read(&info, &black, image.pixels.data(), 0, nullptr) == 0)
    return corrupt(path, info.message);
  return image;
}

bool is_ppm(const std::string& data) { return data.starts_with("P6"); }
bool is_jpeg(const std::string& data) { return data.starts_with("\xFF\xD8\xFF"); }
bool is_png(const std::string& data) { return data.starts_with("\x89PNG"); }

}  // namespace

bool is_image(const std::string& data) { return is_ppm(data) || is_jpeg(data) || is_png(data); }

Result<Image> parse_image(const std::string& data, const std::string& path) {
  if (is_ppm(data)) return parse_ppm(data, path);
  if (is_jpeg(data)) return parse_jpeg(data, path);
  if (is_png(data)) return parse_png(data, path);
  return Error{ErrorCode::kUnsupported, path + " is no JPEG, PNG or binary PPM"};
}

}  // namespace frugal::cli
