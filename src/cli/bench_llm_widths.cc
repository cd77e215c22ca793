#include "cli/bench_llm_widths.h"

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "base/clock.h"
#include "base/text.h"
#include "cli/console.h"
#include "cli/llm_options.h"
#include "llm/peer/peer.h"

namespace frugal::cli {
namespace {

using llm::Token;
using llm::peer::FlashAttention;
using llm::peer::Peer;

constexpr int kStepsTimed = 6;

// Seconds a call of `step`, over a few calls; `undo` runs untimed after each. The first call is not timed: it
// finds the caches full of the other engine's data, and may find its threads still awake.
template <typename Step, typename Undo>
Result<double> seconds_each(Step step, Undo undo) {
  double total = 0;
  for (int i = -1; i < kStepsTimed; ++i) {
    if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
    const double begin = wall_seconds();
    FRUGAL_TRY_STATUS(step());
    if (i >= 0) total += wall_seconds() - begin;
    FRUGAL_TRY_STATUS(undo());
  }
  return total / kStepsTimed;
}

// Steps of every width, ours and each peer's in turn, `reps` times: [runner][width][rep] seconds.
using Times = std::vector<std::vector<std::vector<double>>>;

}  // namespace

Result<std::vector<NamedPeer>> open_peers(const std::string& model, int n_threads, int n_ctx, int n_sequences,
                                          const std::string& cache) {
  std::vector<NamedPeer> peers;
  for (const FlashAttention flash : {FlashAttention::kOff, FlashAttention::kOn}) {
    llm::peer::PeerOptions options;
    options.n_threads = n_threads;
    options.n_ctx = n_ctx;
    options.n_sequences = n_sequences;
    options.flash_attention = flash;
    options.cache = cache;
    if (llm::peer::needs_flash_attention(cache) && flash == FlashAttention::kOff) continue;
    FRUGAL_TRY(auto peer, Peer::load(model, options));
    peers.push_back({strf("llama.cpp, flash attention %s", flash == FlashAttention::kOn ? "on" : "off"),
                     std::move(peer)});
  }
  return peers;
}

Status bench_verify(const WidthBench& bench, int depth, std::span<const Token> tokens, llm::Engine& engine,
                    llm::SequenceId sequence, const std::vector<NamedPeer>& peers,
                    std::vector<BenchRow>* rows) {
  std::vector<int> widths = {1};
  widths.insert(widths.end(), bench.widths.begin(), bench.widths.end());
  Times times(peers.size() + 1, std::vector<std::vector<double>>(widths.size()));
  for (int rep = -1; rep < bench.reps; ++rep) {  // the first is a warm-up
    for (size_t w = 0; w < widths.size(); ++w) {
      const auto window = tokens.subspan(static_cast<size_t>(depth), static_cast<size_t>(widths[w]));
      const llm::BatchItem item{sequence, window, llm::LogitRows::kAll};
      FRUGAL_TRY(const double ours, seconds_each(
                                        [&] {
                                          return engine.forward({&item, 1});
                                        },
                                        [&] { return engine.truncate(sequence, depth); }));
      if (rep >= 0) times[0][w].push_back(ours);
      for (size_t p = 0; p < peers.size(); ++p) {
        FRUGAL_TRY(
            const double theirs,
            seconds_each(
                [&] { return peers[p].peer->forward_all(window, [](size_t, std::span<const float>) {}); },
                [&]() -> Status {
                  peers[p].peer->truncate(depth);
                  return {};
                }));
        if (rep >= 0) times[p + 1][w].push_back(theirs);
      }
    }
  }
  for (size_t w = 1; w < widths.size(); ++w) {
    auto in_steps = [&](size_t runner) {  // of one token, pair by pair
      std::vector<double> ratios;
      for (size_t rep = 0; rep < times[runner][w].size(); ++rep)
        ratios.push_back(times[runner][w][rep] / times[runner][0][rep]);
      return ratios;
    };
    size_t best = 1;
    for (size_t p = 2; p < times.size(); ++p) {
      if (median(times[p][w]) < median(times[best][w])) best = p;
    }
    BenchRow row = bench_row(strf("verify of %d tokens at depth %d", widths[w], depth), "steps",
                             Better::kLower, in_steps(0), in_steps(best), peers[best - 1].name);
    row.more.emplace_back("ours, ms", 1e3 * median(times[0][w]));
    row.more.emplace_back("ours, one token, ms", 1e3 * median(times[0][0]));
    row.more.emplace_back("peer, ms", 1e3 * median(times[best][w]));
    rows->push_back(std::move(row));
  }
  return {};
}

Status bench_batch(const WidthBench& bench, std::span<const Token> tokens, std::vector<BenchRow>* rows) {
  constexpr int kPrompt = 128;
  const int n = bench.n_sequences, n_ctx = 256;
  llm::EngineOptions options;
  options.n_threads = bench.n_threads;
  options.n_ctx = n_ctx;
  options.kv = bench.kv;
  options.max_sequences = n;
  FRUGAL_TRY(const auto model, llm::Model::load(bench.model));
  FRUGAL_TRY(const auto engine, llm::Engine::create(model, options));
  FRUGAL_TRY(const auto peers, open_peers(bench.model, bench.n_threads, n_ctx * n, n, bench.peer_cache));
  std::vector<llm::BatchItem> items;
  std::vector<Token> next;
  for (int i = 0; i < n; ++i) {
    const auto prompt = tokens.subspan(static_cast<size_t>(i), kPrompt);
    FRUGAL_TRY(const llm::SequenceId sequence, engine->open_sequence());
    FRUGAL_TRY_STATUS(engine->prefill(sequence, prompt));
    for (const NamedPeer& peer : peers) FRUGAL_TRY_STATUS(peer.peer->prefill_sequence(i, prompt));
    items.push_back({sequence, tokens.subspan(static_cast<size_t>(i + kPrompt), 1), llm::LogitRows::kLast});
    next.push_back(items.back().tokens[0]);
  }
  std::vector<std::vector<double>> speeds(peers.size() + 1);
  for (int rep = -1; rep < bench.reps; ++rep) {
    const auto nothing = []() -> Status { return {}; };
    FRUGAL_TRY(const double ours, seconds_each([&] { return engine->forward(items); }, nothing));
    if (rep >= 0) speeds[0].push_back(n / ours);
    for (size_t p = 0; p < peers.size(); ++p) {
      FRUGAL_TRY(const double theirs,
                 seconds_each([&] { return peers[p].peer->step_sequences(next); }, nothing));
      if (rep >= 0) speeds[p + 1].push_back(n / theirs);
    }
  }
  size_t best = 1;
  for (size_t p = 2; p < speeds.size(); ++p) {
    if (median(speeds[p]) > median(speeds[best])) best = p;
  }
  rows->push_back(bench_row(strf("batch of %d sequences", n), "tokens/s", Better::kHigher, speeds[0],
                            speeds[best], peers[best - 1].name));
  return {};
}

Status bench_profile(const WidthBench& bench, std::span<const Token> tokens, double bandwidth,
                     std::vector<BenchRow>* rows) {
  int deepest = 0;
  for (const int depth : bench.depths) deepest = std::max(deepest, depth);
  EngineFlags flags;
  flags.profile = true;
  flags.threads = bench.n_threads;
  flags.ctx = (deepest + 64 + 255) / 256 * 256;
  flags.kv = std::string(llm::kv_format_name(bench.kv));
  FRUGAL_TRY(const LoadedEngine loaded, load_engine(ModelFlags{bench.model}, flags, false));
  llm::Engine& engine = *loaded.engine;
  FRUGAL_TRY(const llm::SequenceId sequence, engine.open_sequence());
  std::vector<int> widths = {1};
  widths.insert(widths.end(), bench.widths.begin(), bench.widths.end());
  for (const int depth : bench.depths) {
    FRUGAL_TRY_STATUS(engine.truncate(sequence, 0));
    FRUGAL_TRY_STATUS(engine.prefill(sequence, tokens.first(static_cast<size_t>(depth))));
    for (const int width : widths) {
      const auto window = tokens.subspan(static_cast<size_t>(depth), static_cast<size_t>(width));
      const llm::BatchItem item{sequence, window, llm::LogitRows::kAll};
      std::vector<double> ms[llm::kForwardSteps];
      double bytes[llm::kForwardSteps] = {}, total = 0;
      for (int rep = -1; rep < bench.reps * kStepsTimed; ++rep) {  // the first is a warm-up
        if (interrupted()) return {ErrorCode::kCancelled, "interrupted"};
        const llm::StepTimes before = engine.step_times();
        FRUGAL_TRY_STATUS(engine.forward({&item, 1}));
        FRUGAL_TRY_STATUS(engine.truncate(sequence, depth));
        const llm::StepTimes& after = engine.step_times();
        for (size_t i = 0; i < llm::kForwardSteps && rep >= 0; ++i) {
          ms[i].push_back(1e3 * (after.seconds[i] - before.seconds[i]));
          bytes[i] = after.bytes[i] - before.bytes[i];
        }
      }
      for (const auto& step : ms) total += median(step);
      for (size_t i = 0; i < llm::kForwardSteps; ++i) {
        BenchRow row = bench_row(strf("%d token%s at depth %d: %s", width, width == 1 ? "" : "s", depth,
                                      llm::forward_step_name(static_cast<llm::ForwardStep>(i))),
                                 "ms", Better::kLower, ms[i]);
        row.more.emplace_back("of the step, %", 100 * row.ours / total);
        if (bytes[i] > 0 && bandwidth > 0 && row.ours > 0) {
          row.more.emplace_back("MB", bytes[i] / 1e6);
          row.more.emplace_back("of read bandwidth, %", 1e5 * bytes[i] / row.ours / bandwidth);
        }
        rows->push_back(std::move(row));
      }
    }
  }
  return {};
}

Result<std::string> model_of_type(const std::string& model, const std::string& type) {
  const std::filesystem::path folder = std::filesystem::path(models_folder()) / "made";
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed)
    return Error{ErrorCode::kIo,
                 strf("the folder '%s' cannot be made: %s", folder.c_str(), failed.message().c_str())};
  const std::string out =
      (folder / (std::filesystem::path(model).stem().string() + "-as-" + type + ".gguf")).string();
  if (std::filesystem::exists(out, failed)) return out;
  const std::string half_made = out + ".part";
  FRUGAL_TRY_STATUS(llm::peer::requantize(model, half_made, type));
  std::filesystem::rename(half_made, out, failed);
  if (failed) return Error{ErrorCode::kIo, strf("'%s' cannot be named '%s'", half_made.c_str(), out.c_str())};
  return out;
}

