#include "llm/decode/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/text.h"

namespace frugal::llm {

namespace {

constexpr int kMaxWindow = 65536;
// Candidates ranked at first when top-p runs without top-k. Real distributions rarely spread further; the
// number grows fourfold until the probabilities suffice.
constexpr size_t kFirstRanked = 256;

Status out_of_range(const char* option, double value, const char* range) {
  return {ErrorCode::kInvalidArgument, strf("%s is %g, but must be %s", option, value, range)};
}

bool within(float value, float low, float high) { return value >= low && value <= high; }  // false for NaN

// Is a NaN or an infinity among `values`? In bits, so that the loop needs no branch.
bool any_special(std::span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t special = 0;
  for (const float value : values) {
    special |= static_cast<uint32_t>((std::bit_cast<uint32_t>(value) & kExponent) == kExponent);
  }
  return special != 0;
}

// The index of the largest value, the first of equals. Eight running maxima, so that they fill a vector
// register.
size_t first_largest(std::span<const float> values) {
  constexpr size_t kLanes = 8;
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, values[0]);
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
    }
  }
  float largest = *std::max_element(lanes, lanes + kLanes);
  for (; i < values.size(); ++i) largest = std::max(largest, values[i]);
  return static_cast<size_t>(std::find(values.begin(), values.end(), largest) - values.begin());
}

}  // namespace

Token likeliest_token(std::span<const float> logits) {
  const size_t idx = logits.empty() ? 0 : first_largest(logits);
  return idx < logits.size() ? static_cast<Token>(idx) : -1;
}

Status validate(const SamplerOptions& options) {
  if (!within(options.temperature, 0, 100)) {
    return out_of_range("temperature", options.temperature, "from 0 (greedy) to 100");
  }
  if (options.top_k < 0) return out_of_range("top_k", options.top_k, "0 (off) or more");
  if (!within(options.top_p, 0, 1) || options.top_p == 0) {
    return out_of_range("top_p", options.top_p, "above 0 and at most 1 (off)");
  }
  if (!within(options.min_p, 0, 1)) return out_of_range("min_p", options.min_p, "from 0 (off) to 1");
  if (!within(options.repeat_penalty, 0.01f, 100)) {
    return out_of_range("repeat_penalty", options.repeat_penalty, "from 0.01 to 100 (1 is off)");
  }
  if (!within(options.frequency_penalty, -100, 100)) {
    return out_of_range("frequency_penalty", options.frequency_penalty, "from -100 to 100 (0 is off)");
  }
  if (!within(options.presence_penalty, -100, 100)) {
    return out_of_range("presence_penalty", options.presence_penalty, "from -100 to 100 (0 is off)");
  }
  if (options.penalty_last_n < 0 || options.penalty_last_n > kMaxWindow) {
    return out_of_range("penalty_last_n", options.penalty_last_n, "from 0 (no penalties) to 65536");
  }
  return {};
}

double portable_exp(double x) {
  if (x < -708) return 0;
  // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first short enough for n * kLn2High to be
  // exact.
  constexpr double kLn2High = 0x1.62e42fefa0000p-1, kLn2Low = 0x1.cf79abc9e3b3ap-40;
  const double n = std::floor(x * 0x1.71547652b82fep+0 + 0.5);
  const double r = (x - n * kLn2High) - n * kLn2Low;
  // Taylor series to r^13 / 13!: the first term left out is below 0.3466^14 / 14! = 4e-18.
  constexpr double kInverseFactorials[] = {1.0,
                                           1.0,
                                           1.0 / 2,
                                           1.0 / 6,
                                           1.0 / 24,
                                           1.0 / 120,
                                           1.0 / 720,
                                           1.0 / 5040,
                                           1.0 / 40320,
                                           1.0 / 362880,
                                           1.0 / 3628800,
                                           1.0 / 39916800,
                                           1.0 / 479001600,
                                           1.0 / 6227020800};
  double sum = kInverseFactorials[13];
  for (int i = 12; i >= 0; --i) sum = sum * r + kInverseFactorials[i];
  const auto exponent = static_cast<uint64_t>(1023 + static_cast<int>(n));
  return sum * std::bit_cast<double>(exponent << 52);
}

