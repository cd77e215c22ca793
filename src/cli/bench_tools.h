// Measuring tools that benches share: memory of a child process, the machine's read bandwidth, llama.cpp's
// own bench.
#pragma once

#include <functional>
#include <string>

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

struct LlamaBenchCase {
  std::string command;  // path of llama-bench
  std::string model;
  int n_threads = 1;
  int n_prompt = 0;    // a prefill of so many tokens, or
  int n_generate = 0;  // a decode of so many
  int depth = 0;       // after so many
  std::string kv = "f16";
};
// Tokens per second, the better of flash attention off and on. kUnavailable when the command fails.
Result<double> run_llama_bench(const LlamaBenchCase& bench);

// What llama.cpp's llama-lookup or llama-lookahead says of one greedy decoding.
struct LlamaSpeculation {
  double seconds = 0;
  int tokens = 0;
};
// Decodes `n_tokens` after `prompt`. kUnavailable when the command fails or says no speed.
Result<LlamaSpeculation> run_llama_speculation(const std::string& command, const std::string& model,
                                               const std::string& prompt, int n_tokens, int n_threads);

}  // namespace frugal::cli
