#include "llm/vocab/stream_decoder.h"

#include <algorithm>

#include "base/text.h"

namespace frugal::llm {
namespace {

// Length of the longest end of `text` that begins `stop` without being all of it.
size_t partial_match(std::string_view text, std::string_view stop) {
  for (size_t size = std::min(text.size(), stop.size() - 1); size > 0; --size) {
    if (stop.starts_with(text.substr(text.size() - size))) return size;
  }
  return 0;
}

}  // namespace

Result<StreamDecoder> StreamDecoder::create(const Tokenizer& tokenizer,
                                            std::vector<std::string> stop_strings) {
  for (size_t i = 0; i < stop_strings.size(); ++i) {
    if (stop_strings[i].empty() || !utf8_valid(stop_strings[i])) {
      return Error{ErrorCode::kInvalidArgument,
                   strf("stop string %zu is %s; leave it out or give some text", i + 1,
                        stop_strings[i].empty() ? "empty" : "not valid UTF-8")};
    }
  }
  return StreamDecoder(tokenizer, std::move(stop_strings));
}

std::string StreamDecoder::push(Token token) { return push_bytes(tokenizer_->piece(token)); }

std::string StreamDecoder::push_bytes(std::string_view bytes) {
  if (stopped()) return {};
  held_ += bytes;
  size_t best_begin = std::string::npos, best_end = std::string::npos;
  for (size_t i = 0; i < stop_strings_.size(); ++i) {
    const size_t begin = held_.find(stop_strings_[i]);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop_strings_[i].size();
    if (end < best_end || (end == best_end && begin < best_begin)) {
      best_begin = begin;
      best_end = end;
      stopped_by_ = static_cast<int>(i);
    }
  }
  if (stopped()) {
    held_.resize(best_begin);
    return utf8_sanitized(std::exchange(held_, {}));
  }
  size_t keep = held_.size() - utf8_complete_prefix(held_);
  for (const std::string& stop : stop_strings_) keep = std::max(keep, partial_match(held_, stop));
  std::string shown = utf8_sanitized(std::string_view(held_).substr(0, held_.size() - keep));
  held_.erase(0, held_.size() - keep);
  return shown;
}

std::string StreamDecoder::finish() {
  return stopped() ? std::string() : utf8_sanitized(std::exchange(held_, {}));
}

}  // namespace frugal::llm
