#include "jobs/hosts/pool.h"

#include <nats/nats.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/text.h"

namespace frugal::jobs {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kWaitMs = 2000;
constexpr int64_t kFetchMs = 200;
constexpr double kKeptDays = 30;  // of a job that is over, in the bucket

Error trouble(natsStatus status, const std::string& what) {
  const ErrorCode code = status == NATS_NOT_PERMITTED || status == NATS_CONNECTION_AUTH_FAILED
                             ? ErrorCode::kPermission
                             : ErrorCode::kUnavailable;
  return {code, what + ": " + natsStatus_GetText(status)};
}

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string to_text(const PooledJob& pooled) {
  const Job& job = pooled.job;
  Json runs = Json::array();
  for (const Run& run : pooled.runs) runs.push_back({run.begin_unix_s, run.end_unix_s, run.workers});
  return dump({{"version", 1},
               {"command", job.command},
               {"folder", job.folder},
               {"project", job.project},
               {"submitted_s", job.submitted_unix_s},
               {"deadline_s", job.deadline_unix_s},
               {"takes_s", job.takes_s},
               {"interruptible", job.interruptible},
               {"restartable", job.restartable},
               {"checkpoint", job.checkpoint},
               {"threads", job.threads},
               {"rates", job.rates},
               {"carbon_file", job.carbon_file},
               {"region", job.region},
               {"expected_g", job.expected_g},
               {"at_once_g", job.at_once_g},
               {"state", job_state_name(job.state)},
               {"host", pooled.host},
               {"cancel", pooled.cancel},
               {"started_s", job.started_unix_s},
               {"ended_s", job.ended_unix_s},
               {"ran_s", job.ran_s},
               {"exit_code", job.exit_code},
               {"error", job.error},
               {"energy", {job.energy_j, job.energy_low_j, job.energy_high_j, job.energy_from}},
               {"runs", runs}});
}

// Whatever anybody put there: a field of another type is a damaged job, not the end of this process.
Result<PooledJob> from_text(const std::string& id, const std::string& text) {
  const auto bad = [&](const std::string& why) {
    return Error{ErrorCode::kCorrupt, "job " + utf8_sanitized(id) + " of the pool: " + why};
  };
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return bad("no JSON object");
  if (json.value("version", Json()) != 1) return bad("of another version of frugal");
  PooledJob pooled;
  pooled.id = id;
  Job& job = pooled.job;
  bool sound = true;
  const auto text_of = [&](const char* key, std::string& to) {
    sound = sound && json.contains(key) && json[key].is_string();
    if (sound) to = json[key].get<std::string>();
  };
  const auto number_of = [&](const Json& from, double& to) {
    sound = sound && from.is_number();
    if (sound) to = from.get<double>();
  };
  const auto number = [&](const char* key, double& to) { number_of(json.value(key, Json()), to); };
  const auto flag = [&](const char* key, bool& to) {
    sound = sound && json.contains(key) && json[key].is_boolean();
    if (sound) to = json[key].get<bool>();
  };
  const auto whole = [&](const char* key, int& to) {
    double value = 0;
    number(key, value);
    sound = sound && value >= -1e9 && value <= 1e9;
    to = static_cast<int>(value);
  };
  for (const Json& word : json.value("command", Json::array())) {
    if (!word.is_string()) return bad("its command is no list of words");
    job.command.push_back(word.get<std::string>());
  }
  for (const Json& rate : json.value("rates", Json::array())) number_of(rate, job.rates.emplace_back());
  text_of("folder", job.folder);
  text_of("project", job.project);
  text_of("checkpoint", job.checkpoint);
  text_of("carbon_file", job.carbon_file);
  text_of("region", job.region);
  text_of("error", job.error);
  text_of("host", pooled.host);
  number("submitted_s", job.submitted_unix_s);
  number("deadline_s", job.deadline_unix_s);
  number("takes_s", job.takes_s);
  number("expected_g", job.expected_g);
  number("at_once_g", job.at_once_g);
  number("started_s", job.started_unix_s);
  number("ended_s", job.ended_unix_s);
  number("ran_s", job.ran_s);
  flag("interruptible", job.interruptible);
  flag("restartable", job.restartable);
  flag("cancel", pooled.cancel);
  whole("threads", job.threads);
  whole("exit_code", job.exit_code);
  const Json energy = json.value("energy", Json());
  if (energy.is_array() && energy.size() == 4) {
    double from = 0;
    number_of(energy[0], job.energy_j);
    number_of(energy[1], job.energy_low_j);
    number_of(energy[2], job.energy_high_j);
    number_of(energy[3], from);
    job.energy_from = static_cast<int>(std::clamp(from, 0.0, 3.0));
  }
  // Of hosts that say them.
  for (const Json& item : json.value("runs", Json::array())) {
    sound = sound && item.is_array() && item.size() == 3;
    if (!sound) break;
    double workers = 0;
    Run& run = pooled.runs.emplace_back();
    number_of(item[0], run.begin_unix_s);
    number_of(item[1], run.end_unix_s);
    number_of(item[2], workers);
    run.workers = static_cast<int>(std::clamp(workers, 1.0, 1e6));
  }
  std::string state;
  text_of("state", state);
  bool known = false;
  for (int i = 0; i <= static_cast<int>(JobState::kInterrupted); ++i) {
    if (job_state_name(static_cast<JobState>(i)) != state) continue;
    job.state = static_cast<JobState>(i);
    known = true;
  }
  if (!sound || !known) return bad("a field is missing or of the wrong kind");
  FRUGAL_TRY_STATUS(check_job(job));
  return pooled;
}

class NatsPool final : public Pool {
 public:
  explicit NatsPool(PoolOptions options) : options_(std::move(options)) {}
  ~NatsPool() override {
    natsSubscription_Destroy(subscription_);
    kvStore_Destroy(bucket_);
    jsCtx_Destroy(stream_);
    natsConnection_Destroy(connection_);
    natsOptions_Destroy(nats_options_);
  }

