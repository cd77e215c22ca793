#include "cli/testbed_state.h"

#include <nlohmann/json.hpp>

#include "base/file.h"

namespace frugal::cli {
namespace {

using nlohmann::json;

json to_json(const PlanResult& plan) {
  return {{"algorithm", plan.algorithm},
          {"predicted_seconds", plan.predicted_seconds},
          {"predicted_backbone_bytes", plan.predicted_backbone_bytes},
          {"backbone_bytes", plan.backbone_bytes},
          {"seconds", plan.seconds},
          {"frames", plan.n_frames},
          {"different", plan.n_different},
          {"copy", plan.is_copy},
          {"tiles", plan.n_tiles},
          {"predicted_tiers", plan.predicted_tiers},
          {"tiers", plan.tiers},
          {"predicted_links", plan.predicted_links},
          {"links", plan.links}};
}

PlanResult plan_from_json(const json& row) {
  PlanResult plan;
  row.at("algorithm").get_to(plan.algorithm);
  row.at("predicted_seconds").get_to(plan.predicted_seconds);
  row.at("predicted_backbone_bytes").get_to(plan.predicted_backbone_bytes);
  row.at("backbone_bytes").get_to(plan.backbone_bytes);
  row.at("seconds").get_to(plan.seconds);
  row.at("frames").get_to(plan.n_frames);
  row.at("different").get_to(plan.n_different);
  row.at("copy").get_to(plan.is_copy);
  row.at("tiles").get_to(plan.n_tiles);
  row.at("predicted_tiers").get_to(plan.predicted_tiers);
  row.at("tiers").get_to(plan.tiers);
  row.at("predicted_links").get_to(plan.predicted_links);
  row.at("links").get_to(plan.links);
  return plan;
}

json to_json(const ChaosResult& chaos) {
  return {{"frames", chaos.n_frames},         {"lost", chaos.n_lost},       {"twice", chaos.n_twice},
          {"different", chaos.n_different},   {"kills", chaos.n_kills},     {"cuts", chaos.n_cuts},
          {"rate_steps", chaos.n_rate_steps}, {"replans", chaos.n_replans}, {"retries", chaos.n_retries},
          {"gap", chaos.longest_gap_seconds}};
}

ChaosResult chaos_from_json(const json& row) {
  ChaosResult chaos;
  row.at("frames").get_to(chaos.n_frames);
  row.at("lost").get_to(chaos.n_lost);
  row.at("twice").get_to(chaos.n_twice);
  row.at("different").get_to(chaos.n_different);
  row.at("kills").get_to(chaos.n_kills);
  row.at("cuts").get_to(chaos.n_cuts);
  row.at("rate_steps").get_to(chaos.n_rate_steps);
  row.at("replans").get_to(chaos.n_replans);
  row.at("retries").get_to(chaos.n_retries);
  row.at("gap").get_to(chaos.longest_gap_seconds);
  return chaos;
}

}  // namespace

Result<TestbedResult> read_testbed_state(const std::string& path, const std::string& key) {
  FRUGAL_TRY(const std::string text, read_file(path, size_t{64} << 20));
  const json root = json::parse(text, nullptr, false);
  const auto corrupt = [&](const char* what) {
    return Error{ErrorCode::kCorrupt, path + " " + what + "; remove it to begin anew"};
  };
  if (!root.is_object() || root.value("format", "") != "frugal-dnn-testbed")
    return corrupt("is no state of a testbed run");
  if (root.value("key", "") != key) return corrupt("is of a run with other options");
  TestbedResult result;
  try {
    for (const json& row : root.at("cells")) {
      CellResult cell;
      row.at("model").get_to(cell.model);
      row.at("link").get_to(cell.link);
      for (const json& plan : row.at("plans")) cell.plans.push_back(plan_from_json(plan));
      if (cell.plans.empty()) return corrupt("has a cell without plans");
      result.cells.push_back(std::move(cell));
    }
    for (const json& row : root.at("profiles")) {
      result.profiles.emplace_back(row.at("model").get<std::string>(), std::vector<dnn::TimeSample>());
      for (const json& sample : row.at("samples")) {
        dnn::TimeSample s;
        sample.at("kind").get_to(s.kind);
        sample.at("features").get_to(s.features);
        sample.at("seconds").get_to(s.seconds);
        result.profiles.back().second.push_back(std::move(s));
      }
    }
    result.chaos = chaos_from_json(root.at("chaos"));
  } catch (const json::exception&) {
    return corrupt("lacks a field, or has one of the wrong type");
  }
  return result;
}

Status write_testbed_state(const std::string& path, const std::string& key, const TestbedResult& result) {
  json cells = json::array(), profiles = json::array();
  for (const CellResult& cell : result.cells) {
    json plans = json::array();
    for (const PlanResult& plan : cell.plans) plans.push_back(to_json(plan));
    cells.push_back({{"model", cell.model}, {"link", cell.link}, {"plans", plans}});
  }
  for (const auto& [model, samples] : result.profiles) {
    json rows = json::array();
    for (const dnn::TimeSample& s : samples)
      rows.push_back({{"kind", s.kind}, {"features", s.features}, {"seconds", s.seconds}});
    profiles.push_back({{"model", model}, {"samples", rows}});
  }
  const json root = {{"format", "frugal-dnn-testbed"},
                     {"key", key},
                     {"cells", cells},
                     {"profiles", profiles},
                     {"chaos", to_json(result.chaos)}};
  return write_file_atomically(path, root.dump(1) + "\n");
}

}  // namespace frugal::cli
