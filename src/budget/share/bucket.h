// A key-value bucket of NATS: connection, compare-and-set, and a feed of what changed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "frugal/result.h"

namespace frugal::budget {

class Bucket {
 public:
  struct Change {
    std::string key, value;
    uint64_t revision = 0;
  };
  // kUnavailable: no server, no JetStream.
  static Result<std::unique_ptr<Bucket>> open(const std::string& url, const std::string& name);
  virtual ~Bucket() = default;

  // All changes since the last call (at the first: what the bucket holds). kUnavailable: the connection is
  // gone.
  virtual Result<std::vector<Change>> changes() = 0;
  virtual Status put(const std::string& key, const std::string& value) = 0;
  // Writes if the key's revision is still `revision` (0: if there is no such key). The new revision;
  // kCancelled: somebody was first.
  virtual Result<uint64_t> put_if(const std::string& key, const std::string& value, uint64_t revision) = 0;
};

}  // namespace frugal::budget