  Status connect() {
    natsStatus s = natsOptions_Create(&nats_options_);
    if (s == NATS_OK) s = natsOptions_SetURL(nats_options_, options_.url.c_str());
    if (s == NATS_OK) s = natsOptions_SetTimeout(nats_options_, kWaitMs);
    if (s == NATS_OK) s = natsOptions_SetName(nats_options_, "frugal jobs");
    if (s == NATS_OK) s = natsOptions_SetMaxReconnect(nats_options_, -1);
    if (s == NATS_OK) s = natsOptions_SetReconnectWait(nats_options_, 500);
    if (s == NATS_OK) s = natsOptions_SetReconnectBufSize(nats_options_, 0);
    if (s == NATS_OK && !options_.credentials.empty())
      s = natsOptions_SetUserCredentialsFromFiles(nats_options_, options_.credentials.c_str(), nullptr);
    if (s == NATS_OK) s = natsConnection_Connect(&connection_, nats_options_);
    if (s != NATS_OK)
      return trouble(
          s, "no NATS server to use at " + options_.url + " (start one with `nats-server -js -sd FOLDER`)");
    jsOptions js;
    jsOptions_Init(&js);
    js.Wait = kWaitMs;
    s = natsConnection_JetStream(&stream_, connection_, &js);
    if (s != NATS_OK) return trouble(s, "JetStream");
    FRUGAL_TRY_STATUS(make_stream());
    return make_bucket();
  }

  Result<std::string> submit(const Job& job) override {
    FRUGAL_TRY_STATUS(check_job(job));
    PooledJob pooled;
    pooled.job = job;
    pooled.id = strf("%013.0f-%d-%d", 1000 * clock_seconds(CLOCK_REALTIME), static_cast<int>(::getpid()),
                     n_submitted_++);
    FRUGAL_TRY_STATUS(publish(pooled));
    return pooled.id;
  }

  Result<std::vector<PooledJob>> list() override {
    kvKeysList keys{};
    const natsStatus s = kvStore_Keys(&keys, bucket_, nullptr);
    std::vector<PooledJob> jobs;
    if (s == NATS_NOT_FOUND) return jobs;
    if (s != NATS_OK) return trouble(s, "listing the jobs at " + options_.url);
    std::vector<std::string> ids(keys.Keys, keys.Keys + keys.Count);
    kvKeysList_Destroy(&keys);
    std::sort(ids.begin(), ids.end());
    for (const std::string& id : ids) {
      auto pooled = get(id);
      if (pooled.ok()) jobs.push_back(std::move(pooled).value());
    }
    return jobs;
  }

