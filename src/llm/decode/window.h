// How long a draft may be: what a forward of B rows costs on this machine, model and depth, against how many
// tokens it is expected to yield. The costs are those of the steps themselves, so they follow the machine and
// the depth; a draft is only taken where it makes the expected tokens per second grow.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "llm/decode/drafts.h"

namespace frugal::llm {

inline constexpr int kLongestDraft = 16;  // tokens of one sequence in one forward, besides the exact one

// What a further row costs as a share of the first, from the times of past forwards. Only forwards that
// follow each other are compared: a machine that others use too changes its speed by the second, and times of
// different minutes say more about them than about rows. Not thread-safe.
class StepCosts {
 public:
  // `per_row`: the share until it was measured.
  explicit StepCosts(double per_row = 0.15);

  void add(int rows, double seconds);
  // A forward of so many rows, in units of one of one row.
  double cost(int rows) const { return 1 + per_row_ * (rows - 1); }

 private:
  static constexpr size_t kKept = 31;  // their median forgets outliers, old depths and old machines
  std::array<double, kKept> shares_{};
  size_t n_ = 0, next_ = 0;
  double per_row_;
  int last_rows_ = 0;
  double last_seconds_ = 0;
};

// One sequence of a forward: its line of guesses (what was proposed, cut to what there is room for).
using DraftLine = std::span<const DraftToken>;

// Draft lengths, one for each line, that maximise expected tokens per second of the forward; at most
// `most_rows` rows with the one exact token of each line. `gain` is the least advantage over no draft at all.
void choose_lengths(const StepCosts& costs, std::span<const DraftLine> lines, int most_rows,
                    std::span<int> lengths);

}  // namespace frugal::llm
