#include "dnn/link/worker.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/clock.h"
#include "base/text.h"
#include "dnn/plan/profile.h"

namespace frugal::dnn {
namespace {

using nlohmann::json;

constexpr size_t kMaxQueued = 64;

Error bad(const char* what) { return {ErrorCode::kInvalidArgument, what}; }

std::string host_name() {
  utsname names{};
  return uname(&names) == 0 ? names.nodename : "host";
}

bool is_hash(const std::string& text) {
  return text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

uint64_t file_bytes(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
}

}  // namespace

Result<std::unique_ptr<Worker>> Worker::start(const BusOptions& bus, const WorkerOptions& options) {
  std::unique_ptr<Worker> worker(new Worker(options));
  if (worker->options_.name.empty()) worker->options_.name = strf("%s-%d", host_name().c_str(), getpid());
  std::error_code fault;
  std::filesystem::create_directories(options.cache_folder, fault);
  if (fault) return Error{ErrorCode::kIo, options.cache_folder + ": " + fault.message()};
  FRUGAL_TRY_STATUS(worker->open(bus));
  return worker;
}

Status Worker::open(const BusOptions& bus) {
  if (!options_.turns_file.empty()) {
    FRUGAL_TRY(turns_, Turns::open(options_.turns_file));
  }
  FRUGAL_TRY(std::shared_ptr<Bus> connection, Bus::connect(bus));
  mailbox_ = std::make_shared<Mailbox>(std::move(connection), options_.mailbox);
  FRUGAL_TRY_STATUS(mailbox_->open([this](Letter letter) { take(std::move(letter)); }));
  const auto staff = [&](Queue& queue, int n) {
    for (int i = 0; i < n; ++i) queue.threads.emplace_back([this, &queue] { work(queue); });
  };
  // Tiles never wait for frames, whose own tiles may be waiting here; loading a model holds up neither.
  staff(frames_, options_.n_frames);
  staff(quick_, 3);
  staff(slow_, 1);
  ticker_ = std::thread([this] { tick(); });
  FRUGAL_TRY_STATUS(mailbox_->listen(peers_subject(options_.tier), ""));
  return mailbox_->listen(tier_subject(options_.tier), "workers");
}

Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_there_.notify_all();
  for (Queue* queue : {&frames_, &quick_, &slow_}) {
    for (std::thread& thread : queue->threads) thread.join();
  }
  if (ticker_.joinable()) ticker_.join();
  models_.clear();  // they hold hops that use the mailbox
}

WorkerCounts Worker::counts() const { return {n_frames_, n_tiles_, n_failed_, model_bytes_}; }

json Worker::about() const {
  return {{"worker", options_.name},       {"tier", options_.tier},         {"address", mailbox_->address()},
          {"slowdown", options_.slowdown}, {"threads", options_.n_threads}, {"frames", n_frames_.load()},
          {"tiles", n_tiles_.load()},      {"failed", n_failed_.load()}};
}

// On the bus's thread: sorts, never waits.
void Worker::take(Letter letter) {
  std::string op;
  // The operation stands in the head; tensors are decoded by who serves it.
  uint64_t n_meta = 0;
  if (letter.body.size() >= 8) std::memcpy(&n_meta, letter.body.data(), 8);
  if (letter.body.size() >= 8 && n_meta <= letter.body.size() - 8) {
    const auto* text = reinterpret_cast<const char*>(letter.body.data() + 8);
    const json meta = json::parse(text, text + n_meta, nullptr, false);
    if (meta.is_object() && meta.contains("op") && meta["op"].is_string()) op = meta["op"].get<std::string>();
  }
  Queue& queue = op == "frame" || op == "prepare" ? frames_ : op == "load" || op == "survey" ? slow_ : quick_;
  bool full;
  {
    const std::lock_guard lock(mutex_);
    full = stopping_ || queue.letters.size() >= kMaxQueued;
    if (!full) queue.letters.push_back(std::move(letter));
  }
  if (full) {
    Content content;
    content.meta = error_to_json({ErrorCode::kUnavailable, options_.name + " has too much to do"});
    mailbox_->answer(letter, content);
    return;
  }
  work_there_.notify_all();
}

void Worker::work(Queue& queue) {
  std::unique_lock lock(mutex_);
  while (true) {
    work_there_.wait(lock, [&] { return stopping_ || !queue.letters.empty(); });
    if (stopping_) return;
    const Letter letter = std::move(queue.letters.front());
    queue.letters.pop_front();
    lock.unlock();
    mailbox_->answer(letter, serve(letter));
    lock.lock();
  }
}

// Says to the bucket that we are there, and keeps the peers of models in use up to date.
void Worker::tick() {
  double said = -1e9;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    lock.unlock();
    if (mailbox_->bus().connected() && wall_seconds() - said > 5) {
      std::string key = "worker." + options_.tier + "." + options_.name;
      std::replace_if(
          key.begin(), key.end(),
          [](char c) { return !std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-'; }, '_');
      // Without JetStream nobody can look, and nothing else suffers. A server that has just started may have
      // it soon.
      const bool ok = mailbox_->bus().put(key, about().dump()).ok();
      said = wall_seconds() - (ok ? 0 : 4.5);
    }
    std::vector<std::shared_ptr<Model>> in_use;
    {
      const std::lock_guard models(models_mutex_);
      for (const auto& [key, model] : models_) {
        if (wall_seconds() - model->used < 10) in_use.push_back(model);
      }
    }
    for (const auto& model : in_use) model->peers->refresh();
    lock.lock();
    work_there_.wait_for(lock, std::chrono::seconds(1), [&] { return stopping_; });
  }
}

Content Worker::serve(const Letter& letter) {
  const double start = wall_seconds();
  const auto request = decode_content(letter.body, true);
  Result<Content> answer = request.ok() ? handle(*request) : Result<Content>(request.error());
  if (!answer.ok()) {
    ++n_failed_;
    Content refusal;
    refusal.meta = error_to_json(answer.error());
    return refusal;
  }
  answer->meta["busy"] = wall_seconds() - start;
  return *std::move(answer);
}

Result<Content> Worker::handle(const Content& request) {
  try {
    const json& meta = request.meta;
    const std::string op = meta.at("op").get<std::string>();
    if (has_fraction(meta)) return bad("a request has a number that is not whole");
    for (const auto& [t, tensor] : request.tensors) {
      if (tensor.packed && op != "frame") return bad("a tensor is packed where none may be");
    }
    Content answer;
    if (op == "who") {
      answer.meta = about();
      return answer;
    }
    if (op == "probe") {
      const auto n = meta.at("bytes").get<size_t>();
      if (n > (size_t{16} << 20)) return bad("a probe of more than 16 MiB");
      if (n > 0) answer.tensors[0] = HostTensor{"u8", {static_cast<int64_t>(n)}, std::vector<std::byte>(n)};
      return answer;
    }
    if (op == "open") return open_model(meta);
    if (op == "put") return put_piece(request);
    if (op == "load") return load_model(meta);
    if (op == "frame") return run_frame(request);
    if (op == "tile") return run_tile(request);
    if (op == "prepare") return prepare(meta);
    if (op == "survey") return survey(meta);
    if (op == "reach") {
      FRUGAL_TRY(const std::shared_ptr<Model> model, find(meta));
      answer.meta["reach"] = 1 + (model->next ? model->next->reach() : 0);
      return answer;
    }
    return Error{ErrorCode::kUnsupported, "this worker knows no operation '" + utf8_sanitized(op) + "'"};
  } catch (const json::exception&) {
    return bad("a request lacks a field, or has one of the wrong type");
  }
}

std::string Worker::model_path(const std::string& hash, size_t file, size_t n_files) const {
  return options_.cache_folder + "/" + hash + (n_files == 1 ? ".onnx" : file == 0 ? ".xml" : ".bin");
}

Result<Content> Worker::open_model(const json& meta) {
  const auto hash = meta.at("model").get<std::string>();
  const auto n_files = meta.at("n_files").get<size_t>();
  if (!is_hash(hash) || n_files < 1 || n_files > 2) return bad("a model is named by 16 hexadecimal digits");
  Content answer;
  answer.meta = about();
  {
    const std::lock_guard lock(models_mutex_);
    if (const auto at = models_.find(meta.at("key").get<std::string>()); at != models_.end()) {
      at->second->used = wall_seconds();
      answer.meta["model"] = "ready";
      answer.meta["fingerprint"] = strf("%016lx", fingerprint_of(at->second->runner->network().graph()));
      return answer;
    }
  }
  uint64_t have = 0;
  for (size_t f = 0; f < n_files; ++f) {
    const std::string path = model_path(hash, f, n_files);
    const uint64_t whole = file_bytes(path);
    have += whole > 0 ? whole : file_bytes(path + ".partial");
    if (whole == 0) break;
  }
  answer.meta["model"] = "needed";
  answer.meta["have"] = have;
  return answer;
}

// A piece that does not go on where the file ends is refused, or was already written: then it is skipped.
Result<Content> Worker::put_piece(const Content& request) {
  const json& meta = request.meta;
  const auto hash = meta.at("model").get<std::string>();
  const auto file = meta.at("file").get<size_t>(), n_files = meta.at("n_files").get<size_t>();
  const auto offset = meta.at("offset").get<uint64_t>(), total = meta.at("file_bytes").get<uint64_t>();
  if (!is_hash(hash) || n_files < 1 || n_files > 2 || file >= n_files || request.tensors.size() != 1)
    return bad("not a piece of a model");
  const std::string path = model_path(hash, file, n_files), partial = path + ".partial";
  const std::vector<std::byte>& bytes = request.tensors.begin()->second.bytes;
  const std::lock_guard lock(models_mutex_);
  Content answer;
  if (file_bytes(path) > 0) return answer;
  const uint64_t have = file_bytes(partial);
  if (offset > have || offset + bytes.size() > total)
    return Error{ErrorCode::kCorrupt,
                 strf("a piece at %lu of a model of which %lu bytes are here", offset, have)};
  if (offset + bytes.size() <= have) return answer;
  const int fd = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return Error{ErrorCode::kIo, "cannot write " + partial};
  const ssize_t written = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
  close(fd);
  if (written != static_cast<ssize_t>(bytes.size())) return Error{ErrorCode::kIo, "no room for " + partial};
  model_bytes_ += bytes.size();
  if (offset + bytes.size() == total && std::rename(partial.c_str(), path.c_str()) != 0)
    return Error{ErrorCode::kIo, "cannot finish " + path};
  return answer;
}

Result<Content> Worker::load_model(const json& meta) {
  const auto hash = meta.at("model").get<std::string>(), key = meta.at("key").get<std::string>();
  const auto n_files = meta.at("n_files").get<size_t>();
  const int k = meta.at("k").get<int>();
  const auto chain = meta.at("chain").get<std::vector<std::string>>();
  NetworkOptions network_options;
  network_options.n_threads = options_.n_threads;
  network_options.input_shapes = meta.at("shapes").get<std::vector<std::vector<int64_t>>>();
  if (!is_hash(hash) || n_files < 1 || n_files > 2 || k < 1 || k > 64 || chain.empty() || chain.size() > 64)
    return bad("not a model to load");
  Content answer;
  std::shared_ptr<const Network> network;
  {
    const std::lock_guard lock(models_mutex_);
    for (const auto& [other, model] : models_) {
      if (other == key || other.substr(0, 16) == hash) network = model->runner->network_ptr();
      if (other == key) {
        answer.meta["fingerprint"] = strf("%016lx", fingerprint_of(network->graph()));
        return answer;
      }
    }
    if (!network_options.input_shapes.empty()) network.reset();  // shapes are part of the import
  }
  const std::string path = model_path(hash, 0, n_files);
  if (!network) {
    auto loaded = Network::load(path, network_options);
    // What is in the file decides, not what the file is called.
    const bool other = loaded.ok() && strf("%016lx", (*loaded)->graph().model_hash) != hash;
    if (other || !loaded.ok()) {
      for (size_t f = 0; f < n_files; ++f) std::remove(model_path(hash, f, n_files).c_str());
      if (!loaded.ok()) return std::move(loaded).error().in("loading the model on " + options_.name);
      return Error{ErrorCode::kCorrupt,
                   strf("worker %s holds other weights than those of model %s; they were thrown "
                        "away, ask again to send them",
                        options_.name.c_str(), hash.c_str())};
    }
    network = *std::move(loaded);
  }
  auto model = std::make_shared<Model>();
  model->used = wall_seconds();
  model->runner = std::make_shared<TierRunner>(network, k, options_.n_threads, options_.slowdown);
  FRUGAL_TRY(const ModelSource source, model_source(path, *network, network_options.input_shapes));
  model->peers = std::make_shared<RemotePeers>(*mailbox_, source, k, options_.tier);
  model->runner->set_peers(model->peers);
  model->runner->set_turns(turns_);
  if (chain.size() > 1) {
    model->next = std::make_shared<RemoteHop>(mailbox_, source, k + 1,
                                              std::vector<std::string>(chain.begin() + 1, chain.end()));
  }
  answer.meta["fingerprint"] = strf("%016lx", source.fingerprint);
  const std::lock_guard lock(models_mutex_);
  models_[key] = std::move(model);
  forget_models();
  return answer;
}

// Lets go of the models used longest ago. One model may stand in several chains of tiers: it counts once.
void Worker::forget_models() {
  std::map<std::string, double> used;  // by hash
  for (const auto& [key, model] : models_) {
    double& last = used[key.substr(0, 16)];
    last = std::max(last, model->used);
  }
  while (used.size() > static_cast<size_t>(options_.n_models)) {
    const auto oldest = std::min_element(used.begin(), used.end(),
                                         [](const auto& a, const auto& b) { return a.second < b.second; });
    std::erase_if(models_, [&](const auto& entry) { return entry.first.starts_with(oldest->first); });
    used.erase(oldest);
  }
}

Result<std::shared_ptr<Worker::Model>> Worker::find(const json& meta) {
  const std::lock_guard lock(models_mutex_);
  const auto at = models_.find(meta.at("key").get<std::string>());
  if (at == models_.end()) return Error{ErrorCode::kNotFound, options_.name + " has no such model open"};
  at->second->used = wall_seconds();
  return at->second;
}

Result<Content> Worker::run_frame(const Content& request) {
  FRUGAL_TRY(const std::shared_ptr<Model> model, find(request.meta));
  const auto n_tiers = request.meta.at("n_tiers").get<size_t>();
  if (n_tiers > 64) return bad("more tiers than there can be");
  FRUGAL_TRY(const Division division,
             division_from_json(model->runner->network().graph(), request.meta.at("division"), n_tiers));
  FrameCost cost(n_tiers);
  auto outputs = run_from(*model->runner, model->next.get(), division, request.tensors, cost);
  if (!outputs.ok()) return beyond(outputs.error());
  ++n_frames_;
  Content answer;
  answer.meta["cost"] = cost_to_json(cost);
  answer.tensors = *std::move(outputs);
  return answer;
}

Result<Content> Worker::run_tile(const Content& request) {
  FRUGAL_TRY(const std::shared_ptr<Model> model, find(request.meta));
  FRUGAL_TRY(const TileJob job, job_from_content(model->runner->network().graph(), request));
  FRUGAL_TRY(std::vector<HostTensor> outputs, model->runner->run_tile(job));
  Content answer;
  for (size_t i = 0; i < outputs.size(); ++i) answer.tensors[static_cast<int>(i)] = std::move(outputs[i]);
  ++n_tiles_;
  return answer;
}

Result<Content> Worker::prepare(const json& meta) {
  FRUGAL_TRY(const std::shared_ptr<Model> model, find(meta));
  FRUGAL_TRY(const Division division,
             division_from_json(model->runner->network().graph(), meta.at("division"),
                                meta.at("n_tiers").get<size_t>()));
  FRUGAL_TRY_STATUS(model->runner->prepare(division));
  if (model->next && division.uses_beyond(model->runner->k()))
    FRUGAL_TRY_STATUS(model->next->prepare(division));
  return Content();
}

Result<Content> Worker::survey(const json& meta) {
  FRUGAL_TRY(const std::shared_ptr<Model> model, find(meta));
  const int repetitions = std::clamp(meta.at("repetitions").get<int>(), 0, 100);  // 0: only the links
  json row = about();
  if (model->survey.is_null() && repetitions > 0) {
    FRUGAL_TRY(const Profile profile,
               measure_profile(model->runner->network(), options_.n_threads, repetitions));
    std::vector<double> times = profile.measurement.vertex_seconds;
    for (double& seconds : times) seconds *= model->runner->slowdown();
    model->survey = times;
  }
  row["name"] = options_.tier;
  row["vertex_seconds"] = model->survey;
  model->peers->refresh();
  const std::vector<double> speeds = model->peers->speeds(model->runner->slowdown());
  row["worker_speeds"] = speeds;
  if (speeds.size() > 1 && model->tiles.is_null() && repetitions > 0) {
    Profile profile;
    profile.n_threads = options_.n_threads;
    profile.measurement.vertex_seconds = model->survey.get<std::vector<double>>();
    for (double& seconds : profile.measurement.vertex_seconds) seconds /= model->runner->slowdown();
    FRUGAL_TRY_STATUS(measure_tiles(model->runner->network(), repetitions, profile));
    for (double& seconds : profile.measurement.tile_fixed_seconds) seconds *= model->runner->slowdown();
    model->tiles = profile.measurement.tile_fixed_seconds;
  }
  if (!model->tiles.is_null()) row["tile_fixed_seconds"] = model->tiles;
  if (const auto probe = model->peers->probe(); probe.ok()) {
    row["peer_latency_seconds"] = probe->latency_seconds;
    row["peer_bytes_per_second"] = std::min(probe->up_bytes_per_second, probe->down_bytes_per_second);
  }
  Content answer;
  answer.meta["tiers"] = json::array({row});
  if (!model->next) return answer;
  // A tier beyond that is not there shortens the chain.
  if (!model->next->connect().ok()) return answer;
  const auto beyond = model->next->survey(repetitions);
  const auto link = model->next->probe();
  if (!beyond.ok() || !link.ok()) return answer;
  answer.meta["tiers"][0]["link"] = {{"latency_seconds", link->latency_seconds},
                                     {"up_bytes_per_second", link->up_bytes_per_second},
                                     {"down_bytes_per_second", link->down_bytes_per_second}};
  for (const json& tier : *beyond) answer.meta["tiers"].push_back(tier);
  return answer;
}

}  // namespace frugal::dnn
