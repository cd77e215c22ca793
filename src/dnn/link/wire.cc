#include "dnn/link/wire.h"

#include <algorithm>
#include <cstring>

#include "base/hash.h"
#include "base/text.h"

namespace frugal::dnn {
namespace {

using nlohmann::json;

constexpr char kMagic[4] = {'F', 'D', 'N', 'L'};
constexpr size_t kMaxMetaBytes = size_t{16} << 20;

Error corrupt(std::string what) { return {ErrorCode::kCorrupt, std::move(what)}; }

template <typename T>
void put(std::vector<std::byte>& bytes, size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}
template <typename T>
T get(std::span<const std::byte> bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// The error codes that may come over the wire, by name.
ErrorCode parse_code(const std::string& name) {
  for (const ErrorCode code : {ErrorCode::kInvalidArgument, ErrorCode::kNotFound, ErrorCode::kCorrupt,
                               ErrorCode::kUnsupported, ErrorCode::kOutOfRange, ErrorCode::kNoMemory,
                               ErrorCode::kIo, ErrorCode::kPermission, ErrorCode::kCancelled}) {
    if (name == error_code_name(code)) return code;
  }
  return ErrorCode::kUnavailable;
}

Result<HostTensor> read_tensor(const json& row, std::span<const std::byte> bytes, size_t& at) {
  HostTensor tensor;
  tensor.type = row.at("type").get<std::string>();
  size_t n = element_bytes(tensor.type);
  if (n == 0) return corrupt("a tensor has the unknown type '" + utf8_sanitized(tensor.type) + "'");
  for (const json& dimension : row.at("shape")) {
    const auto size = dimension.get<int64_t>();
    if (size < 0 || size > (int64_t{1} << 32)) return corrupt("a tensor has a size that cannot be");
    tensor.shape.push_back(size);
    if (__builtin_mul_overflow(n, static_cast<size_t>(size), &n)) return corrupt("a tensor's size overflows");
  }
  if (row.contains("packed")) {
    tensor.packed = true;
    const auto packed = row.at("packed").get<size_t>();
    if (packed > n) return corrupt("a packed tensor is longer than it is unpacked");
    n = packed;
  }
  if (n > bytes.size() - at) return corrupt("a tensor is longer than the letter");
  const auto part = bytes.subspan(at, n);
  tensor.bytes.assign(part.begin(), part.end());
  at += n;
  return tensor;
}

}  // namespace

std::vector<std::byte> encode_chunk(const ChunkHead& head, std::span<const std::byte> payload) {
  std::vector<std::byte> bytes(kChunkHeadBytes + payload.size());
  std::memcpy(bytes.data(), kMagic, 4);
  put(bytes, 4, kWireVersion);
  put(bytes, 6, static_cast<uint8_t>(head.kind));
  put(bytes, 8, head.id);
  put(bytes, 16, head.sequence);
  put(bytes, 20, head.n_chunks);
  put(bytes, 24, head.total_bytes);
  put(bytes, 32, checksum64(payload));
  if (!payload.empty()) std::memcpy(bytes.data() + kChunkHeadBytes, payload.data(), payload.size());
  put(bytes, 40, checksum64(std::span(bytes).first(40)));
  return bytes;
}

Result<ChunkView> decode_chunk(std::span<const std::byte> message) {
  if (message.size() < kChunkHeadBytes || std::memcmp(message.data(), kMagic, 4) != 0) {
    return corrupt(strf("a message of %zu bytes is no chunk of frugal's", message.size()));
  }
  // The version comes first: what follows it may look different in another one.
  if (const auto version = get<uint16_t>(message, 4); version != kWireVersion) {
    return Error{ErrorCode::kUnsupported,
                 strf("the other side speaks version %u of the protocol, this one %u; "
                      "run the same frugal on all hosts",
                      version, kWireVersion)};
  }
  if (get<uint64_t>(message, 40) != checksum64(message.first(40)))
    return corrupt("the head of a chunk is damaged");
  ChunkView view;
  const auto kind = get<uint8_t>(message, 6);
  if (kind < 1 || kind > 5) return corrupt(strf("there is no kind %u of chunk", kind));
  view.head.kind = static_cast<ChunkKind>(kind);
  view.head.id = get<uint64_t>(message, 8);
  view.head.sequence = get<uint32_t>(message, 16);
  view.head.n_chunks = get<uint32_t>(message, 20);
  view.head.total_bytes = get<uint64_t>(message, 24);
  view.head.checksum = get<uint64_t>(message, 32);
  view.payload = message.subspan(kChunkHeadBytes);
  if (view.head.checksum != checksum64(view.payload)) return corrupt("the payload of a chunk is damaged");
  return view;
}

bool has_fraction(const json& value, int depth) {
  if (value.is_number_float()) return true;
  return value.is_structured() &&
         (depth == 0 || std::any_of(value.begin(), value.end(),
                                    [&](const json& part) { return has_fraction(part, depth - 1); }));
}

Result<bool> Assembler::add(const ChunkView& chunk) {
  const ChunkHead& head = chunk.head;
  if (head.sequence != next_) {
    return corrupt(
        strf("chunk %u came where %u was due: chunks were lost or out of order", head.sequence, next_));
  }
  if (next_ == 0) {
    if (head.total_bytes > kMaxLetterBytes) {
      return Error{ErrorCode::kOutOfRange, strf("a letter of %s is over the limit of %s",
                                                human_bytes(static_cast<double>(head.total_bytes)).c_str(),
                                                human_bytes(static_cast<double>(kMaxLetterBytes)).c_str())};
    }
    total_ = head.total_bytes;
    n_chunks_ = head.n_chunks;
  }
  if (head.total_bytes != total_ || head.n_chunks != n_chunks_ || head.sequence >= n_chunks_) {
    return corrupt("the chunks of a letter disagree about its size");
  }
  if (bytes_.size() + chunk.payload.size() > total_) return corrupt("a letter is longer than it said");
  bytes_.insert(bytes_.end(), chunk.payload.begin(), chunk.payload.end());
  if (++next_ < n_chunks_) return false;
  if (bytes_.size() != total_) return corrupt("a letter is shorter than it said");
  return true;
}

std::vector<std::byte> encode_content(const Content& content) {
  json meta = content.meta;
  size_t n_bytes = 0;
  json rows = json::array();
  for (const auto& [t, tensor] : content.tensors) {
    rows.push_back({{"t", t}, {"type", tensor.type}, {"shape", tensor.shape}});
    if (tensor.packed) rows.back()["packed"] = tensor.bytes.size();
    n_bytes += tensor.bytes.size();
  }
  if (!rows.empty()) meta["tensors"] = std::move(rows);
  const std::string text = meta.dump(-1, ' ', false, json::error_handler_t::replace);
  std::vector<std::byte> bytes(8 + text.size());
  put(bytes, 0, static_cast<uint64_t>(text.size()));
  std::memcpy(bytes.data() + 8, text.data(), text.size());
  bytes.reserve(bytes.size() + n_bytes);
  for (const auto& [t, tensor] : content.tensors)
    bytes.insert(bytes.end(), tensor.bytes.begin(), tensor.bytes.end());
  return bytes;
}

Result<Content> decode_content(std::span<const std::byte> bytes, bool may_be_packed) {
  if (bytes.size() < 8) return corrupt("a letter is too short to say anything");
  const auto n_meta = get<uint64_t>(bytes, 0);
  if (n_meta > bytes.size() - 8 || n_meta > kMaxMetaBytes)
    return corrupt("a letter's head is longer than itself");
  Content content;
  const auto* text = reinterpret_cast<const char*>(bytes.data() + 8);
  content.meta = json::parse(text, text + n_meta, nullptr, false);
  if (!content.meta.is_object()) return corrupt("a letter's head is not JSON");
  size_t at = 8 + n_meta;
  try {
    if (content.meta.contains("tensors")) {
      if (has_fraction(content.meta.at("tensors"))) return corrupt("a tensor has a size that is not whole");
      for (const json& row : content.meta.at("tensors")) {
        FRUGAL_TRY(HostTensor tensor, read_tensor(row, bytes, at));
        if (tensor.packed && !may_be_packed) return corrupt("a tensor is packed where none may be");
        if (!content.tensors.emplace(row.at("t").get<int>(), std::move(tensor)).second)
          return corrupt("a tensor comes twice");
      }
    }
  } catch (const json::exception&) {
    return corrupt("a letter's list of tensors lacks a field, or has one of the wrong type");
  }
  if (at != bytes.size()) return corrupt("a letter has bytes that belong to no tensor");
  return content;
}

json division_to_json(const Division& division) {
  json runs = json::array();
  for (const TiledRun& run : division.runs) {
    json tiles = json::array();
    for (const TileBounds& tile : run.tiles)
      tiles.push_back({tile.row_begin, tile.row_end, tile.column_begin, tile.column_end});
    runs.push_back({{"tier", run.tier}, {"vertices", run.vertices}, {"tiles", tiles}, {"stays", run.stays}});
  }
  json packed = json::array();
  for (size_t t = 0; t < division.packed.size(); ++t) {
    if (division.packed[t] != 0) packed.push_back({t, division.packed[t]});
  }
  return {{"tier", division.tier}, {"runs", runs}, {"packed", packed}};
}

Result<Division> division_from_json(const Graph& graph, const json& root, size_t n_tiers) {
  try {
    for (const char* field : {"tier", "runs", "packed"}) {
      if (has_fraction(root.at(field))) return corrupt("a plan has a number that is not whole");
    }
    Division division;
    division.tier = root.at("tier").get<std::vector<int>>();
    if (division.tier.size() != graph.vertices.size()) {
      return corrupt(strf("a plan for %zu vertices does not fit a graph of %zu", division.tier.size(),
                          graph.vertices.size()));
    }
    for (const int k : division.tier) {
      if (k < 0 || static_cast<size_t>(k) >= n_tiers) return corrupt("a plan names a tier that is not there");
    }
    for (const Tensor& tensor : graph.tensors) {
      for (const int w : tensor.consumers) {
        if (division.tier[static_cast<size_t>(w)] < division.tier[static_cast<size_t>(tensor.producer)])
          return corrupt("a plan lets tiers decrease along an edge");
      }
    }
    for (const json& row : root.at("runs")) {
      TiledRun run;
      run.tier = row.at("tier").get<int>();
      run.vertices = row.at("vertices").get<std::vector<int>>();
      for (const int v : run.vertices) {
        if (v < 0 || static_cast<size_t>(v) >= graph.vertices.size() ||
            division.tier[static_cast<size_t>(v)] != run.tier)
          return corrupt("a plan tiles a vertex that is not on that tier");
      }
      for (const json& tile : row.at("tiles")) {
        const auto b = tile.get<std::array<int64_t, 4>>();
        run.tiles.push_back({b[0], b[1], b[2], b[3]});
      }
      run.stays = row.at("stays").get<bool>();
      if (run.vertices.empty() || run.tiles.empty() || run.tiles.size() > 4096)
        return corrupt("a plan has a tiled run without vertices or tiles");
      division.runs.push_back(std::move(run));
    }
    for (const json& row : root.at("packed")) {
      const auto entry = row.get<std::array<uint64_t, 2>>();
      if (entry[0] >= graph.tensors.size()) return corrupt("a plan packs a tensor that is not there");
      division.packed.resize(graph.tensors.size());
      division.packed[entry[0]] = entry[1];
    }
    return division;
  } catch (const json::exception&) {
    return corrupt("a plan lacks a field, or has one of the wrong type");
  }
}

json job_to_json(const TileJob& job) {
  const auto ranges = [](const auto& all, const auto& rows_of) {
    json rows = json::array();
    for (const auto& one : all) rows.push_back({rows_of(one).begin, rows_of(one).end});
    return rows;
  };
  const TileBounds& b = job.tile;
  return {{"vertices", job.vertices},
          {"tile", {b.row_begin, b.row_end, b.column_begin, b.column_end}},
          {"pieces", ranges(job.pieces, [](const TileJob::Piece& piece) { return piece.rows; })},
          {"gives", ranges(job.gives, [](const Range& rows) { return rows; })},
          {"chain", job.chain},
          {"goes_on", job.goes_on},
          {"stays", job.stays}};
}

Result<TileJob> job_from_content(const Graph& graph, const Content& content) {
  try {
    const json& root = content.meta;
    for (const char* field : {"vertices", "tile", "pieces", "gives", "chain"}) {
      if (has_fraction(root.at(field))) return corrupt("a tile's job has a number that is not whole");
    }
    TileJob job;
    job.vertices = root.at("vertices").get<std::vector<int>>();
    for (const int v : job.vertices) {
      if (v < 0 || static_cast<size_t>(v) >= graph.vertices.size())
        return corrupt("a tile's job names a vertex that is not there");
    }
    const auto b = root.at("tile").get<std::array<int64_t, 4>>();
    job.tile = {b[0], b[1], b[2], b[3]};
    constexpr int64_t kMaxRow = int64_t{1} << 31;
    if (std::any_of(b.begin(), b.end(), [](int64_t at) { return at < 0 || at > kMaxRow; }))
      return corrupt("a tile's job names a place that cannot be");
    bool is_sound = true;
    const auto range = [&](const json& row) {
      const auto ends = row.get<std::array<int64_t, 2>>();
      is_sound = is_sound && ends[0] >= 0 && ends[0] <= ends[1] && ends[1] <= kMaxRow;
      return Range{ends[0], ends[1]};
    };
    const json& pieces = root.at("pieces");
    if (pieces.size() != content.tensors.size() || pieces.size() > 4096 || root.at("gives").size() > 4096)
      return corrupt("a tile's job does not say what its pieces are");
    auto tensor = content.tensors.begin();
    for (const json& piece : pieces) job.pieces.push_back({range(piece), (tensor++)->second});
    for (const json& rows : root.at("gives")) job.gives.push_back(range(rows));
    if (!is_sound) return corrupt("a tile's job names rows that cannot be");
    job.chain = root.at("chain").get<uint64_t>();
    job.goes_on = root.at("goes_on").get<bool>();
    job.stays = root.at("stays").get<bool>();
    return job;
  } catch (const json::exception&) {
    return corrupt("a tile's job lacks a field, or has one of the wrong type");
  }
}

json error_to_json(const Error& error) {
  return {{"error", {{"code", error_code_name(error.code)}, {"message", error.message}}}};
}

Status answer_status(const json& meta) {
  const auto at = meta.find("error");
  if (at == meta.end()) return {};
  try {
    return Error{parse_code(at->at("code").get<std::string>()), at->at("message").get<std::string>()};
  } catch (const json::exception&) {
    return corrupt("an answer has an error that says nothing");
  }
}

}  // namespace frugal::dnn
