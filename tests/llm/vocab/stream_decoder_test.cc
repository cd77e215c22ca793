#include "llm/vocab/stream_decoder.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/rng.h"
#include "base/text.h"
#include "llm/model/gguf.h"
#include "llm/model/tokenizer_check.h"
#include "support/temp_file.h"
#include "support/tiny_gguf.h"

namespace frugal::llm {
namespace {

class StreamDecoderTest : public testing::Test {
 protected:
  void SetUp() override {
    test::TinyModel model;
    model.architecture = "qwen2";
    const frugal::test::TempFile file(tiny_gguf(model));
    const auto read = GgufFile::open(file.path());
    ASSERT_TRUE(read.ok());
    auto loaded = load_tokenizer(*read);
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    tokenizer_ = std::move(loaded).value();
  }

  StreamDecoder decoder(std::vector<std::string> stop_strings = {}) {
    return StreamDecoder::create(*tokenizer_, std::move(stop_strings)).value();
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(StreamDecoderTest, HoldsBackHalfACharacter) {
  StreamDecoder stream = decoder();
  EXPECT_EQ(stream.push_bytes("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.push_bytes("\x98"), "");
  EXPECT_EQ(stream.push_bytes("\x80 b"), "\xF0\x9F\x98\x80 b");
  EXPECT_EQ(stream.finish(), "");
}

TEST_F(StreamDecoderTest, ReplacesWhatNeverBecomesACharacter) {
  StreamDecoder stream = decoder();
  EXPECT_EQ(stream.push_bytes("\xE2\x82"), "");
  EXPECT_EQ(stream.push_bytes("A"),
            "\xEF\xBF\xBD\xEF\xBF\xBD"
            "A");
  EXPECT_EQ(stream.push_bytes("\xFF"), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.push_bytes("end\xC3"), "end");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.finish(), "");
}

TEST_F(StreamDecoderTest, CutsAtAStopStringAcrossPieces) {
  StreamDecoder stream = decoder({"\nUser:", "###"});
  EXPECT_EQ(stream.push_bytes("Fine.\nUs"), "Fine.");
  EXPECT_EQ(stream.push_bytes("er"), "");
  EXPECT_FALSE(stream.stopped());
  EXPECT_EQ(stream.push_bytes(": more"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.stopped_by(), 0);
  EXPECT_EQ(stream.push_bytes("nothing"), "");
  EXPECT_EQ(stream.finish(), "");
}

TEST_F(StreamDecoderTest, GivesBackWhatOnlyLookedLikeAStop) {
  StreamDecoder stream = decoder({"###"});
  EXPECT_EQ(stream.push_bytes("# one ##"), "# one ");
  EXPECT_EQ(stream.push_bytes(" two #"), "## two ");
  EXPECT_EQ(stream.finish(), "#");
  EXPECT_FALSE(stream.stopped());
}

TEST_F(StreamDecoderTest, TheFirstCompleteStopWins) {
  StreamDecoder stream = decoder({"abcdef", "cd", "bcd"});
  EXPECT_EQ(stream.push_bytes("xabcdef"), "xa");  // "cd" and "bcd" end first, and "bcd" is the longer
  EXPECT_EQ(stream.stopped_by(), 2);
}

TEST_F(StreamDecoderTest, RefusesStopStringsThatCannotBe) {
  for (const char* stop : {"", "a\xFF"}) {
    const auto created = StreamDecoder::create(*tokenizer_, {"fine", stop});
    ASSERT_FALSE(created.ok());
    EXPECT_EQ(created.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(created.error().message.find("stop string 2"), std::string::npos);
  }
}

TEST_F(StreamDecoderTest, StreamsTokensOfAnyText) {
  const std::string text = "they know \xF0\x9F\x98\x80 and \xE4\xB8\xAD\xE6\x96\x87 well";
  StreamDecoder stream = decoder();
  std::string shown;
  const std::vector<Token> tokens = tokenizer_->encode(text, false, false).value();
  for (const Token token : tokens) {
    const std::string part = stream.push(token);
    EXPECT_TRUE(utf8_valid(part));
    shown += part;
  }
  EXPECT_EQ(shown + stream.finish(), text);
}

// The outcome by definition: bytes looked at one after the other.
std::pair<std::string, int> expected(const std::string& bytes, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= bytes.size(); ++end) {
    int best = -1;
    for (size_t i = 0; i < stops.size(); ++i) {
      if (end >= stops[i].size() && bytes.compare(end - stops[i].size(), stops[i].size(), stops[i]) == 0 &&
          (best < 0 || stops[i].size() > stops[static_cast<size_t>(best)].size())) {
        best = static_cast<int>(i);
      }
    }
    if (best >= 0) {
      return {utf8_sanitized(bytes.substr(0, end - stops[static_cast<size_t>(best)].size())), best};
    }
  }
  return {utf8_sanitized(bytes), -1};
}

// Random bytes over a small alphabet, cut at random: the same text comes out, whatever the cuts.
TEST_F(StreamDecoderTest, TheCutsOfTokensDoNotMatter) {
  Rng rng(7);
  const std::string alphabet = "aab\n\xC3\xA9\xF0\x9F\x98\x80";
  const std::vector<std::vector<std::string>> stop_sets = {{},
                                                           {"ab"},
                                                           {"aab", "ab\n"},
                                                           {"a\xC3\xA9"
                                                            "a",
                                                            "bb", "aaaa"},
                                                           {"\xF0\x9F\x98\x80"},
                                                           {"b", "ab", "aab"}};
  int n_stopped = 0;
  for (int round = 0; round < 20000; ++round) {
    const auto& stops = stop_sets[rng.below(static_cast<uint32_t>(stop_sets.size()))];
    std::string bytes;
    for (uint32_t size = rng.below(24); size > 0; --size) {
      bytes += alphabet[rng.below(static_cast<uint32_t>(alphabet.size()))];
    }
    StreamDecoder stream = decoder(stops);
    std::string shown;
    for (size_t at = 0; at < bytes.size();) {
      const size_t size = 1 + rng.below(5);
      const std::string part = stream.push_bytes(std::string_view(bytes).substr(at, size));
      ASSERT_TRUE(utf8_valid(part));
      shown += part;
      at += size;
    }
    shown += stream.finish();
    const auto [text, stopped_by] = expected(bytes, stops);
    ASSERT_EQ(shown, text) << "round " << round;
    ASSERT_EQ(stream.stopped_by(), stopped_by) << "round " << round;
    n_stopped += stopped_by >= 0 ? 1 : 0;
  }
  EXPECT_GT(n_stopped, 2000);
}

}  // namespace
}  // namespace frugal::llm
