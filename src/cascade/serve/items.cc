#include "cascade/serve/items.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "base/text.h"

namespace frugal::cascade {
namespace {

class ItemServiceImpl final : public ItemService {
 public:
  ItemServiceImpl(const CascadeSpec& spec, const ItemOptions& options,
                  std::vector<std::unique_ptr<CascadeRunner>> runners)
      : spec_(spec), options_(options), runners_(std::move(runners)) {
    for (auto& runner : runners_) threads_.emplace_back([this, &runner] { work(*runner); });
  }
  ~ItemServiceImpl() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
    for (Job& job : waiting_) job.done(Error{ErrorCode::kCancelled, "the service is stopping"});
  }

  Status submit(Job job) override {
    FRUGAL_TRY_STATUS(check_request(spec_, {job.history, job.seen, job.chain}));
    {
      const std::lock_guard lock(mutex_);
      if (waiting_.size() >= static_cast<size_t>(options_.max_waiting))
        return {ErrorCode::kUnavailable,
                strf("%d requests wait already: send fewer, or start more runners", options_.max_waiting)};
      waiting_.push_back(std::move(job));
    }
    wake_.notify_one();
    return {};
  }

 private:
  void work(CascadeRunner& runner) {
    std::vector<Job> batch;
    while (true) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
        if (stop_) return;
        while (!waiting_.empty() && batch.size() < static_cast<size_t>(options_.runner.max_batch)) {
          batch.push_back(std::move(waiting_.front()));
          waiting_.pop_front();
        }
      }
      run(runner, batch);
      batch.clear();
    }
  }

  // A stage that fails for one chain must not fail requests that do not need it: after an error each request
  // goes alone.
  static void run(CascadeRunner& runner, std::vector<Job>& batch) {
    std::vector<CascadeRequest> requests;
    for (const Job& job : batch) requests.push_back({job.history, job.seen, job.chain});
    std::vector<std::vector<int>> items;
    const Status together = runner.serve(requests, items);
    if (together.ok()) {
      for (size_t i = 0; i < batch.size(); ++i) batch[i].done(std::move(items[i]));
      return;
    }
    if (batch.size() == 1) return batch[0].done(together.error());
    for (size_t i = 0; i < batch.size(); ++i) {
      if (const Status status = runner.serve({&requests[i], 1}, items); !status.ok()) {
        batch[i].done(status.error());
      } else {
        batch[i].done(std::move(items[0]));
      }
    }
  }

  const CascadeSpec spec_;
  const ItemOptions options_;
  std::vector<std::unique_ptr<CascadeRunner>> runners_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::deque<Job> waiting_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<ItemService>> ItemService::start(const std::string& folder, const CascadeSpec& spec,
                                                        const ItemOptions& options) {
  if (options.n_runners < 1 || options.n_runners > 64 || options.max_waiting < 1)
    return {ErrorCode::kInvalidArgument, "runners lie in [1, 64], max_waiting is at least 1"};
  std::vector<std::unique_ptr<CascadeRunner>> runners;
  for (int i = 0; i < options.n_runners; ++i) {
    FRUGAL_TRY(auto runner, CascadeRunner::load(folder, spec, options.runner));
    runners.push_back(std::move(runner));
  }
  return std::unique_ptr<ItemService>(std::make_unique<ItemServiceImpl>(spec, options, std::move(runners)));
}

}  // namespace frugal::cascade
