// Vocabularies that llama.cpp would end the process on are errors here, and what passes the check is safe to
// load.
#include "llm/model/tokenizer_check.h"

#include <gtest/gtest.h>

#include "support/gguf_bytes.h"
#include "support/temp_file.h"
#include "support/tiny_vocab.h"

namespace frugal::llm {
namespace {

using frugal::test::TempFile;
using test::add_tiny_vocab;
using test::GgufBuilder;
using test::TinyVocab;

GgufBuilder vocab_file(TinyVocab kind = TinyVocab::kLlama) {
  GgufBuilder file;
  file.text("general.architecture", kind == TinyVocab::kQwen ? "qwen2" : "llama");
  add_tiny_vocab(&file, kind, 400);
  return file;
}

// Leaves out the metadata entry `key`.
GgufBuilder without(GgufBuilder file, std::string_view key) {
  const std::string start = test::ByteWriter().text(key).bytes();
  std::erase_if(file.values, [&](const std::string& entry) { return entry.starts_with(start); });
  return file;
}

void expect_refused(const GgufBuilder& file, ErrorCode code, std::initializer_list<const char*> parts) {
  const TempFile saved(file.build());
  const auto opened = GgufFile::open(saved.path());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const auto loaded = load_tokenizer(*opened);
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(loaded.error().code, code) << loaded.error().message;
  EXPECT_NE(loaded.error().message.find(saved.path()), std::string::npos) << loaded.error().message;
  EXPECT_EQ(loaded.error().message.find('\n'), std::string::npos) << loaded.error().message;
  for (const char* part : parts) {
    EXPECT_NE(loaded.error().message.find(part), std::string::npos) << loaded.error().message;
  }
}

TEST(TokenizerCheck, SoundVocabulariesPass) {
  for (const TinyVocab kind : {TinyVocab::kLlama, TinyVocab::kGemma, TinyVocab::kQwen}) {
    const TempFile saved(vocab_file(kind).build());
    const auto opened = GgufFile::open(saved.path());
    ASSERT_TRUE(opened.ok());
    const auto loaded = load_tokenizer(*opened);
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    EXPECT_EQ((*loaded)->n_vocab(), 400);
  }
}

TEST(TokenizerCheck, TokensThatStandTwiceAreRefused) {
  std::vector<std::string> tokens(400);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = "t" + std::to_string(i);
  tokens[399] = "t7";
  expect_refused(without(vocab_file(), "tokenizer.ggml.tokens").texts("tokenizer.ggml.tokens", tokens),
                 ErrorCode::kCorrupt, {"token 't7'", "twice"});
  // llama.cpp gives empty tokens a name, which another token may have.
  tokens[399] = "";
  tokens[398] = "[EMPTY_399]";
  expect_refused(without(vocab_file(), "tokenizer.ggml.tokens").texts("tokenizer.ggml.tokens", tokens),
                 ErrorCode::kCorrupt, {"[EMPTY_399]", "twice"});
  // It ends a token at a zero byte, and then two may be equal.
  tokens[398] = "head";
  tokens[399] = std::string("head\0tail", 9);
  expect_refused(without(vocab_file(), "tokenizer.ggml.tokens").texts("tokenizer.ggml.tokens", tokens),
                 ErrorCode::kCorrupt, {"head", "twice"});
}

TEST(TokenizerCheck, WrongListsAreRefused) {
  expect_refused(without(vocab_file(), "tokenizer.ggml.tokens"), ErrorCode::kCorrupt,
                 {"tokenizer.ggml.tokens"});
  expect_refused(without(vocab_file(), "tokenizer.ggml.tokens").u32("tokenizer.ggml.tokens", 5),
                 ErrorCode::kCorrupt, {"tokenizer.ggml.tokens", "array", "u32"});
  expect_refused(without(vocab_file(), "tokenizer.ggml.tokens").texts("tokenizer.ggml.tokens", {}),
                 ErrorCode::kCorrupt, {"0 tokens"});
  expect_refused(without(vocab_file(), "tokenizer.ggml.scores")
                     .array<float>("tokenizer.ggml.scores", GgufValueType::kF32, {1, 2, 3}),
                 ErrorCode::kCorrupt, {"tokenizer.ggml.scores", "3 entries", "400 tokens"});
  expect_refused(without(vocab_file(), "tokenizer.ggml.scores").text("tokenizer.ggml.scores", "none"),
                 ErrorCode::kCorrupt, {"tokenizer.ggml.scores", "string"});
  expect_refused(without(vocab_file(), "tokenizer.ggml.scores")
                     .array<float>("tokenizer.ggml.scores", GgufValueType::kF32,
                                   std::vector<float>(400, __builtin_nanf(""))),
                 ErrorCode::kCorrupt, {"tokenizer.ggml.scores", "finite"});
  expect_refused(
      without(vocab_file(), "tokenizer.ggml.token_type")
          .array<float>("tokenizer.ggml.token_type", GgufValueType::kF32, std::vector<float>(400, 1)),
      ErrorCode::kCorrupt, {"tokenizer.ggml.token_type", "i32", "f32"});
  expect_refused(without(vocab_file(TinyVocab::kQwen), "tokenizer.ggml.merges"), ErrorCode::kCorrupt,
                 {"tokenizer.ggml.merges", "missing"});
  expect_refused(
      without(vocab_file(TinyVocab::kQwen), "tokenizer.ggml.merges").u32("tokenizer.ggml.merges", 1),
      ErrorCode::kCorrupt, {"tokenizer.ggml.merges", "u32"});
}

TEST(TokenizerCheck, SpecialTokensOutsideTheVocabularyAreRefused) {
  expect_refused(without(vocab_file(), "tokenizer.ggml.eos_token_id").u32("tokenizer.ggml.eos_token_id", 400),
                 ErrorCode::kCorrupt, {"tokenizer.ggml.eos_token_id", "token 400"});
  expect_refused(vocab_file().text("tokenizer.ggml.eot_token_id", "</s>"), ErrorCode::kCorrupt,
                 {"tokenizer.ggml.eot_token_id", "integer", "string"});
}

TEST(TokenizerCheck, UnsupportedTokenizersAreNamed) {
  for (const char* kind : {"t5", "bert", "rwkv", "no_vocab", "nonsense"}) {
    expect_refused(without(vocab_file(), "tokenizer.ggml.model").text("tokenizer.ggml.model", kind),
                   ErrorCode::kUnsupported, {kind, "'llama' and 'gpt2'"});
  }
  expect_refused(without(vocab_file(), "tokenizer.ggml.model"), ErrorCode::kCorrupt,
                 {"tokenizer.ggml.model", "missing"});
  expect_refused(
      without(vocab_file(TinyVocab::kQwen), "tokenizer.ggml.pre").text("tokenizer.ggml.pre", "martian"),
      ErrorCode::kCorrupt, {"unknown pre-tokenizer", "martian"});
  expect_refused(vocab_file().value<uint16_t>("split.count", GgufValueType::kU16, 3), ErrorCode::kUnsupported,
                 {"3 files", "llama-gguf-split --merge"});
}

// A byte-level vocabulary with no token for the start of a text, which it asks for: llama.cpp asserts on the
// first text.
TEST(TokenizerCheck, AMissingStartTokenIsRefused) {
  GgufBuilder file = without(vocab_file(TinyVocab::kQwen), "tokenizer.ggml.bos_token_id");
  file =
      without(std::move(file), "tokenizer.ggml.add_bos_token").boolean("tokenizer.ggml.add_bos_token", true);
  std::vector<std::string> few = {"a", "b", "c"};
  file = without(std::move(file), "tokenizer.ggml.tokens").texts("tokenizer.ggml.tokens", few);
  file = without(std::move(file), "tokenizer.ggml.token_type");
  file = without(std::move(file), "tokenizer.ggml.padding_token_id");
  file = without(std::move(file), "tokenizer.ggml.eos_token_id");
  expect_refused(file, ErrorCode::kCorrupt, {"start or end of each text"});
}

// No token for most bytes: an error for the text, not the end of the process.
TEST(TokenizerCheck, AVocabularyWithoutByteTokensFailsOnTheTextOnly) {
  GgufBuilder file = without(vocab_file(), "tokenizer.ggml.tokens");
  std::vector<std::string> tokens;
  for (int i = 0; i < 400; ++i) tokens.push_back("w" + std::to_string(i));
  file.texts("tokenizer.ggml.tokens", tokens);
  const TempFile saved(without(std::move(file), "tokenizer.ggml.token_type").build());
  const auto opened = GgufFile::open(saved.path());
  ASSERT_TRUE(opened.ok());
  const auto loaded = load_tokenizer(*opened);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  const auto tokens_of = (*loaded)->encode("z\xC3\xA9", false, false);
  ASSERT_FALSE(tokens_of.ok());
  EXPECT_EQ(tokens_of.error().code, ErrorCode::kCorrupt);
}

// Our reader allows what ggml's does not (gaps between tensors): llama.cpp's refusal comes back as an error
// with its reason.
TEST(TokenizerCheck, WhatOnlyLlamaCppRefusesComesBackWithItsReason) {
  GgufBuilder file = vocab_file();
  file.text("general.name", "x");
  file = without(std::move(file), "general.architecture").text("general.architecture", "martian");
  expect_refused(file, ErrorCode::kCorrupt, {"unknown model architecture", "martian"});
}

}  // namespace
}  // namespace frugal::llm