Sampler::Sampler(const SamplerOptions& options, int n_vocab)
    : options_(options), n_vocab_(n_vocab), rng_(options.seed) {
  const auto n = static_cast<size_t>(n_vocab);
  if (!options_.greedy()) {
    candidates_.reserve(n);
    weights_.reserve(n);
  }
  if (options_.penalises()) {
    penalised_.resize(n);
    seen_.resize(n);
    window_.resize(static_cast<size_t>(options_.penalty_last_n));
  }
}

Result<Sampler> Sampler::create(const SamplerOptions& options, int n_vocab) {
  FRUGAL_TRY_STATUS(validate(options));
  if (n_vocab < 1)
    return {ErrorCode::kInvalidArgument, strf("a vocabulary of %d tokens has none to pick", n_vocab)};
  return Sampler(options, n_vocab);
}

void Sampler::reset() {
  rng_ = Rng(options_.seed);
  std::fill(seen_.begin(), seen_.end(), 0);
  window_next_ = window_size_ = 0;
}

void Sampler::accept(Token token) {
  if (window_.empty()) return;
  // A token from outside the vocabulary (of another model) has no logit to penalise, and still fills a place.
  const auto known = [this](Token t) { return t >= 0 && t < n_vocab_; };
  if (window_size_ == window_.size()) {
    const Token oldest = window_[window_next_];
    if (known(oldest)) --seen_[static_cast<size_t>(oldest)];
  } else {
    ++window_size_;
  }
  window_[window_next_] = token;
  if (known(token)) ++seen_[static_cast<size_t>(token)];
  window_next_ = (window_next_ + 1) % window_.size();
}

Status Sampler::check(std::span<const float> logits) const {
  if (logits.size() != static_cast<size_t>(n_vocab_)) {
    return {ErrorCode::kInvalidArgument,
            strf("a row of %zu logits for a vocabulary of %d tokens", logits.size(), n_vocab_)};
  }
  if (!any_special(logits)) return {};
  bool any_finite = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isfinite(logits[i])) {
      any_finite = true;
    } else if (!(logits[i] < 0)) {  // NaN or +infinity; -infinity marks a token that must not come
      return {ErrorCode::kCorrupt,
              strf("the model computed %s as the logit of token %zu: its weights are damaged, or "
                   "overflow; check the file with `frugal inspect`",
                   std::isnan(logits[i]) ? "NaN" : "infinity", i)};
    }
  }
  if (!any_finite) {
    return {ErrorCode::kCorrupt,
            "the model gives every token the logit -infinity: its weights are damaged, or overflow; "
            "check the file with `frugal inspect`"};
  }
  return {};
}

std::span<const float> Sampler::penalised(std::span<const float> logits) {
  std::copy(logits.begin(), logits.end(), penalised_.begin());
  for (size_t i = 0; i < window_size_; ++i) {
    const Token token = window_[i];
    if (token < 0 || token >= n_vocab_) continue;
    const auto idx = static_cast<size_t>(token);
    const float before = logits[idx];
    const auto count = static_cast<float>(seen_[idx]);
    // Dividing a negative logit would make its token likelier (Keskar et al. 2019 divide always).
    float after = before <= 0 ? before * options_.repeat_penalty : before / options_.repeat_penalty;
    after -= count * options_.frequency_penalty + options_.presence_penalty;
    // From `logits` and not from the row written: a token that stands in the window twice is penalised once.
    constexpr float kMost = std::numeric_limits<float>::max();
    penalised_[idx] = std::isfinite(before) ? std::clamp(after, -kMost, kMost) : before;
  }
  return penalised_;
}

