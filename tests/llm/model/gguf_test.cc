#include "llm/model/gguf.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "support/gguf_bytes.h"

namespace frugal::llm {
namespace {

using test::as_byte_span;
using test::ByteWriter;
using test::GgufBuilder;
using test::sample_gguf;

// The error of reading `bytes`; fails the test when there is none. The bytes are copied into a block of
// exactly their size, so that the address sanitizer sees a read past the end.
Error error_of(const std::string& bytes) {
  const std::vector<std::byte> exact(as_byte_span(bytes).begin(), as_byte_span(bytes).end());
  const auto file = GgufFile::parse(exact, "sample.gguf");
  EXPECT_FALSE(file.ok());
  return file.ok() ? Error{} : file.error();
}

// Every message names the file, and is one line.
#define EXPECT_REFUSED(bytes, expected_code, ...)                                           \
  do {                                                                                      \
    const Error refused = error_of(bytes);                                                  \
    EXPECT_EQ(refused.code, expected_code) << refused.message;                              \
    EXPECT_NE(refused.message.find("'sample.gguf'"), std::string::npos) << refused.message; \
    EXPECT_EQ(refused.message.find('\n'), std::string::npos) << refused.message;            \
    for (const char* part : {__VA_ARGS__}) {                                                \
      EXPECT_NE(refused.message.find(part), std::string::npos) << refused.message;          \
    }                                                                                       \
  } while (0)

TEST(Gguf, ReadsMetadataOfEveryType) {
  const std::string bytes = sample_gguf().build();
  const auto parsed = GgufFile::parse(as_byte_span(bytes));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  const GgufFile& file = *parsed;
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.alignment(), 32u);
  EXPECT_EQ(file.metadata().size(), 17u);
  EXPECT_EQ(file.require_string("general.architecture").value(), "llama");
  EXPECT_EQ(file.require_u32("llama.block_count").value(), 2u);
  EXPECT_EQ(file.require_f32("llama.epsilon").value(), 1e-5f);
  EXPECT_EQ(file.require_f32("f64").value(), 0.5f);
  EXPECT_EQ(file.require_f32("u8").value(), 200.0f);
  EXPECT_TRUE(file.require_bool("flag").value());
  EXPECT_EQ(file.require_u32("u8").value(), 200u);
  EXPECT_EQ(file.require_u32("u16").value(), 60000u);
  EXPECT_EQ(file.require_u64("u64").value(), 1ull << 40);
  EXPECT_EQ(file.find_value("i8")->integer(), -100);
  EXPECT_EQ(file.find_value("i16")->integer(), -30000);
  EXPECT_EQ(file.find_value("i64")->integer(), -1);
  EXPECT_EQ(file.require_array<std::string_view>("words").value(),
            (std::vector<std::string_view>{"a", "", "three"}));
  EXPECT_EQ(file.require_array<int32_t>("counts").value(), (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(file.require_array<uint32_t>("counts").value(), (std::vector<uint32_t>{1, 2, 3}));
  EXPECT_EQ(file.require_array<float>("scores").value(), (std::vector<float>{0.5f, -1}));
  EXPECT_EQ(file.require_array<uint8_t>("flags").value(), (std::vector<uint8_t>{1, 0}));
  EXPECT_TRUE(file.require_array<float>("none").value().empty());
  EXPECT_EQ(file.require_u32_each("counts", 3).value(), (std::vector<uint32_t>{1, 2, 3}));
  EXPECT_EQ(file.require_u32_each("u8", 2).value(), (std::vector<uint32_t>{200, 200}));
}

TEST(Gguf, DefaultsStandInForMissingKeysOnly) {
  const std::string bytes = sample_gguf().build();
  const auto parsed = GgufFile::parse(as_byte_span(bytes), "sample.gguf");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->find_u32_or("absent", 9).value(), 9u);
  EXPECT_EQ(parsed->find_u64_or("absent", 9).value(), 9u);
  EXPECT_EQ(parsed->find_f32_or("absent", 0.5f).value(), 0.5f);
  EXPECT_TRUE(parsed->find_bool_or("absent", true).value());
  EXPECT_EQ(parsed->find_string_or("absent", "none").value(), "none");
  EXPECT_TRUE(parsed->find_array_or_empty<float>("absent").value().empty());
  EXPECT_EQ(parsed->find_u32_or("u8", 9).value(), 200u);
  EXPECT_FALSE(parsed->find_u32_or("general.architecture", 9).ok());
  EXPECT_FALSE(parsed->find_bool_or("u8", true).ok());
  EXPECT_FALSE(parsed->find_f32_or("words", 1).ok());
  EXPECT_FALSE(parsed->find_string_or("u8", "none").ok());
  EXPECT_FALSE(parsed->find_array_or_empty<float>("words").ok());
}

TEST(Gguf, WrongValuesAreNamedWithExpectedAndFoundType) {
  const std::string bytes = sample_gguf().build();
  const auto parsed = GgufFile::parse(as_byte_span(bytes), "sample.gguf");
  ASSERT_TRUE(parsed.ok());
  const auto expect_parts = [](const Error& error, std::initializer_list<const char*> parts) {
    EXPECT_EQ(error.code, ErrorCode::kCorrupt);
    for (const char* part : parts) EXPECT_NE(error.message.find(part), std::string::npos) << error.message;
  };
  expect_parts(parsed->require_u32("absent").error(), {"'sample.gguf'", "'absent'", "missing", "integer"});
  expect_parts(parsed->require_u32("general.architecture").error(),
               {"'general.architecture'", "integer", "string"});
  expect_parts(parsed->require_u32("i32").error(), {"'i32'", "0 to 4294967295", "-7"});
  expect_parts(parsed->require_u32("u64").error(), {"'u64'", "4294967295", "1099511627776"});
  expect_parts(parsed->require_u32("counts").error(), {"'counts'", "integer", "array of i32", "[1, 2, 3]"});
  expect_parts(parsed->require_string("words").error(), {"'words'", "a string", "array of string"});
  expect_parts(parsed->require_bool("u8").error(), {"'u8'", "bool", "u8", "200"});
  expect_parts(parsed->require_array<uint32_t>("scores").error(), {"'scores'", "integer", "array of f32"});
  expect_parts(parsed->require_array<float>("u8").error(), {"'u8'", "array", "number"});
  expect_parts(parsed->require_u32_each("counts", 4).error(), {"'counts'", "3 values", "4 are needed"});
}

TEST(Gguf, NumbersThatNoFloatHoldsAreRefused) {
  GgufBuilder builder;
  builder.value<double>("huge", GgufValueType::kF64, 1e300)
      .f32("nan", __builtin_nanf(""))
      .f32("inf", __builtin_inff());
  const std::string bytes = builder.build();
  const auto parsed = GgufFile::parse(as_byte_span(bytes));
  ASSERT_TRUE(parsed.ok());
  for (const char* key : {"huge", "nan", "inf"}) EXPECT_FALSE(parsed->require_f32(key).ok()) << key;
}

TEST(Gguf, FindsTensorsAndTheirData) {
  const std::string bytes = sample_gguf().build();
  auto parsed = GgufFile::parse(as_byte_span(bytes));
  ASSERT_TRUE(parsed.ok());
  const GgufFile file = std::move(parsed).value();
  ASSERT_EQ(file.tensors().size(), 2u);
  const GgufTensor* weights = file.find_tensor("weights");
  ASSERT_NE(weights, nullptr);
  EXPECT_EQ(weights->type, TensorType::kQ8_0);
  EXPECT_EQ(weights->shape, (std::vector<uint64_t>{32, 3}));
  EXPECT_EQ(weights->shape_label(), "[32 x 3]");
  EXPECT_EQ(weights->n_elements(), 96u);
  EXPECT_EQ(weights->bytes, 102u);
  EXPECT_EQ(weights->offset, file.data_offset());
  const GgufTensor* norm = file.find_tensor("norm");
  ASSERT_NE(norm, nullptr);
  EXPECT_EQ(norm->offset % 32, 0u);
  ASSERT_EQ(file.data(*norm).size(), 20u);
  for (const std::byte byte : file.data(*norm)) EXPECT_EQ(byte, std::byte{0x22});
  EXPECT_EQ(file.find_tensor("nor"), nullptr);
  EXPECT_EQ(file.find_tensor("zzz"), nullptr);
}

TEST(Gguf, HonoursTheAlignmentOfTheFile) {
  GgufBuilder builder;
  builder.alignment = 128;
  builder.u32("general.alignment", 128);
  builder.tensor("a", {4}, TensorType::kF32, std::string(16, 'a'))
      .tensor("b", {4}, TensorType::kF32, "0123456789abcdef");
  const std::string bytes = builder.build();
  const auto parsed = GgufFile::parse(as_byte_span(bytes));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed->find_tensor("b")->offset % 128, 0u);
  EXPECT_EQ(parsed->data(*parsed->find_tensor("b"))[1], std::byte{'1'});
  for (const uint32_t alignment : {0u, 1u, 4u, 24u, 0xFFFFFFFFu}) {
    EXPECT_REFUSED(GgufBuilder().u32("general.alignment", alignment).build(), ErrorCode::kCorrupt,
                   "general.alignment", "power of two");
  }
  EXPECT_REFUSED(GgufBuilder().text("general.alignment", "32").build(), ErrorCode::kCorrupt,
                 "general.alignment", "string");
}

// A file that stops anywhere before the end of its last tensor is refused, and says where it stops.
TEST(Gguf, TruncationAtEveryByteIsAnError) {
  const std::string whole = sample_gguf().build();
  const auto parsed = GgufFile::parse(as_byte_span(whole));
  ASSERT_TRUE(parsed.ok());
  const GgufTensor* last = parsed->find_tensor("norm");
  const size_t needed = last->offset + last->bytes;
  ASSERT_LT(needed, whole.size());  // padding after the last tensor: its loss does no harm
  for (size_t size = 0; size < needed; ++size) {
    const Error error = error_of(whole.substr(0, size));
    EXPECT_EQ(error.code, ErrorCode::kCorrupt) << size;
    EXPECT_NE(error.message.find("fetch it again"), std::string::npos) << size << ": " << error.message;
  }
  for (size_t size = needed; size <= whole.size(); ++size) {
    EXPECT_TRUE(GgufFile::parse(as_byte_span(whole).first(size)).ok()) << size;
  }
}

// Flips every bit of the file, one at a time: whatever comes out, it is a value or an error, never a crash.
TEST(Gguf, EverySingleBitFlipIsSurvived) {
  const std::string whole = sample_gguf().build();
  int n_refused = 0;
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    const std::vector<std::byte> exact(as_byte_span(flipped).begin(), as_byte_span(flipped).end());
    const auto parsed = GgufFile::parse(exact);
    if (!parsed.ok()) {
      ++n_refused;
      continue;
    }
    for (const GgufTensor& tensor : parsed->tensors()) EXPECT_EQ(parsed->data(tensor).size(), tensor.bytes);
    for (const GgufValue& value : parsed->metadata()) EXPECT_FALSE(value.display().empty());
  }
  EXPECT_GT(n_refused, 100);
}

