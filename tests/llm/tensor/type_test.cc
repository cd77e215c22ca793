#include "llm/tensor/type.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>

#include <ggml.h>

namespace frugal::llm {
namespace {

std::string upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
  return text;
}

// Our table is our own; ggml's is the truth about what files hold.
TEST(TensorType, NamesAndLayoutsAreGgmls) {
  int n_known = 0;
  for (int number = 0; number < GGML_TYPE_COUNT; ++number) {
    const auto type = static_cast<TensorType>(number);
    const auto theirs = static_cast<ggml_type>(number);
    const auto layout = type_layout(type);
    ASSERT_EQ(layout.has_value(), ggml_blck_size(theirs) > 0) << number;
    if (!layout) continue;
    ++n_known;
    EXPECT_EQ(layout->block_size, ggml_blck_size(theirs)) << number;
    EXPECT_EQ(layout->block_bytes, static_cast<int>(ggml_type_size(theirs))) << number;
    EXPECT_EQ(upper(std::string(tensor_type_name(type))), upper(ggml_type_name(theirs)));
  }
  EXPECT_GE(n_known, 30);
}

TEST(TensorType, UnknownNumbersKeepTheirNumber) {
  const auto type = static_cast<TensorType>(4242);
  EXPECT_EQ(tensor_type_name(type), "unknown");
  EXPECT_EQ(tensor_type_label(type), "type number 4242");
  EXPECT_FALSE(type_layout(type).has_value());
}

}  // namespace
}  // namespace frugal::llm
