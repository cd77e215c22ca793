#include "llm/decode/window.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace frugal::llm {

namespace {

// What a draft must promise over none: estimates err by some per cent, and a step that takes longer for
// nothing is worse than one that could have been shorter.
constexpr double kLeastGain = 1.02;
// Times that a row count needs before its own median counts, instead of the line through all of them.
constexpr int kTrusted = 5;

}  // namespace

void StepCosts::add(int rows, double seconds) {
  if (rows < 1 || !(seconds > 0) || !std::isfinite(seconds)) return;
  Times& times = times_[static_cast<size_t>(std::min(rows, kLongestDraft + 1))];
  times.seconds[static_cast<size_t>(times.next)] = static_cast<float>(seconds);
  times.next = (times.next + 1) % kKept;
  times.n = std::min(times.n + 1, kKept);
  std::array<float, kKept> sorted = times.seconds;
  std::nth_element(sorted.begin(), sorted.begin() + times.n / 2, sorted.begin() + times.n);
  times.median = sorted[static_cast<size_t>(times.n / 2)];
  fit();
}

// Least squares of the medians to first + further * (rows - 1), weighted by how many times they stand for,
// with a pull of a few observations towards further = per_row * first.
void StepCosts::fit() {
  constexpr double kPull = 3;
  double n = 0, x = 0, xx = 0, y = 0, xy = 0;
  for (size_t rows = 1; rows < times_.size(); ++rows) {
    const double w = times_[rows].n, at = static_cast<double>(rows - 1), t = times_[rows].median;
    n += w;
    x += w * at;
    xx += w * at * at;
    y += w * t;
    xy += w * at * t;
  }
  // Normal equations of [first, further]; the pull is kPull * 16 * (further - per_row * first)^2.
  const double pull = kPull * 16;
  const double a = n + pull * per_row_ * per_row_, b = x - pull * per_row_, d = xx + pull;
  const double determinant = a * d - b * b;
  if (determinant <= 0) return;
  const double first = (d * y - b * xy) / determinant, further = (a * xy - b * y) / determinant;
  if (first <= 0) return;
  first_ = first;
  further_ = std::max(further, 1e-3 * first);
}

double StepCosts::cost(int rows) const {
  const double further = further_ > 0 ? further_ : per_row_ * first_;
  // Never less than a smaller forward: medians of few times may cross.
  double most = 0;
  for (int r = 1; r <= std::min(rows, kLongestDraft + 1); ++r) {
    const Times& times = times_[static_cast<size_t>(r)];
    const double line = first_ + further * (r - 1);
    most = std::max(most, times.n >= kTrusted ? static_cast<double>(times.median) : line);
  }
  return rows <= kLongestDraft + 1 ? most : most + further * (rows - kLongestDraft - 1);
}

int StepCosts::measured(int rows) const {
  return rows < 1 || rows > kLongestDraft + 1 ? 0 : times_[static_cast<size_t>(rows)].n;
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
