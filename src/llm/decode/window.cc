#include "llm/decode/window.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace frugal::llm {

namespace {

// What a draft must promise over none: estimates err by some per cent, and a step that takes longer for
// nothing is worse than one that could have been shorter.
constexpr double kLeastGain = 1.02;
// Pairs that the prior is worth.
constexpr size_t kPriorPairs = 5;
// No machine reads a row for less, and none for more than a forward of its own.
constexpr double kLeastShare = 0.03, kMostShare = 1.1;

}  // namespace

StepCosts::StepCosts(double per_row) : per_row_(per_row) {
  std::fill(shares_.begin(), shares_.begin() + kPriorPairs, per_row);
  n_ = next_ = kPriorPairs;
}

void StepCosts::add(int rows, double seconds) {
  if (rows < 1 || !(seconds > 0) || !std::isfinite(seconds)) return;
  const int few = std::min(rows, last_rows_), many = std::max(rows, last_rows_);
  const double ratio = rows > last_rows_ ? seconds / last_seconds_ : last_seconds_ / seconds;
  const bool pair = last_rows_ > 0 && few != many;
  last_rows_ = rows;
  last_seconds_ = seconds;
  if (!pair) return;
  // ratio = (1 + s (many - 1)) / (1 + s (few - 1)), solved for s.
  const double under = (many - 1) - ratio * (few - 1);
  const double share = ratio <= 1 ? kLeastShare : under <= 0 ? kMostShare : (ratio - 1) / under;
  shares_[next_] = std::clamp(share, kLeastShare, kMostShare);
  next_ = (next_ + 1) % kKept;
  n_ = std::min(n_ + 1, kKept);
  std::array<double, kKept> sorted = shares_;
  const auto middle = sorted.begin() + static_cast<ptrdiff_t>(n_ / 2);
  std::nth_element(sorted.begin(), middle, sorted.begin() + static_cast<ptrdiff_t>(n_));
  per_row_ = *middle;
}

void choose_lengths(const StepCosts& costs, std::span<const DraftLine> lines, int most_rows,
                    std::span<int> lengths) {
  FRUGAL_DCHECK(lines.size() == lengths.size());
  std::fill(lengths.begin(), lengths.end(), 0);
  if (lines.empty()) return;
  const auto n_lines = static_cast<int>(lines.size());
  // Rows are added one by one, each to the line where it is likeliest to be accepted; of all the prefixes of
  // that order the best is kept. Gains of a line only fall, so the order is optimal for every total.
  constexpr size_t kMostLines = 64;
  std::array<double, kMostLines> chance;  // that the line's next guess is reached and right
  std::array<int, kMostLines> taken{};
  const size_t n = std::min(lines.size(), kMostLines);
  for (size_t i = 0; i < n; ++i)
    chance[i] = lines[i].empty() ? 0 : static_cast<double>(lines[i][0].confidence);
  double expected = n_lines;
  double best = kLeastGain * expected / costs.cost(n_lines);
  for (int rows = n_lines + 1; rows <= most_rows; ++rows) {
    const size_t i = static_cast<size_t>(
        std::max_element(chance.begin(), chance.begin() + static_cast<ptrdiff_t>(n)) - chance.begin());
    if (chance[i] <= 0) break;
    expected += chance[i];
    const auto next = static_cast<size_t>(++taken[i]);
    chance[i] *= next < lines[i].size() ? static_cast<double>(lines[i][next].confidence) : 0;
    const double rate = expected / costs.cost(rows);
    if (rate <= best) continue;
    best = rate;
    std::copy(taken.begin(), taken.begin() + static_cast<ptrdiff_t>(n), lengths.begin());
  }
}

}  // namespace frugal::llm
