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

// Seconds of a forward by its number of rows, from the times of past forwards. Not thread-safe.
class StepCosts {
 public:
  // `per_row`: cost of a further row as a share of the first, until something was measured.
  explicit StepCosts(double per_row = 0.1) : per_row_(per_row) {}

  void add(int rows, double seconds);
  // Seconds, up to a common factor as long as nothing was measured; grows with `rows`.
  double cost(int rows) const;
  double relative(int rows) const { return cost(rows) / cost(1); }
  int measured(int rows) const;

 private:
  static constexpr int kKept =
      9;  // last times of each row count: their median forgets outliers and old depths
  struct Times {
    std::array<float, kKept> seconds{};
    int n = 0, next = 0;
    float median = 0;
  };
  void fit();

  double per_row_;
  std::array<Times, kLongestDraft + 2> times_{};  // [rows]
  double first_ = 1, further_ = 0;                // line through the medians; further_ 0: nothing measured
};

// One sequence of a forward: its line of guesses (what was proposed, cut to what there is room for).
using DraftLine = std::span<const DraftToken>;

// Draft lengths, one for each line, that maximise expected tokens per second of the forward; at most
// `most_rows` rows with the one exact token of each line. `gain` is the least advantage over no draft at all.
void choose_lengths(const StepCosts& costs, std::span<const DraftLine> lines, int most_rows,
                    std::span<int> lengths);

}  // namespace frugal::llm
