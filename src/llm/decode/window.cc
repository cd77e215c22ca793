#include "llm/decode/window.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace frugal::llm {

namespace {

// What a draft must promise over none: estimates err by some per cent, and a step that takes longer for
// nothing is worse than one that could have been shorter.
constexpr double kLeastGain = 1.02;
// How far a pair moves its two widths towards what it says: a half at first, later little.
constexpr double kFirstPairs = 2, kLeastRate = 0.04;
// The most that a pair is believed to be off, as a logarithm, at first and later: what takes twice as long as
// it ever did was disturbed.
constexpr double kFirstOff = 0.4, kLeastOff = 0.06, kDoubted = 8;
// No machine reads a row for less than this share of the first.
constexpr double kLeastShare = 0.02;

}  // namespace

StepCosts::StepCosts(double per_row) {
  for (int rows = 1; rows <= kWidths; ++rows)
    log_costs_[static_cast<size_t>(rows)] = std::log(1 + per_row * (rows - 1));
}

double StepCosts::cost(int rows) const {
  const int known = std::min(rows, kWidths);
  const double cost = std::exp(log_costs_[static_cast<size_t>(known)] - log_costs_[1]);
  return std::max(cost * rows / known, 1 + kLeastShare * (rows - 1));
}

void StepCosts::add(int rows, double seconds) {
  if (rows < 1 || rows > kWidths || !(seconds > 0) || !std::isfinite(seconds)) {
    last_rows_ = 0;
    return;
  }
  const auto now = static_cast<size_t>(rows), before = static_cast<size_t>(last_rows_);
  const double said = std::log(seconds / last_seconds_);
  last_rows_ = rows;
  last_seconds_ = seconds;
  if (before == 0 || before == now) return;
  const int seen = std::min(seen_[now], seen_[before]);
  const double most = std::max(kLeastOff, kFirstOff / (1 + seen / kDoubted));
  const double off = std::clamp(said - (log_costs_[now] - log_costs_[before]), -most, most);
  move(now, off);
  move(before, -off);
}

void StepCosts::move(size_t width, double off) {
  const int n = seen_[width]++;
  const double step = off * std::max(kLeastRate, 1 / (kFirstPairs + n));
  log_costs_[width] += step;
  if (width == 1) return;
  // Widths that were seen less follow: a row that is dearer here is dearer there.
  for (size_t other = 2; other < log_costs_.size(); ++other) {
    if (other != width && seen_[other] <= n)
      log_costs_[other] +=
          step * std::min(1.0, (static_cast<double>(other) - 1) / (static_cast<double>(width) - 1));
  }
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
