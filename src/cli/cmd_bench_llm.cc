// frugal bench llm: decode, prefill, load time and memory of our engine and llama.cpp, in turn, in one
// process.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/clock.h"
#include "base/file.h"
#include "base/team.h"
#include "base/text.h"
#include "cli/bench_llm_widths.h"
#include "cli/bench_report.h"
#include "cli/bench_tools.h"
#include "cli/child_process.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/llm_options.h"
#include "cli/logit_metrics.h"
#include "llm/peer/peer.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::cli {

namespace {

using llm::Token;
using llm::peer::Peer;

struct BenchFlags {
  ModelFlags model;
  std::vector<int> threads = {0}, depths = {0, 512, 1536}, prefill = {128, 512};
  std::vector<int> verify = {4, 8}, verify_depths = {300, 2000};
  std::vector<std::string> types;
  int reps = 5, decode_tokens = 24, sequences = 8;
  std::string kv = "f16", peer_kv, llama_bench, out;
  bool quick = false, steady = false, profile = false, json = false;
};

struct Case {
  enum Kind { kPrefill, kDecode, kVerify } kind;
  int size;  // tokens of the prefill, or depth
  std::string name() const {
    return kind == kPrefill ? strf("prefill of %d tokens", size) : strf("decode at depth %d", size);
  }
};

// The cache of the peer: ours, unless another was asked for.
std::string peer_cache(const BenchFlags& flags) { return flags.peer_kv.empty() ? flags.kv : flags.peer_kv; }

// Tokens of no particular text, the same for both engines: ordinary ones, spread over the vocabulary.
std::vector<Token> bench_tokens(const llm::Model& model, size_t n) {
  std::vector<Token> tokens;
  const int n_vocab = model.info().n_vocab;
  uint32_t state = 12345;
  while (tokens.size() < n) {
    state = state * 1664525u + 1013904223u;
    const auto token = static_cast<Token>((state >> 8) % static_cast<uint32_t>(n_vocab));
    if (!model.tokenizer().is_end_of_generation(token)) tokens.push_back(token);
  }
  return tokens;
}

// One engine under test: empties itself, or goes back to a depth, and runs tokens. What it holds is always
// the beginning of the bench's tokens.
class Runner {
 public:
  virtual ~Runner() = default;
  virtual Status rewind(int n_past) = 0;
  virtual int n_past() const = 0;
  virtual Status forward(std::span<const Token> tokens) = 0;
  virtual std::span<const float> logits() const = 0;
};

class OurRunner final : public Runner {
 public:
  OurRunner(llm::Engine& engine, llm::SequenceId sequence) : engine_(engine), sequence_(sequence) {}
  Status rewind(int n_past) override { return engine_.truncate(sequence_, n_past); }
  Status forward(std::span<const Token> tokens) override { return engine_.prefill(sequence_, tokens); }
  int n_past() const override { return engine_.n_past(sequence_); }
  std::span<const float> logits() const override { return engine_.logits(0); }

 private:
  llm::Engine& engine_;
  llm::SequenceId sequence_;
};

class PeerRunner final : public Runner {
 public:
  explicit PeerRunner(Peer& peer) : peer_(peer) {}
  Status rewind(int n_past) override {
    peer_.truncate(n_past);
    return {};
  }
  Status forward(std::span<const Token> tokens) override { return peer_.forward(tokens); }
  int n_past() const override { return peer_.n_past(); }
  std::span<const float> logits() const override { return peer_.logits(); }

