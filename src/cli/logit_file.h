// A saved run of `frugal eval ppl`: the log-probabilities of every scored position, 16 bits each.
// docs/formats/logits.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "frugal/result.h"

namespace frugal::cli {

struct LogitFileHead {
  uint64_t model_hash = 0;
  uint32_t n_vocab = 0;
  uint32_t n_positions = 0;
  uint32_t window = 0;
  uint64_t tokens_hash = 0;  // of all tokens of the text that were run
};

class LogitFileWriter {
 public:
  static Result<LogitFileWriter> create(const std::string& path, const LogitFileHead& head);
  Status add(std::span<const double> log_p);  // [n_vocab]
  Status commit();                            // after n_positions rows

 private:
  explicit LogitFileWriter(AtomicFileWriter file) : file_(std::move(file)) {}
  AtomicFileWriter file_;
  LogitFileHead head_;
  uint32_t rows_ = 0;
  uint64_t checksum_ = 0;
  std::vector<uint16_t> codes_;
};

class LogitFileReader {
 public:
  // kCorrupt when it is no such file, truncated or damaged.
  static Result<LogitFileReader> open(const std::string& path);
  const LogitFileHead& head() const { return head_; }
  // Row `idx` < n_positions, as log-probabilities [n_vocab].
  void read(uint32_t idx, std::span<double> log_p) const;

 private:
  MappedFile file_;
  LogitFileHead head_;
};

}  // namespace frugal::cli
