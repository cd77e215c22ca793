#include "support/tiny_vocab.h"

#include <set>

#include "base/check.h"
#include "base/text.h"

namespace frugal::llm::test {
namespace {

// Token types as llama.cpp numbers them in tokenizer.ggml.token_type.
enum : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6 };

struct Vocab {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::vector<float> scores;

  void add(const std::string& token, int32_t type, float score = 0) {
    tokens.push_back(token);
    types.push_back(type);
    scores.push_back(score);
  }
};

// Common English words. Every prefix of a word becomes a token, so that merging one letter at a time reaches
// the word.
constexpr const char* kWords[] = {
    "the",    "and",   "that",   "have",  "with",   "this",     "from",    "they",     "will",  "would",
    "there",  "their", "what",   "about", "which",  "when",     "make",    "like",     "time",  "just",
    "know",   "take",  "people", "into",  "year",   "your",     "good",    "some",     "could", "them",
    "other",  "than",  "then",   "look",  "only",   "come",     "over",    "think",    "also",  "back",
    "after",  "work",  "first",  "well",  "even",   "want",     "because", "these",    "give",  "most",
    "energy", "model", "memory", "token", "answer", "question", "number",  "language", "water", "city"};

std::string utf8(uint32_t code) {
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

// The letter that stands for a byte in byte-level BPE (GPT-2): itself when printable, else 256 and up.
std::string byte_letter(int byte) {
  const auto printable = [](int b) {
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
  };
  if (printable(byte)) return utf8(static_cast<uint32_t>(byte));
  int n_before = 0;
  for (int b = 0; b < byte; ++b) n_before += printable(b) ? 0 : 1;
  return utf8(static_cast<uint32_t>(256 + n_before));
}

// Fills up with tokens that no text makes, so that any size can be asked for.
void fill(Vocab* vocab, int n_vocab) {
  for (int i = 0; static_cast<int>(vocab->tokens.size()) < n_vocab; ++i) {
    vocab->add(strf("[extra-%d]", i), kNormal, -1e6f);
  }
}

void add_sentencepiece(Vocab* vocab, int n_vocab) {
  for (int byte = 0; byte < 256; ++byte) vocab->add(strf("<0x%02X>", byte), kByte);
  const std::string space = "\xE2\x96\x81";  // U+2581 stands for a blank
  std::set<std::string> seen;
  const auto piece = [&](const std::string& text) {
    if (static_cast<int>(vocab->tokens.size()) < n_vocab && seen.insert(text).second) {
      vocab->add(text, kNormal, -static_cast<float>(seen.size()));
    }
  };
  piece(space);
  for (char c = 'a'; c <= 'z'; ++c) piece(std::string(1, c));
  for (const char c : std::string_view(".,?!:0123456789'-\"()")) piece(std::string(1, c));
  for (char c = 'A'; c <= 'Z'; ++c) piece(std::string(1, c));
  for (const char* word : kWords) {
    const std::string whole = space + word;
    for (size_t size = space.size() + 1; size <= whole.size(); ++size) piece(whole.substr(0, size));
  }
  fill(vocab, n_vocab);
}

// Tokens and merges of byte-level BPE; `n_vocab` leaves room for the special tokens that follow.
std::vector<std::string> add_byte_bpe(Vocab* vocab, int n_vocab) {
  std::set<std::string> seen;
  for (int byte = 0; byte < 256; ++byte) {
    vocab->add(byte_letter(byte), kNormal);
    seen.insert(vocab->tokens.back());
  }
  std::vector<std::string> merges;
  const std::string space = byte_letter(' ');
  for (const char* word : kWords) {
    std::string left = space;
    for (const char* letter = word; *letter != '\0'; ++letter) {
      const std::string merged = left + *letter;
      if (seen.count(merged) == 0) {
        if (static_cast<int>(vocab->tokens.size()) >= n_vocab) break;
        seen.insert(merged);
        vocab->add(merged, kNormal);
        merges.push_back(left + " " + *letter);
      }
      left = merged;
    }
  }
  fill(vocab, n_vocab);
  return merges;
}

}  // namespace

void add_tiny_vocab(GgufBuilder* file, TinyVocab kind, int n_vocab) {
  FRUGAL_CHECK(n_vocab >= 300);
  Vocab vocab;
  if (kind == TinyVocab::kQwen) {
    const std::vector<std::string> merges = add_byte_bpe(&vocab, n_vocab - 3);
    const auto first_special = static_cast<uint32_t>(vocab.tokens.size());
    for (const char* token : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) vocab.add(token, kControl);
    file->text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "qwen2");
    file->texts("tokenizer.ggml.merges", merges);
    file->u32("tokenizer.ggml.eos_token_id", first_special + 2)
        .u32("tokenizer.ggml.padding_token_id", first_special);
    file->u32("tokenizer.ggml.bos_token_id", first_special).boolean("tokenizer.ggml.add_bos_token", false);
  } else {
    const bool gemma = kind == TinyVocab::kGemma;
    file->text("tokenizer.ggml.model", "llama").text("tokenizer.ggml.pre", "default");
    if (gemma) {
      for (const char* token : {"<pad>", "<eos>", "<bos>"}) vocab.add(token, kControl);
      vocab.add("<unk>", kUnknown);
      for (const char* token : {"<start_of_turn>", "<end_of_turn>"}) vocab.add(token, kControl);
    } else {
      vocab.add("<unk>", kUnknown);
      for (const char* token : {"<s>", "</s>"}) vocab.add(token, kControl);
    }
    add_sentencepiece(&vocab, n_vocab);
    file->u32("tokenizer.ggml.bos_token_id", gemma ? 2 : 1).u32("tokenizer.ggml.eos_token_id", gemma ? 1 : 2);
    file->u32("tokenizer.ggml.unknown_token_id", gemma ? 3 : 0).boolean("tokenizer.ggml.add_bos_token", true);
    file->boolean("tokenizer.ggml.add_space_prefix", !gemma);
    file->array<float>("tokenizer.ggml.scores", GgufValueType::kF32, vocab.scores);
  }
  FRUGAL_CHECK(static_cast<int>(vocab.tokens.size()) == n_vocab);
  file->texts("tokenizer.ggml.tokens", vocab.tokens);
  file->array<int32_t>("tokenizer.ggml.token_type", GgufValueType::kI32, vocab.types);
}

}  // namespace frugal::llm::test
