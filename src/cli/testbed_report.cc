#include "cli/testbed_report.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/file.h"
#include "base/text.h"

namespace frugal::cli {
namespace {

bool is_baseline(const std::string& algorithm) {
  return algorithm == "neurosurgeon" || algorithm == "dads" || algorithm.ends_with("-only");
}

BenchRow figure(const std::string& name, const std::string& unit, double value, int n) {
  BenchRow row;
  row.name = name;
  row.unit = unit;
  row.ours = value;
  row.n = n;
  return row;
}

// The least that a baseline sends over the backbone, of those that use it.
double baseline_bytes(const CellResult& cell) {
  double least = 0;
  for (const PlanResult& plan : cell.plans) {
    if (is_baseline(plan.algorithm) && plan.backbone_bytes > 0)
      least = least == 0 ? plan.backbone_bytes : std::min(least, plan.backbone_bytes);
  }
  return least;
}

// The edge's own time for all of a network, of one worker against all of them.
void add_vsm_rows(const TestbedResult& result, std::vector<BenchRow>& rows) {
  std::map<std::string, std::vector<double>> ratios;
  for (const CellResult& cell : result.cells) {
    double one = 0, all = 0;
    for (const PlanResult& plan : cell.plans) {
      if (plan.algorithm == "edge-only") one = plan.tiers[1];
      if (plan.algorithm == kEdgeTiled) all = plan.tiers[1];
    }
    if (one > 0 && all > 0) ratios[cell.model].push_back(one / all);
  }
  for (const auto& [model, of_model] : ratios)
    rows.push_back(figure("vsm_speedup of the edge, " + model, "x", median(of_model),
                          static_cast<int>(of_model.size())));
}

}  // namespace

const PlanResult& CellResult::best_baseline() const {
  const PlanResult* best = nullptr;
  for (const PlanResult& plan : plans) {
    if (is_baseline(plan.algorithm) && (best == nullptr || median(plan.seconds) < median(best->seconds)))
      best = &plan;
  }
  return best == nullptr ? plans.front() : *best;
}

double CellResult::best_packed_baseline_seconds() const {
  double best = median(best_baseline().seconds);
  for (const PlanResult& plan : plans) {
    if (plan.algorithm.ends_with(kPacked)) best = std::min(best, median(plan.seconds));
  }
  return best;
}

int TestbedResult::n_different() const {
  int n = chaos.n_different;
  for (const CellResult& cell : cells) {
    for (const PlanResult& plan : cell.plans) n += plan.is_copy ? 0 : plan.n_different;
  }
  return n;
}

std::vector<BenchRow> testbed_rows(const TestbedResult& result) {
  std::vector<BenchRow> rows;
  double log_sum = 0, largest = 0, least = INFINITY, bytes_ratio = 0, our_bytes = 0, their_bytes = 0;
  int n_frames = 0, n_without_backbone = 0;
  std::vector<double> errors, over_packed;
  for (const CellResult& cell : result.cells) {
    const PlanResult &ours = cell.ours(), &best = cell.best_baseline();
    const auto ms = [](std::vector<double> seconds) {
      for (double& s : seconds) s *= 1e3;
      return seconds;
    };
    BenchRow row;
    row.name = cell.model + ", " + cell.link;
    row.unit = "ms";
    row.ours = median(ms(ours.seconds));
    row.peer = median(ms(best.seconds));
    row.peer_name = best.algorithm;
    row.ratio = *row.peer / row.ours;
    row.spread =
        median_deviation(ms(ours.seconds)) / row.ours + median_deviation(ms(best.seconds)) / *row.peer;
    row.n = static_cast<int>(ours.seconds.size());
    for (const PlanResult& plan : cell.plans) {
      row.more.emplace_back(plan.algorithm + " ms", 1e3 * median(plan.seconds));
      if (plan.algorithm == kOurs) row.more.emplace_back("predicted ms", 1e3 * plan.predicted_seconds);
      if (!plan.is_copy) {
        errors.push_back(std::abs(plan.predicted_seconds / median(plan.seconds) - 1));
        n_frames += plan.n_frames;
      }
    }
    row.more.emplace_back("backbone bytes", ours.backbone_bytes);
    row.more.emplace_back("baseline backbone bytes", baseline_bytes(cell));
    rows.push_back(row);
    over_packed.push_back(cell.best_packed_baseline_seconds() / median(ours.seconds));
    log_sum += std::log(row.ratio);
    largest = std::max(largest, row.ratio);
    least = std::min(least, row.ratio);
    if (ours.backbone_bytes > 0)
      bytes_ratio = std::max(bytes_ratio, baseline_bytes(cell) / ours.backbone_bytes);
    n_without_backbone += ours.backbone_bytes == 0;
    our_bytes += ours.backbone_bytes;
    their_bytes += best.backbone_bytes;
  }
  const int n = static_cast<int>(result.cells.size());
  if (n > 0) {
    rows.push_back(figure("speedup_max", "x", largest, n));
    rows.push_back(figure("speedup_geomean", "x", std::exp(log_sum / n), n));
    rows.push_back(figure("speedup_min", "x", least, n));
    // The same against baselines that are given our packing: what planning and tiles alone bring.
    double packed_log_sum = 0;
    for (const double ratio : over_packed) packed_log_sum += std::log(ratio);
    const auto [low, high] = std::minmax_element(over_packed.begin(), over_packed.end());
    rows.push_back(figure("speedup_over_packed_max", "x", *high, n));
    rows.push_back(figure("speedup_over_packed_geomean", "x", std::exp(packed_log_sum / n), n));
    rows.push_back(figure("speedup_over_packed_min", "x", *low, n));
    rows.push_back(figure("bytes_ratio_max", "x", bytes_ratio, n - n_without_backbone));
    // Of all cells together, against the fastest baseline of each.
    if (our_bytes > 0) rows.push_back(figure("bytes_ratio_total", "x", their_bytes / our_bytes, n));
    rows.push_back(figure("cells_without_backbone_bytes", "cells", n_without_backbone, n));
    rows.push_back(
        figure("lossless_differences", "frames", result.n_different(), n_frames + result.chaos.n_frames));
    rows.push_back(
        figure("prediction_error_median", "%", 100 * median(errors), static_cast<int>(errors.size())));
  }
  add_vsm_rows(result, rows);
  if (!result.left_out.empty()) {
    std::vector<double> off;
    for (const LeftOut& l : result.left_out)
      off.push_back(100 * std::abs(l.predicted_seconds / l.measured_seconds - 1));
    BenchRow row = figure("left_out_model_error_median", "%", median(off), static_cast<int>(off.size()));
    for (const LeftOut& l : result.left_out) {
      row.more.emplace_back(l.model + " predicted ms", 1e3 * l.predicted_seconds);
      row.more.emplace_back(l.model + " measured ms", 1e3 * l.measured_seconds);
      row.more.emplace_back(l.model + " vertex error %", 100 * l.vertex_error_median);
    }
    rows.push_back(row);
  }
  rows.push_back(figure("plan_500_ms", "ms", result.plan_500_ms, 51));
  if (const ChaosResult& chaos = result.chaos; chaos.n_frames > 0) {
    rows.push_back(figure("frames_lost", "frames", chaos.n_lost, chaos.n_frames));
    rows.push_back(figure("frames_answered_twice", "frames", chaos.n_twice, chaos.n_frames));
    rows.push_back(figure("frames_different", "frames", chaos.n_different, chaos.n_frames));
    BenchRow gap = figure("longest_gap_under_faults", "s", chaos.longest_gap_seconds, chaos.n_frames);
    gap.more = {{"kills", chaos.n_kills},
                {"cuts", chaos.n_cuts},
                {"rate steps", chaos.n_rate_steps},
                {"re-plans", chaos.n_replans},
                {"retries", chaos.n_retries}};
    rows.push_back(gap);
  }
  return rows;
}

std::string testbed_note(const TestbedResult& result) {
  return strf(
      "%s; device, %d edge workers and cloud are processes of this host, %g, %g and %g times slower than one "
      "of its "
      "cores (each rests after computing, by processor time); links are profiles of our own, rates kept by "
      "%s, delays "
      "in user space; frames are a drawn picture of 8 bits a channel; times are wall-clock, none is "
      "simulated",
      result.namespaces ? "network namespaces" : "loopback", result.n_edge_workers, result.slowdown[0],
      result.slowdown[1], result.slowdown[2], result.namespaces ? "tbf" : "relays in user space");
}

Status write_testbed_svg(const std::string& path, const TestbedResult& result) {
  constexpr int kRow = 34, kLeft = 210, kWidth = 560, kTop = 60;
  double longest = 0;
  for (const CellResult& cell : result.cells)
    longest = std::max({longest, median(cell.ours().seconds), median(cell.best_baseline().seconds)});
  const int height = kTop + kRow * static_cast<int>(result.cells.size()) + 20;
  std::string svg = strf(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" "
      "font-size=\"12\"><rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
      kLeft + kWidth + 210, height);
  svg +=
      "<text x=\"10\" y=\"22\" font-size=\"15\">Latency of a frame: frugal (dark) and the best baseline "
      "(light)</text>\n";
  svg += "<text x=\"10\" y=\"42\">device to edge + edge to cloud</text>\n";
  int y = kTop;
  for (const CellResult& cell : result.cells) {
    const double ours = median(cell.ours().seconds), best = median(cell.best_baseline().seconds);
    const auto bar = [&](double seconds, int at, const char* colour, const std::string& label) {
      const double width = std::max(1.0, kWidth * seconds / longest);
      svg += strf(
          "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"12\" fill=\"%s\"/><text x=\"%.1f\" "
          "y=\"%d\">%s</text>\n",
          kLeft, at, width, colour, kLeft + width + 5, at + 10, label.c_str());
    };
    svg += strf("<text x=\"10\" y=\"%d\">%s, %s</text>\n", y + 16, cell.model.c_str(), cell.link.c_str());
    bar(ours, y, "#1b6ca8", strf("%s, %.2fx", human_seconds(ours).c_str(), best / ours));
    bar(best, y + 14, "#b9cfe0", human_seconds(best) + " " + cell.best_baseline().algorithm);
    y += kRow;
  }
  return write_file_atomically(path, svg + "</svg>\n");
}

}  // namespace frugal::cli
