// A worker of a tier: joins over NATS, is given models, computes its share of frames and tiles of its peers'.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dnn/link/remote.h"

namespace frugal::dnn {

struct WorkerOptions {
  std::string tier = "edge";
  std::string name;          // shown in messages; empty = made of host and process
  std::string cache_folder;  // where models that came are kept, by hash
  int n_threads = 1;
  double slowdown = 1;     // stands for a weaker host
  std::string turns_file;  // and computes only while it holds this file locked (turns.h); empty: at any time
  int n_frames = 4;        // in hand at once; they take turns at computing
  int n_models = 4;        // loaded at once
  MailboxOptions mailbox;
};

struct WorkerCounts {
  uint64_t n_frames = 0, n_tiles = 0, n_failed = 0, model_bytes_received = 0;
};

class Worker {
 public:
  static Result<std::unique_ptr<Worker>> start(const BusOptions& bus, const WorkerOptions& options);
  ~Worker();
  WorkerCounts counts() const;
  const std::string& name() const { return options_.name; }
  bool connected() const { return mailbox_->bus().connected(); }

 private:
  // A model in use, for one place in one chain of tiers.
  struct Model {
    std::shared_ptr<TierRunner> runner;
    std::shared_ptr<RemoteHop> next;
    std::shared_ptr<RemotePeers> peers;
    nlohmann::json survey, tiles;  // once measured
    double used = 0;
  };
  struct Queue {
    std::deque<Letter> letters;
    std::vector<std::thread> threads;
  };

  Worker(const WorkerOptions& options) : options_(options) {}
  Status open(const BusOptions& bus);
  void take(Letter letter);
  void work(Queue& queue);
  void tick();
  Content serve(const Letter& letter);
  Result<Content> handle(const Content& request);
  Result<Content> open_model(const nlohmann::json& meta);
  Result<Content> put_piece(const Content& request);
  Result<Content> load_model(const nlohmann::json& meta);
  Result<Content> run_frame(const Content& request);
  Result<Content> run_tile(const Content& request);
  Result<Content> prepare(const nlohmann::json& meta);
  Result<Content> survey(const nlohmann::json& meta);
  Result<std::shared_ptr<Model>> find(const nlohmann::json& meta);
  std::string model_path(const std::string& hash, size_t file, size_t n_files) const;
  void forget_models();
  nlohmann::json about() const;

  WorkerOptions options_;
  std::shared_ptr<Turns> turns_;
  std::shared_ptr<Mailbox> mailbox_;
  mutable std::mutex mutex_;
  std::condition_variable work_there_;
  bool stopping_ = false;
  Queue frames_, quick_, slow_;
  std::thread ticker_;
  std::mutex models_mutex_;
  std::map<std::string, std::shared_ptr<Model>> models_;
  std::atomic<uint64_t> n_frames_{0}, n_tiles_{0}, n_failed_{0}, model_bytes_{0};
};

}  // namespace frugal::dnn