 private:
  Peer& peer_;
};

// Holds the first `n` tokens and no more.
Status fill(Runner& runner, std::span<const Token> tokens, int n) {
  const int held = std::min(runner.n_past(), n);
  FRUGAL_TRY_STATUS(runner.rewind(held));
  return held < n ? runner.forward(tokens.first(static_cast<size_t>(n)).subspan(static_cast<size_t>(held)))
                  : Status{};
}

constexpr int kWarmUpTokens = 256;
// Before a decode, one token more goes unread by the clock: it finds the caches full of the other engine's
// data, and may find its threads still awake.
constexpr int kUntimedTokens = 1;

// Tokens per second of one repetition.
Result<double> time_case(Runner& runner, const Case& bench, std::span<const Token> tokens,
                         int decode_tokens) {
  if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
  const auto size = static_cast<size_t>(bench.size);
  FRUGAL_TRY_STATUS(runner.rewind(bench.kind == Case::kPrefill ? 0 : bench.size));
  if (bench.kind == Case::kPrefill) {
    const double begin = wall_seconds();
    FRUGAL_TRY_STATUS(runner.forward(tokens.first(size)));
    return static_cast<double>(size) / (wall_seconds() - begin);
  }
  FRUGAL_TRY_STATUS(runner.forward(tokens.subspan(size, kUntimedTokens)));
  FRUGAL_TRY_STATUS(runner.rewind(bench.size));
  const double begin = wall_seconds();
  for (size_t i = 0; i < static_cast<size_t>(decode_tokens); ++i) {
    FRUGAL_TRY_STATUS(runner.forward(tokens.subspan(size + i, 1)));
  }
  return decode_tokens / (wall_seconds() - begin);
}

// Mean KL divergence (nats) of our next-token distribution from the peer's, on a text. Int8 activations keep
// two right engines about 0.01 apart (docs/design/panels-and-exactness.md); a wrong engine is several nats
// off. On the bench's random tokens right ones may be a tenth of a nat apart, which would leave no room to
// tell.
constexpr char kCheckText[] =
    "A river that carries more water than its bed can hold leaves it, and finds a new one. People who live "
    "beside "
    "it learn to read the signs: the colour of the water, the sound of stones that roll along the ground, "
    "birds "
    "that do not come back in the evening. Then they take what they need and go up the hill.";
Result<double> mean_distance(Runner& ours, Runner& peer, std::span<const Token> tokens) {
  FRUGAL_TRY_STATUS(ours.rewind(0));
  FRUGAL_TRY_STATUS(peer.rewind(0));
  constexpr size_t kPositions = 48;
  const size_t n = std::min(kPositions, tokens.size());
  LogitMetrics metrics;
  for (size_t i = 0; i < n; ++i) {
    FRUGAL_TRY_STATUS(ours.forward(tokens.subspan(i, 1)));
    FRUGAL_TRY_STATUS(peer.forward(tokens.subspan(i, 1)));
    std::vector<double> log_ours(ours.logits().size()), log_peer(log_ours.size());
    log_softmax(ours.logits(), log_ours);
    log_softmax(peer.logits(), log_peer);
    metrics.add_compared(log_ours, log_peer, 0);
  }
  return metrics.mean_kl();
}
constexpr double kLargestDistance = 0.1;

struct Session {
  const BenchFlags& flags;
  std::string model_path;
  std::vector<Case> cases = {};
  int n_ctx = 0;
  WidthBench widths = {};
  double bandwidth = 0;  // bytes per second
  double products = 0;   // multiply-adds per second
};

// All speed rows of one thread count.
Status bench_speed(const Session& session, int n_threads, ProgressBar& bar, double* done, double total,
                   std::vector<BenchRow>* rows) {
  const BenchFlags& flags = session.flags;
  EngineFlags engine_flags;
  engine_flags.threads = n_threads;
  engine_flags.ctx = session.n_ctx;
  engine_flags.kv = flags.kv;
  ModelFlags model_flags{session.model_path};
  FRUGAL_TRY(LoadedEngine loaded, load_engine(model_flags, engine_flags, false));
  llm::Engine& engine = *loaded.engine;
  FRUGAL_TRY(const llm::SequenceId sequence, engine.open_sequence());
  OurRunner ours(engine, sequence);
  FRUGAL_TRY(const auto opened,
             open_peers(session.model_path, engine.options().n_threads, session.n_ctx, 1, peer_cache(flags)));
  std::vector<PeerRunner> peers;
  for (const NamedPeer& peer : opened) peers.emplace_back(*peer.peer);
  const std::vector<Token> tokens = bench_tokens(*loaded.model, static_cast<size_t>(session.n_ctx));
  FRUGAL_TRY(std::vector<Token> text, loaded.model->tokenizer().encode(kCheckText, true, false));
  text.resize(std::min(text.size(), static_cast<size_t>(session.n_ctx)));
  for (size_t i = 0; i < peers.size(); ++i) {
    FRUGAL_TRY(const double distance, mean_distance(ours, peers[i], text));
    if (!(distance < kLargestDistance)) {
      return {ErrorCode::kCorrupt, strf("our answers are %.3g nats from those of %s: nothing is timed",
                                        distance, opened[i].name.c_str())};
    }
  }
  const std::string suffix = flags.threads.size() > 1 ? strf(", %d threads", engine.options().n_threads) : "";
  for (const Case& bench : session.cases) {
    if (bench.kind != Case::kPrefill) {  // fill the caches up to the depth, once
      FRUGAL_TRY_STATUS(fill(ours, tokens, bench.size));
      for (PeerRunner& peer : peers) FRUGAL_TRY_STATUS(fill(peer, tokens, bench.size));
    }
    if (bench.kind == Case::kVerify) {
      if (n_threads == flags.threads[0]) {
        FRUGAL_TRY_STATUS(bench_verify(session.widths, bench.size, tokens, engine, sequence, opened, rows));
      }
      bar.update(*done += flags.reps + 1, total);
      continue;
    }
    std::vector<double> our_speeds;
    std::vector<std::vector<double>> peer_speeds(peers.size());
    std::vector<double> tool_speeds;
    double bytes_per_token = 0, flops_per_token = 0;
    // Of this minute: the rate of a machine that is shared changes by a third.
    double bandwidth = bench.kind == Case::kDecode ? read_bandwidth(engine.options().n_threads) : 0;
    for (int rep = -1; rep < flags.reps; ++rep) {
      Case timed = bench;  // the first is a warm-up, for which part of a prompt will do
      if (rep < 0 && bench.kind == Case::kPrefill) timed.size = std::min(bench.size, kWarmUpTokens);
      const double bytes_before = engine.usage().bytes_moved, flops_before = engine.usage().flops;
      FRUGAL_TRY(const double speed, time_case(ours, timed, tokens, flags.decode_tokens));
      bytes_per_token = (engine.usage().bytes_moved - bytes_before) / (flags.decode_tokens + kUntimedTokens);
      flops_per_token = (engine.usage().flops - flops_before) / std::max(1, bench.size);
      if (rep >= 0) our_speeds.push_back(speed);
      for (size_t i = 0; i < peers.size(); ++i) {
        FRUGAL_TRY(const double theirs, time_case(peers[i], timed, tokens, flags.decode_tokens));
        if (rep >= 0) peer_speeds[i].push_back(theirs);
      }
      if (rep >= 0 && !flags.llama_bench.empty()) {
        LlamaBenchCase request;
        request.command = flags.llama_bench;
        request.model = session.model_path;
        request.n_threads = engine.options().n_threads;
        request.kv = peer_cache(flags);
        (bench.kind == Case::kPrefill ? request.n_prompt : request.depth) = bench.size;
        if (bench.kind == Case::kDecode) request.n_generate = flags.decode_tokens;
        FRUGAL_TRY(const double theirs, run_llama_bench(request));
        tool_speeds.push_back(theirs);
      }
      bar.update(++*done, total);
    }
    size_t best = 0;
    for (size_t i = 1; i < peers.size(); ++i) {
      if (median(peer_speeds[i]) > median(peer_speeds[best])) best = i;
    }
    const bool tool_is_best = !tool_speeds.empty() && median(tool_speeds) > median(peer_speeds[best]);
    BenchRow row =
        bench_row(bench.name() + suffix, "tokens/s", Better::kHigher, our_speeds,
                  tool_is_best ? tool_speeds : peer_speeds[best],
                  tool_is_best ? "llama-bench (llama.cpp as it builds itself), its better flash attention"
                               : opened[best].name);
    for (size_t i = 0; i < peers.size(); ++i) row.more.emplace_back(opened[i].name, median(peer_speeds[i]));
    if (!tool_speeds.empty()) row.more.emplace_back("llama-bench", median(tool_speeds));
    double bound = 0;  // tokens/s
    if (bench.kind == Case::kPrefill) {
      bound = 2 * session.products / flops_per_token;
    } else {
      bandwidth = std::max(bandwidth, read_bandwidth(engine.options().n_threads));
      bound = bandwidth / bytes_per_token;
      row.more.emplace_back("MB/token", bytes_per_token / 1e6);
      row.more.emplace_back("GB/s of this machine", bandwidth / 1e9);
    }
    row.more.emplace_back("bound", bound);
    row.more.emplace_back("of bound, %", 100 * row.ours / bound);
    row.more.emplace_back("ratio at the bound", bound / *row.peer);
    rows->push_back(std::move(row));
  }
  return {};
}

Status bench_load(const Session& session, int n_threads, std::vector<BenchRow>* rows) {
  std::vector<double> ours, peer;
  for (int rep = -1; rep < session.flags.reps; ++rep) {
    if (interrupted()) return {ErrorCode::kCancelled, "interrupted"};
    EngineFlags engine_flags;
    engine_flags.threads = n_threads;
    engine_flags.ctx = session.n_ctx;
    engine_flags.kv = session.flags.kv;
    FRUGAL_TRY(const LoadedEngine loaded, load_engine(ModelFlags{session.model_path}, engine_flags, false));
    llm::peer::PeerOptions options;
    options.n_threads = n_threads;
    options.n_ctx = session.n_ctx;
    options.cache = peer_cache(session.flags);
    FRUGAL_TRY(const auto theirs, Peer::load(session.model_path, options));
    if (rep < 0) continue;
    ours.push_back(1e3 * loaded.load_s);
    peer.push_back(1e3 * theirs->load_seconds());
  }
  rows->push_back(bench_row("load model and make context", "ms", Better::kLower, ours, peer, "llama.cpp"));
  return {};
}

// Peak resident memory of a process that loads, runs a prompt of the largest depth, and decodes a little.
Status bench_memory(const Session& session, int n_threads, std::vector<BenchRow>* rows) {
  const int depth = std::max(1, session.n_ctx - 16);
  const auto drive = [&](Runner& runner, const std::vector<Token>& tokens) -> Status {
    FRUGAL_TRY_STATUS(runner.forward(std::span(tokens).first(static_cast<size_t>(depth))));
    for (int i = 0; i < 8; ++i) {
      FRUGAL_TRY_STATUS(runner.forward(std::span(tokens).subspan(static_cast<size_t>(depth + i), 1)));
    }
    return {};
  };
  std::vector<Token> tokens;
  for (int i = 0; i < session.n_ctx; ++i) tokens.push_back(1000 + i % 7000);
  FRUGAL_TRY(const double ours, peak_memory_of_child([&]() -> Status {
               EngineFlags engine_flags;
               engine_flags.threads = n_threads;
               engine_flags.ctx = session.n_ctx;
               engine_flags.kv = session.flags.kv;
               FRUGAL_TRY(const LoadedEngine loaded,
                          load_engine(ModelFlags{session.model_path}, engine_flags, false));
               FRUGAL_TRY(const llm::SequenceId sequence, loaded.engine->open_sequence());
               OurRunner runner(*loaded.engine, sequence);
               return drive(runner, tokens);
             }));
  FRUGAL_TRY(const double peer, peak_memory_of_child([&]() -> Status {
               llm::peer::PeerOptions options;
               options.n_threads = n_threads;
               options.n_ctx = session.n_ctx;
               options.cache = peer_cache(session.flags);
               FRUGAL_TRY(const auto loaded, Peer::load(session.model_path, options));
               PeerRunner runner(*loaded);
               return drive(runner, tokens);
             }));
  std::error_code ignored;
  const auto file_bytes = static_cast<double>(std::filesystem::file_size(session.model_path, ignored));
  BenchRow row = bench_row(strf("peak memory, context of %d full", session.n_ctx), "MiB", Better::kLower,
                           {ours / (1 << 20)}, {peer / (1 << 20)}, "llama.cpp");
  row.more.emplace_back("model file, MiB", file_bytes / (1 << 20));
  rows->push_back(std::move(row));
  return {};
}

Status check(const BenchFlags& flags) {
  const auto refuse = [](std::string message) {
    return Status(ErrorCode::kInvalidArgument, std::move(message));
  };
  if (flags.reps < 1) return refuse(strf("--reps is %d, but must be 1 or more", flags.reps));
  if (flags.decode_tokens < 1)
    return refuse(strf("--decode-tokens is %d, but must be 1 or more", flags.decode_tokens));
  if (flags.depths.empty() && flags.prefill.empty())
    return refuse("nothing to measure: give --depths or --prefill");
  for (const int depth : flags.depths) {
    if (depth < 0) return refuse(strf("a depth of %d; depths are 0 or more", depth));
  }
  for (const int n : flags.prefill) {
    if (n < 0) return refuse(strf("a prefill of %d tokens; it takes 1 or more, or 0 for no such row", n));
  }
  for (const int n : flags.verify) {
    if (n < 1 || n > 64) return refuse(strf("a verify step of %d rows; they are from 1 to 64", n));
  }
  for (const int depth : flags.verify_depths) {
    if (depth < 0)
      return refuse(strf("a verify depth of %d; depths are 1 or more, or 0 for no such rows", depth));
  }
  if (flags.sequences < 0 || flags.sequences > 8)
    return refuse(strf("--sequences is %d, but must be from 0 to 8", flags.sequences));
  for (const int n : flags.threads) {
    if (n < 0 || n > 256) return refuse(strf("%d threads; they are from 1 to 256, or 0 for all", n));
  }
  return {};
}

Result<std::vector<BenchRow>> measure(Session& session) {
  const BenchFlags& flags = session.flags;
  std::vector<BenchRow> rows;
  // Children first: they are forked before any thread runs here.
  const int n_threads = flags.threads[0] > 0 ? flags.threads[0] : usable_processors();
  if (!flags.steady) FRUGAL_TRY_STATUS(bench_memory(session, flags.threads[0], &rows));
  session.bandwidth = read_bandwidth(n_threads);
  session.products = product_peak(n_threads);
  ProgressBar bar("benching", "runs", !flags.json);
  double done = 0;
  const double total = static_cast<double>(session.cases.size() * flags.threads.size()) * (flags.reps + 1);
  session.widths = {session.model_path, flags.verify_depths, flags.verify,        flags.sequences,
                    flags.threads[0],   flags.reps,          llm::KvFormat::kF16, peer_cache(flags)};
  FRUGAL_TRY(session.widths.kv, llm::parse_kv_format(flags.kv));
  for (const int count : flags.threads) {
    FRUGAL_TRY_STATUS(bench_speed(session, count, bar, &done, total, &rows));
  }
  FRUGAL_TRY(const auto model, llm::Model::load(session.model_path));
  const std::vector<Token> tokens = bench_tokens(*model, static_cast<size_t>(session.n_ctx));
  if (flags.sequences > 0) FRUGAL_TRY_STATUS(bench_batch(session.widths, tokens, &rows));
  if (flags.profile) FRUGAL_TRY_STATUS(bench_profile(session.widths, tokens, session.bandwidth, &rows));
  if (!flags.steady) FRUGAL_TRY_STATUS(bench_load(session, flags.threads[0], &rows));
  BenchRow bandwidth =
      bench_row("read bandwidth of this machine", "GB/s", Better::kHigher, {session.bandwidth / 1e9});
  rows.push_back(std::move(bandwidth));
  rows.push_back(bench_row("Q4_1 multiply-adds in the first-level cache", "G/s", Better::kHigher,
                           {session.products / 1e9}));
  return rows;
}

// What caches other than f16 add to the rows' names.
std::string caches_measured(const BenchFlags& flags) {
  if (peer_cache(flags) == "f16" && flags.kv == "f16") return "";
  if (peer_cache(flags) == flags.kv) return ", cache of " + flags.kv;
  return strf(", cache of %s against %s", flags.kv.c_str(), peer_cache(flags).c_str());
}

// The rows of each weight type, named with it, and the contract's: the worst ratio over the types. Minutes
// may have gone into a type: `keep` gets the rows so far after each.
Result<std::vector<BenchRow>> measure_types(Session& session,
                                            const std::function<Status(const std::vector<BenchRow>&)>& keep) {
  std::vector<std::string> types = session.flags.types;
  if (types.empty()) types = {""};
  std::vector<BenchRow> all, rows;
  const std::string given = session.model_path, caches = caches_measured(session.flags);
  for (const std::string& type : types) {
    if (!type.empty()) {
      FRUGAL_TRY(session.model_path, model_of_type(given, type));
    }
    FRUGAL_TRY(std::vector<BenchRow> measured, measure(session));
    for (BenchRow& row : measured) {
      row.name += (row.peer ? caches : "") + (type.empty() ? "" : ", " + type);
      all.push_back(std::move(row));
    }
    rows = type.empty() ? std::vector<BenchRow>() : contract_rows(all);
    rows.insert(rows.end(), all.begin(), all.end());
    FRUGAL_TRY_STATUS(keep(rows));
  }
  return rows;
}

int run(BenchFlags flags) {
  install_interrupt_handler();
  std::erase(flags.verify_depths, 0);
  if (flags.quick) {
    flags.depths = {0, 512};
    flags.prefill = {128};
    flags.verify_depths = {300};
    flags.reps = 3;
    flags.decode_tokens = 12;
  }
  if (const Status status = check(flags); !status.ok()) return fail(status.error());
  const auto path = resolve_model(flags.model.model);
  if (!path.ok()) return fail(path.error());
  Session session{flags, *path};
  for (const int n : flags.prefill) {
    if (n > 0) session.cases.push_back({Case::kPrefill, n});
  }
  for (const int depth : flags.depths) session.cases.push_back({Case::kDecode, depth});
  for (const int depth : flags.verify_depths) session.cases.push_back({Case::kVerify, depth});
  // From the longest prompt on the engines only ever go back: reading 8,000 tokens takes a peer a minute.
  std::stable_sort(session.cases.begin(), session.cases.end(), [](const Case& a, const Case& b) {
    const bool prefills = a.kind == Case::kPrefill, others = b.kind == Case::kPrefill;
    if (prefills != others) return prefills;
    return prefills ? a.size < b.size : a.size > b.size;
  });
  for (const Case& bench : session.cases) {
    session.n_ctx =
        std::max(session.n_ctx, bench.size + (bench.kind == Case::kVerify ? 64 : flags.decode_tokens));
  }
  session.n_ctx = std::max((session.n_ctx + 255) / 256 * 256, 256);  // llama.cpp rounds up to this anyway

  BenchContext context;
  context.bench = "llm";
  context.threads = flags.threads[0] > 0 ? flags.threads[0] : usable_processors();
  context.isa = kernel_isa();
  context.model = std::filesystem::path(*path).filename().string();
  context.command = this_command_line();
  context.note =
      "interleaved repetitions in one process after a warm-up; answers compared before timing; peer: " +
      llm::peer::description();
  const auto rows = measure_types(session, [&](const std::vector<BenchRow>& so_far) -> Status {
    if (context.model_hash.empty()) {
      if (const auto model = llm::Model::load(*path); model.ok())
        context.model_hash = strf("%016llx", static_cast<unsigned long long>((*model)->info().file_hash));
    }
    return flags.out.empty() ? Status() : write_bench(flags.out, context, so_far);
  });
  if (!rows.ok()) return fail(rows.error());
  return report_bench(context, *rows, "", flags.json);
}

}  // namespace