  Result<bool> cancel(const std::string& id) override {
    for (int attempt = 0; attempt < 10; ++attempt) {
      FRUGAL_TRY(PooledJob pooled, get(id));
      if (is_over(pooled.job.state)) return false;
      pooled.cancel = true;
      if (pooled.host.empty()) {
        pooled.job.state = JobState::kCancelled;
        pooled.job.error = "cancelled";
        pooled.job.ended_unix_s = clock_seconds(CLOCK_REALTIME);
      }
      FRUGAL_TRY(const bool written, put_if(pooled));
      if (written) return true;
    }
    return {ErrorCode::kUnavailable, "job " + id + " changes too fast to be cancelled; try again"};
  }

  Result<std::string> retry(const std::string& id) override {
    FRUGAL_TRY(const PooledJob old, get(id));
    const auto refused = [&](const std::string& why) {
      return Error{ErrorCode::kInvalidArgument, "job " + id + " " + why};
    };
    if (!is_over(old.job.state)) return refused("is not over");
    if (old.job.state == JobState::kDone) return refused("is done");
    // Its id follows from the old one, so that of two who retry it one is refused.
    PooledJob anew;
    anew.id = id + "-r";
    if (get(anew.id).ok()) return refused("was retried already, as " + anew.id);
    anew.job = old.job;
    Job& job = anew.job;
    job.state = JobState::kWaiting;
    job.started_unix_s = job.ended_unix_s = job.energy_j = job.energy_low_j = job.energy_high_j = 0;
    job.exit_code = job.energy_from = 0;
    job.error.clear();
    if (job.checkpoint.empty()) job.ran_s = 0;
    FRUGAL_TRY_STATUS(publish(anew));
    return anew.id;
  }

  Result<std::optional<Offer>> next() override {
    if (subscription_ == nullptr) FRUGAL_TRY_STATUS(subscribe());
    for (int looked = 0; looked < 64; ++looked) {
      natsMsgList messages{};
      const natsStatus s = natsSubscription_Fetch(&messages, subscription_, 1, kFetchMs, nullptr);
      if (s == NATS_TIMEOUT || s == NATS_NOT_FOUND) return std::optional<Offer>();
      if (s != NATS_OK) {
        natsSubscription_Destroy(std::exchange(subscription_, nullptr));  // made anew next time
        return trouble(s, "asking " + options_.url + " for work");
      }
      natsMsg* message = messages.Msgs[0];
      Offer offer;
      offer.lease = natsMsg_GetReply(message) != nullptr ? natsMsg_GetReply(message) : "";
      const std::string subject = natsMsg_GetSubject(message);
      const std::string id = subject.substr(subject.rfind('.') + 1);
      const std::string text(natsMsg_GetData(message), static_cast<size_t>(natsMsg_GetDataLength(message)));
      natsMsgList_Destroy(&messages);
      auto known = get(id);
      if (!known.ok() && known.error().code == ErrorCode::kNotFound) {
        // Its sender died between its two steps.
        kvStore_Create(nullptr, bucket_, id.c_str(), text.data(), static_cast<int>(text.size()));
        known = get(id);
      }
      if (!known.ok()) {
        if (known.error().code != ErrorCode::kCorrupt) return known.error();
        FRUGAL_TRY_STATUS(answer(offer.lease, "+TERM"));  // nobody can run it
        continue;
      }
      offer.pooled = std::move(known).value();
      Job& job = offer.pooled.job;
      const bool lost =
          !offer.pooled.host.empty() && (job.state == JobState::kRunning || job.state == JobState::kPaused);
      if (lost && !job.restartable && job.checkpoint.empty()) {
        job.state = JobState::kInterrupted;
        job.error = "host " + offer.pooled.host + " fell silent while it ran";
        job.ended_unix_s = clock_seconds(CLOCK_REALTIME);
        FRUGAL_TRY(const bool written, put_if(offer.pooled));
        static_cast<void>(written);  // else its host has just come back and says itself
      }
      if (is_over(job.state)) {
        FRUGAL_TRY_STATUS(answer(offer.lease, "+ACK"));
        continue;
      }
      if (lost && job.checkpoint.empty()) job.ran_s = 0;
      job.state = JobState::kWaiting;
      return std::optional<Offer>(std::move(offer));
    }
    return std::optional<Offer>();
  }

  Result<bool> take(const Offer& offer) override {
    PooledJob mine = offer.pooled;
    mine.host = options_.host;
    return put_if(mine);
  }

  Status leave(const Offer& offer, double delay_s) override {
    return answer(offer.lease, strf("-NAK {\"delay\": %.0f}", 1e9 * std::max(delay_s, 0.0)));
  }

