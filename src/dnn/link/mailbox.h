// Letters over a bus: requests of any size and their answers, in chunks with a window of unacknowledged ones,
// so that a slow receiver slows its sender down and no queue grows; and a sign of life, so that a dead
// receiver is noticed in a second whatever the request takes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dnn/link/bus.h"
#include "dnn/link/wire.h"

namespace frugal::dnn {

struct MailboxOptions {
  double beat_seconds = 0.15;    // how often one at work for others says so
  double silence_seconds = 0.8;  // without a word for so long, the other side is given up
  uint32_t window_chunks = 16;   // on their way at a time
};

// A letter that came.
struct Letter {
  std::string from;  // where to answer
  uint64_t id = 0;
  std::vector<std::byte> body;
  double seconds = 0;  // from its first chunk to its last
};

// What an answer took, apart from what it says.
struct Timing {
  double total_seconds = 0;  // from the first chunk sent to the last one back
};

// Thread-safe. One address of its own; more subjects can be listened to.
class Mailbox {
 public:
  Mailbox(std::shared_ptr<Bus> bus, MailboxOptions options = {});
  ~Mailbox();
  // Starts listening. Requests that come are handed to `serve` on the bus's thread, which must not wait: it
  // answers later, with answer(). While a request is unanswered, its sender is told that somebody is at work
  // on it.
  Status open(std::function<void(Letter)> serve);
  Status listen(const std::string& subject, const std::string& queue);

  // Sends a request and waits. kUnavailable: nobody listens there, the connection is down, or nothing was
  // heard for too long. Errors of the other side come back as they are.
  Result<Content> request(const std::string& to, const Content& content, Timing* timing = nullptr,
                          std::string* answered_by = nullptr);
  // Requests that all listeners may answer: everything that came within `seconds`.
  std::vector<Content> ask_all(const std::string& to, const Content& content, double seconds);
  // Errors are of no use to who answers: the one who asked will ask again.
  void answer(const Letter& request, const Content& content);

  const std::string& address() const { return address_; }
  Bus& bus() { return *bus_; }

 private:
  struct Sending {  // a letter on its way out
    uint32_t acked = 0;
    double heard = 0;
    std::string refusal;
    bool nobody = false;
  };
  struct Waiting : Sending {  // a request without its answer yet
    Assembler assembler;
    bool done = false, many = false;
    Status fault;
    std::vector<std::byte> body;
    std::vector<std::vector<std::byte>> bodies;  // many
    std::map<std::string, Assembler> assemblers;
    std::string from;
  };
  struct Arriving {
    Assembler assembler;
    double begin = 0, heard = 0;
  };

  void on_message(const BusMessage& message);
  void on_request(const std::string& from, const ChunkView& chunk, bool broadcast);
  void on_answer(const std::string& from, const ChunkView& chunk);
  Status send(const std::string& to, ChunkKind kind, uint64_t id, std::span<const std::byte> body,
              Sending& sending);
  void send_head(const std::string& to, ChunkKind kind, uint64_t id, uint32_t sequence,
                 std::string_view why = {});
  void beat();
  std::string reply_subject(uint64_t id) const;

  std::shared_ptr<Bus> bus_;
  MailboxOptions options_;
  std::string address_;
  std::function<void(Letter)> serve_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Waiting*> waiting_;                           // our requests
  std::map<std::pair<std::string, uint64_t>, Arriving> arriving_;  // requests to us, not yet whole
  std::map<std::pair<std::string, uint64_t>, Sending> serving_;    // whole, not yet answered
  bool stopping_ = false;
  std::thread beater_;
};

}  // namespace frugal::dnn
