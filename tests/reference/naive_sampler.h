// The sampler's naive twin: one sort, then each stage word for word as its definition reads, with the
// standard library's exp. Allocates at will.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "llm/decode/sampler.h"

namespace frugal::reference {

struct NaiveProbability {
  llm::Token id;
  double p;
};

// The distribution that the draw is made from, likeliest first, ids ascending among equals. `seen` holds
// every token accepted so far.
inline std::vector<NaiveProbability> naive_distribution(std::span<const float> logits,
                                                        std::span<const llm::Token> seen,
                                                        const llm::SamplerOptions& options) {
  std::vector<std::pair<float, llm::Token>> ranked;
  std::map<llm::Token, int> counts;
  const size_t window = std::min(seen.size(), static_cast<size_t>(options.penalty_last_n));
  for (const llm::Token token : seen.last(window)) ++counts[token];
  for (size_t i = 0; i < logits.size(); ++i) {
    float logit = logits[i];
    if (const auto found = counts.find(static_cast<llm::Token>(i)); found != counts.end()) {
      logit = logit <= 0 ? logit * options.repeat_penalty : logit / options.repeat_penalty;
      logit -= static_cast<float>(found->second) * options.frequency_penalty + options.presence_penalty;
    }
    ranked.emplace_back(logit, static_cast<llm::Token>(i));
  }
  std::sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  if (options.temperature == 0) return {{ranked[0].second, 1.0}};
  if (options.top_k > 0 && static_cast<size_t>(options.top_k) < ranked.size()) {
    ranked.resize(static_cast<size_t>(options.top_k));
  }
  const auto probabilities = [&ranked](double temperature) {
    std::vector<double> p;
    double total = 0;
    for (const auto& [logit, id] : ranked) {
      p.push_back(
          std::exp((static_cast<double>(logit) - static_cast<double>(ranked[0].first)) / temperature));
      total += p.back();
    }
    for (double& value : p) value /= total;
    return p;
  };
  if (options.top_p < 1) {
    const std::vector<double> p = probabilities(1);
    double sum = 0;
    size_t kept = 0;
    while (kept < p.size() && sum < static_cast<double>(options.top_p)) sum += p[kept++];
    ranked.resize(kept);
  }
  if (options.min_p > 0) {
    const std::vector<double> p = probabilities(1);
    size_t kept = 1;
    while (kept < p.size() && p[kept] >= static_cast<double>(options.min_p) * p[0]) ++kept;
    ranked.resize(kept);
  }
  const std::vector<double> p = probabilities(static_cast<double>(options.temperature));
  std::vector<NaiveProbability> distribution;
  for (size_t i = 0; i < p.size(); ++i) distribution.push_back({ranked[i].second, p[i]});
  return distribution;
}

}  // namespace frugal::reference
