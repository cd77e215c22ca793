// From records of questions to the rows, the curve and the table of `frugal cot eval`.
#pragma once

#include <string>
#include <vector>

#include "cli/bench_report.h"
#include "cli/cot_record.h"

namespace frugal::cli {

// What a rule gives over questions: everything is measured at the places where the rule stops.
struct CotOutcome {
  double saved = 0;            // of the time of the whole chains; looks are paid for
  double agreement = 0;        // answers equal to the whole chain's own
  double trunc_agreement = 0;  // the same without the approximate tokens, stopped at the same places
  double accuracy = 0, full_accuracy = 0;
  double stopped = 0;  // share of questions that were stopped before their end
  int n = 0;
};
// A point of the curve: rules fitted per task on the even questions to save the most time with at least
// `target` agreement there, and their outcome on the odd ones; and the other way round.
struct CotPoint {
  double target = 0;
  double fitted_saved = 0;                                // on the questions of the fit
  CotOutcome glance, trunc;                               // Trunc-CoT with its own fitted rules
  std::vector<std::pair<std::string, CotOutcome>> tasks;  // of the glance
};
std::vector<CotPoint> glance_curve(const std::vector<CotRecord>& records);

// The point that glance_saved and its kin report: the surest that was fitted to save a fifth, or else the one
// that saves the most. 0 without looks.
double chosen_target(const std::vector<CotPoint>& curve);
// The rule for one question of `target`'s point: fitted on its task's questions of the other parity.
CotRule rule_for(const std::vector<CotRecord>& records, const CotRecord& record, double target, bool trunc);

// exact_speedup, exact_differences, exact_vs_llamacpp, glance_saved, glance_agreement, trunc_agreement and
// more, each over all tasks and, as "NAME/TASK", for each.
std::vector<BenchRow> cot_rows(const std::vector<CotRecord>& records);

}  // namespace frugal::cli
