// The dictionary's file: docs/formats/dictionary.md.
#include <cmath>
#include <cstring>

#include "base/file.h"
#include "base/hash.h"
#include "base/text.h"
#include "llm/kernel/kernel.h"
#include "llm/kv/dictionary.h"
#include "llm/kv/linear.h"

namespace frugal::llm {
namespace {

struct Head {
  char magic[8];
  uint32_t version;
  uint32_t flags;  // 1: interleaved pairs
  uint64_t model_hash;
  uint32_t n_layers, n_kv_heads, head_dim, n_rot;
  uint64_t payload_bytes;
  uint64_t checksum;  // of the head before it, and the payload
};
static_assert(sizeof(Head) == 56);
constexpr char kMagic[8] = {'F', 'R', 'G', 'L', 'D', 'I', 'C', '\n'};
constexpr uint32_t kVersion = kDictionaryVersion;
constexpr uint32_t kMaxLayers = 1024, kMaxHeads = 1024;

uint64_t checksum_of(const Head& head, std::span<const std::byte> payload) {
  return fnv1a({reinterpret_cast<const std::byte*>(&head), offsetof(Head, checksum)}, checksum64(payload));
}

uint64_t payload_bytes_of(const Head& head) {
  const uint64_t dim = head.head_dim, bases = uint64_t{head.n_layers} * 2 * head.n_kv_heads;
  const uint64_t levels = kMaxLevelBits * kWindows + 2 + kMaxAtomBits + 1;
  return uint64_t{head.n_layers} * (head.n_rot / 2) * 4 + uint64_t{head.n_layers} * 2 * levels * 4 +
         bases * (4 * dim * 4 + dim * dim * 2 + kBookEntries * dim);
}

}  // namespace

Result<Dictionary> parse_dictionary(std::span<const std::byte> bytes, const std::string& name) {
  const auto corrupt = [&](const std::string& what) {
    return Error{ErrorCode::kCorrupt, strf("dictionary '%s' %s", name.c_str(), what.c_str())};
  };
  Head head;
  if (bytes.size() < sizeof head) return corrupt("is too short to be one");
  std::memcpy(&head, bytes.data(), sizeof head);
  if (std::memcmp(head.magic, kMagic, sizeof kMagic) != 0) return corrupt("is not a frugal dictionary");
  if (head.version != kVersion) {
    return Error{ErrorCode::kUnsupported,
                 strf("dictionary '%s' has version %u, and this frugal reads version %u; train it again",
                      name.c_str(), head.version, kVersion)};
  }
  if (head.n_layers == 0 || head.n_layers > kMaxLayers || head.n_kv_heads == 0 ||
      head.n_kv_heads > kMaxHeads || head.head_dim == 0 || head.head_dim > kMaxCodedDim ||
      head.head_dim % 16 != 0 || head.n_rot > head.head_dim || head.n_rot % 2 != 0 || head.flags > 1)
    return corrupt("has sizes that no model has");
  if (head.payload_bytes != payload_bytes_of(head) || bytes.size() != sizeof head + head.payload_bytes)
    return corrupt("is truncated or has something after its end");
  if (checksum_of(head, bytes.subspan(sizeof head)) != head.checksum)
    return corrupt("is damaged: its checksum does not match");

  Dictionary out;
  out.model_hash = head.model_hash;
  out.n_layers = static_cast<int>(head.n_layers);
  out.n_kv_heads = static_cast<int>(head.n_kv_heads);
  out.head_dim = static_cast<int>(head.head_dim);
  out.n_rot = static_cast<int>(head.n_rot);
  out.interleaved = head.flags == 1;
  const std::byte* at = bytes.data() + sizeof head;
  bool finite = true;
  const auto floats = [&](float* to, size_t n) {
    std::memcpy(to, at, n * sizeof(float));
    at += n * sizeof(float);
    for (size_t i = 0; i < n; ++i) finite = finite && std::isfinite(to[i]) && std::fabs(to[i]) < 1e9f;
  };
  out.turns.resize(size_t{head.n_layers} * (head.n_rot / 2));
  floats(out.turns.data(), out.turns.size());
  out.levels.resize(size_t{head.n_layers} * 2);
  for (CoefficientLevels& levels : out.levels) {
    for (auto& of : levels.levels) floats(of.data(), of.size());
    floats(levels.step.data(), levels.step.size());
    floats(levels.error.data(), levels.error.size());
  }
  const size_t dim = head.head_dim;
  out.bases.resize(size_t{head.n_layers} * 2 * head.n_kv_heads);
  std::vector<uint16_t> halves(dim * dim);
  for (HeadBasis& basis : out.bases) {
    basis.mean.resize(dim);
    basis.weight.resize(dim);
    basis.analysis.resize(dim * dim);
    floats(basis.mean.data(), dim);
    floats(basis.weight.data(), dim);
    for (const float w : basis.weight) finite = finite && w >= 0;
    basis.spread.resize(dim);
    basis.book_scale.resize(dim);
    floats(basis.spread.data(), dim);
    floats(basis.book_scale.data(), dim);
    for (const float spread : basis.spread) finite = finite && spread > 0;
    std::memcpy(halves.data(), at, halves.size() * 2);
    at += halves.size() * 2;
    for (size_t i = 0; i < halves.size(); ++i) {
      if ((halves[i] & 0x7c00) == 0x7c00) finite = false;
      basis.analysis[i] = f16_to_f32(halves[i]);
    }
    basis.book.resize(kBookEntries * dim);
    std::memcpy(basis.book.data(), at, basis.book.size());
    at += basis.book.size();
    for (const uint8_t level : basis.book) finite = finite && level <= kLevelMax;
    if (!finite) return corrupt("holds a number that is not one");
    basis.synthesis = basis.analysis;
    if (!invert(basis.synthesis, dim)) return corrupt("holds atoms that do not span the space");
  }
  if (!finite) return corrupt("holds a number that is not one");
  return out;
}

Result<Dictionary> read_dictionary(const std::string& path) {
  FRUGAL_TRY(const MappedFile file, MappedFile::open(path));
  return parse_dictionary(file.bytes(), path);
}

Status write_dictionary(const Dictionary& dictionary, const std::string& path) {
  Head head{};
  std::memcpy(head.magic, kMagic, sizeof kMagic);
  head.version = kVersion;
  head.flags = dictionary.interleaved ? 1 : 0;
  head.model_hash = dictionary.model_hash;
  head.n_layers = static_cast<uint32_t>(dictionary.n_layers);
  head.n_kv_heads = static_cast<uint32_t>(dictionary.n_kv_heads);
  head.head_dim = static_cast<uint32_t>(dictionary.head_dim);
  head.n_rot = static_cast<uint32_t>(dictionary.n_rot);
  head.payload_bytes = payload_bytes_of(head);
  std::string payload;
  payload.reserve(head.payload_bytes);
  const auto put = [&](const void* data, size_t n) { payload.append(static_cast<const char*>(data), n); };
  put(dictionary.turns.data(), dictionary.turns.size() * sizeof(float));
  for (const CoefficientLevels& levels : dictionary.levels) {
    for (const auto& of : levels.levels) put(of.data(), of.size() * sizeof(float));
    put(levels.step.data(), levels.step.size() * sizeof(float));
    put(levels.error.data(), levels.error.size() * sizeof(float));
  }
  for (const HeadBasis& basis : dictionary.bases) {
    put(basis.mean.data(), basis.mean.size() * sizeof(float));
    put(basis.weight.data(), basis.weight.size() * sizeof(float));
    put(basis.spread.data(), basis.spread.size() * sizeof(float));
    put(basis.book_scale.data(), basis.book_scale.size() * sizeof(float));
    for (const float x : basis.analysis) {
      const uint16_t half = f32_to_f16(x);
      put(&half, sizeof half);
    }
    put(basis.book.data(), basis.book.size());
  }
  head.checksum = checksum_of(head, std::as_bytes(std::span(payload)));
  FRUGAL_TRY(AtomicFileWriter writer, AtomicFileWriter::create(path));
  FRUGAL_TRY_STATUS(writer.write(&head, sizeof head));
  FRUGAL_TRY_STATUS(writer.write(payload.data(), payload.size()));
  return writer.commit();
}

}  // namespace frugal::llm
