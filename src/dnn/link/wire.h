// What travels between hosts: letters (a request or an answer of any size), cut into numbered chunks that fit
// a message of the bus. docs/formats/dnn-wire.md. Everything here reads bytes that a stranger may have sent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "dnn/exec/network.h"
#include "dnn/link/tier.h"
#include "frugal/result.h"

namespace frugal::dnn {

inline constexpr uint16_t kWireVersion = 3;
inline constexpr size_t kChunkBytes = size_t{128} << 10;  // a slow link carries one in a tenth of a second
inline constexpr uint64_t kMaxLetterBytes = uint64_t{1} << 30;

enum class ChunkKind : uint8_t {
  kRequest = 1,  // a piece of a letter that wants an answer
  kAnswer = 2,   // a piece of the answer to the request of the same id
  kAck = 3,      // `sequence` chunks of the letter have arrived
  kBeat = 4,     // the sender is alive and at work for the receiver
  kRefusal = 5,  // the letter was dropped; the payload says why
};

// The head of every message, 48 bytes, little-endian.
struct ChunkHead {
  ChunkKind kind = ChunkKind::kRequest;
  uint64_t id = 0;        // of the request; chosen by who asks
  uint32_t sequence = 0;  // of this chunk in its letter, from 0
  uint32_t n_chunks = 1;
  uint64_t total_bytes = 0;  // of the letter
  uint64_t checksum = 0;     // checksum64 of this chunk's payload
};
inline constexpr size_t kChunkHeadBytes = 48;

struct ChunkView {
  ChunkHead head;
  std::span<const std::byte> payload;
};

std::vector<std::byte> encode_chunk(const ChunkHead& head, std::span<const std::byte> payload);
// kCorrupt: not a chunk, or damaged. kUnsupported: of another version of this protocol.
Result<ChunkView> decode_chunk(std::span<const std::byte> message);

// Puts the chunks of one letter together. Chunks come in order, each once: the bus keeps the order of a
// sender, so anything else is a lost message or a liar.
class Assembler {
 public:
  // True when the letter is whole. kCorrupt, kOutOfRange: what is wrong; the letter is lost then. Memory
  // grows with what has arrived, not with what a head claims.
  Result<bool> add(const ChunkView& chunk);
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  uint32_t next_ = 0, n_chunks_ = 0;
  uint64_t total_ = 0;
  std::vector<std::byte> bytes_;
};

// Whether some number in it is not whole (converting one that fits no integer is undefined), or it is nested
// deeper than anything that hosts say to each other.
bool has_fraction(const nlohmann::json& value, int depth = 16);

// The content of a letter: a JSON object and tensors.
struct Content {
  nlohmann::json meta = nlohmann::json::object();
  Values tensors;
};
std::vector<std::byte> encode_content(const Content& content);
// kCorrupt: where it does not fit together.
// Packed tensors are refused unless `may_be_packed`: who takes them has to unpack them.
Result<Content> decode_content(std::span<const std::byte> bytes, bool may_be_packed = false);

nlohmann::json division_to_json(const Division& division);
// kCorrupt when it cannot be a division of this graph among `n_tiers`.
Result<Division> division_from_json(const Graph& graph, const nlohmann::json& json, size_t n_tiers);

// A tile's job but for the pieces' tensors, which stand in the letter in their order.
nlohmann::json job_to_json(const TileJob& job);
// kCorrupt: what of it cannot be, whatever the network.
Result<TileJob> job_from_content(const Graph& graph, const Content& content);

nlohmann::json error_to_json(const Error& error);
// The error that an answer carries under "error", if it does.
Status answer_status(const nlohmann::json& meta);

}  // namespace frugal::dnn
