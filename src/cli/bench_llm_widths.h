// What more rows than one cost: the time of a verify step of several tokens against one of a single token,
// and of a step of several sequences.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/bench_report.h"
#include "frugal/llm.h"
#include "llm/peer/peer.h"

namespace frugal::cli {

struct WidthBench {
  std::string model;
  std::vector<int> depths, widths;
  int n_sequences = 0;  // of the batch row; 0 = none
  int n_threads = 0, reps = 5;
  llm::KvFormat kv = llm::KvFormat::kF16;
  std::string peer_cache = "f16";  // llm::peer::PeerOptions::cache
};

// A peer and the setting that it runs with, "llama.cpp, flash attention on".
struct NamedPeer {
  std::string name;
  std::unique_ptr<llm::peer::Peer> peer;
};
// llama.cpp in this process with flash attention off and on, where its cache can be had so. Its default,
// auto, is one of the two. `n_ctx` of all sequences together.
Result<std::vector<NamedPeer>> open_peers(const std::string& model, int n_threads, int n_ctx, int n_sequences,
                                          const std::string& cache);

// Rows "verify of B tokens at depth D", in steps of one token. Ours and the peers hold the first D of
// `tokens` and go back to them. The peer of a row is the one that is fastest at it. kCancelled on an
// interrupt.
Status bench_verify(const WidthBench& bench, int depth, std::span<const llm::Token> tokens,
                    llm::Engine& engine, llm::SequenceId sequence, const std::vector<NamedPeer>& peers,
                    std::vector<BenchRow>* rows);

// The row "batch of N sequences", in tokens a second.
Status bench_batch(const WidthBench& bench, std::span<const llm::Token> tokens, std::vector<BenchRow>* rows);

// Where a step's time goes: rows "8 tokens at depth 300: gate and up", in milliseconds, with the share of the
// step and the rate at which its weights or K/V were read beside `bandwidth` (bytes a second). Ours alone.
Status bench_profile(const WidthBench& bench, std::span<const llm::Token> tokens, double bandwidth,
                     std::vector<BenchRow>* rows);

// A version of `model` with its large weights in another type ("q4_0", "q4_1", "q4_k", "q8_0", "f16"), made
// by llama.cpp's quantiser once and kept beside the installed models. Its path.
Result<std::string> model_of_type(const std::string& model, const std::string& type);

// The contract's rows ("decode_2048", "verify_4", ...): of each, the worst of the weight types in `all`,
// whose rows are named "decode at depth 2048, q4_0".
std::vector<BenchRow> contract_rows(const std::vector<BenchRow>& all);

}  // namespace frugal::cli
