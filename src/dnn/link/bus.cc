#include "dnn/link/bus.h"

#include <nats/nats.h>

#include <atomic>
#include <list>
#include <mutex>

#include "base/text.h"

namespace frugal::dnn {
namespace {

constexpr char kBucket[] = "frugal_dnn";
constexpr int64_t kForgetNs = 30'000'000'000;

Error nats_error(natsStatus status, const std::string& what) {
  const char* detail = nats_GetLastError(nullptr);
  ErrorCode code = ErrorCode::kUnavailable;
  if (status == NATS_CONNECTION_AUTH_FAILED || status == NATS_NOT_PERMITTED) code = ErrorCode::kPermission;
  if (status == NATS_INVALID_ARG || status == NATS_ADDRESS_MISSING || status == NATS_SSL_ERROR)
    code = ErrorCode::kInvalidArgument;
  if (status == NATS_MAX_PAYLOAD) code = ErrorCode::kOutOfRange;
  std::string reason = natsStatus_GetText(status);
  if (detail != nullptr && *detail != 0) reason += std::string(": ") + detail;
  return {code, utf8_sanitized(what + ": " + reason)};
}

class NatsBus final : public Bus {
 public:
  explicit NatsBus(BusOptions options) : options_(std::move(options)) {}

  // Nothing calls back into us once this returns.
  ~NatsBus() override {
    if (connection_ != nullptr) {
      natsConnection_Close(connection_);
      while (!closed_) nats_Sleep(1);  // the last of the connection's own callbacks
    }
    for (Subscription& subscription : subscriptions_) {
      // Destroying waits for nobody: an async callback under way ends by its own, counted here.
      natsSubscription_Unsubscribe(subscription.handle);
    }
    for (Subscription& subscription : subscriptions_) {
      while (subscription.n_running > 0) nats_Sleep(1);
      natsSubscription_Destroy(subscription.handle);
    }
    kvStore_Destroy(bucket_);
    jsCtx_Destroy(js_);
    natsConnection_Destroy(connection_);
    natsOptions_Destroy(nats_options_);
  }

  Status connect() {
    natsStatus s = natsOptions_Create(&nats_options_);
    const auto set = [&](natsStatus status) {
      if (s == NATS_OK) s = status;
    };
    set(natsOptions_SetURL(nats_options_, options_.url.c_str()));
    set(natsOptions_SetTimeout(nats_options_, static_cast<int64_t>(options_.connect_seconds * 1000)));
    set(natsOptions_SetName(nats_options_, options_.name.c_str()));
    set(natsOptions_SetMaxReconnect(nats_options_, -1));
    set(natsOptions_SetReconnectWait(nats_options_, 200));
    set(natsOptions_SetReconnectJitter(nats_options_, 50, 50));
    set(natsOptions_SetReconnectBufSize(nats_options_, 0));
    set(natsOptions_SetSendAsap(nats_options_, true));
    set(natsOptions_SetPingInterval(nats_options_, 1000));
    set(natsOptions_SetMaxPingsOut(nats_options_, 3));
    set(natsOptions_SetWriteDeadline(nats_options_, 5000));
    set(natsOptions_SetIOBufSize(nats_options_, 128 << 10));
    set(natsOptions_SetErrorHandler(nats_options_, on_error, this));
    set(natsOptions_SetDisconnectedCB(nats_options_, on_disconnect, this));
    set(natsOptions_SetClosedCB(nats_options_, on_closed, this));
    if (options_.url.starts_with("tls://") || !options_.ca.empty())
      set(natsOptions_SetSecure(nats_options_, true));
    if (!options_.ca.empty()) set(natsOptions_LoadCATrustedCertificates(nats_options_, options_.ca.c_str()));
    if (!options_.certificate.empty()) {
      set(natsOptions_LoadCertificatesChain(nats_options_, options_.certificate.c_str(),
                                            options_.key.c_str()));
    }
    if (!options_.credentials.empty())
      set(natsOptions_SetUserCredentialsFromFiles(nats_options_, options_.credentials.c_str(), nullptr));
    if (!options_.user.empty())
      set(natsOptions_SetUserInfo(nats_options_, options_.user.c_str(), options_.password.c_str()));
    if (!options_.token.empty()) set(natsOptions_SetToken(nats_options_, options_.token.c_str()));
    if (s != NATS_OK) return nats_error(s, "the connection's options cannot be used");
    s = natsConnection_Connect(&connection_, nats_options_);
    if (s != NATS_OK) {
      return nats_error(s,
                        strf("no NATS server to use at %s (start one with `nats-server -js`, or give another "
                             "address with --nats)",
                             options_.url.c_str()));
    }
    return {};
  }

  Status publish(const std::string& subject, const std::string& reply,
                 std::span<const std::byte> data) override {
    if (!connected()) return {ErrorCode::kUnavailable, "the connection to " + options_.url + " is down"};
    const natsStatus s =
        reply.empty()
            ? natsConnection_Publish(connection_, subject.c_str(), data.data(), static_cast<int>(data.size()))
            : natsConnection_PublishRequest(connection_, subject.c_str(), reply.c_str(), data.data(),
                                            static_cast<int>(data.size()));
    if (s != NATS_OK) return nats_error(s, "sending to " + subject);
    return {};
  }

