#include "cli/cot_report.h"

#include <algorithm>
#include <functional>
#include <set>

#include "base/text.h"

namespace frugal::cli {

namespace {

using Records = std::vector<const CotRecord*>;

Records of_task(const std::vector<CotRecord>& records, const std::string& task) {
  Records out;
  for (const CotRecord& record : records) {
    if (record.task == task) out.push_back(&record);
  }
  return out;
}

std::vector<std::string> tasks_of(const std::vector<CotRecord>& records) {
  std::vector<std::string> tasks = cot_tasks();
  tasks.insert(tasks.end(), repetitive_tasks().begin(), repetitive_tasks().end());
  std::erase_if(tasks, [&](const std::string& task) { return of_task(records, task).empty(); });
  return tasks;
}

const CotLook::Side& side_of(const CotLook& look, bool trunc) { return trunc ? look.trunc : look.glance; }

bool taken(const CotRule& rule, const CotLook& look, bool trunc) {
  return side_of(look, trunc).place >= rule.place;
}

// Where a rule stops in one record: the index of a look; -1 = never. As llm::agreed().
int stop_of(const CotRecord& record, const CotRule& rule, bool trunc) {
  if (!rule.looks) return -1;
  int same = 0;
  std::string last;
  for (size_t i = 0; i < record.looks.size(); ++i) {
    const CotLook& look = record.looks[i];
    const CotLook::Side& side = side_of(look, trunc);
    const bool right = trunc || look.accepted == look.approximate;
    if (!taken(rule, look, trunc) || (!right && !rule.wrong)) continue;
    if (side.named && right && !side.answer.empty()) return static_cast<int>(i);
    same = side.answer.empty() || side.confidence < rule.confidence ? 0 : side.answer == last ? same + 1 : 1;
    last = same > 0 ? side.answer : "";
    if (rule.stable > 0 && same >= rule.stable) return static_cast<int>(i);
  }
  return -1;
}

double seconds_of(const CotRecord& record, const CotRule& rule, bool trunc, int stop) {
  if (!rule.looks) return record.chain_s;
  // A look of Trunc-CoT is a forward of its own, which yields the next exact token, too.
  const double credit = trunc && record.chain_tokens > 0 ? record.chain_s / record.chain_tokens : 0;
  double looks = 0;
  for (size_t i = 0; i < record.looks.size() && (stop < 0 || static_cast<int>(i) < stop); ++i) {
    if (taken(rule, record.looks[i], trunc))
      looks += std::max(0.0, side_of(record.looks[i], trunc).seconds - credit);
  }
  if (stop < 0) return looks + record.chain_s;
  const CotLook::Side& last = side_of(record.looks[static_cast<size_t>(stop)], trunc);
  return looks + last.seconds + last.elapsed_s;
}

struct Sums {
  double whole = 0, taken = 0;
  int n = 0, agreed = 0, trunc_agreed = 0, right = 0, full_right = 0, stopped = 0;
  void add(const CotRecord& record, const CotRule& rule, bool trunc) {
    const int stop = stop_of(record, rule, trunc);
    ++n;
    whole += record.chain_s;
    taken += seconds_of(record, rule, trunc, stop);
    full_right += record.correct ? 1 : 0;
    if (stop < 0) {
      ++agreed;
      ++trunc_agreed;
      right += record.correct ? 1 : 0;
      return;
    }
    ++stopped;
    const CotLook& look = record.looks[static_cast<size_t>(stop)];
    const std::string& answer = side_of(look, trunc).answer;
    agreed += answer == record.answer ? 1 : 0;
    trunc_agreed += look.trunc.answer == record.answer ? 1 : 0;
    right += !record.truth.empty() && answer == record.truth ? 1 : 0;
  }
  CotOutcome outcome() const {
    CotOutcome out;
    out.n = n;
    if (n == 0) return out;
    out.saved = whole > 0 ? 1 - taken / whole : 0;
    out.agreement = static_cast<double>(agreed) / n;
    out.trunc_agreement = static_cast<double>(trunc_agreed) / n;
    out.accuracy = static_cast<double>(right) / n;
    out.full_accuracy = static_cast<double>(full_right) / n;
    out.stopped = static_cast<double>(stopped) / n;
    return out;
  }
};

// The rule that saves the most on the even (odd) questions of a task with at least `target` agreement there;
// never to look is one of them.
CotRule fit_rule(const Records& records, bool trunc, double target, bool odd) {
  CotRule best;
  double most = 0;
  const auto judge = [&](const CotRule& rule) {
    Sums sums;
    for (const CotRecord* record : records) {
      if ((record->index % 2 != 0) == odd) sums.add(*record, rule, trunc);
    }
    const CotOutcome outcome = sums.outcome();
    if (outcome.n == 0 || outcome.agreement < target || outcome.saved <= most) return;
    most = outcome.saved;
    best = rule;
  };
  judge({true, llm::Place::kTrigger, false, 0, 0});
  for (const llm::Place place : {llm::Place::kTrigger, llm::Place::kSentence, llm::Place::kAnywhere}) {
    for (const bool wrong : {false, true}) {
      if (trunc && wrong) continue;
      for (const int stable : {1, 2, 3, 4}) {
        for (const float confidence : {0.0f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 0.8f, 0.9f, 0.95f, 0.98f})
          judge({true, place, wrong, stable, confidence});
      }
    }
  }
  return best;
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

BenchRow plain_row(std::string name, std::string unit, double value, int n) {
  BenchRow row;
  row.name = std::move(name);
  row.unit = std::move(unit);
  row.ours = value;
  row.n = n;
  return row;
}

// Rows of a speed-up: `ours` and `theirs` give seconds a token of a record; those without are left out.
using Figure = std::function<double(const CotRecord&)>;
void speed_rows(const std::vector<CotRecord>& records, const std::string& name, const std::string& peer_name,
                const Figure& ours, const Figure& theirs, std::vector<BenchRow>* rows) {
  std::vector<double> task_ratios, spreads;
  std::vector<BenchRow> task_rows;
  double worst = 1e9;
  int n = 0;
  for (const std::string& task : tasks_of(records)) {
    std::vector<double> our_rates, their_rates;
    for (const CotRecord* record : of_task(records, task)) {
      const double a = ours(*record), b = theirs(*record);
      if (a <= 0 || b <= 0) continue;
      our_rates.push_back(1 / a);
      their_rates.push_back(1 / b);
      worst = std::min(worst, b / a);
    }
    if (our_rates.empty()) continue;
    BenchRow row =
        bench_row(name + "/" + task, "tokens/s", Better::kHigher, our_rates, their_rates, peer_name);
    double least = 1e9;
    for (size_t i = 0; i < our_rates.size(); ++i) least = std::min(least, our_rates[i] / their_rates[i]);
    row.more.emplace_back("worst prompt", least);
    task_ratios.push_back(row.ratio);
    spreads.push_back(row.spread);
    n += row.n;
    task_rows.push_back(std::move(row));
  }
  if (task_ratios.empty()) return;
  BenchRow all = plain_row(name, "x, mean over tasks", mean(task_ratios), n);
  all.ratio = all.ours;
  all.spread = mean(spreads);
  all.peer_name = peer_name;
  all.more.emplace_back("worst prompt", worst);
  rows->push_back(std::move(all));
  for (BenchRow& row : task_rows) rows->push_back(std::move(row));
}

// A row over all records, and one for each task.
void rows_by_task(const std::vector<CotRecord>& records, const std::string& name, const std::string& unit,
                  const std::function<double(const Records&)>& value, std::vector<BenchRow>* rows) {
  Records all;
  for (const CotRecord& record : records) all.push_back(&record);
  rows->push_back(plain_row(name, unit, value(all), static_cast<int>(all.size())));
  for (const std::string& task : tasks_of(records)) {
    const Records some = of_task(records, task);
    rows->push_back(plain_row(name + "/" + task, unit, value(some), static_cast<int>(some.size())));
  }
}

double share(const Records& records, const std::function<bool(const CotRecord&)>& is) {
  int n = 0;
  for (const CotRecord* record : records) n += is(*record) ? 1 : 0;
  return records.empty() ? 0 : static_cast<double>(n) / static_cast<double>(records.size());
}

double per_token(const CotTiming& timing) {
  return timing.tokens > 1 ? timing.seconds / (timing.tokens - 1) : 0;
}
double per_token(const std::optional<CotTiming>& timing) { return timing ? per_token(*timing) : 0; }

double tokens_per_forward(const Records& records,
                          const std::function<const CotTiming*(const CotRecord&)>& of) {
  double tokens = 0, forwards = 0;
  for (const CotRecord* record : records) {
    const CotTiming* timing = of(*record);
    if (timing == nullptr || timing->forwards == 0) continue;
    tokens += timing->tokens - 1;
    forwards += timing->forwards;
  }
  return forwards > 0 ? tokens / forwards : 0;
}

// Speeds of ours against greedy decoding and every peer that ran.
void peer_rows(const std::vector<CotRecord>& records, const std::string& name, std::vector<BenchRow>* rows) {
  const auto exact = [](const CotRecord& r) { return per_token(r.exact); };
  speed_rows(
      records, name + "_speedup", "our greedy decoding", exact,
      [](const CotRecord& r) { return per_token(r.greedy); }, rows);
  speed_rows(
      records, name + "_pool_speedup", "our greedy decoding; drafts also from the task's earlier outputs",
      [](const CotRecord& r) { return per_token(r.pooled); },
      [](const CotRecord& r) { return per_token(r.greedy); }, rows);
  speed_rows(
      records, name + "_vs_llamacpp", "llama.cpp, greedy", exact,
      [](const CotRecord& r) { return per_token(r.peer); }, rows);
  std::set<std::string> speculators;
  for (const CotRecord& record : records) {
    for (const auto& [tool, timing] : record.speculators) speculators.insert(tool);
  }
  for (const std::string& tool : speculators) {
    const std::string kind = tool.substr(tool.find(':') + 1);
    speed_rows(
        records, name + "_vs_" + kind, "llama.cpp's " + tool, exact,
        [&](const CotRecord& r) {
          const auto found = r.speculators.find(tool);
          return found == r.speculators.end() ? 0 : per_token(found->second);
        },
        rows);
    int failed = 0, n = 0;
    for (const CotRecord& record : records) {
      const auto found = record.speculators.find(tool);
      n += found != record.speculators.end() ? 1 : 0;
      failed += found != record.speculators.end() && found->second.tokens == 0 ? 1 : 0;
    }
    if (failed > 0) rows->push_back(plain_row("not finished by " + kind, "questions", failed, n));
  }
}

// Windows, policies and single drafters.
void variant_rows(const std::vector<CotRecord>& records, std::vector<BenchRow>* rows) {
  std::set<std::string> names;
  for (const CotRecord& record : records) {
    for (const auto& [name, timing] : record.variants) names.insert(name);
  }
  for (const std::string& name : names) {
    const auto of = [&](const CotRecord& r) {
      const auto found = r.variants.find(name);
      return found == r.variants.end() ? nullptr : &found->second;
    };
    std::vector<BenchRow> speeds;
    speed_rows(
        records, name, "our greedy decoding",
        [&](const CotRecord& r) { return of(r) == nullptr ? 0 : per_token(*of(r)); },
        [](const CotRecord& r) { return per_token(r.greedy); }, &speeds);
    if (speeds.empty()) continue;
    Records all;
    for (const CotRecord& record : records) all.push_back(&record);
    speeds[0].more.emplace_back("tokens a forward", tokens_per_forward(all, of));
    rows->push_back(std::move(speeds[0]));
  }
}

// Runs with the chosen point's rules, timed from the prompt's end to the answer, over exact decoding.
void measured_rows(const std::vector<CotRecord>& records, std::vector<BenchRow>* rows) {
  Records run;
  for (const CotRecord& record : records) {
    if (record.glance && record.trunc) run.push_back(&record);
  }
  if (run.empty()) return;
  for (const bool trunc : {false, true}) {
    const std::string name = trunc ? "measured: trunc_" : "measured: glance_";
    const auto of = [&](const CotRecord& r) -> const CotGlance& { return trunc ? *r.trunc : *r.glance; };
    std::vector<CotRecord> copies;
    for (const CotRecord* record : run) copies.push_back(*record);
    rows_by_task(
        copies, name + "saved", "share of time",
        [&](const Records& some) {
          double whole = 0, taken = 0;
          for (const CotRecord* r : some) {
            whole += r->exact.chain_seconds;
            taken += of(*r).seconds;
          }
          return whole > 0 ? 1 - taken / whole : 0;
        },
        rows);
    rows_by_task(
        copies, name + "agreement", "share of answers",
        [&](const Records& some) {
          return share(some, [&](const CotRecord& r) { return of(r).answer == r.answer; });
        },
        rows);
    rows_by_task(
        copies, name + "accuracy", "share of answers",
        [&](const Records& some) {
          return share(some,
                       [&](const CotRecord& r) { return !of(r).answer.empty() && of(r).answer == r.truth; });
        },
        rows);
  }
}

void glance_rows(const std::vector<CotRecord>& records, std::vector<BenchRow>* rows) {
  const std::vector<CotPoint> curve = glance_curve(records);
  if (curve.empty()) return;
  const double target = chosen_target(curve);
  const CotPoint* chosen = &*std::find_if(curve.begin(), curve.end(),
                                          [&](const CotPoint& point) { return point.target == target; });
  const auto add = [&](const std::string& suffix, const CotOutcome& outcome) {
    rows->push_back(plain_row("glance_saved" + suffix, "share of time", outcome.saved, outcome.n));
    rows->push_back(plain_row("glance_agreement" + suffix, "share of answers", outcome.agreement, outcome.n));
    rows->push_back(
        plain_row("trunc_agreement" + suffix, "share of answers", outcome.trunc_agreement, outcome.n));
    rows->push_back(plain_row("glance_accuracy" + suffix, "share of answers", outcome.accuracy, outcome.n));
    rows->push_back(
        plain_row("full_accuracy" + suffix, "share of answers", outcome.full_accuracy, outcome.n));
  };
  add("", chosen->glance);
  for (const auto& [task, outcome] : chosen->tasks) add("/" + task, outcome);
  measured_rows(records, rows);
  for (const CotPoint& point : curve) {
    BenchRow row = plain_row(strf("curve: agreement fitted to %.2f", point.target), "share of answers",
                             point.glance.agreement, point.glance.n);
    row.peer = point.trunc.agreement;
    row.peer_name = "Trunc-CoT by its own rule";
    row.more = {{"time saved", point.glance.saved},
                {"time saved by Trunc-CoT", point.trunc.saved},
                {"Trunc-CoT stopped at the same places", point.glance.trunc_agreement},
                {"accuracy", point.glance.accuracy},
                {"accuracy of the whole chain", point.glance.full_accuracy}};
    rows->push_back(std::move(row));
  }
}

}  // namespace

std::vector<CotPoint> glance_curve(const std::vector<CotRecord>& records) {
  std::vector<CotPoint> curve;
  bool any = false;
  for (const CotRecord& record : records) any = any || !record.looks.empty();
  if (!any) return curve;
  for (const double target : {0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0}) {
    CotPoint point;
    point.target = target;
    Sums glance, trunc, fitted;
    for (const std::string& task : cot_tasks()) {
      const Records some = of_task(records, task);
      if (some.empty()) continue;
      Sums of_one;
      for (const bool odd : {false, true}) {
        const CotRule rule = fit_rule(some, false, target, odd),
                      trunc_rule = fit_rule(some, true, target, odd);
        for (const CotRecord* record : some) {
          if ((record->index % 2 != 0) == odd) {
            fitted.add(*record, rule, false);
            continue;
          }
          glance.add(*record, rule, false);
          of_one.add(*record, rule, false);
          trunc.add(*record, trunc_rule, true);
        }
      }
      point.tasks.emplace_back(task, of_one.outcome());
    }
    point.glance = glance.outcome();
    point.trunc = trunc.outcome();
    point.fitted_saved = fitted.outcome().saved;
    curve.push_back(std::move(point));
  }
  return curve;
}

double chosen_target(const std::vector<CotPoint>& curve) {
  double target = curve.empty() ? 0 : curve.front().target;
  for (const CotPoint& point : curve) {
    if (point.fitted_saved >= 0.2) target = point.target;
  }
  return target;
}

CotRule rule_for(const std::vector<CotRecord>& records, const CotRecord& record, double target, bool trunc) {
  return fit_rule(of_task(records, record.task), trunc, target, record.index % 2 == 0);
}

std::vector<BenchRow> cot_rows(const std::vector<CotRecord>& all) {
  std::vector<BenchRow> rows;
  std::vector<CotRecord> records, repetitive;
  for (const CotRecord& record : all) (is_repetitive(record.task) ? repetitive : records).push_back(record);
  peer_rows(records, "exact", &rows);
  peer_rows(repetitive, "repetitive", &rows);
  std::vector<BenchRow> chains;
  speed_rows(
      records, "exact_speedup_chain", "our greedy decoding, until the chain's end",
      [](const CotRecord& r) { return r.exact.chain_seconds; },
      [](const CotRecord& r) { return r.greedy.chain_seconds; }, &chains);
  for (BenchRow& row : chains) {
    if (row.name.find('/') != std::string::npos) row.unit = "chains/s";
    rows.push_back(std::move(row));
  }
  variant_rows(all, &rows);
  rows_by_task(
      all, "exact_differences", "outputs",
      [](const Records& some) {
        return share(some, [](const CotRecord& r) { return !r.same; }) * static_cast<double>(some.size());
      },
      &rows);
  rows_by_task(
      all, "tokens_per_forward", "tokens",
      [](const Records& some) {
        return tokens_per_forward(some, [](const CotRecord& r) { return &r.exact; });
      },
      &rows);
  if (records.empty()) return rows;
  rows_by_task(
      records, "chain_tokens", "tokens, mean",
      [](const Records& some) {
        double sum = 0;
        for (const CotRecord* r : some) sum += r->chain_tokens;
        return some.empty() ? 0 : sum / static_cast<double>(some.size());
      },
      &rows);
  rows_by_task(
      records, "joules_saved", "share of our greedy decoding's",
      [](const Records& some) {
        double greedy = 0, ours = 0;
        for (const CotRecord* r : some) {
          greedy += r->greedy.joules;
          ours += r->exact.joules;
        }
        return greedy > 0 ? 1 - ours / greedy : 0;
      },
      &rows);
  rows_by_task(
      records, "accuracy", "share of answers",
      [](const Records& some) { return share(some, [](const CotRecord& r) { return r.correct; }); }, &rows);
  for (size_t i = 0; i < static_cast<size_t>(llm::kDraftSources); ++i) {
    double drafted = 0, accepted = 0;
    for (const CotRecord& record : records) {
      drafted += record.drafted[i];
      accepted += record.accepted[i];
    }
    if (drafted == 0) continue;
    BenchRow row =
        plain_row("accepted of " + std::string(llm::draft_source_name(static_cast<llm::DraftSource>(i))),
                  "share of drafted tokens", accepted / drafted, static_cast<int>(records.size()));
    row.more.emplace_back("drafted", drafted);
    rows.push_back(std::move(row));
  }
  glance_rows(records, &rows);
  return rows;
}

}  // namespace frugal::cli
