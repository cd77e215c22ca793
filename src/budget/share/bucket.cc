#include "budget/share/bucket.h"

#include <nats/nats.h>

#include "base/text.h"

namespace frugal::budget {
namespace {

constexpr int64_t kTimeoutMs = 1000;

Error trouble(natsStatus status, const std::string& what) {
  return {ErrorCode::kUnavailable, what + ": " + natsStatus_GetText(status)};
}

class NatsBucket final : public Bucket {
 public:
  ~NatsBucket() override {
    kvWatcher_Destroy(watcher_);
    kvStore_Destroy(store_);
    jsCtx_Destroy(stream_);
    natsConnection_Destroy(connection_);
    natsOptions_Destroy(options_);
  }

  Status connect(const std::string& url, const std::string& name) {
    natsStatus status = natsOptions_Create(&options_);
    if (status == NATS_OK) status = natsOptions_SetURL(options_, url.c_str());
    if (status == NATS_OK) status = natsOptions_SetTimeout(options_, kTimeoutMs);
    // A lost connection is made anew by whoever owns this: the bucket itself may be gone with the server.
    if (status == NATS_OK) status = natsOptions_SetAllowReconnect(options_, false);
    if (status == NATS_OK) status = natsConnection_Connect(&connection_, options_);
    if (status != NATS_OK) return trouble(status, "no NATS server at " + url);
    jsOptions js;
    jsOptions_Init(&js);
    js.Wait = kTimeoutMs;
    status = natsConnection_JetStream(&stream_, connection_, &js);
    if (status == NATS_OK && js_KeyValue(&store_, stream_, name.c_str()) != NATS_OK) {
      kvConfig config;
      kvConfig_Init(&config);
      config.Bucket = name.c_str();
      config.History = 1;
      config.MaxValueSize = 4096;
      config.StorageType = js_MemoryStorage;
      status = js_CreateKeyValue(&store_, stream_, &config);
      if (status != NATS_OK)  // somebody else may have made it in between
        status = js_KeyValue(&store_, stream_, name.c_str());
    }
    if (status == NATS_OK) status = kvStore_WatchAll(&watcher_, store_, nullptr);
    if (status != NATS_OK)
      return trouble(status,
                     "no key-value bucket '" + name + "' at " + url + " (is JetStream on? nats-server -js)");
    return {};
  }

  Result<std::vector<Change>> changes() override {
    if (natsConnection_Status(connection_) != NATS_CONN_STATUS_CONNECTED)
      return {ErrorCode::kUnavailable, "the connection to the NATS server is lost"};
    std::vector<Change> all;
    while (true) {
      kvEntry* entry = nullptr;
      const natsStatus status = kvWatcher_Next(&entry, watcher_, 1);
      if (status == NATS_TIMEOUT) return all;
      if (status != NATS_OK) return trouble(status, "watching the bucket");
      if (entry == nullptr) continue;  // marks the end of what was there at first
      if (kvEntry_Operation(entry) == kvOp_Put) {
        all.push_back({kvEntry_Key(entry),
                       std::string(static_cast<const char*>(kvEntry_Value(entry)),
                                   static_cast<size_t>(kvEntry_ValueLen(entry))),
                       kvEntry_Revision(entry)});
      }
      kvEntry_Destroy(entry);
    }
  }

  Status put(const std::string& key, const std::string& value) override {
    const natsStatus status =
        kvStore_Put(nullptr, store_, key.c_str(), value.data(), static_cast<int>(value.size()));
    return status == NATS_OK ? Status() : Status(trouble(status, "writing " + key));
  }

  Result<uint64_t> put_if(const std::string& key, const std::string& value, uint64_t revision) override {
    uint64_t now = 0;
    const int size = static_cast<int>(value.size());
    const natsStatus status = revision == 0
                                  ? kvStore_Create(&now, store_, key.c_str(), value.data(), size)
                                  : kvStore_Update(&now, store_, key.c_str(), value.data(), size, revision);
    if (status == NATS_OK) return now;
    // The server refuses a revision that is no longer the last one with an error of its own; a silent server
    // gives a timeout.
    if (status == NATS_TIMEOUT || status == NATS_CONNECTION_CLOSED || status == NATS_NO_RESPONDERS)
      return trouble(status, "writing " + key);
    return {ErrorCode::kCancelled, "somebody else wrote " + key + " first"};
  }

 private:
  natsOptions* options_ = nullptr;
  natsConnection* connection_ = nullptr;
  jsCtx* stream_ = nullptr;
  kvStore* store_ = nullptr;
  kvWatcher* watcher_ = nullptr;
};

}  // namespace

Result<std::unique_ptr<Bucket>> Bucket::open(const std::string& url, const std::string& name) {
  auto bucket = std::make_unique<NatsBucket>();
  FRUGAL_TRY_STATUS(bucket->connect(url, name));
  return std::unique_ptr<Bucket>(std::move(bucket));
}

}  // namespace frugal::budget