TEST(Gguf, ForeignFilesAreToldApart) {
  EXPECT_REFUSED("", ErrorCode::kCorrupt, "0 bytes");
  EXPECT_REFUSED("GGU", ErrorCode::kCorrupt, "3 bytes");
  EXPECT_REFUSED("PK\x03\x04 a zip archive", ErrorCode::kCorrupt, "not a GGUF file", "PK\\x03\\x04");
  GgufBuilder builder = sample_gguf();
  builder.version = 0;
  EXPECT_REFUSED(builder.build(), ErrorCode::kCorrupt, "version 0");
  for (const uint32_t version : {1u, 4u, 77u}) {
    builder.version = version;
    EXPECT_REFUSED(builder.build(), ErrorCode::kUnsupported, "GGUF version", "2 and 3");
  }
  builder.version = 0x03000000;
  EXPECT_REFUSED(builder.build(), ErrorCode::kUnsupported, "big-endian", "gguf_convert_endian");
  builder.version = 2;
  EXPECT_TRUE(GgufFile::parse(as_byte_span(builder.build())).ok());
}

TEST(Gguf, AbsurdCountsAreRefusedBeforeTheyAreUsed) {
  for (const uint64_t count : {uint64_t{1} << 20, uint64_t{1} << 40, UINT64_MAX, uint64_t{1} << 63}) {
    GgufBuilder builder = sample_gguf();
    builder.n_values = count;
    EXPECT_REFUSED(builder.build(), ErrorCode::kCorrupt, "metadata keys", "byte 16");
    builder = sample_gguf();
    builder.n_tensors = count;
    EXPECT_REFUSED(builder.build(), ErrorCode::kCorrupt, "tensors", "byte 8");
    // A key as long, a string as long, an array as long.
    EXPECT_REFUSED(ByteWriter()
                       .raw("GGUF")
                       .put<uint32_t>(3)
                       .put<uint64_t>(0)
                       .put<uint64_t>(1)
                       .put<uint64_t>(count)
                       .raw(std::string(64, 'k'))
                       .bytes(),
                   ErrorCode::kCorrupt, "name of metadata key 0", "claims");
    builder = GgufBuilder();
    builder.values = {ByteWriter().text("key").put<uint32_t>(8).put<uint64_t>(count).raw("abc").bytes()};
    EXPECT_REFUSED(builder.build(), ErrorCode::kCorrupt, "metadata key 'key'", "claims");
    for (uint32_t element = 0; element <= 12; ++element) {
      if (element == 9) continue;
      builder.values = {ByteWriter()
                            .text("key")
                            .put<uint32_t>(9)
                            .put<uint32_t>(element)
                            .put<uint64_t>(count)
                            .raw("abc")
                            .bytes()};
      EXPECT_REFUSED(builder.build(), ErrorCode::kCorrupt, "metadata key 'key'", "array of");
    }
  }
}

