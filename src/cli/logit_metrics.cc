#include "cli/logit_metrics.h"

#include <algorithm>
#include <cmath>

namespace frugal::cli {

void log_softmax(std::span<const float> logits, std::span<double> out) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - static_cast<double>(largest));
  const double shift = static_cast<double>(largest) + std::log(sum);
  for (size_t i = 0; i < logits.size(); ++i) out[i] = static_cast<double>(logits[i]) - shift;
}

double kl_divergence(std::span<const double> log_p, std::span<const double> log_q) {
  double sum = 0;
  for (size_t i = 0; i < log_p.size(); ++i) {
    const double p = std::exp(log_p[i]);
    if (p > 0) sum += p * (log_p[i] - log_q[i]);
  }
  return sum;
}

size_t argmax(std::span<const double> values) {
  return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

void LogitMetrics::add(std::span<const double> log_p, size_t next_token) {
  ++positions_;
  nll_ -= log_p[next_token];
}

void LogitMetrics::add_compared(std::span<const double> log_p, std::span<const double> log_reference,
                                size_t next_token) {
  add(log_p, next_token);
  reference_nll_ -= log_reference[next_token];
  kl_.push_back(kl_divergence(log_reference, log_p));
  const size_t ours = argmax(log_p), theirs = argmax(log_reference);
  if (ours != theirs) {
    ++disagreements_;
    worst_margin_ = std::max(worst_margin_, log_reference[theirs] - log_reference[ours]);
  }
}

double LogitMetrics::perplexity() const {
  return positions_ > 0 ? std::exp(nll_ / static_cast<double>(positions_)) : 0;
}
double LogitMetrics::reference_perplexity() const {
  return kl_.empty() ? 0 : std::exp(reference_nll_ / static_cast<double>(kl_.size()));
}
double LogitMetrics::top1_agreement() const {
  return kl_.empty() ? 0 : 1 - static_cast<double>(disagreements_) / static_cast<double>(kl_.size());
}
double LogitMetrics::mean_kl() const {
  double sum = 0;
  for (const double kl : kl_) sum += kl;
  return kl_.empty() ? 0 : sum / static_cast<double>(kl_.size());
}
double LogitMetrics::kl_percentile(double share) const {
  if (kl_.empty()) return 0;
  std::vector<double> sorted = kl_;
  std::sort(sorted.begin(), sorted.end());
  return sorted[std::min(sorted.size() - 1, static_cast<size_t>(share * static_cast<double>(sorted.size())))];
}
double LogitMetrics::max_kl() const { return kl_.empty() ? 0 : *std::max_element(kl_.begin(), kl_.end()); }

}  // namespace frugal::cli