bool Sampler::ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

void Sampler::keep_top_k(std::span<const float> logits) {
  candidates_.clear();
  n_sorted_ = 0;
  const auto k = static_cast<size_t>(options_.top_k);
  if (k == 0 || k >= logits.size()) {
    for (size_t i = 0; i < logits.size(); ++i) candidates_.push_back({logits[i], static_cast<Token>(i)});
    return;
  }
  // A heap with the worst of the best k on top: most logits are refused by one comparison.
  for (size_t i = 0; i < logits.size(); ++i) {
    const Candidate candidate{logits[i], static_cast<Token>(i)};
    if (candidates_.size() < k) {
      candidates_.push_back(candidate);
      if (candidates_.size() == k) std::make_heap(candidates_.begin(), candidates_.end(), ranks_before);
    } else if (ranks_before(candidate, candidates_.front())) {
      std::pop_heap(candidates_.begin(), candidates_.end(), ranks_before);
      candidates_.back() = candidate;
      std::push_heap(candidates_.begin(), candidates_.end(), ranks_before);
    }
  }
  std::sort_heap(candidates_.begin(), candidates_.end(), ranks_before);
  n_sorted_ = candidates_.size();
}

float Sampler::largest_logit() const {
  if (n_sorted_ > 0) return candidates_.front().logit;
  float largest = candidates_.front().logit;
  for (const Candidate& candidate : candidates_) largest = std::max(largest, candidate.logit);
  return largest;
}

void Sampler::keep_top_p() {
  if (options_.top_p >= 1) return;
  const double largest = largest_logit();
  double total = 0;
  for (const Candidate& candidate : candidates_) total += portable_exp(candidate.logit - largest);
  const double wanted = total * static_cast<double>(options_.top_p);
  double sum = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (i == n_sorted_) {  // ranks are worked out only as far as they are asked for
      n_sorted_ = std::min(candidates_.size(), std::max(kFirstRanked, 4 * n_sorted_));
      std::partial_sort(candidates_.begin() + static_cast<ptrdiff_t>(i),
                        candidates_.begin() + static_cast<ptrdiff_t>(n_sorted_), candidates_.end(),
                        ranks_before);
    }
    sum += portable_exp(candidates_[i].logit - largest);
    if (sum >= wanted) {
      candidates_.resize(i + 1);
      break;
    }
  }
  n_sorted_ = candidates_.size();
}

void Sampler::keep_min_p() {
  if (options_.min_p <= 0) return;
  const double largest = largest_logit();
  const auto too_small = [&](const Candidate& candidate) {
    return portable_exp(candidate.logit - largest) < static_cast<double>(options_.min_p);
  };
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), too_small), candidates_.end());
  n_sorted_ = std::min(n_sorted_, candidates_.size());
}

Token Sampler::draw() {
  const double largest = largest_logit();
  const auto temperature = static_cast<double>(options_.temperature);
  weights_.clear();
  double total = 0;
  for (const Candidate& candidate : candidates_) {
    weights_.push_back(portable_exp((candidate.logit - largest) / temperature));
    total += weights_.back();
  }
  const double target = rng_.uniform() * total;
  double sum = 0;
  size_t chosen = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (weights_[i] == 0) continue;
    chosen = i;  // stays the last possible token if the product above was rounded up to the total
    sum += weights_[i];
    if (sum > target) break;
  }
  return candidates_[chosen].id;
}

Result<Token> Sampler::sample(std::span<const float> logits) {
  FRUGAL_TRY_STATUS(check(logits));
  if (options_.penalises()) logits = penalised(logits);
  if (options_.greedy()) return static_cast<Token>(first_largest(logits));
  keep_top_k(logits);
  keep_top_p();
  keep_min_p();
  FRUGAL_DCHECK(!candidates_.empty());  // the largest logit passes every stage
  return draw();
}

}  // namespace frugal::llm
