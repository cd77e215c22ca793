// How far two engines' next-token distributions are apart, over many positions.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace frugal::cli {

// Log-probabilities of a row of logits, in double: x - log(sum(exp(x))).
void log_softmax(std::span<const float> logits, std::span<double> out);

// KL(p || q) in nats of two rows of log-probabilities; never below 0 but for rounding.
double kl_divergence(std::span<const double> log_p, std::span<const double> log_q);

size_t argmax(std::span<const double> values);  // the first of equals

// Sums up positions. Perplexity is exp(mean of -log p(token that came)).
class LogitMetrics {
 public:
  void add(std::span<const double> log_p, size_t next_token);
  void add_compared(std::span<const double> log_p, std::span<const double> log_reference, size_t next_token);

  size_t positions() const { return positions_; }
  double perplexity() const;
  double reference_perplexity() const;
  double top1_agreement() const;  // share of compared positions, in [0, 1]
  double mean_kl() const;         // KL(reference || ours), nats
  double kl_percentile(double share) const;
  double max_kl() const;
  // Positions where the likeliest tokens differ, and the reference's lead of its first over ours there, in
  // nats: the largest one tells rounding from a wrong model.
  size_t disagreements() const { return disagreements_; }
  double worst_disagreement_margin() const { return worst_margin_; }

 private:
  size_t positions_ = 0, disagreements_ = 0;
  double nll_ = 0, reference_nll_ = 0, worst_margin_ = 0;
  std::vector<double> kl_;
};

}  // namespace frugal::cli
