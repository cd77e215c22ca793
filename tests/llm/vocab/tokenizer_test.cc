#include "llm/vocab/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "frugal/log.h"
#include "llm/model/gguf.h"
#include "llm/model/tokenizer_check.h"
#include "llm/vocab/chat_template.h"
#include "support/temp_file.h"
#include "support/tiny_gguf.h"

namespace frugal::llm {
namespace {

using frugal::test::TempFile;
using test::tiny_architectures;
using test::TinyModel;

// Kept open: the real models take a while.
const Tokenizer& real_tokenizer(const std::string& name) {
  static std::vector<std::pair<std::string, std::unique_ptr<Tokenizer>>> open;
  for (const auto& [known, tokenizer] : open) {
    if (known == name) return *tokenizer;
  }
  const char* folder = std::getenv("FRUGAL_MODELS");
  EXPECT_NE(folder, nullptr)
      << "set FRUGAL_MODELS to the folder that scripts/bootstrap.py --print models names";
  const auto file = GgufFile::open(std::string(folder) + "/" + name);
  EXPECT_TRUE(file.ok()) << file.error().message;
  auto loaded = load_tokenizer(*file);
  EXPECT_TRUE(loaded.ok()) << loaded.error().message;
  open.emplace_back(name, std::move(loaded).value());
  return *open.back().second;
}

const Tokenizer& smollm() { return real_tokenizer("smollm2-135m-instruct-q4_1.gguf"); }
const Tokenizer& gemma() { return real_tokenizer("gemma-3-270m-q4_k_m.gguf"); }

std::unique_ptr<Tokenizer> tiny_tokenizer(const TinyModel& model) {
  const TempFile file(tiny_gguf(model));
  const auto read = GgufFile::open(file.path());
  EXPECT_TRUE(read.ok());
  auto loaded = load_tokenizer(*read);
  EXPECT_TRUE(loaded.ok()) << loaded.error().message;
  return std::move(loaded).value();
}

constexpr const char* kTexts[] = {
    "",
    "a",
    "The water in the city, 42 years ago.",
    "  two blanks, a\ttab\nand\r\nlines\n\n",
    "na\xC3\xAFve caf\xC3\xA9 \xE4\xB8\xAD\xE6\x96\x87 "
    "\xF0\x9F\x98\x80\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x9A\x80",
    "\xE2\x96\x81 the letter that stands for a blank",
    "int main() { return 0; }  // <|im_end|> <eos> </s>",
};

class EveryVocabulary : public testing::TestWithParam<std::string> {
 protected:
  const Tokenizer& tokenizer() {
    if (GetParam() == "smollm2") return smollm();
    if (GetParam() == "gemma270m") return gemma();
    if (!tiny_) {
      TinyModel model;
      model.architecture = GetParam();
      tiny_ = tiny_tokenizer(model);
    }
    return *tiny_;
  }
  std::unique_ptr<Tokenizer> tiny_;
};

TEST_P(EveryVocabulary, DecodesWhatItEncoded) {
  for (const char* text : kTexts) {
    const auto tokens = tokenizer().encode(text, /*add_special=*/false, /*parse_special=*/false);
    ASSERT_TRUE(tokens.ok()) << tokens.error().message;
    for (const Token token : *tokens) EXPECT_TRUE(token >= 0 && token < tokenizer().n_vocab());
    // U+2581 is how these vocabularies spell a blank: it comes back as one.
    if (std::string_view(text).starts_with("\xE2\x96\x81") && GetParam() != "smollm2" &&
        !GetParam().starts_with("qwen")) {
      continue;
    }
    EXPECT_EQ(tokenizer().decode(*tokens).value(), text);
  }
}

TEST_P(EveryVocabulary, PiecesJoinToTheText) {
  const std::string text = "they know the city \xF0\x9F\x98\x80 well";
  const auto tokens = tokenizer().encode(text, false, false).value();
  std::string joined;
  for (const Token token : tokens) joined += tokenizer().piece(token);
  if (!joined.starts_with("they")) joined.erase(0, 1);  // the blank that llama's vocabulary puts in front
  EXPECT_EQ(joined, text);
}

TEST_P(EveryVocabulary, SpecialTokensAreTextUntilTheyAreParsed) {
  const Tokenizer& t = tokenizer();
  ASSERT_NE(t.eos(), kNoToken);
  ASSERT_NE(t.bos(), kNoToken);
  EXPECT_TRUE(t.is_end_of_generation(t.eos()));
  EXPECT_EQ(t.piece(t.eos()), "");
  const std::string spelled = t.spelling(t.eos());
  EXPECT_FALSE(spelled.empty());
  EXPECT_EQ(t.encode(spelled, false, true).value(), std::vector<Token>{t.eos()});
  EXPECT_GT(t.encode(spelled, false, false).value().size(), 1u);
  const auto with_special = t.encode("the", true, false).value(),
             without = t.encode("the", false, false).value();
  EXPECT_EQ(with_special.size(), without.size() + (t.adds_bos() ? 1 : 0));
  if (t.adds_bos()) {
    EXPECT_EQ(with_special.front(), t.bos());
  }
  EXPECT_FALSE(t.is_end_of_generation(without.back()));
}

TEST_P(EveryVocabulary, NumbersThatAreNoTokensAreRefused) {
  const Tokenizer& t = tokenizer();
  for (const Token token : {Token{-1}, t.n_vocab(), INT32_MAX, INT32_MIN}) {
    const auto decoded = t.decode(std::vector<Token>{0, token});
    ASSERT_FALSE(decoded.ok());
    EXPECT_EQ(decoded.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(decoded.error().message.find(std::to_string(token)), std::string::npos);
    EXPECT_EQ(t.piece(token), "");
    EXPECT_EQ(t.spelling(token), "");
    EXPECT_FALSE(t.is_end_of_generation(token));
  }
}

TEST_P(EveryVocabulary, InvalidUtf8IsReplacedAndSaidSo) {
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel level, std::string_view message) {
    if (level == LogLevel::kWarning) warnings.emplace_back(message);
  });
  const auto tokens = tokenizer().encode("the city\xFF\xC3 of \xE2\x82", false, false);
  set_log_sink({});
  ASSERT_TRUE(tokens.ok());
  const std::string decoded = tokenizer().decode(*tokens).value();
  EXPECT_EQ(decoded, "the city\xEF\xBF\xBD\xEF\xBF\xBD of \xEF\xBF\xBD\xEF\xBF\xBD");
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("byte 8"), std::string::npos) << warnings[0];
}

