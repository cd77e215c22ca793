// The few values that were used last, by key.
#pragma once

#include <cstddef>
#include <list>
#include <optional>
#include <utility>

namespace frugal::dnn {

template <typename Key, typename Value>
class Recent {
 public:
  explicit Recent(size_t most) : most_(most) {}

  // Null when it is not, or no longer, there; good until the next put.
  Value* find(const Key& key) {
    for (auto at = values_.begin(); at != values_.end(); ++at) {
      if (at->first != key) continue;
      values_.splice(values_.begin(), values_, at);
      return &at->second;
    }
    return nullptr;
  }
  // The one used longest ago goes when there are too many.
  Value& put(Key key, Value value) {
    values_.emplace_front(std::move(key), std::move(value));
    if (values_.size() > most_) values_.pop_back();
    return values_.front().second;
  }
  std::optional<Value> take(const Key& key) {
    Value* const found = find(key);
    if (found == nullptr) return std::nullopt;
    std::optional<Value> taken(std::move(*found));
    values_.pop_front();  // where find() has put it
    return taken;
  }

 private:
  size_t most_;
  std::list<std::pair<Key, Value>> values_;  // last used first
};

}  // namespace frugal::dnn
