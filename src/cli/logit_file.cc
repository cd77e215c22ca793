#include "cli/logit_file.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/hash.h"
#include "base/text.h"

namespace frugal::cli {

namespace {

static_assert(std::endian::native ==
              std::endian::little);  // the file is little-endian, and so are its readers

constexpr char kMagic[8] = {'F', 'R', 'G', 'L', 'L', 'G', 'T', '\n'};
constexpr uint32_t kVersion = 1;

struct FileHead {
  char magic[8];
  uint32_t version;
  uint32_t n_vocab;
  uint32_t n_positions;
  uint32_t window;
  uint64_t model_hash;
  uint64_t tokens_hash;
};
static_assert(sizeof(FileHead) == 40);

// A row: the smallest log-probability and the step in float, then a code of 16 bits for each token.
struct RowHead {
  float least, step;
};

size_t row_bytes(uint32_t n_vocab) { return sizeof(RowHead) + sizeof(uint16_t) * size_t{n_vocab}; }

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span<const T>(&value, 1));
}

}  // namespace

Result<LogitFileWriter> LogitFileWriter::create(const std::string& path, const LogitFileHead& head) {
  FRUGAL_TRY(AtomicFileWriter file, AtomicFileWriter::create(path));
  LogitFileWriter writer(std::move(file));
  writer.head_ = head;
  writer.codes_.resize(head.n_vocab);
  FileHead out = {};
  std::memcpy(out.magic, kMagic, sizeof kMagic);
  out.version = kVersion;
  out.n_vocab = head.n_vocab;
  out.n_positions = head.n_positions;
  out.window = head.window;
  out.model_hash = head.model_hash;
  out.tokens_hash = head.tokens_hash;
  writer.checksum_ = fnv1a(bytes_of(out));
  FRUGAL_TRY_STATUS(writer.file_.write(&out, sizeof out));
  return writer;
}

Status LogitFileWriter::add(std::span<const double> log_p) {
  FRUGAL_CHECK(log_p.size() == head_.n_vocab && rows_ < head_.n_positions);
  const auto [least, most] = std::minmax_element(log_p.begin(), log_p.end());
  RowHead row;
  // A masked token (-infinity) reads back as the least that a float can hold apart from it.
  row.least = static_cast<float>(std::max(*least, -1e4));
  row.step = static_cast<float>((*most - static_cast<double>(row.least)) / 65535);
  for (size_t i = 0; i < log_p.size(); ++i) {
    const double code =
        row.step > 0 ? (log_p[i] - static_cast<double>(row.least)) / static_cast<double>(row.step) : 0;
    codes_[i] = static_cast<uint16_t>(std::lround(std::clamp(code, 0.0, 65535.0)));
  }
  ++rows_;
  checksum_ = fnv1a(bytes_of(row), checksum_) ^ checksum64(std::as_bytes(std::span<const uint16_t>(codes_)));
  FRUGAL_TRY_STATUS(file_.write(&row, sizeof row));
  return file_.write(codes_.data(), codes_.size() * sizeof(uint16_t));
}

Status LogitFileWriter::commit() {
  FRUGAL_CHECK(rows_ == head_.n_positions);
  FRUGAL_TRY_STATUS(file_.write(&checksum_, sizeof checksum_));
  return file_.commit();
}

Result<LogitFileReader> LogitFileReader::open(const std::string& path) {
  LogitFileReader reader;
  FRUGAL_TRY(reader.file_, MappedFile::open(path));
  const std::span<const std::byte> bytes = reader.file_.bytes();
  FileHead head;
  const auto corrupt = [&path](const char* why) {
    return Error{ErrorCode::kCorrupt, "'" + path + "' " + why + "; save it again with --save-logits"};
  };
  if (bytes.size() < sizeof head + sizeof(uint64_t) ||
      std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) {
    return corrupt("is not a file of saved logits");
  }
  std::memcpy(&head, bytes.data(), sizeof head);
  if (head.version != kVersion) return corrupt("is of another version");
  if (head.n_vocab == 0 || head.n_vocab > (1u << 24)) return corrupt("has an impossible vocabulary");
  const size_t row = row_bytes(head.n_vocab);
  const size_t body = bytes.size() - sizeof head - sizeof(uint64_t);
  if (body % row != 0 || body / row != head.n_positions) return corrupt("is truncated");
  uint64_t checksum = fnv1a(bytes.first(sizeof head));
  for (size_t at = sizeof head; at < sizeof head + body; at += row) {
    checksum = fnv1a(bytes.subspan(at, sizeof(RowHead)), checksum) ^
               checksum64(bytes.subspan(at + sizeof(RowHead), row - sizeof(RowHead)));
  }
  uint64_t stored = 0;
  std::memcpy(&stored, bytes.data() + sizeof head + body, sizeof stored);
  if (stored != checksum) return corrupt("is damaged: its checksum does not match");
  reader.head_ = {head.model_hash, head.n_vocab, head.n_positions, head.window, head.tokens_hash};
  return reader;
}

void LogitFileReader::read(uint32_t idx, std::span<double> log_p) const {
  FRUGAL_CHECK(idx < head_.n_positions && log_p.size() == head_.n_vocab);
  const std::byte* at = file_.bytes().data() + sizeof(FileHead) + idx * row_bytes(head_.n_vocab);
  RowHead row;
  std::memcpy(&row, at, sizeof row);
  at += sizeof row;
  double sum = 0;
  for (size_t i = 0; i < log_p.size(); ++i) {
    uint16_t code = 0;
    std::memcpy(&code, at + i * sizeof code, sizeof code);
    log_p[i] = static_cast<double>(row.least) + static_cast<double>(row.step) * code;
    sum += std::exp(log_p[i]);
  }
  // Rounding leaves a sum that is not quite 1, which would count as a divergence of its own.
  const double shift = std::log(sum);
  for (double& value : log_p) value -= shift;
}

}  // namespace frugal::cli
