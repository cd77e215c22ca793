#include "dnn/link/remote.h"

#include <algorithm>

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/text.h"

namespace frugal::dnn {
namespace {

using nlohmann::json;

constexpr size_t kModelPieceBytes = size_t{4} << 20;
constexpr double kPeerSearchSeconds = 0.15;

std::string hex(uint64_t value) { return strf("%016lx", value); }

std::string text_of(const json& meta, const char* field) {
  const auto at = meta.find(field);
  return at != meta.end() && at->is_string() ? at->get<std::string>() : "";
}

double number_of(const json& meta, const char* field) {
  const auto at = meta.find(field);
  return at != meta.end() && at->is_number() ? at->get<double>() : 0;
}

// The model's files one after the other, from where the worker's copy ends.
Status upload(Mailbox& mailbox, const std::string& address, const ModelSource& model, json request,
              double have, const UploadProgress& progress) {
  std::vector<MappedFile> files;
  double total = 0, done = 0;
  for (const std::string& path : model.files) {
    FRUGAL_TRY(MappedFile file, MappedFile::open(path));
    total += static_cast<double>(file.bytes().size());
    files.push_back(std::move(file));
  }
  request["op"] = "put";
  for (size_t f = 0; f < files.size(); ++f) {
    const auto bytes = files[f].bytes();
    for (size_t at = 0; at < bytes.size(); at += kModelPieceBytes) {
      const auto piece = bytes.subspan(at, std::min(kModelPieceBytes, bytes.size() - at));
      const double end = done + static_cast<double>(at + piece.size());
      if (end <= have) continue;
      Content content;
      content.meta = request;
      content.meta["file"] = f;
      content.meta["n_files"] = files.size();
      content.meta["offset"] = at;
      content.meta["file_bytes"] = bytes.size();
      HostTensor tensor{"u8", {static_cast<int64_t>(piece.size())}, {piece.begin(), piece.end()}};
      content.tensors[0] = std::move(tensor);
      const auto answer = mailbox.request(address, content);
      if (!answer.ok()) return answer.error();
      if (progress) progress(end, total);
    }
    done += static_cast<double>(bytes.size());
  }
  return {};
}

}  // namespace

uint64_t fingerprint_of(const Graph& graph) {
  uint64_t hash = kFnvOffset;
  const auto add = [&](const std::string& text) {
    hash = fnv1a(std::as_bytes(std::span(text.data(), text.size() + 1)), hash);
  };
  for (const Vertex& vertex : graph.vertices) {
    add(vertex.name);
    for (const std::string& op : vertex.ops) add(op);
  }
  for (const Tensor& tensor : graph.tensors) {
    add(tensor.name);
    add(tensor.type);
    for (const int64_t size : tensor.shape) add(std::to_string(size));
  }
  return hash;
}

Result<ModelSource> model_source(const std::string& path, const Network& network,
                                 std::vector<std::vector<int64_t>> input_shapes) {
  ModelSource model{
      {path}, network.graph().model_hash, fingerprint_of(network.graph()), std::move(input_shapes)};
  if (path.ends_with(".xml")) model.files.push_back(path.substr(0, path.size() - 4) + ".bin");
  return model;
}

std::string tier_subject(const std::string& tier) { return "frugal.dnn.tier." + tier; }
std::string peers_subject(const std::string& tier) { return "frugal.dnn.peers." + tier; }

std::string session_key(const ModelSource& model, int k, const std::vector<std::string>& chain) {
  std::string key = hex(model.hash) + strf("/%d", k);
  for (const std::string& tier : chain) key += "/" + tier;
  for (const auto& shape : model.input_shapes) {
    key += "/";
    for (const int64_t size : shape) key += strf("x%ld", size);
  }
  return key;
}

Result<Session> open_session(Mailbox& mailbox, const std::string& subject, const ModelSource& model, int k,
                             const std::vector<std::string>& chain, const UploadProgress& progress) {
  Content request;
  request.meta = {{"op", "open"},
                  {"model", hex(model.hash)},
                  {"k", k},
                  {"chain", chain},
                  {"shapes", model.input_shapes},
                  {"n_files", model.files.size()},
                  {"key", session_key(model, k, chain)}};
  Session session;
  FRUGAL_TRY(const Content opened, mailbox.request(subject, request, nullptr, &session.address));
  session.about = opened.meta;
  if (text_of(opened.meta, "model") != "ready") {
    FRUGAL_TRY_STATUS(
        upload(mailbox, session.address, model, request.meta, number_of(opened.meta, "have"), progress));
    request.meta["op"] = "load";
    FRUGAL_TRY(const Content loaded, mailbox.request(session.address, request));
    session.about.update(loaded.meta);
  }
  if (text_of(session.about, "fingerprint") != hex(model.fingerprint)) {
    return Error{
        ErrorCode::kUnsupported,
        strf("worker %s groups the operators of this model in another way: its executor or processor is "
             "another one, and a plan made here means something else there",
             text_of(session.about, "worker").c_str())};
  }
  return session;
}

json cost_to_json(const FrameCost& cost) {
  return {{"tier_seconds", cost.tier_seconds},
          {"up_bytes", cost.up_bytes},
          {"down_bytes", cost.down_bytes},
          {"link_seconds", cost.link_seconds}};
}

Result<FrameCost> cost_from_json(const json& root) {
  try {
    FrameCost cost;
    cost.tier_seconds = root.at("tier_seconds").get<std::vector<double>>();
    cost.up_bytes = root.at("up_bytes").get<std::vector<uint64_t>>();
    cost.down_bytes = root.at("down_bytes").get<std::vector<uint64_t>>();
    cost.link_seconds = root.at("link_seconds").get<std::vector<double>>();
    if (cost.up_bytes.size() != cost.down_bytes.size() || cost.up_bytes.size() != cost.link_seconds.size())
      return Error{ErrorCode::kCorrupt, "an answer's costs do not fit together"};
    return cost;
  } catch (const json::exception&) {
    return Error{ErrorCode::kCorrupt, "an answer lacks its costs"};
  }
}

Result<LinkProbe> probe_address(Mailbox& mailbox, const std::string& address) {
  const auto round = [&](size_t up, size_t down) -> Result<double> {
    Content content;
    content.meta = {{"op", "probe"}, {"bytes", down}};
    if (up > 0) content.tensors[0] = HostTensor{"u8", {static_cast<int64_t>(up)}, std::vector<std::byte>(up)};
    Timing timing;
    const auto answer = mailbox.request(address, content, &timing);
    if (!answer.ok()) return answer.error();
    return timing.total_seconds - number_of(answer->meta, "busy");
  };
  constexpr size_t kBytes = size_t{384} << 10;
  double trip = 1e9, up = 1e9, down = 1e9;
  for (int i = 0; i < 5; ++i) {
    FRUGAL_TRY(const double seconds, round(0, 0));
    trip = std::min(trip, seconds);
  }
  for (int i = 0; i < 2; ++i) {
    FRUGAL_TRY(const double there, round(kBytes, 0));
    FRUGAL_TRY(const double back, round(0, kBytes));
    up = std::min(up, there);
    down = std::min(down, back);
  }
  return LinkProbe{trip / 2, kBytes / std::max(1e-6, up - trip), kBytes / std::max(1e-6, down - trip)};
}

RemoteHop::RemoteHop(std::shared_ptr<Mailbox> mailbox, ModelSource model, int k,
                     std::vector<std::string> chain, UploadProgress progress)
    : mailbox_(std::move(mailbox)),
      model_(std::move(model)),
      k_(k),
      chain_(std::move(chain)),
      progress_(std::move(progress)) {}

Result<Session> RemoteHop::session() {
  const std::lock_guard lock(mutex_);
  if (!session_.address.empty()) return session_;
  FRUGAL_TRY(session_, open_session(*mailbox_, tier_subject(chain_[0]), model_, k_, chain_, progress_));
  return session_;
}

Status RemoteHop::connect() {
  auto opened = session();
  if (opened.ok()) return {};
  Error error = opened.error();
  if (error.code == ErrorCode::kUnavailable) {
    error.message =
        strf("no worker of tier '%s' answers (%s); start one: frugal dnn worker --tier %s --nats URL",
             chain_[0].c_str(), error.message.c_str(), chain_[0].c_str());
  }
  return error;
}

Result<Content> RemoteHop::ask(Content content, Timing* timing) {
  FRUGAL_TRY(const Session open, session());
  content.meta["key"] = session_key(model_, k_, chain_);
  auto answer = mailbox_->request(open.address, content, timing);
  // A worker that was restarted, or has let go of the model, is opened again at the next call.
  if (!answer.ok() &&
      (answer.error().code == ErrorCode::kUnavailable || answer.error().code == ErrorCode::kNotFound)) {
    const std::lock_guard lock(mutex_);
    if (session_.address == open.address && !answer.error().message.starts_with(kBeyond)) session_ = {};
    return Error{ErrorCode::kUnavailable, answer.error().message};
  }
  return answer;
}

Result<Values> RemoteHop::run(const Division& division, Values inputs, FrameCost& cost) {
  const auto bytes_of = [](const Values& values) {
    uint64_t bytes = 0;
    for (const auto& [t, tensor] : values) bytes += tensor.bytes.size();
    return bytes;
  };
  Content request;
  request.meta = {
      {"op", "frame"}, {"n_tiers", cost.tier_seconds.size()}, {"division", division_to_json(division)}};
  request.tensors = std::move(inputs);
  const uint64_t up = bytes_of(request.tensors);
  Timing timing;
  FRUGAL_TRY(Content answer, ask(std::move(request), &timing));
  FRUGAL_TRY(const FrameCost beyond, cost_from_json(answer.meta.value("cost", json::object())));
  cost += beyond;
  if (const auto wire = static_cast<size_t>(k_ - 1); wire < cost.up_bytes.size()) {
    cost.up_bytes[wire] += up;
    cost.down_bytes[wire] += bytes_of(answer.tensors);
    cost.link_seconds[wire] += std::max(0.0, timing.total_seconds - number_of(answer.meta, "busy"));
  }
  return std::move(answer.tensors);
}

int RemoteHop::reach() {
  Content request;
  request.meta = {{"op", "reach"}};
  const auto answer = ask(std::move(request));
  return answer.ok() ? std::max(1, static_cast<int>(number_of(answer->meta, "reach"))) : 0;
}

Status RemoteHop::prepare(const Division& division) {
  Content request;
  request.meta = {{"op", "prepare"},
                  {"division", division_to_json(division)},
                  {"n_tiers", static_cast<size_t>(k_) + chain_.size()}};
  const auto answer = ask(std::move(request));
  return answer.ok() ? Status() : Status(answer.error());
}

Result<json> RemoteHop::survey(int repetitions) {
  Content request;
  request.meta = {{"op", "survey"}, {"repetitions", repetitions}};
  FRUGAL_TRY(const Content answer, ask(std::move(request)));
  const auto rows = answer.meta.find("tiers");
  if (rows == answer.meta.end() || !rows->is_array())
    return Error{ErrorCode::kCorrupt, "a survey without tiers"};
  return *rows;
}

Result<LinkProbe> RemoteHop::probe() {
  FRUGAL_TRY(const Session open, session());
  return probe_address(*mailbox_, open.address);
}

RemotePeers::RemotePeers(Mailbox& mailbox, ModelSource model, int k, std::string tier)
    : mailbox_(mailbox), model_(std::move(model)), k_(k), tier_(std::move(tier)) {}

void RemotePeers::refresh() {
  const std::lock_guard refreshing(refresh_mutex_);
  Content request;
  request.meta = {{"op", "who"}};
  std::vector<std::string> addresses;
  for (const Content& answer : mailbox_.ask_all(peers_subject(tier_), request, kPeerSearchSeconds)) {
    const std::string address = text_of(answer.meta, "address");
    if (!address.empty() && address != mailbox_.address()) addresses.push_back(address);
  }
  std::sort(addresses.begin(), addresses.end());
  std::vector<Session> next;
  {
    // Those known before keep their places: their tiles are compiled there.
    const std::lock_guard lock(mutex_);
    for (const Session& known : peers_) {
      const auto at = std::find(addresses.begin(), addresses.end(), known.address);
      if (at == addresses.end()) continue;
      addresses.erase(at);
      next.push_back(known);
    }
  }
  for (const std::string& address : addresses) {
    auto session = open_session(mailbox_, address, model_, k_, {tier_});
    if (session.ok()) next.push_back(*std::move(session));
  }
  const std::lock_guard lock(mutex_);
  peers_ = std::move(next);
  looked_ = true;
}

std::vector<Session> RemotePeers::peers() {
  {
    const std::lock_guard lock(mutex_);
    if (looked_) return peers_;
  }
  refresh();
  const std::lock_guard lock(mutex_);
  return peers_;
}

Result<std::vector<HostTensor>> RemotePeers::run_tile(size_t worker, const TileJob& job) {
  const std::vector<Session> known = peers();
  if (worker == 0 || worker > known.size()) {
    return Error{ErrorCode::kUnavailable, strf("tier '%s' has no worker %zu", tier_.c_str(), worker)};
  }
  Content request;
  request.meta = job_to_json(job);
  request.meta["op"] = "tile";
  request.meta["key"] = session_key(model_, k_, {tier_});
  for (size_t i = 0; i < job.pieces.size(); ++i) request.tensors[static_cast<int>(i)] = job.pieces[i].tensor;
  auto answer = mailbox_.request(known[worker - 1].address, request);
  if (!answer.ok()) {
    const std::lock_guard lock(mutex_);
    if (answer.error().code != ErrorCode::kNotFound && answer.error().code != ErrorCode::kUnsupported)
      std::erase_if(peers_, [&](const Session& s) { return s.address == known[worker - 1].address; });
    return answer.error();
  }
  std::vector<HostTensor> tensors;
  for (auto& [i, tensor] : answer->tensors) tensors.push_back(std::move(tensor));
  if (tensors.size() != (job.stays ? job.gives.size() : 1))
    return Error{ErrorCode::kCorrupt, "a tile's answer without its tensor"};
  return tensors;
}

std::vector<double> RemotePeers::speeds(double own_slowdown) {
  std::vector<double> speeds = {1};
  for (const Session& peer : peers())
    speeds.push_back(own_slowdown / std::max(1.0, number_of(peer.about, "slowdown")));
  return speeds;
}

Result<LinkProbe> RemotePeers::probe() {
  const std::vector<Session> known = peers();
  if (known.empty()) return Error{ErrorCode::kUnavailable, "there is no other worker"};
  return probe_address(mailbox_, known[0].address);
}

}  // namespace frugal::dnn