Action add_bench_llm(CLI::App& app) {
  auto flags = std::make_shared<BenchFlags>();
  app.add_option("--depths", flags->depths, "decode after this many tokens")
      ->capture_default_str()
      ->delimiter(',');
  app.add_option("--prefill", flags->prefill, "prompt lengths to run; 0 = none")
      ->capture_default_str()
      ->delimiter(',');
  app.add_option("-t,--threads", flags->threads, "thread counts; 0 = one for each usable processor")
      ->capture_default_str()
      ->delimiter(',');
  app.add_option("--verify", flags->verify, "rows of a verify step")->capture_default_str()->delimiter(',');
  app.add_option("--verify-depths", flags->verify_depths, "depths at which they are verified; 0 = none")
      ->capture_default_str()
      ->delimiter(',');
  app.add_option("--sequences", flags->sequences, "sequences of the batch; 0 = no such row")
      ->capture_default_str();
  app.add_option("--types", flags->types,
                 "measure versions of the model in these weight types (q4_1, q4_0, q4_k, q8_0, f16), made by "
                 "llama.cpp's "
                 "quantiser and kept beside the installed models")
      ->delimiter(',');
  app.add_option("--reps", flags->reps, "repetitions, ours and the peer's in turn")->capture_default_str();
  app.add_option("--decode-tokens", flags->decode_tokens, "tokens of one decode repetition")
      ->capture_default_str();
  app.add_option("--kv", flags->kv, "how keys and values are held: f32, f16, bf16, q8_0")
      ->capture_default_str();
  app.add_option("--peer-kv", flags->peer_kv,
                 "how the peer holds them, when not as ours: f32, f16, bf16, q8_0, q4_0");
  app.add_option("--llama-bench", flags->llama_bench,
                 "also run this llama-bench in turn; scripts/bootstrap.py --peers builds one")
      ->type_name("COMMAND");
  app.add_option("--out", flags->out,
                 "also write the rows to this file, for docs/benchmarks.md; with --types after each type")
      ->type_name("FILE");
  app.add_flag("--quick", flags->quick, "a table in about a minute: few sizes, 3 repetitions");
  app.add_flag("--steady", flags->steady, "speeds alone: no load time, no peak memory");
  app.add_flag("--profile", flags->profile,
               "also tell where the time of a step goes, for each verify depth and width");
  add_model_options(app, flags->model);
  app.add_flag("--json", flags->json, "the rows as JSON");
  return [flags] { return run(*flags); };
}

}  // namespace frugal::cli
