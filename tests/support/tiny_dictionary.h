// A small random dictionary whose bases are well conditioned: for tests of the codec and its file.
#pragma once

#include "llm/kv/dictionary.h"

namespace frugal::llm::test {

Dictionary tiny_dictionary(uint64_t seed, int n_layers, int n_kv_heads, int head_dim);

}  // namespace frugal::llm::test
