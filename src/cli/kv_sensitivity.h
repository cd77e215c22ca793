// What errors of each layer's keys and values do to a model's answers, measured: a dictionary's own weights
// are of attention scores and outputs, and cannot know what later layers make of them.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "llm/kv/dictionary.h"
#include "frugal/llm.h"

namespace frugal::cli {

// Codes the keys, then the values of one layer after the other, and multiplies the weights of their atoms
// with the KL divergence from 32-bit keys and values that comes of it, over the cost that the weights foretold.
// Scores the second half of each window. `progress(share)` returns false to stop (kCancelled).
Status weigh_by_sensitivity(std::shared_ptr<const llm::Model> model,
                            std::span<const std::vector<llm::Token>> windows, int threads,
                            llm::Dictionary& dictionary, const std::function<bool(double)>& progress);

}  // namespace frugal::cli