std::vector<BenchRow> contract_rows(const std::vector<BenchRow>& all) {
  struct Contract {
    const char *name, *measured;
  };
  constexpr Contract kContract[] = {{"decode_0", "decode at depth 0,"},
                                    {"decode_2048", "decode at depth 2048,"},
                                    {"decode_8000", "decode at depth 8000,"},
                                    {"prefill_2048", "prefill of 2048 tokens,"},
                                    {"prefill_2048_q4_1", "prefill of 2048 tokens, q4_1"},
                                    {"verify_4", "verify of 4 tokens"},
                                    {"verify_8", "verify of 8 tokens"},
                                    {"batch_8", "batch of 8 sequences,"}};
  std::vector<BenchRow> contract;
  for (const Contract& want : kContract) {
    const bool in_steps = std::string_view(want.name).starts_with("verify");
    const BenchRow* worst = nullptr;
    for (const BenchRow& row : all) {
      if (!row.name.starts_with(want.measured)) continue;
      if (in_steps && row.name.ends_with("f16")) continue;  // asked for quantised weights
      if (worst == nullptr || (in_steps ? row.ours > worst->ours : row.ratio < worst->ratio)) worst = &row;
    }
    if (worst == nullptr) continue;
    BenchRow row = *worst;
    row.name = std::string(want.name) + " (" + worst->name + ")";
    contract.push_back(std::move(row));
  }
  return contract;
}

}  // namespace frugal::cli