  Status subscribe(const std::string& subject, const std::string& queue,
                   std::function<void(const BusMessage&)> callback) override {
    const std::lock_guard lock(mutex_);
    subscriptions_.emplace_back();
    Subscription& subscription = subscriptions_.back();
    subscription.callback = std::move(callback);
    const natsStatus s =
        queue.empty() ? natsConnection_Subscribe(&subscription.handle, connection_, subject.c_str(),
                                                 on_message, &subscription)
                      : natsConnection_QueueSubscribe(&subscription.handle, connection_, subject.c_str(),
                                                      queue.c_str(), on_message, &subscription);
    if (s != NATS_OK) {
      subscriptions_.pop_back();
      return nats_error(s, "listening to " + subject);
    }
    // The server knows of it before anybody is told this address.
    if (const natsStatus flushed = natsConnection_FlushTimeout(connection_, 2000); flushed != NATS_OK)
      return nats_error(flushed, "listening to " + subject);
    return {};
  }

  bool connected() const override { return natsConnection_Status(connection_) == NATS_CONN_STATUS_CONNECTED; }
  size_t max_payload() const override {
    return static_cast<size_t>(std::max<int64_t>(0, natsConnection_GetMaxPayload(connection_)));
  }
  uint64_t n_disconnects() const override { return n_disconnects_; }
  uint64_t n_dropped() const override { return n_dropped_; }

  Status put(const std::string& key, const std::string& value) override {
    const std::lock_guard lock(kv_mutex_);
    FRUGAL_TRY_STATUS(open_bucket());
    const natsStatus s = kvStore_PutString(nullptr, bucket_, key.c_str(), value.c_str());
    if (s != NATS_OK) return nats_error(s, "writing the key " + key);
    return {};
  }

  Result<std::vector<std::pair<std::string, std::string>>> list() override {
    const std::lock_guard lock(kv_mutex_);
    FRUGAL_TRY_STATUS(open_bucket());
    std::vector<std::pair<std::string, std::string>> entries;
    kvKeysList keys{};
    natsStatus s = kvStore_Keys(&keys, bucket_, nullptr);
    if (s == NATS_NOT_FOUND) return entries;
    if (s != NATS_OK) return nats_error(s, "listing keys");
    for (int i = 0; i < keys.Count; ++i) {
      kvEntry* entry = nullptr;
      if (kvStore_Get(&entry, bucket_, keys.Keys[i]) == NATS_OK) {
        entries.emplace_back(keys.Keys[i], std::string(static_cast<const char*>(kvEntry_Value(entry)),
                                                       static_cast<size_t>(kvEntry_ValueLen(entry))));
      }
      kvEntry_Destroy(entry);
    }
    kvKeysList_Destroy(&keys);
    return entries;
  }

 private:
  struct Subscription {
    natsSubscription* handle = nullptr;
    std::function<void(const BusMessage&)> callback;
    std::atomic<int> n_running{0};
  };

  static void on_message(natsConnection*, natsSubscription*, natsMsg* message, void* closure) {
    auto* subscription = static_cast<Subscription*>(closure);
    ++subscription->n_running;
    BusMessage m;
    m.subject = natsMsg_GetSubject(message);
    if (natsMsg_GetReply(message) != nullptr) m.reply = natsMsg_GetReply(message);
    m.data = std::as_bytes(
        std::span(natsMsg_GetData(message), static_cast<size_t>(natsMsg_GetDataLength(message))));
    m.no_responders = natsMsg_IsNoResponders(message);
    subscription->callback(m);
    natsMsg_Destroy(message);
    --subscription->n_running;
  }
  static void on_error(natsConnection*, natsSubscription*, natsStatus status, void* closure) {
    if (status == NATS_SLOW_CONSUMER) ++static_cast<NatsBus*>(closure)->n_dropped_;
  }

  static void on_closed(natsConnection*, void* closure) { static_cast<NatsBus*>(closure)->closed_ = true; }
  static void on_disconnect(natsConnection*, void* closure) {
    ++static_cast<NatsBus*>(closure)->n_disconnects_;
  }

  Status open_bucket() {
    if (bucket_ != nullptr) return {};
    jsOptions js_options;
    jsOptions_Init(&js_options);
    if (!options_.js_domain.empty()) js_options.Domain = options_.js_domain.c_str();
    js_options.Wait = 1000;
    if (js_ == nullptr) {
      if (const natsStatus s = natsConnection_JetStream(&js_, connection_, &js_options); s != NATS_OK)
        return nats_error(s, "JetStream");
    }
    if (js_KeyValue(&bucket_, js_, kBucket) == NATS_OK) return {};
    kvConfig config;
    kvConfig_Init(&config);
    config.Bucket = kBucket;
    config.TTL = kForgetNs;
    config.StorageType = js_MemoryStorage;
    const natsStatus s = js_CreateKeyValue(&bucket_, js_, &config);
    if (s == NATS_OK || js_KeyValue(&bucket_, js_, kBucket) == NATS_OK) return {};  // somebody was faster
    return Error{
        ErrorCode::kUnsupported,
        "the NATS server keeps no key-value bucket (start it with -js; across leaf nodes give --js-domain)"};
  }

  BusOptions options_;
  natsOptions* nats_options_ = nullptr;
  natsConnection* connection_ = nullptr;
  std::mutex mutex_, kv_mutex_;
  std::list<Subscription> subscriptions_;
  jsCtx* js_ = nullptr;
  kvStore* bucket_ = nullptr;
  std::atomic<uint64_t> n_dropped_{0}, n_disconnects_{0};
  std::atomic<bool> closed_{false};
};

}  // namespace

Result<std::shared_ptr<Bus>> Bus::connect(const BusOptions& options) {
  auto bus = std::make_shared<NatsBus>(options);
  FRUGAL_TRY_STATUS(bus->connect());
  return std::shared_ptr<Bus>(std::move(bus));
}

}  // namespace frugal::dnn
