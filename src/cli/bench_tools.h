// Tools that benches share: memory of a child process, the machine's read bandwidth, how they end.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/bench_report.h"
#include "frugal/result.h"

namespace frugal::cli {

// Runs `work` in a forked child and returns the child's peak resident memory in bytes (mapped files count
// while they are resident). Call it while this process has one thread only. kNoMemory, or the child's error
// with code kUnavailable.
Result<double> peak_memory_of_child(const std::function<Status()>& work);

// Bytes per second that `n_threads` threads read from memory together: best of several passes over a buffer
// larger than the caches. Some 0.3 s.
double read_bandwidth(int n_threads);
// Multiply-adds a second of `n_threads` threads with Q4_1 weights, the fastest type, that stay in the
// first-level cache: what a prefill could reach at the most.
double product_peak(int n_threads);

// The instruction set of the kernels in use: "avx2".
std::string kernel_isa();

// How a bench ends: rows to `out` when it is not empty, and to stdout as JSON or as a table. Gives the exit
// code.
int report_bench(const BenchContext& context, const std::vector<BenchRow>& rows, const std::string& out,
                 bool json);

}  // namespace frugal::cli
