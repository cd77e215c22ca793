// What is known and expected of carbon intensity around now: recorded values, a published forecast where the
// file holds one, and our own forecast beyond.
#pragma once

#include <string>

#include "frugal/jobs.h"
#include "meter/carbon.h"

namespace frugal::jobs {

struct Outlook {
  HourlyIntensity hourly;  // from the hour that holds `now` on
  std::string source;      // "Electricity Maps CSV, ES_2022_hourly.csv"
  std::string note;        // what the reader of a figure has to know; empty: nothing
  bool typical = false;    // no data of these days: the same weeks of another year stand in
};

// Hourly means from `from` (rounded down to the hour) on; gaps of up to `max_gap` hours are bridged by a
// straight line. kInvalidArgument: a longer gap, told with its time.
Result<HourlyIntensity> to_hourly(const meter::IntensitySeries& series, size_t max_gap = 48);

// The outlook at `now` for `n_hours`. A series that ended within the last fortnight is forecast from its end;
// one that goes on beyond `now` is believed as far as it goes; an older one stands in with the same weeks of
// its year, and the note says so. kInvalidArgument: too short for that.
Result<Outlook> make_outlook(const meter::IntensitySeries& series, double now_unix_s, size_t n_hours);

// The mean over [begin, end) of what `series` recorded or, when it is of another year, of the same weeks of
// that year: what make_outlook() stands on, for judging afterwards. Unknown where it does not reach.
Estimate recorded_mean(const meter::IntensitySeries& series, double begin_unix_s, double end_unix_s,
                       double now_unix_s);

}  // namespace frugal::jobs
