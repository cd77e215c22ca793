// What errors of each layer's keys and values do to a model's answers, measured: a dictionary's own weights
// are of attention scores and outputs, and cannot know what later layers make of them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/recall_text.h"
#include "frugal/llm.h"
#include "llm/kv/dictionary.h"

namespace frugal::cli {

// What is measured on.
struct SensitivityTexts {
  std::vector<std::vector<llm::Token>> windows;
  std::vector<RecallText> recalls;
};

// Codes the keys, then the values of one layer after the other, and multiplies the weights of their atoms
// with the KL divergence from 32-bit keys and values that comes of it, over the cost that the weights
// foretold. Scores the second half of each window. Then the same of answers, head by head: errors that
// hardly show in ordinary text, since few heads carry what has to be remembered exactly.
//
// `progress(share)` returns false to stop (kCancelled). What was measured by then stands in the file
// `partial`, and a later call with the same dictionary and texts goes on from there, to the same weights;
// at the end the file is removed. An empty path keeps nothing; a file of something else is measured over.
Status weigh_by_sensitivity(std::shared_ptr<const llm::Model> model, const SensitivityTexts& texts,
                            int threads, const std::string& partial, llm::Dictionary& dictionary,
                            const std::function<bool(double)>& progress);

}  // namespace frugal::cli
