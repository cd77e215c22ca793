// Child processes of benches, llama.cpp's own tools among them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "frugal/result.h"

namespace frugal::cli {

struct ChildOutput {
  std::string text;
  bool ok = false;
};
// Forks; what the child writes to `fd` becomes `text`, and it ends with what `child` returns. kNoMemory.
Result<ChildOutput> fork_and_read(const std::function<int(int fd)>& child);
// What the command prints, its stderr too if asked for. kNoMemory.
Result<ChildOutput> run_command(std::vector<std::string> words, bool with_stderr);

struct LlamaBenchCase {
  std::string command;  // path of llama-bench
  std::string model;
  int n_threads = 1;
  int n_prompt = 0;    // a prefill of so many tokens, or
  int n_generate = 0;  // a decode of so many
  int depth = 0;       // after so many
  std::string kv = "f16";
};
// Can a command of this name be started: a path, or found on PATH?
bool finds_command(const std::string& name);

// Tokens per second, the better of flash attention off and on. kUnavailable when the command fails.
Result<double> run_llama_bench(const LlamaBenchCase& bench);

// What llama.cpp's llama-lookup or llama-lookahead says of one greedy decoding.
struct LlamaSpeculation {
  double seconds = 0;
  int tokens = 0;
};
// Decodes `n_tokens` after `prompt`; `command` may end in ":TYPE", the --spec-type of
// llama-speculative-simple, and in "@N", for at most N tokens. kUnavailable when the command fails, says no
// speed or takes over a minute.
Result<LlamaSpeculation> run_llama_speculation(const std::string& command, const std::string& model,
                                               const std::string& prompt, int n_tokens, int n_threads);

}  // namespace frugal::cli
