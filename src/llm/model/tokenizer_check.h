// Loading the vocabulary of a model file that may be hostile.
#pragma once

#include <memory>

#include "frugal/result.h"
#include "llm/model/gguf.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::llm {

// Whether llama.cpp can be let near the tokenizer metadata of `file`. What it would answer with an abort is
// an error here: tokens that stand twice, lists of unlike length, values of a wrong type; so is what frugal
// does not run (a tokenizer other than SentencePiece-like and byte-level BPE, a model in several files).
// Linear in the vocabulary.
Status check_tokenizer(const GgufFile& file);

// check_tokenizer(), then Tokenizer::open_checked(). `file` was opened from a path.
Result<std::unique_ptr<Tokenizer>> load_tokenizer(const GgufFile& file);

}  // namespace frugal::llm