TEST(Gguf, BrokenMetadataIsRefused) {
  EXPECT_REFUSED(GgufBuilder().u32("twice", 1).u32("once", 1).u32("twice", 2).build(), ErrorCode::kCorrupt,
                 "metadata key 'twice'", "twice");
  EXPECT_REFUSED(GgufBuilder().u32("", 1).build(), ErrorCode::kCorrupt, "name of metadata key 0", "0 bytes");
  EXPECT_REFUSED(GgufBuilder().u32(std::string(70000, 'k'), 1).build(), ErrorCode::kCorrupt, "metadata key 0",
                 "70000");
  EXPECT_REFUSED(GgufBuilder().value<uint32_t>("key", static_cast<GgufValueType>(13), 1).build(),
                 ErrorCode::kCorrupt, "'key'", "unknown value type 13");
  EXPECT_REFUSED(GgufBuilder().value<uint8_t>("key", GgufValueType::kBool, 2).build(), ErrorCode::kCorrupt,
                 "'key'", "bool", "0 or 1");
  EXPECT_REFUSED(GgufBuilder().array<uint8_t>("key", GgufValueType::kBool, {0, 1, 7}).build(),
                 ErrorCode::kCorrupt, "'key'", "bool");
  GgufBuilder builder;
  builder.values = {ByteWriter()
                        .text("key")
                        .put<uint32_t>(9)
                        .put<uint32_t>(9)
                        .put<uint64_t>(1)
                        .put<uint32_t>(4)
                        .put<uint64_t>(1)
                        .put<uint32_t>(5)
                        .bytes()};
  EXPECT_REFUSED(builder.build(), ErrorCode::kUnsupported, "'key'", "array of arrays");
  // The second string of an array claims more than there is.
  builder.values = {ByteWriter()
                        .text("key")
                        .put<uint32_t>(9)
                        .put<uint32_t>(8)
                        .put<uint64_t>(2)
                        .text("one")
                        .put<uint64_t>(1 << 20)
                        .raw("two")
                        .bytes()};
  EXPECT_REFUSED(builder.build(), ErrorCode::kCorrupt, "element 1", "'key'", "past the end");
}

