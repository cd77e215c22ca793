// What every bench writes: rows {name, unit, ours, peer, peer_name, ratio, spread, n} with the circumstances
// of the measurement. scripts/tables.py makes the tables of docs/benchmarks.md from the files under
// bench/results/.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "frugal/result.h"

namespace frugal::cli {

double median(std::vector<double> values);
// Median absolute deviation from the median: half of the values lie nearer.
double median_deviation(const std::vector<double>& values);

enum class Better { kHigher, kLower };

struct BenchRow {
  std::string name;  // "decode at depth 512"
  std::string unit;  // "tokens/s"
  double ours = 0;   // median
  std::optional<double> peer;
  std::string peer_name;  // with the setting that was its best
  double ratio = 0;       // above 1 = ours is better; the median over paired repetitions; 0 without a peer
  double spread =
      0;      // median absolute deviation of those ratios (of ours without a peer), as a share of the median
  int n = 0;  // repetitions
  std::string how;                                   // what was measured, in words; empty: the name says it
  std::vector<std::pair<std::string, double>> more;  // further figures of the row: {"bound", 210.5}
};

// The row of repetitions that ran in turn, ours and the peer's. `peer` empty: no peer.
BenchRow bench_row(std::string name, std::string unit, Better better, const std::vector<double>& ours,
                   const std::vector<double>& peer = {}, std::string peer_name = "");

// Circumstances; what a bench cannot know stays empty and is left out.
struct BenchContext {
  std::string bench;  // "llm"
  int threads = 0;
  std::string isa;    // of the kernels in use
  std::string model;  // file name
  std::string model_hash;
  std::string command;  // as typed
  std::string note;     // what is excluded, what was checked before timing
};

// The file's text: a JSON array of rows, each with the context, commit, compiler, flags, processor and date.
std::string bench_json(const BenchContext& context, const std::vector<BenchRow>& rows);
// For people: a table in columns.
std::string bench_table(const std::vector<BenchRow>& rows);
// Writes bench_json() to `path`.
Status write_bench(const std::string& path, const BenchContext& context, const std::vector<BenchRow>& rows);

// "AMD EPYC 7763", from /proc/cpuinfo.
std::string cpu_name();
// argv in one line, with quotes where a shell needs them.
std::string command_line(int argc, const char* const* argv);
std::string this_command_line();
// When, on what processor and from which commit: "Made 2026-11-28T07:00:00Z on AMD EPYC by frugal at 1a2b."
std::string made_here();

}  // namespace frugal::cli
