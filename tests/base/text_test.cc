#include "base/text.h"

#include <gtest/gtest.h>

namespace frugal {
namespace {

TEST(Text, Utf8PrefixHoldsBackOnlyWhatCanStillBecomeValid) {
  EXPECT_EQ(utf8_complete_prefix(""), 0u);
  EXPECT_EQ(utf8_complete_prefix("abc"), 3u);
  EXPECT_EQ(utf8_complete_prefix("a\xC3"), 1u);              // first byte of a two-byte sequence
  EXPECT_EQ(utf8_complete_prefix("a\xF0\x9F\x98"), 1u);      // three of four
  EXPECT_EQ(utf8_complete_prefix("\xF0\x9F\x98\x80"), 4u);   // whole
  EXPECT_EQ(utf8_complete_prefix("a\x80\x80\x80\x80"), 5u);  // stray continuation bytes never become valid
  EXPECT_EQ(utf8_complete_prefix("a\xE0\x80"), 3u);          // overlong: invalid already
}

TEST(Text, Utf8SanitizedReplacesEachInvalidByte) {
  EXPECT_EQ(utf8_sanitized("a\xFF"
                           "b"),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(utf8_sanitized("\xC3\xA9"), "\xC3\xA9");
  EXPECT_TRUE(utf8_valid(utf8_sanitized("\xED\xA0\x80")));  // a surrogate
  EXPECT_FALSE(utf8_valid("\xF5\x80\x80\x80"));
}

TEST(Text, HumanUnits) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1536), "1.50 KiB");
  EXPECT_EQ(human_seconds(0.85), "850 ms");
  EXPECT_EQ(human_seconds(245), "4 min 05 s");
  EXPECT_EQ(human_count(2.5e9), "2.5 G");
}

}  // namespace
}  // namespace frugal
