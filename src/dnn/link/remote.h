// Tiers on other hosts: sessions with workers over NATS, the hop and the peers that use them. A worker is
// found by the name of its tier, gets the model once, and is then spoken to directly.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dnn/link/mailbox.h"
#include "dnn/link/tier.h"

namespace frugal::dnn {

// A model as it travels: its files (one for ONNX; .xml and .bin for IR), and what tells it from others.
struct ModelSource {
  std::vector<std::string> files;
  uint64_t hash = 0;         // Graph::model_hash
  uint64_t fingerprint = 0;  // of the imported graph: how this host's executor groups the operators
  std::vector<std::vector<int64_t>> input_shapes;
};
Result<ModelSource> model_source(const std::string& path, const Network& network,
                                 std::vector<std::vector<int64_t>> input_shapes = {});
uint64_t fingerprint_of(const Graph& graph);

std::string tier_subject(const std::string& tier);   // one worker of the tier answers
std::string peers_subject(const std::string& tier);  // all do
std::string session_key(const ModelSource& model, int k, const std::vector<std::string>& chain);

// Done and total bytes of a model on its way to a worker.
using UploadProgress = std::function<void(double, double)>;

// Makes the worker behind `subject` ready for tier `k` of a model; uploads the weights when it lacks them.
// `chain` names the tiers from k on. Gives the worker's own address and what it said about itself ("worker",
// "isa", "slowdown", "key"). kUnsupported: another version, or an executor that groups operators in another
// way.
struct Session {
  std::string address;
  nlohmann::json about;
};
Result<Session> open_session(Mailbox& mailbox, const std::string& subject, const ModelSource& model, int k,
                             const std::vector<std::string>& chain, const UploadProgress& progress = {});

// What probing a link gave.
struct LinkProbe {
  double latency_seconds = 0, up_bytes_per_second = 0, down_bytes_per_second = 0;
};

class RemoteHop final : public Hop {
 public:
  RemoteHop(std::shared_ptr<Mailbox> mailbox, ModelSource model, int k, std::vector<std::string> chain,
            UploadProgress progress = {});
  Result<Values> run(const Division& division, Values inputs, FrameCost& cost) override;
  int reach() override;
  Status prepare(const Division& division) override;

  // Opens a session now, with its worker's own reason when it cannot.
  Status connect();
  // Times of every vertex on this tier's worker and those beyond, and the links between: rows of {"name",
  // "vertex_seconds", "n_workers", "worker_speeds", "link": {...}}, first this tier's.
  Result<nlohmann::json> survey(int repetitions);
  Result<LinkProbe> probe();

 private:
  Result<Session> session();
  // Sends to the session's worker. kUnavailable closes the session.
  Result<Content> ask(Content content, Timing* timing = nullptr);

  std::shared_ptr<Mailbox> mailbox_;
  ModelSource model_;
  int k_;
  std::vector<std::string> chain_;
  UploadProgress progress_;
  std::mutex mutex_;
  Session session_;
};

// The other workers of the caller's tier, as refresh() found them last.
class RemotePeers final : public TilePeers {
 public:
  RemotePeers(Mailbox& mailbox, ModelSource model, int k, std::string tier);
  Result<std::vector<HostTensor>> run_tile(size_t worker, const TileJob& job) override;
  // Speeds against this host, which is `own_slowdown` times slower than it could be; the first is this one.
  std::vector<double> speeds(double own_slowdown);
  Result<LinkProbe> probe();
  // Looks for workers that came, forgets those that left; takes a moment.
  void refresh();

 private:
  std::vector<Session> peers();

  Mailbox& mailbox_;
  ModelSource model_;
  int k_;
  std::string tier_;
  std::mutex refresh_mutex_, mutex_;
  bool looked_ = false;
  std::vector<Session> peers_;
};

// Round trips and payloads to an address.
Result<LinkProbe> probe_address(Mailbox& mailbox, const std::string& address);

nlohmann::json cost_to_json(const FrameCost& cost);
Result<FrameCost> cost_from_json(const nlohmann::json& json);

}  // namespace frugal::dnn
