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

// What a forward of so many rows costs, in units of one of one row: a table by width, since kernels work on
// columns in groups, and the second row may cost next to nothing where the fifth costs a fifth. Learnt from
// pairs of forwards that follow each other, as ratings are from games: a machine that others use too changes
// its speed by the second, and times of different minutes say more about them than about rows. Not
// thread-safe.
class StepCosts {
 public:
  // `per_row`: what a row more costs as a share of the first, until it was measured.
  explicit StepCosts(double per_row = 0.12);

  void add(int rows, double seconds);
  double cost(int rows) const;

 private:
  // `off`: by how much, as a logarithm, a pair says that the width costs more than the table has it.
  void move(size_t width, double off);

  static constexpr int kWidths = 33;             // wider forwards are extrapolated
  std::array<double, kWidths + 1> log_costs_{};  // [rows]
  std::array<int, kWidths + 1> seen_{};          // pairs, by each of their widths
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
