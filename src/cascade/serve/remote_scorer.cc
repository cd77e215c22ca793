// A stage's model behind HTTP: the user's own scorer, wherever it runs.
#include <httplib.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/text.h"
#include "cascade/serve/items.h"

namespace frugal::cascade {
namespace {

constexpr double kTimeoutS = 2, kPauseS = 1;

nlohmann::json rows_of(std::span<const int64_t> values, int n_rows) {
  const size_t width = values.size() / static_cast<size_t>(n_rows);
  auto rows = nlohmann::json::array();
  for (size_t row = 0; row < static_cast<size_t>(n_rows); ++row) {
    const auto one = values.subspan(row * width, width);
    rows.push_back(std::vector<int64_t>(one.begin(), one.end()));
  }
  return rows;
}

class RemoteScorer final : public Scorer {
 public:
  RemoteScorer(const std::string& url, std::string stage, std::string model)
      : url_(url), stage_(std::move(stage)), model_(std::move(model)) {
    const size_t path = url.find('/', url.find("//") + 2);
    path_ = path == std::string::npos ? "/" : url.substr(path);
    client_ = std::make_unique<httplib::Client>(url.substr(0, path));
    client_->set_keep_alive(true);
    client_->set_tcp_nodelay(true);
    const auto seconds = static_cast<time_t>(kTimeoutS);
    client_->set_connection_timeout(seconds);
    client_->set_read_timeout(seconds);
    client_->set_write_timeout(seconds);
  }

  Result<std::span<float>> score(std::span<const int64_t> histories, std::span<const int64_t> items,
                                 int batch, int n) override {
    if (wall_seconds() < paused_until_)
      return {ErrorCode::kUnavailable, url_ + ": it failed a moment ago and is asked again in a second"};
    if (const Status status = ask(histories, items, batch, n); !status.ok()) {
      paused_until_ = wall_seconds() + kPauseS;
      return status.error();
    }
    return std::span<float>(scores_);
  }

 private:
  Status ask(std::span<const int64_t> histories, std::span<const int64_t> items, int batch, int n) {
    nlohmann::json question = {
        {"stage", stage_}, {"model", model_}, {"histories", rows_of(histories, batch)}};
    if (!items.empty()) question["items"] = rows_of(items, batch);
    const auto response = client_->Post(path_, question.dump(), "application/json");
    if (!response) return {ErrorCode::kUnavailable, url_ + ": " + httplib::to_string(response.error())};
    if (response->status != 200)
      return {ErrorCode::kUnavailable, strf("%s: status %d", url_.c_str(), response->status)};
    const auto answer = nlohmann::json::parse(response->body, nullptr, /*allow_exceptions=*/false);
    const auto wrong = [&](const char* what) {
      return Error{ErrorCode::kUnavailable, url_ + ": its answer " + what};
    };
    if (!answer.is_object() || !answer.contains("scores") || !answer["scores"].is_array())
      return wrong("is no JSON object with an array 'scores'");
    const auto& rows = answer["scores"];
    if (rows.size() != static_cast<size_t>(batch))
      return wrong("has another number of rows than the request");
    scores_.clear();
    for (const auto& row : rows) {
      if (!row.is_array() || row.size() != static_cast<size_t>(n))
        return wrong(strf("has a row without %d scores", n).c_str());
      for (const auto& score : row) {
        if (!score.is_number() && !score.is_null())
          return wrong("holds a score that is neither number nor null");
        scores_.push_back(score.is_null() ? NAN : score.get<float>());
      }
    }
    return {};
  }

  std::string url_, path_, stage_, model_;
  std::unique_ptr<httplib::Client> client_;
  std::vector<float> scores_;
  double paused_until_ = 0;
};

}  // namespace

Result<std::unique_ptr<Scorer>> open_scorer(const std::string& folder, const CascadeSpec& spec, int stage,
                                            int model, int n_threads) {
  const Stage& one = spec.stages[static_cast<size_t>(stage)];
  const StageModel& its = one.models[static_cast<size_t>(model)];
  if (!its.file.starts_with("http://") && !its.file.starts_with("https://"))
    return open_onnx_scorer(folder, spec, stage, model, n_threads);
  return std::unique_ptr<Scorer>(std::make_unique<RemoteScorer>(its.file, one.name, its.name));
}

}  // namespace frugal::cascade
