#include "dnn/link/mailbox.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "base/clock.h"
#include "base/text.h"

namespace frugal::dnn {
namespace {

std::string fresh_address() {
  std::random_device device;
  return strf("frugal.dnn.box.%08x%08x%08x", device(), device(), device());
}

std::chrono::duration<double> seconds(double s) { return std::chrono::duration<double>(s); }

}  // namespace

Mailbox::Mailbox(std::shared_ptr<Bus> bus, MailboxOptions options)
    : bus_(std::move(bus)), options_(options), address_(fresh_address()) {}

Mailbox::~Mailbox() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (beater_.joinable()) beater_.join();
  bus_.reset();  // no callback comes after this, if we were the last to hold it
}

// The sender's address and the request's id: that nobody listens is told to this subject, without any
// content.
std::string Mailbox::reply_subject(uint64_t id) const { return strf("%s.%lu", address_.c_str(), id); }

Status Mailbox::open(std::function<void(Letter)> serve) {
  serve_ = std::move(serve);
  FRUGAL_TRY_STATUS(bus_->subscribe(address_, "", [this](const BusMessage& m) { on_message(m); }));
  FRUGAL_TRY_STATUS(bus_->subscribe(address_ + ".*", "", [this](const BusMessage& m) { on_message(m); }));
  beater_ = std::thread([this] { beat(); });
  return {};
}

Status Mailbox::listen(const std::string& subject, const std::string& queue) {
  return bus_->subscribe(subject, queue, [this](const BusMessage& m) { on_message(m); });
}

void Mailbox::send_head(const std::string& to, ChunkKind kind, uint64_t id, uint32_t sequence,
                        std::string_view why) {
  ChunkHead head;
  head.kind = kind;
  head.id = id;
  head.sequence = sequence;
  const auto bytes = encode_chunk(head, std::as_bytes(std::span(why.data(), why.size())));
  (void)bus_->publish(to, reply_subject(id), bytes);
}

void Mailbox::on_message(const BusMessage& message) {
  if (message.no_responders) {
    const uint64_t id = std::strtoull(message.subject.c_str() + message.subject.rfind('.') + 1, nullptr, 10);
    const std::lock_guard lock(mutex_);
    if (const auto at = waiting_.find(id); at != waiting_.end()) at->second->nobody = true;
    changed_.notify_all();
    return;
  }
  const size_t dot = message.reply.rfind('.');
  if (dot == std::string::npos) return;  // no way to answer: not from a mailbox
  const std::string from = message.reply.substr(0, dot);
  const auto chunk = decode_chunk(message.data);
  if (!chunk.ok()) {
    const uint64_t id = std::strtoull(message.reply.c_str() + dot + 1, nullptr, 10);
    send_head(from, ChunkKind::kRefusal, id, 0, chunk.error().message);
    return;
  }
  const ChunkHead& head = chunk->head;
  if (head.kind == ChunkKind::kRequest)
    return on_request(from, *chunk, !message.subject.starts_with(address_));
  if (head.kind == ChunkKind::kAnswer) return on_answer(from, *chunk);
  const std::lock_guard lock(mutex_);
  const auto update = [&](Sending& sending) {
    sending.heard = wall_seconds();
    if (head.kind == ChunkKind::kAck) sending.acked = std::max(sending.acked, head.sequence);
    if (head.kind == ChunkKind::kRefusal) {
      sending.refusal.assign(reinterpret_cast<const char*>(chunk->payload.data()), chunk->payload.size());
    }
  };
  if (const auto at = waiting_.find(head.id); at != waiting_.end()) update(*at->second);
  if (const auto at = serving_.find({from, head.id}); at != serving_.end()) update(at->second);
  changed_.notify_all();
}