  Result<Held> extend(const std::string& id, const std::string& lease) override {
    FRUGAL_TRY(const PooledJob pooled, get(id));
    if (pooled.host != options_.host || is_over(pooled.job.state)) return Held::kNo;
    FRUGAL_TRY_STATUS(answer(lease, "+WPI"));
    return pooled.cancel ? Held::kCancel : Held::kYes;
  }

  Result<bool> tell(const std::string& id, const std::string& lease, const Job& job,
                    const std::vector<Run>& runs) override {
    for (int attempt = 0; attempt < 10; ++attempt) {
      FRUGAL_TRY(PooledJob pooled, get(id));
      if (pooled.host != options_.host) return false;
      // What others took for interrupted may have gone on, out of their sight.
      if (!is_over(pooled.job.state) || (pooled.job.state == JobState::kInterrupted && is_over(job.state))) {
        Job& to = pooled.job;
        to.state = job.state;
        to.started_unix_s = job.started_unix_s;
        to.ended_unix_s = job.ended_unix_s;
        to.ran_s = job.ran_s;
        to.exit_code = job.exit_code;
        to.error = job.error;
        to.energy_j = job.energy_j;
        to.energy_low_j = job.energy_low_j;
        to.energy_high_j = job.energy_high_j;
        to.energy_from = job.energy_from;
        if (is_over(job.state)) pooled.runs = runs;
        FRUGAL_TRY(const bool written, put_if(pooled));
        if (!written) continue;
      }
      FRUGAL_TRY_STATUS(answer(lease, is_over(job.state) ? "+ACK" : "+WPI"));
      return true;
    }
    return {ErrorCode::kUnavailable, "job " + id + " changes too fast"};
  }

  double lease_s() const override { return lease_s_; }

 private:
  // Puts a new job into the stream, and into the bucket for lists.
  Status publish(const PooledJob& pooled) {
    const std::string text = to_text(pooled);
    jsPubOptions once;
    jsPubOptions_Init(&once);
    once.MsgId = pooled.id.c_str();  // a repeated send is one job
    const std::string subject = options_.name + ".work." + pooled.id;
    jsErrCode code{};
    natsStatus s = NATS_OK;
    for (int attempt = 0; attempt < 3; ++attempt) {
      s = js_Publish(nullptr, stream_, subject.c_str(), text.data(), static_cast<int>(text.size()), &once,
                     &code);
      if (s != NATS_TIMEOUT) break;
    }
    if (s != NATS_OK) return trouble(s, "the job was not taken by " + options_.url);
    // A host that was faster wrote more.
    kvStore_Create(nullptr, bucket_, pooled.id.c_str(), text.data(), static_cast<int>(text.size()));
    return {};
  }

  Status make_stream() {
    const std::string subjects = options_.name + ".work.>";
    const char* list[] = {subjects.c_str()};
    jsStreamConfig config;
    jsStreamConfig_Init(&config);
    config.Name = options_.name.c_str();
    config.Subjects = list;
    config.SubjectsLen = 1;
    config.Retention = js_WorkQueuePolicy;
    config.Storage = js_FileStorage;
    jsErrCode code{};
    natsStatus s = js_AddStream(nullptr, stream_, &config, nullptr, &code);
    if (s != NATS_OK)
      s = js_GetStreamInfo(nullptr, stream_, config.Name, nullptr, &code);  // it is there already
    if (s == NATS_NO_RESPONDERS || s == NATS_TIMEOUT || code == JSNotEnabledErr ||
        code == JSNotEnabledForAccountErr) {
      return {ErrorCode::kUnsupported,
              "the NATS server at " + options_.url +
                  " runs without JetStream: start it with `nats-server -js -sd FOLDER`"};
    }
    if (s != NATS_OK) return trouble(s, "the stream " + options_.name);
    jsConsumerConfig consumer;
    jsConsumerConfig_Init(&consumer);
    consumer.Durable = "runners";
    consumer.AckPolicy = js_AckExplicit;
    consumer.AckWait = static_cast<int64_t>(1e9 * std::clamp(options_.lease_s, 1.0, 86400.0));
    consumer.MaxAckPending = 100000;
    jsConsumerInfo* info = nullptr;
    if (js_GetConsumerInfo(&info, stream_, config.Name, consumer.Durable, nullptr, &code) != NATS_OK) {
      if (options_.lease_s <= 0) return {};  // no runner was here yet: its to say
      s = js_AddConsumer(&info, stream_, config.Name, &consumer, nullptr, &code);
      if (s != NATS_OK) s = js_GetConsumerInfo(&info, stream_, config.Name, consumer.Durable, nullptr, &code);
      if (s != NATS_OK) return trouble(s, "the consumer of " + options_.name);
    }
    lease_s_ = 1e-9 * static_cast<double>(info->Config->AckWait);
    jsConsumerInfo_Destroy(info);
    return {};
  }