TEST(Gguf, KeysAreMadeFitForAMessage) {
  const std::string hostile = "a\n\x1b[31m\xFF" + std::string(200, 'x');
  const Error error = error_of(GgufBuilder().u32(hostile, 1).u32(hostile, 1).build());
  EXPECT_NE(error.message.find("a\\n\\x1b[31m\xEF\xBF\xBD"), std::string::npos) << error.message;
  EXPECT_EQ(error.message.find('\x1b'), std::string::npos);
  EXPECT_LT(error.message.size(), 400u);
}

TEST(Gguf, BrokenTensorsAreRefused) {
  const std::string block(34, '\0');
  const auto with = [&](const std::string& name, std::vector<uint64_t> shape, uint32_t type,
                        uint64_t offset) {
    GgufBuilder builder;
    builder.tensor("sound", {32}, TensorType::kQ8_0, block);
    builder.tensors.push_back({name, std::move(shape), type, offset});
    return builder.build();
  };
  EXPECT_REFUSED(with("", {32}, 8, 64), ErrorCode::kCorrupt, "name of tensor 1");
  EXPECT_REFUSED(with("sound", {32}, 8, 64), ErrorCode::kCorrupt, "tensor 'sound'", "twice");
  EXPECT_REFUSED(with("bad", {}, 0, 64), ErrorCode::kCorrupt, "tensor 'bad'", "0 dimensions");
  EXPECT_REFUSED(with("bad", {1, 1, 1, 1, 1}, 0, 64), ErrorCode::kCorrupt, "tensor 'bad'", "5 dimensions");
  EXPECT_REFUSED(with("bad", {4, 0}, 0, 64), ErrorCode::kCorrupt, "tensor 'bad'",
                 "impossible dimension of 0");
  EXPECT_REFUSED(with("bad", {1ull << 32, 1ull << 32}, 0, 64), ErrorCode::kCorrupt, "tensor 'bad'",
                 "impossible dimension");
  EXPECT_REFUSED(with("bad", {UINT64_MAX}, 0, 64), ErrorCode::kCorrupt, "tensor 'bad'",
                 "impossible dimension");
  EXPECT_REFUSED(with("bad", {1ull << 62}, 28, 64), ErrorCode::kCorrupt, "tensor 'bad'",
                 "more bytes than can be counted");
  EXPECT_REFUSED(with("bad", {48}, 8, 64), ErrorCode::kCorrupt, "tensor 'bad'", "rows of 48",
                 "Q8_0 blocks of 32");
  EXPECT_REFUSED(with("bad", {128}, 12, 64), ErrorCode::kCorrupt, "tensor 'bad'", "Q4_K blocks of 256");
  EXPECT_REFUSED(with("bad", {1}, 0, 65), ErrorCode::kCorrupt, "tensor 'bad'", "offset 65", "alignment 32");
  EXPECT_REFUSED(with("bad", {1}, 0, 64), ErrorCode::kCorrupt, "tensor 'bad'", "past the end", "F32 [1]");
  EXPECT_REFUSED(with("bad", {1}, 0, UINT64_MAX - 31), ErrorCode::kCorrupt, "tensor 'bad'", "past the end");
  EXPECT_REFUSED(with("bad", {1ull << 40}, 0, 64), ErrorCode::kCorrupt, "tensor 'bad'", "past the end");
  EXPECT_REFUSED(with("bad", {1}, 0, 32), ErrorCode::kCorrupt, "'sound'", "'bad'", "overlap");
  EXPECT_REFUSED(with("bad", {1}, 0, 0), ErrorCode::kCorrupt, "'sound'", "'bad'", "overlap");
  EXPECT_REFUSED(with("bad", {1}, 4242, 1 << 20), ErrorCode::kCorrupt, "'bad'", "type number 4242",
                 "past the end");
}

