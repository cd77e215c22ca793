// Sidecar::recommend: a chain for each request, then the cascade's own stages.
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cascade/serve/answer.h"

namespace frugal::cascade {
namespace {

constexpr size_t kMaxRequests = 256;  // in one body

// The requests of one body: answered when the last of them is.
struct Together {
  bool batch = false;
  std::function<void(Sidecar::Answer)> done;
  std::vector<std::string> answers;  // each the work of one job
  std::atomic<size_t> left{0};
  std::mutex mutex;
  std::optional<Error> error;  // the first; guarded by the mutex

  void finish_one(const std::optional<Error>& its_error) {
    if (its_error) {
      const std::lock_guard lock(mutex);
      if (!error) error = its_error;
    }
    if (left.fetch_sub(1) > 1) return;
    if (error) return done(error_answer(503, error->code, error->message));
    std::string out = batch ? "{\"decisions\":[" : "";
    for (size_t i = 0; i < answers.size(); ++i) out += (i > 0 ? "," : "") + answers[i];
    if (batch) out += "]}";
    done({200, std::move(out)});
  }
};

Result<std::vector<int64_t>> numbers(const nlohmann::json& request, const char* key) {
  std::vector<int64_t> values;
  if (!request.contains(key)) return values;
  if (!request[key].is_array())
    return {ErrorCode::kInvalidArgument, strf("'%s' is not an array of item numbers", key)};
  for (const auto& item : request[key]) {
    if (!item.is_number_integer())
      return {ErrorCode::kInvalidArgument, strf("'%s' holds something that is no whole number", key)};
    values.push_back(item.get<int64_t>());
  }
  return values;
}

}  // namespace

// A short history is filled up with 0 in front, of a long one the newest items count.
Result<ItemService::Job> Sidecar::read_job(const nlohmann::json& request) const {
  FRUGAL_TRY(const auto history, numbers(request, "history"));
  FRUGAL_TRY(const auto seen, numbers(request, "seen"));
  ItemService::Job job;
  const auto length = static_cast<size_t>(spec_.history_length);
  job.history.assign(length, 0);
  const size_t kept = std::min(history.size(), length);
  std::copy(history.end() - static_cast<std::ptrdiff_t>(kept), history.end(),
            job.history.end() - static_cast<std::ptrdiff_t>(kept));
  for (const int64_t item : seen) {
    if (item < 0 || item > spec_.n_items)
      return {ErrorCode::kInvalidArgument,
              strf("'seen' names item %lld; there are 1 to %d", static_cast<long long>(item), spec_.n_items)};
    job.seen.push_back(static_cast<int32_t>(item));
  }
  FRUGAL_TRY_STATUS(check_request(spec_, {job.history, job.seen, 0}));
  return job;
}

void Sidecar::recommend(std::string_view body, std::function<void(Answer)> done) {
  if (items_ == nullptr) {
    return done(error_answer(404, ErrorCode::kNotFound,
                             "this server decides only: start it with --items to get items"));
  }
  const auto json = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) return done(refuse("the body is not a JSON object"));
  const bool batch = json.contains("requests");
  if (batch &&
      (!json["requests"].is_array() || json["requests"].empty() || json["requests"].size() > kMaxRequests))
    return done(refuse(strf("'requests' is an array of 1 to %zu requests", kMaxRequests)));
  const size_t n = batch ? json["requests"].size() : 1;
  auto together = std::make_shared<Together>();
  together->batch = batch;
  together->done = std::move(done);
  together->answers.resize(n);
  together->left = n;
  std::vector<ItemService::Job> jobs;
  for (size_t i = 0; i < n; ++i) {  // all are read before any is decided: a refused body costs nothing
    const nlohmann::json& request = batch ? json["requests"][i] : json;
    const auto refused = [&](const std::string& why) {
      together->done(refuse(batch ? strf("request %zu: %s", i, why.c_str()) : why));
    };
    if (!request.is_object() || !request.contains("features")) return refused("there is no 'features'");
    auto job = read_job(request);
    if (!job.ok()) return refused(job.error().message);
    jobs.push_back(*std::move(job));
  }
  if (const Status status = pick_for(json, batch, together->answers, jobs); !status.ok())
    return together->done(refuse(status.error().message));
  for (size_t i = 0; i < n; ++i) {
    jobs[i].done = [this, together, i](const Result<std::vector<int>>& items) {
      (items.ok() ? recommended_ : failed_).fetch_add(1, std::memory_order_relaxed);
      if (!items.ok()) return together->finish_one(items.error());
      std::string& answer = together->answers[i];
      answer += ",\"items\":[";
      for (size_t k = 0; k < items->size(); ++k) answer += (k > 0 ? "," : "") + std::to_string((*items)[k]);
      answer += "]}";
      together->finish_one({});
    };
    if (const Status status = items_->submit(std::move(jobs[i])); !status.ok()) {
      failed_.fetch_add(1, std::memory_order_relaxed);
      together->finish_one(status.error());
    }
  }
}

}  // namespace frugal::cascade