  Status make_bucket() {
    if (js_KeyValue(&bucket_, stream_, options_.name.c_str()) == NATS_OK) return {};
    kvConfig config;
    kvConfig_Init(&config);
    config.Bucket = options_.name.c_str();
    config.History = 1;
    config.TTL = static_cast<int64_t>(kKeptDays * 86400e9);
    config.StorageType = js_FileStorage;
    natsStatus s = js_CreateKeyValue(&bucket_, stream_, &config);
    if (s != NATS_OK) s = js_KeyValue(&bucket_, stream_, options_.name.c_str());  // somebody was faster
    return s == NATS_OK ? Status() : Status(trouble(s, "the bucket " + options_.name));
  }

  Status subscribe() {
    jsSubOptions sub;
    jsSubOptions_Init(&sub);
    sub.Stream = options_.name.c_str();
    sub.Consumer = "runners";
    jsErrCode code{};
    const natsStatus s = js_PullSubscribe(&subscription_, stream_, (options_.name + ".work.>").c_str(),
                                          "runners", nullptr, &sub, &code);
    return s == NATS_OK ? Status() : Status(trouble(s, "asking " + options_.url + " for work"));
  }

  Result<PooledJob> get(const std::string& id) {
    kvEntry* entry = nullptr;
    const natsStatus s = kvStore_Get(&entry, bucket_, id.c_str());
    if (s == NATS_NOT_FOUND || s == NATS_INVALID_ARG)
      return {ErrorCode::kNotFound, "the pool has no job '" + utf8_sanitized(id) + "'"};
    if (s != NATS_OK) return trouble(s, "reading job " + id + " at " + options_.url);
    const std::string text(static_cast<const char*>(kvEntry_Value(entry)),
                           static_cast<size_t>(kvEntry_ValueLen(entry)));
    const uint64_t revision = kvEntry_Revision(entry);
    kvEntry_Destroy(entry);
    FRUGAL_TRY(PooledJob pooled, from_text(id, text));
    pooled.revision = revision;
    return pooled;
  }

  // False: somebody wrote it since it was read.
  Result<bool> put_if(const PooledJob& pooled) {
    const std::string text = to_text(pooled);
    uint64_t revision = 0;
    const natsStatus s = kvStore_Update(&revision, bucket_, pooled.id.c_str(), text.data(),
                                        static_cast<int>(text.size()), pooled.revision);
    if (s == NATS_OK) return true;
    if (s == NATS_TIMEOUT || s == NATS_CONNECTION_CLOSED || s == NATS_CONNECTION_DISCONNECTED ||
        s == NATS_NO_RESPONDERS) {
      return trouble(s, "writing job " + pooled.id + " at " + options_.url);
    }
    return false;
  }

  // An answer to a delivery: the lease is the subject that it goes to.
  Status answer(const std::string& lease, const std::string& text) {
    if (lease.empty()) return {ErrorCode::kInvalidArgument, "the job has no lease"};
    natsStatus s = natsConnection_PublishString(connection_, lease.c_str(), text.c_str());
    if (s == NATS_OK) s = natsConnection_FlushTimeout(connection_, kWaitMs);
    return s == NATS_OK ? Status() : Status(trouble(s, "answering " + options_.url));
  }

  const PoolOptions options_;
  natsOptions* nats_options_ = nullptr;
  natsConnection* connection_ = nullptr;
  jsCtx* stream_ = nullptr;
  kvStore* bucket_ = nullptr;
  natsSubscription* subscription_ = nullptr;
  double lease_s_ = 60;
  int n_submitted_ = 0;
};

}  // namespace

Result<std::unique_ptr<Pool>> Pool::open(const PoolOptions& options) {
  auto pool = std::make_unique<NatsPool>(options);
  FRUGAL_TRY_STATUS(pool->connect());
  return std::unique_ptr<Pool>(std::move(pool));
}

}  // namespace frugal::jobs
