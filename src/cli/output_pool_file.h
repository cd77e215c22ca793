// Outputs of earlier requests of one task and tenant, kept in a file: what `--pool FILE` drafts from.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "llm/decode/drafts.h"

namespace frugal::cli {

// One JSON object: {"model": "hash", "outputs": [[token, ...], ...]}, oldest first, at most
// kPooledTokens tokens in all. Who may read and write the file decides who shares in its speed; answers are
// the same with and without it.
class OutputPoolFile {
 public:
  static constexpr size_t kPooledTokens = 32768;

  // A file that is not there yet is an empty pool. kCorrupt for another content, or tokens that the
  // vocabulary does not have; kInvalidArgument for a pool of another model.
  static Result<OutputPoolFile> open(std::string path, uint64_t model_hash, int n_vocab);

  std::shared_ptr<const llm::OutputPool> pool() const { return pool_; }

  // Adds `output`, forgets the oldest beyond the bound, and writes the file whole or not at all.
  Status add(std::span<const llm::Token> output);

 private:
  std::string path_;
  uint64_t model_hash_ = 0;
  std::vector<std::vector<llm::Token>> outputs_;
  std::shared_ptr<llm::OutputPool> pool_;
};

}  // namespace frugal::cli