void Mailbox::on_request(const std::string& from, const ChunkView& chunk, bool) {
  const std::pair key(from, chunk.head.id);
  Letter letter;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    Arriving& arriving = arriving_[key];
    if (arriving.begin == 0) arriving.begin = wall_seconds();
    arriving.heard = wall_seconds();
    const auto whole = arriving.assembler.add(chunk);
    if (!whole.ok()) {
      arriving_.erase(key);
      send_head(from, ChunkKind::kRefusal, chunk.head.id, 0, whole.error().message);
      return;
    }
    if (*whole) {
      letter = {from, chunk.head.id, arriving.assembler.take(), wall_seconds() - arriving.begin};
      arriving_.erase(key);
      serving_[key].heard = wall_seconds();
    }
  }
  if (chunk.head.n_chunks > 1) send_head(from, ChunkKind::kAck, chunk.head.id, chunk.head.sequence + 1);
  if (!letter.from.empty() && serve_) serve_(std::move(letter));
}

void Mailbox::on_answer(const std::string& from, const ChunkView& chunk) {
  {
    const std::lock_guard lock(mutex_);
    const auto at = waiting_.find(chunk.head.id);
    if (at == waiting_.end()) return;  // given up meanwhile: an answer too late is no answer
    Waiting& waiting = *at->second;
    waiting.heard = wall_seconds();
    waiting.from = from;
    Assembler& assembler = waiting.many ? waiting.assemblers[from] : waiting.assembler;
    const auto whole = assembler.add(chunk);
    if (!whole.ok()) {
      waiting.fault =
          Error{ErrorCode::kUnavailable, "the answer did not arrive whole: " + whole.error().message};
      waiting.done = !waiting.many;
    } else if (*whole && waiting.many) {
      waiting.bodies.push_back(assembler.take());
    } else if (*whole) {
      waiting.body = assembler.take();
      waiting.done = true;
    }
    changed_.notify_all();
  }
  if (chunk.head.n_chunks > 1) send_head(from, ChunkKind::kAck, chunk.head.id, chunk.head.sequence + 1);
}

// Keeps at most a window of chunks on their way. `sending` belongs to a map under the lock.
Status Mailbox::send(const std::string& to, ChunkKind kind, uint64_t id, std::span<const std::byte> body,
                     Sending& sending) {
  const size_t room =
      bus_->max_payload() > kChunkHeadBytes ? bus_->max_payload() - kChunkHeadBytes : kChunkBytes;
  const size_t chunk_bytes = std::min(kChunkBytes, room);
  ChunkHead head;
  head.kind = kind;
  head.id = id;
  head.total_bytes = body.size();
  head.n_chunks = static_cast<uint32_t>(std::max<size_t>(1, (body.size() + chunk_bytes - 1) / chunk_bytes));
  for (uint32_t i = 0; i < head.n_chunks; ++i) {
    {
      std::unique_lock lock(mutex_);
      while (i >= sending.acked + options_.window_chunks && sending.refusal.empty() && !sending.nobody) {
        if (stopping_) return {ErrorCode::kCancelled, "this side is closing"};
        if (wall_seconds() - sending.heard > options_.silence_seconds)
          return {ErrorCode::kUnavailable, "the other side has fallen silent"};
        changed_.wait_for(lock, seconds(0.05));
      }
      if (sending.nobody) return {ErrorCode::kUnavailable, "nobody listens at " + to};
      if (!sending.refusal.empty()) return {ErrorCode::kUnavailable, sending.refusal};
    }
    head.sequence = i;
    const auto payload = body.subspan(i * chunk_bytes, std::min(chunk_bytes, body.size() - i * chunk_bytes));
    FRUGAL_TRY_STATUS(bus_->publish(to, reply_subject(id), encode_chunk(head, payload)));
  }
  return {};
}

