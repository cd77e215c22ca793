// What errors of each layer's keys and values do to a model's answers, measured: a dictionary's own weights
// are of attention scores and outputs, and cannot know what later layers make of them.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "frugal/llm.h"
#include "llm/kv/dictionary.h"

namespace frugal::cli {

// Codes the keys, then the values of one layer after the other, and multiplies the weights of their atoms
// with the KL divergence from 32-bit keys and values that comes of it, over the cost that the weights
// foretold. Scores the second half of each window.
//
// `progress(share)` returns false to stop (kCancelled). What was measured by then stands in the file
// `partial`, and a later call with the same dictionary and windows goes on from there, to the same weights;
// at the end the file is removed. An empty path keeps nothing; a file of something else is measured over.
Status weigh_by_sensitivity(std::shared_ptr<const llm::Model> model,
                            std::span<const std::vector<llm::Token>> windows, int threads,
                            const std::string& partial, llm::Dictionary& dictionary,
                            const std::function<bool(double)>& progress);

}  // namespace frugal::cli
