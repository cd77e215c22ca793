// What the testbed measured, and how it is told: rows for the tables, and a plot.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cli/bench_report.h"
#include "dnn/plan/regression.h"

namespace frugal::cli {

inline constexpr char kOurs[] = "frugal";
inline constexpr char kEdgeTiled[] = "edge-only, tiles";  // all of it over all edge workers
inline constexpr char kPacked[] = ", packed";             // a baseline's plan made and run with our packing

struct PlanResult {
  std::string algorithm;
  double predicted_seconds = 0, predicted_backbone_bytes = 0, backbone_bytes = 0;
  std::vector<double> seconds;
  int n_frames = 0, n_different = 0;
  bool is_copy = false;  // of another algorithm's: the same plan
  // [n_tiers] and [n_links], seconds of a frame: where the prediction is off. Measured ones are means.
  std::vector<double> predicted_tiers, predicted_links, tiers, links;
  int n_tiles = 0;
};

struct CellResult {
  std::string model, link;
  std::vector<PlanResult> plans;  // ours first

  const PlanResult& ours() const { return plans.front(); }
  const PlanResult& best_baseline() const;
  double best_packed_baseline_seconds() const;  // of those with our packing, and of those without
};

struct ChaosResult {
  int n_frames = 0, n_lost = 0, n_twice = 0, n_different = 0, n_kills = 0, n_cuts = 0, n_rate_steps = 0,
      n_replans = 0, n_retries = 0;
  double longest_gap_seconds = 0;  // between two answers
};

// A model's time on this host, predicted from profiles of the other models.
struct LeftOut {
  std::string model;
  double predicted_seconds = 0, measured_seconds = 0, vertex_error_median = 0;
};

struct TestbedResult {
  std::vector<CellResult> cells;
  std::vector<std::pair<std::string, std::vector<dnn::TimeSample>>> profiles;  // of each network
  std::vector<LeftOut> left_out;
  ChaosResult chaos;
  double plan_500_ms = 0;
  int n_edge_workers = 0;
  std::vector<double> slowdown;
  bool namespaces = false;

  int n_different() const;
};

std::vector<BenchRow> testbed_rows(const TestbedResult& result);
std::string testbed_note(const TestbedResult& result);
// Bars of ours and of the best baseline for every network and link.
Status write_testbed_svg(const std::string& path, const TestbedResult& result);

}  // namespace frugal::cli
