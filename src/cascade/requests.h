// Requests as the stages take them, of a cascade's folder.
#pragma once

#include "cascade/npy.h"
#include "cascade/runner.h"

namespace frugal::cascade {

struct RequestSet {
  int n = 0, history_length = 0;
  std::vector<int64_t> history;  // [n, history_length]
  Array2<int32_t> seen;          // [n, most], 0 fills up

  CascadeRequest request(size_t i, int chain) const {
    const auto length = static_cast<size_t>(history_length), width = static_cast<size_t>(seen.columns);
    const auto row = std::span(seen.values).subspan(i * width, width);
    const auto end = std::find(row.begin(), row.end(), 0);
    return {std::span(history).subspan(i * length, length), row.first(static_cast<size_t>(end - row.begin())),
            chain};
  }
};
// DIR/history_<split>.npy and seen_<split>.npy. kNotFound, kCorrupt.
inline Result<RequestSet> load_requests(const std::string& folder, const std::string& split,
                                        const CascadeSpec& spec) {
  RequestSet set;
  FRUGAL_TRY(auto history, read_integers(folder + "/history_" + split + ".npy", spec.history_length));
  FRUGAL_TRY(set.seen, read_integers(folder + "/seen_" + split + ".npy", 0));
  if (set.seen.rows != history.rows)
    return {ErrorCode::kCorrupt,
            folder + ": history and seen of split '" + split + "' have different numbers of rows"};
  set.n = history.rows;
  set.history_length = history.columns;
  set.history.assign(history.values.begin(), history.values.end());
  return set;
}

}  // namespace frugal::cascade
