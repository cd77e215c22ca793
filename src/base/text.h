// Text helpers: printf-style formatting into a string, and sizes for people.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace frugal {

// printf into a std::string (GCC 12 has no std::format).
[[gnu::format(printf, 1, 2)]] std::string strf(const char* format, ...);

// "1.5 MiB", "830 B". `bytes` is not negative.
std::string human_bytes(double bytes);

// "1.2 G", "34.5 k": three significant digits and an SI prefix, for counts such as FLOPs.
std::string human_count(double count);

// "850 ms", "2.31 s", "4 min 05 s".
std::string human_seconds(double seconds);

std::vector<std::string> split(std::string_view text, char separator);
std::string_view trim(std::string_view text);

// Length of the longest prefix of `text` that does not end inside a UTF-8 sequence. Invalid bytes count as
// complete: they are passed on, not held back for ever.
size_t utf8_complete_prefix(std::string_view text);

// `text` with every byte that is not part of valid UTF-8 replaced by U+FFFD.
std::string utf8_sanitized(std::string_view text);

bool utf8_valid(std::string_view text);

}  // namespace frugal
