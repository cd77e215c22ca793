// Codecs with trained books that `frugal kv eval` compares with: residual and product quantisers on what the
// csr dictionary codes (keys less their turned mean, values over their token's scale) in its metric, and the
// sparse codes of CSR (Zhang et al., AAAI 2025) as published: keys before RoPE, atoms of least squares,
// coefficients as halves and indices of 16 bits. Trained on the text of the csr dictionary.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "cli/kv_rivals.h"
#include "llm/kv/dict_train.h"
#include "llm/kv/dictionary.h"

namespace frugal::cli {

// Whether `name` is one of these.
bool is_book_rival(const std::string& name);
std::vector<std::string> book_rival_names();

// Trains the books that `names` need from what `trainer` has tapped. `dictionary` gives the metric, and how
// keys turn with the position. Rivals with online atoms take the first `prompt_tokens` of a sequence for its
// prompt. kCancelled when `progress(share)` returns false.
Result<std::vector<KvRival>> book_rivals(std::shared_ptr<const llm::Dictionary> dictionary,
                                         const llm::DictionaryTrainer& trainer, int threads,
                                         const std::vector<std::string>& names, int prompt_tokens,
                                         const std::function<bool(double)>& progress);

}  // namespace frugal::cli