Result<Content> Mailbox::request(const std::string& to, const Content& content, Timing* timing,
                                 std::string* answered_by) {
  const std::vector<std::byte> body = encode_content(content);
  Waiting waiting;
  waiting.heard = wall_seconds();
  uint64_t id;
  {
    const std::lock_guard lock(mutex_);
    id = next_id_++;
    waiting_[id] = &waiting;
  }
  const double start = wall_seconds();
  const uint64_t n_disconnects = bus_->n_disconnects();
  const auto finish = [&](Result<Content> result) {
    const std::lock_guard lock(mutex_);
    waiting_.erase(id);
    return result;
  };
  const Status sent = send(to, ChunkKind::kRequest, id, body, waiting);
  if (!sent.ok()) return finish(sent.error());
  {
    std::unique_lock lock(mutex_);
    waiting.heard = std::max(waiting.heard, wall_seconds());  // the last chunk may still be under way
    while (!waiting.done) {
      Status fault;
      if (stopping_) fault = Error{ErrorCode::kCancelled, "this side is closing"};
      if (bus_->n_disconnects() != n_disconnects)
        fault = Error{ErrorCode::kUnavailable, "the connection was lost while " + to + " was asked"};
      if (waiting.nobody) fault = Error{ErrorCode::kUnavailable, "nobody listens at " + to};
      // A refusal of the version is for good; one for lost chunks is not, and says so itself.
      if (!waiting.refusal.empty()) {
        const bool version = waiting.refusal.find("version") != std::string::npos;
        fault = Error{version ? ErrorCode::kUnsupported : ErrorCode::kUnavailable, waiting.refusal};
      }
      if (fault.ok() && wall_seconds() - waiting.heard > options_.silence_seconds)
        fault = Error{ErrorCode::kUnavailable,
                      strf("no word from %s for %.1f s", to.c_str(), options_.silence_seconds)};
      if (!fault.ok()) {
        waiting_.erase(id);
        return fault.error();
      }
      changed_.wait_for(lock, seconds(0.05));
    }
    waiting_.erase(id);
  }
  if (timing != nullptr) timing->total_seconds = wall_seconds() - start;
  if (answered_by != nullptr) *answered_by = waiting.from;
  FRUGAL_TRY_STATUS(waiting.fault);
  FRUGAL_TRY(Content answered, decode_content(waiting.body));
  FRUGAL_TRY_STATUS(answer_status(answered.meta));
  return answered;
}

std::vector<Content> Mailbox::ask_all(const std::string& to, const Content& content, double wait_seconds) {
  const std::vector<std::byte> body = encode_content(content);
  Waiting waiting;
  waiting.many = true;
  waiting.heard = wall_seconds();
  uint64_t id;
  {
    const std::lock_guard lock(mutex_);
    id = next_id_++;
    waiting_[id] = &waiting;
  }
  const Status sent = send(to, ChunkKind::kRequest, id, body, waiting);
  std::unique_lock lock(mutex_);
  const double end = wall_seconds() + wait_seconds;
  while (sent.ok() && !stopping_ && !waiting.nobody && wall_seconds() < end)
    changed_.wait_for(lock, seconds(end - wall_seconds()));
  waiting_.erase(id);
  std::vector<Content> answers;
  for (const auto& bytes : waiting.bodies) {
    auto answer = decode_content(bytes);
    if (answer.ok() && answer_status(answer->meta).ok()) answers.push_back(*std::move(answer));
  }
  return answers;
}

void Mailbox::answer(const Letter& request, const Content& content) {
  const std::vector<std::byte> body = encode_content(content);
  const std::pair key(request.from, request.id);
  Sending* sending;
  {
    const std::lock_guard lock(mutex_);
    const auto at = serving_.find(key);
    if (at == serving_.end()) return;
    sending = &at->second;
    sending->heard = wall_seconds();
  }
  (void)send(request.from, ChunkKind::kAnswer, request.id, body, *sending);
  const std::lock_guard lock(mutex_);
  serving_.erase(key);
}

// Tells everybody whose request is being received or served that we live; forgets letters that stopped
// coming.
void Mailbox::beat() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    changed_.wait_for(lock, seconds(options_.beat_seconds));
    if (stopping_) return;
    static thread_local double last = 0;
    if (wall_seconds() - last < options_.beat_seconds) continue;
    last = wall_seconds();
    std::vector<std::pair<std::string, uint64_t>> to;
    for (auto at = arriving_.begin(); at != arriving_.end();) {
      to.push_back(at->first);
      at = wall_seconds() - at->second.heard > 10 * options_.silence_seconds ? arriving_.erase(at)
                                                                             : std::next(at);
    }
    for (const auto& [key, sending] : serving_) to.push_back(key);
    lock.unlock();
    for (const auto& [from, id] : to) send_head(from, ChunkKind::kBeat, id, 0);
    lock.lock();
  }
}

}  // namespace frugal::dnn