// A type that we do not know is no fault of the file: what runs the model refuses it, by name.
TEST(Gguf, UnknownTensorTypesAreKeptWithTheRoomTheyHave) {
  GgufBuilder builder;
  builder.tensor("odd", {7, 3}, static_cast<TensorType>(4242), std::string(50, 'o'));
  builder.tensor("next", {4}, TensorType::kF32, std::string(16, 'n'));
  builder.tensor("last", {9}, static_cast<TensorType>(4), std::string(10, 'l'));
  const std::string bytes = builder.build();
  const auto parsed = GgufFile::parse(as_byte_span(bytes));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(static_cast<uint32_t>(parsed->find_tensor("odd")->type), 4242u);
  EXPECT_EQ(parsed->find_tensor("odd")->bytes, 64u);
  EXPECT_EQ(parsed->data(*parsed->find_tensor("last")).size(), 32u);
}

TEST(Gguf, DisplayIsShortAndPrintable) {
  GgufBuilder builder = sample_gguf();
  builder.text("template", "{% for\n%}\xC3\xA9" + std::string(1000, 'x'));
  const std::string bytes = builder.build();
  const auto parsed = GgufFile::parse(as_byte_span(bytes));
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->find_value("words")->display(), "[\"a\", \"\", \"three\"]");
  EXPECT_EQ(parsed->find_value("words")->type_label(), "array of string");
  EXPECT_EQ(parsed->find_value("flags")->display(), "[true, false]");
  EXPECT_EQ(parsed->find_value("f64")->display(), "0.5");
  EXPECT_EQ(parsed->find_value("template")->display(9), "\"{% for\\n%}...\"");
  EXPECT_EQ(parsed->find_value("template")->display(10), "\"{% for\\n%}...\"");  // not half a character
  EXPECT_EQ(parsed->find_value("template")->display(11), "\"{% for\\n%}\xC3\xA9...\"");
}