// Every token of the vocabulary decodes without a fault, alone and after another.
TEST_P(EveryVocabulary, EveryTokenHasAPiece) {
  const Tokenizer& t = tokenizer();
  size_t n_bytes = 0;
  for (Token token = 0; token < t.n_vocab(); ++token) {
    n_bytes += t.piece(token).size();
    EXPECT_FALSE(t.spelling(token).empty()) << token;
  }
  EXPECT_GT(n_bytes, static_cast<size_t>(t.n_vocab()));
}

// Long runs without a word boundary: the pre-tokenizer must neither overflow a stack nor take for ever.
TEST_P(EveryVocabulary, LongMonotonousTextsAreEncoded) {
  for (const std::string& unit : {std::string("a"), std::string(" "), std::string("7"), std::string("\n"),
                                  std::string("\xE4\xB8\xAD"), std::string("!?")}) {
    std::string text;
    while (text.size() < 30000) text += unit;
    const auto tokens = tokenizer().encode(text, false, false);
    ASSERT_TRUE(tokens.ok()) << tokens.error().message;
    EXPECT_EQ(tokenizer().decode(*tokens).value().size(), text.size());
  }
}

TEST_P(EveryVocabulary, ChatsEndWithTheOpeningOfAnAnswer) {
  const char* name = GetParam() == "gemma270m" ? "gemma" : "";  // a base model, without a template of its own
  const std::vector<ChatMessage> chat = {{"user", "What is a token?"}};
  const auto open = tokenizer().apply_chat_template(chat, true, name),
             closed = tokenizer().apply_chat_template(chat, false, name);
  ASSERT_TRUE(open.ok()) << open.error().message;
  ASSERT_TRUE(closed.ok());
  EXPECT_NE(closed->find("What is a token?"), std::string::npos);
  EXPECT_TRUE(open->starts_with(*closed));
  // Parsed, a marker is one token; as text it is several. Llama 2's markers are text to this vocabulary
  // anyway.
  const size_t n_parsed = tokenizer().encode(*open, true, true).value().size();
  const size_t n_as_text = tokenizer().encode(*open, true, false).value().size();
  if (GetParam() == "llama") {
    EXPECT_LE(n_parsed, n_as_text);
  } else {
    EXPECT_LT(n_parsed, n_as_text);
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, EveryVocabulary,
                         testing::Values("llama", "qwen2", "qwen3", "gemma3", "smollm2", "gemma270m"),
                         [](const auto& vocabulary) { return vocabulary.param; });

TEST(Tokenizer, KnowsTheRealVocabularies) {
  EXPECT_EQ(smollm().n_vocab(), 49152);
  EXPECT_EQ(smollm().spelling(smollm().bos()), "<|im_start|>");
  EXPECT_EQ(smollm().spelling(smollm().eos()), "<|im_end|>");
  EXPECT_FALSE(smollm().adds_bos());
  EXPECT_EQ(gemma().n_vocab(), 262144);
  EXPECT_TRUE(gemma().adds_bos());
  EXPECT_EQ(gemma().spelling(gemma().eos()), "<eos>");
  // <end_of_turn> ends an answer although the file does not name it.
  EXPECT_TRUE(gemma().is_end_of_generation(gemma().encode("<end_of_turn>", false, true)->front()));
}

// What Hugging Face's transformers render from the Jinja template in the file, default system message
// included.
TEST(ChatTemplate, SmolLm2RendersAsItsJinjaSays) {
  EXPECT_EQ(smollm().chat_template_kind(), "chatml");
  const std::vector<ChatMessage> chat = {{"user", "Hello"}, {"assistant", "Hi."}, {"user", "Bye"}};
  EXPECT_EQ(
      smollm().apply_chat_template(chat, true).value(),
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
      "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nBye<|im_"
      "end|>\n"
      "<|im_start|>assistant\n");
  const std::vector<ChatMessage> own = {{"system", "Be brief."}, {"user", "Hello"}};
  EXPECT_EQ(smollm().apply_chat_template(own, false).value(),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n");
}

TEST(ChatTemplate, FamiliesAreRecognised) {
  for (const auto& [architecture, family] :
       {std::pair("qwen2", "chatml"), std::pair("gemma3", "gemma"), std::pair("llama", "llama2-sys-bos")}) {
    TinyModel model;
    model.architecture = architecture;
    EXPECT_EQ(tiny_tokenizer(model)->chat_template_kind(), family);
  }
  EXPECT_EQ(recognise_chat_template("<|start_header_id|> and <|end_header_id|>"), "llama3");
  EXPECT_EQ(recognise_chat_template("{{ messages }}"), "");
  EXPECT_EQ(recognise_chat_template(""), "");
}

TEST(ChatTemplate, MissingAndUnknownTemplatesNameTheWayOut) {
  const std::vector<ChatMessage> chat = {{"user", "Hello"}};
  const auto none = gemma().apply_chat_template(chat, true);
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code, ErrorCode::kNotFound);
  EXPECT_NE(none.error().message.find("--chat-template"), std::string::npos);
  EXPECT_NE(gemma().apply_chat_template(chat, true, "gemma")->find("<start_of_turn>user\nHello"),
            std::string::npos);

  TinyModel model;
  model.chat_template = "{% for m in messages %}~{{ m.content }}~{% endfor %}";
  const auto odd = tiny_tokenizer(model);
  EXPECT_EQ(odd->chat_template_kind(), "");
  EXPECT_EQ(odd->chat_template_source(), model.chat_template);
  const auto unknown = odd->apply_chat_template(chat, true);
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(unknown.error().message.find("--chat-template"), std::string::npos);
  EXPECT_NE(unknown.error().message.find("chatml"), std::string::npos);
  const auto misnamed = odd->apply_chat_template(chat, true, "chatlm");
  ASSERT_FALSE(misnamed.ok());
  EXPECT_EQ(misnamed.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(misnamed.error().message.find("'chatlm'"), std::string::npos);
  EXPECT_FALSE(smollm().apply_chat_template({}, true).ok());
}

TEST(ChatTemplate, DefaultSystemMessageIsTheLiteralOne) {
  EXPECT_EQ(default_system_message("{{ '<|im_start|>system\\nYou are \"Q\".\\nBe kind.<|im_end|>\\n' }}"),
            "You are \"Q\".\nBe kind.");
  EXPECT_EQ(default_system_message("{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>' }}"), "");
  EXPECT_EQ(default_system_message("{{- '<|im_start|>system\\n' }}{{ '<|im_start|>system\nHi.<|im_end|>' }}"),
            "Hi.");
  EXPECT_EQ(default_system_message("<|im_start|>system"), "");
  EXPECT_EQ(default_system_message("'<|im_start|>system\\"), "");
}

TEST(ChatTemplate, MessagesAreCarriedWhole) {
  const std::vector<ChatMessage> chat = {{"user", std::string("a\0b\xFF", 4) + std::string(20000, 'x')}};
  const std::string rendered = smollm().apply_chat_template(chat, true).value();
  EXPECT_NE(rendered.find("a\xEF\xBF\xBD"
                          "b\xEF\xBF\xBDxxx"),
            std::string::npos);
  EXPECT_GT(rendered.size(), 20000u);
  EXPECT_TRUE(rendered.ends_with("<|im_start|>assistant\n"));
}

}  // namespace
}  // namespace frugal::llm
