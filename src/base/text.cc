#include "base/text.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace frugal {

std::string strf(const char* format, ...) {
  va_list args, again;
  va_start(args, format);
  va_copy(again, args);
  const int size = std::vsnprintf(nullptr, 0, format, args);
  va_end(args);
  std::string text(size > 0 ? static_cast<size_t>(size) : 0, '\0');
  if (size > 0) std::vsnprintf(text.data(), text.size() + 1, format, again);
  va_end(again);
  return text;
}

std::string human_bytes(double bytes) {
  static const char* const kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 5) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? strf("%.0f B", bytes) : strf(bytes < 10 ? "%.2f %s" : "%.1f %s", bytes, kUnits[unit]);
}

std::string human_count(double count) {
  static const char* const kPrefixes[] = {"", "k", "M", "G", "T", "P", "E"};
  int prefix = 0;
  while (std::fabs(count) >= 1000 && prefix < 6) {
    count /= 1000;
    ++prefix;
  }
  return prefix == 0 ? strf("%.4g", count) : strf("%.3g %s", count, kPrefixes[prefix]);
}

std::string human_seconds(double seconds) {
  if (seconds < 1e-3) return strf("%.3g us", seconds * 1e6);
  if (seconds < 1) return strf("%.3g ms", seconds * 1e3);
  if (seconds < 60) return strf("%.3g s", seconds);
  const long total = std::lround(seconds);
  if (total < 3600) return strf("%ld min %02ld s", total / 60, total % 60);
  return strf("%ld h %02ld min", total / 3600, total / 60 % 60);
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (true) {
    const size_t end = text.find(separator, begin);
    parts.emplace_back(text.substr(begin, end == std::string_view::npos ? end : end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

std::string_view trim(std::string_view text) {
  const char* const kSpace = " \t\r\n\f\v";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

namespace {

// Length of the sequence that `lead` opens, 0 when it opens none (RFC 3629).
size_t sequence_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

// May `byte` stand at place `idx` (1..3) of a sequence opened by `lead`? Excludes overlong forms and
// surrogates.
bool continues(unsigned char lead, size_t idx, unsigned char byte) {
  if (idx == 1) {
    if (lead == 0xE0) return byte >= 0xA0 && byte <= 0xBF;
    if (lead == 0xED) return byte >= 0x80 && byte <= 0x9F;
    if (lead == 0xF0) return byte >= 0x90 && byte <= 0xBF;
    if (lead == 0xF4) return byte >= 0x80 && byte <= 0x8F;
  }
  return byte >= 0x80 && byte <= 0xBF;
}

// Length of the valid sequence at the start of `text`; 0 when it is invalid. `truncated` tells that the text
// ended while the sequence could still have become valid.
size_t valid_sequence(std::string_view text, bool* truncated) {
  *truncated = false;
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t length = sequence_length(lead);
  for (size_t i = 1; i < length; ++i) {
    if (i >= text.size()) {
      *truncated = true;
      return 0;
    }
    if (!continues(lead, i, static_cast<unsigned char>(text[i]))) return 0;
  }
  return length;
}

}  // namespace

size_t utf8_complete_prefix(std::string_view text) {
  // A sequence has at most four bytes: only the last three can open one that is cut off.
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const size_t begin = text.size() - back;
    const auto byte = static_cast<unsigned char>(text[begin]);
    if (byte >= 0x80 && byte <= 0xBF) continue;
    bool truncated = false;
    valid_sequence(text.substr(begin), &truncated);
    return truncated ? begin : text.size();
  }
  return text.size();
}

std::string utf8_sanitized(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    bool truncated = false;
    const size_t length = valid_sequence(text.substr(i), &truncated);
    if (length == 0) {
      out += "\xEF\xBF\xBD";
      ++i;
    } else {
      out += text.substr(i, length);
      i += length;
    }
  }
  return out;
}

bool utf8_valid(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    bool truncated = false;
    const size_t length = valid_sequence(text.substr(i), &truncated);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

}  // namespace frugal