TEST(Gguf, OpensFilesAndKeepsViewsThroughAMove) {
  const std::string path = testing::TempDir() + "gguf_test.gguf";
  std::ofstream(path, std::ios::binary) << sample_gguf().build();
  auto opened = GgufFile::open(path);
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const std::string_view before = opened->require_string("general.architecture").value();
  const GgufFile file = std::move(opened).value();
  EXPECT_EQ(file.require_string("general.architecture").value().data(), before.data());
  EXPECT_EQ(file.file().path(), path);
  EXPECT_EQ(file.data(*file.find_tensor("norm")).size(), 20u);
  std::remove(path.c_str());
  const auto missing = GgufFile::open(path);
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_NE(missing.error().message.find(path), std::string::npos);
}

TEST(Gguf, ReadsTheRealModels) {
  const char* folder = std::getenv("FRUGAL_MODELS");
  ASSERT_NE(folder, nullptr)
      << "set FRUGAL_MODELS to the folder that scripts/bootstrap.py --print models names";
  const auto smol = GgufFile::open(std::string(folder) + "/smollm2-135m-instruct-q4_1.gguf");
  ASSERT_TRUE(smol.ok()) << smol.error().message;
  EXPECT_EQ(smol->require_string("general.architecture").value(), "llama");
  EXPECT_EQ(smol->require_u32("llama.block_count").value(), 30u);
  EXPECT_EQ(smol->find_tensor("blk.29.attn_q.weight")->shape, (std::vector<uint64_t>{576, 576}));
  EXPECT_EQ(smol->find_tensor("blk.29.attn_q.weight")->type, TensorType::kQ4_1);
  const auto gemma = GgufFile::open(std::string(folder) + "/gemma-3-270m-q4_k_m.gguf");
  ASSERT_TRUE(gemma.ok()) << gemma.error().message;
  EXPECT_EQ(gemma->require_string("general.architecture").value(), "gemma3");
  EXPECT_EQ(gemma->require_array<std::string_view>("tokenizer.ggml.tokens").value().size(), 262144u);
  EXPECT_EQ(gemma->find_tensor("token_embd.weight")->shape[1], 262144u);
}

}  // namespace
}  // namespace frugal::llm
