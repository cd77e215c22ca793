// The vocabularies of tiny models: a SentencePiece-like one (llama, gemma) and a byte-level BPE (qwen), both
// able to encode any text.
#pragma once

#include "support/gguf_bytes.h"

namespace frugal::llm::test {

enum class TinyVocab { kLlama, kGemma, kQwen };

// Adds the tokenizer's metadata, `n_vocab` tokens in all (at least 300), to `file`.
void add_tiny_vocab(GgufBuilder* file, TinyVocab kind, int n_vocab);

}  // namespace frugal::llm::test
