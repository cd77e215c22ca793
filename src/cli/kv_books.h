// Codecs with trained books that `frugal kv eval` compares with: residual and product quantisers, and the
// plain matching pursuit of CSR (Zhang et al., AAAI 2025) without its online atoms. Trained on the text of
// the csr dictionary.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "cli/kv_rivals.h"
#include "llm/kv/dictionary.h"

namespace frugal::cli {

// Whether `name` is one of these.
bool is_book_rival(const std::string& name);
std::vector<std::string> book_rival_names();

// Reads the windows with the model and trains the books that `names` need. `dictionary` tells how keys turn
// with the position: the pursuit codes keys as they are before. kCancelled when `progress(share)` returns
// false.
Result<std::vector<KvRival>> book_rivals(std::shared_ptr<const llm::Model> model,
                                         std::shared_ptr<const llm::Dictionary> dictionary,
                                         std::span<const std::vector<llm::Token>> windows, int threads,
                                         const std::vector<std::string>& names,
                                         const std::function<bool(double)>& progress);

}  // namespace frugal::cli
