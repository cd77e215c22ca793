// Chunks and letters that are damaged, out of order, too large or lying are refused with a reason.
#include "dnn/link/wire.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/hash.h"
#include "base/rng.h"

namespace frugal::dnn {
namespace {

std::vector<std::byte> bytes_of(const std::string& text) {
  const auto span = std::as_bytes(std::span(text));
  return {span.begin(), span.end()};
}

TEST(Wire, ChunksComeBackAsTheyWere) {
  ChunkHead head;
  head.kind = ChunkKind::kAnswer;
  head.id = 42;
  head.sequence = 3;
  head.n_chunks = 9;
  head.total_bytes = 1000;
  const auto message = encode_chunk(head, bytes_of("payload"));
  const auto back = decode_chunk(message);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->head.kind, ChunkKind::kAnswer);
  EXPECT_EQ(back->head.id, 42u);
  EXPECT_EQ(back->head.sequence, 3u);
  EXPECT_EQ(back->head.n_chunks, 9u);
  EXPECT_EQ(back->head.total_bytes, 1000u);
  EXPECT_EQ(std::memcmp(back->payload.data(), "payload", 7), 0);
}

TEST(Wire, AnyFlippedBitIsSeen) {
  const auto message = encode_chunk({}, bytes_of("some payload"));
  for (size_t bit = 0; bit < 8 * message.size(); ++bit) {
    auto damaged = message;
    damaged[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    EXPECT_FALSE(decode_chunk(damaged).ok()) << "bit " << bit;
  }
  for (size_t n = 0; n < message.size(); ++n)
    EXPECT_FALSE(decode_chunk(std::span(message).first(n)).ok()) << n;
}

TEST(Wire, AnotherVersionIsNamed) {
  auto message = encode_chunk({}, {});
  message[4] = std::byte{9};
  const auto chunk = decode_chunk(message);
  ASSERT_FALSE(chunk.ok());
  EXPECT_EQ(chunk.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(chunk.error().message.find("version 9"), std::string::npos);
}

ChunkView view(uint32_t sequence, uint32_t n_chunks, uint64_t total, std::span<const std::byte> payload) {
  ChunkView v;
  v.head.sequence = sequence;
  v.head.n_chunks = n_chunks;
  v.head.total_bytes = total;
  v.payload = payload;
  return v;
}

TEST(Wire, LettersAreWholeAndInOrderOrRefused) {
  const auto part = bytes_of("abcd");
  {
    Assembler good;
    EXPECT_FALSE(good.add(view(0, 2, 8, part)).value());
    EXPECT_TRUE(good.add(view(1, 2, 8, part)).value());
    EXPECT_EQ(good.take(), bytes_of("abcdabcd"));
  }
  const auto refused = [](std::vector<ChunkView> chunks) {
    Assembler assembler;
    for (const ChunkView& chunk : chunks) {
      if (!assembler.add(chunk).ok()) return true;
    }
    return false;
  };
  EXPECT_TRUE(refused({view(1, 2, 8, part)}));                           // the first is missing
  EXPECT_TRUE(refused({view(0, 3, 12, part), view(2, 3, 12, part)}));    // one is lost
  EXPECT_TRUE(refused({view(0, 2, 8, part), view(0, 2, 8, part)}));      // one comes twice
  EXPECT_TRUE(refused({view(0, 2, 8, part), view(1, 3, 8, part)}));      // they disagree
  EXPECT_TRUE(refused({view(0, 1, 3, part)}));                           // longer than it says
  EXPECT_TRUE(refused({view(0, 1, 9, part)}));                           // shorter
  EXPECT_TRUE(refused({view(0, 1u << 31, kMaxLetterBytes + 1, part)}));  // over the limit
}

TEST(Wire, ContentComesBackAsItWas) {
  Content content;
  content.meta = {{"op", "frame"}, {"x", 3}};
  content.tensors[7] = HostTensor{"f32", {1, 2}, bytes_of("12345678")};
  content.tensors[9] = HostTensor{"i64", {0}, {}};
  const auto back = decode_content(encode_content(content));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->meta.at("x"), 3);
  ASSERT_EQ(back->tensors.size(), 2u);
  EXPECT_EQ(back->tensors.at(7).bytes, bytes_of("12345678"));
  EXPECT_EQ(back->tensors.at(7).shape, (std::vector<int64_t>{1, 2}));
}

TEST(Wire, PackedTensorsAreTakenOnlyWhereTheyAreAwaited) {
  Content content;
  content.tensors[7] = HostTensor{"f32", {1, 2}, bytes_of("123"), true};
  const std::vector<std::byte> letter = encode_content(content);
  EXPECT_FALSE(decode_content(letter).ok());
  const auto back = decode_content(letter, true);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_TRUE(back->tensors.at(7).packed);
  EXPECT_EQ(back->tensors.at(7).bytes, bytes_of("123"));
  content.tensors[7].bytes = bytes_of("123456789");  // more than the tensor itself
  EXPECT_FALSE(decode_content(encode_content(content), true).ok());
}

TEST(Wire, HostileContentIsRefused) {
  const auto with_meta = [](const std::string& meta, const std::string& tail) {
    std::vector<std::byte> bytes(8);
    const uint64_t n = meta.size();
    std::memcpy(bytes.data(), &n, 8);
    for (const std::byte b : bytes_of(meta + tail)) bytes.push_back(b);
    return bytes;
  };
  EXPECT_TRUE(decode_content(with_meta("{}", "")).ok());
  for (const char* meta :
       {"", "[]", "{", "{\"tensors\": 3}", "{\"tensors\": [{}]}",
        "{\"tensors\": [{\"t\": 0, \"type\": \"f32\", \"shape\": [1]}]}",
        "{\"tensors\": [{\"t\": 0, \"type\": \"f32\", \"shape\": [-1]}]}",
        "{\"tensors\": [{\"t\": 0, \"type\": \"odd\", \"shape\": [0]}]}",
        "{\"tensors\": [{\"t\": 0, \"type\": \"f32\", \"shape\": [42949672999999999992960]}]}",
        "{\"tensors\": [{\"t\": 0, \"type\": \"f32\", \"shape\": [4294967296, 4294967296, 4294967296]}]}",
        "{\"tensors\": [{\"t\": 0, \"type\": \"u8\", \"shape\": [0]}, {\"t\": 0, \"type\": \"u8\", "
        "\"shape\": [0]}]}"}) {
    EXPECT_FALSE(decode_content(with_meta(meta, "")).ok()) << meta;
  }
  EXPECT_FALSE(decode_content(with_meta("{}", "left over")).ok());
  std::vector<std::byte> lying(8, std::byte{0xFF});
  EXPECT_FALSE(decode_content(lying).ok());
}

TEST(Wire, AnswersCarryErrors) {
  const Error error{ErrorCode::kUnsupported, "not here"};
  const Status back = answer_status(error_to_json(error));
  ASSERT_FALSE(back.ok());
  EXPECT_EQ(back.error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(back.error().message, "not here");
  EXPECT_TRUE(answer_status({{"busy", 1}}).ok());
  EXPECT_FALSE(answer_status({{"error", 1}}).ok());
}

}  // namespace
}  // namespace frugal::dnn
