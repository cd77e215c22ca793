// Requests as the stages take them, of a cascade's folder.
#pragma once

#include <algorithm>

#include "cascade/npy.h"
#include "cascade/runner.h"

namespace frugal::cascade {

struct RequestSet {
  int n = 0, history_length = 0;
  std::vector<int64_t> history;  // [n, history_length]
  Array2<int32_t> seen;          // [n, most], 0 fills up

  std::vector<int> n_seen;  // [n]

  CascadeRequest request(size_t i, int chain) const {
    const auto length = static_cast<size_t>(history_length), width = static_cast<size_t>(seen.columns);
    return {std::span(history).subspan(i * length, length),
            std::span(seen.values).subspan(i * width, static_cast<size_t>(n_seen[i])), chain};
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
  for (int i = 0; i < set.n; ++i) {
    const auto row = set.seen.values.begin() + std::ptrdiff_t{i} * set.seen.columns;
    set.n_seen.push_back(static_cast<int>(std::find(row, row + set.seen.columns, 0) - row));
  }
  set.history.assign(history.values.begin(), history.values.end());
  return set;
}

}  // namespace frugal::cascade
