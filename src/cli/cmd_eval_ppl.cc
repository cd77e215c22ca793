// frugal eval ppl: perplexity of a text, and how far the answers are from a reference run.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/file.h"
#include "base/hash.h"
#include "base/text.h"
#include "cli/bench_llm_widths.h"
#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/llm_options.h"
#include "cli/logit_file.h"
#include "cli/logit_metrics.h"
#include "llm/peer/peer.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::cli {

namespace {

constexpr const char* kLlamaCpp = "llama.cpp";
constexpr const char* kExact = "exact";
constexpr int kRowsAtOnce = 64;  // logits held at once: 64 rows of 262,144 floats are 64 MiB

struct EvalFlags {
  ModelFlags model;
  EngineFlags engine;
  std::string file, weights, reference, save_logits, against, out;
  int positions = 2000, window = 512;
  bool json = false;
};

// The text as windows that each start with an empty cache. The first half of a window is context only; the
// tokens of the second half are predicted and scored, as llama.cpp's perplexity tool does it.
struct Plan {
  std::vector<std::vector<llm::Token>> windows;
  int first_scored = 0;  // place in a window of the first token that is predicted
  size_t positions = 0;
  uint64_t tokens_hash = kFnvOffset;
};

Result<Plan> plan_windows(const llm::Model& model, const std::string& text, const EvalFlags& flags) {
  FRUGAL_TRY(const std::vector<llm::Token> tokens,
             model.tokenizer().encode(text, /*add_special=*/true, /*parse_special=*/false));
  Plan plan;
  plan.first_scored = flags.window / 2;
  const auto window = static_cast<size_t>(flags.window), wanted = static_cast<size_t>(flags.positions);
  const size_t per_window = window - static_cast<size_t>(plan.first_scored);
  for (size_t begin = 0; begin + window <= tokens.size() && plan.positions < wanted; begin += window) {
    std::vector<llm::Token> part(tokens.begin() + static_cast<ptrdiff_t>(begin),
                                 tokens.begin() + static_cast<ptrdiff_t>(begin + window));
    if (model.tokenizer().adds_bos()) part[0] = model.tokenizer().bos();  // what a text begins with
    const size_t scored = std::min(per_window, wanted - plan.positions);
    part.resize(static_cast<size_t>(plan.first_scored) + scored);
    plan.positions += scored;
    plan.tokens_hash = fnv1a(std::as_bytes(std::span<const llm::Token>(part)), plan.tokens_hash);
    plan.windows.push_back(std::move(part));
  }
  if (plan.windows.empty()) {
    return Error{
        ErrorCode::kInvalidArgument,
        strf("the text has %zu tokens, less than one window of %d; give a longer text or a smaller --window",
             tokens.size(), flags.window)};
  }
  return plan;
}

// Another engine on the same tokens: llama.cpp, or frugal with widened weights.
struct Source {
  std::unique_ptr<llm::peer::Peer> peer;
  LoadedEngine exact;
  llm::SequenceId sequence = 0;

  bool there() const { return peer || exact.engine; }

  // Forgets what was read before, and reads the beginning of a window.
  Status restart(std::span<const llm::Token> tokens) {
    if (peer) {
      peer->truncate(0);
      return peer->forward(tokens);
    }
    if (!exact.engine) return {};
    FRUGAL_TRY_STATUS(exact.engine->truncate(sequence, 0));
    return exact.engine->prefill(sequence, tokens, [](int, int) { return !interrupted(); });
  }

  // log_p[i] <- log-probabilities after tokens[i].
  Status read(std::span<const llm::Token> tokens, std::vector<std::vector<double>>& log_p) {
    if (peer) {
      return peer->forward_all(
          tokens, [&](size_t i, std::span<const float> logits) { log_softmax(logits, log_p[i]); });
    }
    if (!exact.engine) return {};
    const llm::BatchItem item{sequence, tokens, llm::LogitRows::kAll};
    FRUGAL_TRY_STATUS(exact.engine->forward({&item, 1}));
    for (size_t i = 0; i < tokens.size(); ++i)
      log_softmax(exact.engine->logits(static_cast<int>(i)), log_p[i]);
    return {};
  }
};

// What ours is compared with: nothing, a saved run, llama.cpp, or exact arithmetic on the same weights.
struct Reference {
  std::string name;
  std::optional<LogitFileReader> saved;
  Source source;
  // llama.cpp with its defaults, compared with the same reference: how far another good engine is from it.
  Source control;
  uint32_t next_row = 0;
};

struct Evaluation {
  LogitMetrics ours;
  LogitMetrics control;  // of the control against the reference; no positions without one
};

Result<Reference> open_reference(const EvalFlags& flags, const Plan& plan, const llm::Engine& engine) {
  Reference reference;
  const llm::ModelInfo& info = engine.model().info();
  if (!flags.against.empty()) {
    FRUGAL_TRY(reference.saved, LogitFileReader::open(flags.against));
    const LogitFileHead& head = reference.saved->head();
    if (head.n_vocab != static_cast<uint32_t>(info.n_vocab) || head.tokens_hash != plan.tokens_hash ||
        head.n_positions != plan.positions) {
      return Error{ErrorCode::kInvalidArgument,
                   "'" + flags.against + "' was saved for another text, tokenizer, --window or --positions"};
    }
    reference.name = "saved run " + flags.against;
    return reference;
  }
  if (flags.reference.empty()) return reference;
  llm::peer::PeerOptions options;
  options.n_threads = engine.options().n_threads;
  options.n_ctx = flags.window;
  const llm::KvFormat kv = engine.options().kv;
  const bool as_ours = kv == llm::KvFormat::kF32 || kv == llm::KvFormat::kBF16;
  options.cache = as_ours ? llm::kv_format_name(kv) : "f16";
  if (flags.reference == kExact) {
    llm::EngineOptions exact = engine.options();
    exact.kv = llm::KvFormat::kF32;
    FRUGAL_TRY(reference.source.exact.model,
               llm::Model::load(info.path, {.n_threads = exact.n_threads, .progress = {}, .widen = true}));
    FRUGAL_TRY(reference.source.exact.engine, llm::Engine::create(reference.source.exact.model, exact));
    FRUGAL_TRY(reference.source.sequence, reference.source.exact.engine->open_sequence());
    reference.name = "the same weights as 32-bit floats, f32 cache";
  } else {
    options.flash_attention = llm::peer::FlashAttention::kOff;
    options.exact_weights = true;
    FRUGAL_TRY(reference.source.peer, llm::peer::Peer::load(info.path, options));
    if (reference.source.peer->n_vocab() != info.n_vocab) {
      return Error{ErrorCode::kInvalidArgument, "llama.cpp sees another vocabulary in this model"};
    }
    reference.name = "llama.cpp, flash attention off";
  }
  options.flash_attention = llm::peer::FlashAttention::kOn;
  options.exact_weights = false;
  FRUGAL_TRY(reference.control.peer, llm::peer::Peer::load(info.path, options));
  return reference;
}

Result<Evaluation> evaluate(const EvalFlags& flags, const Plan& plan, llm::Engine& engine,
                            Reference& reference, LogitFileWriter* save) {
  const auto n_vocab = static_cast<size_t>(engine.model().info().n_vocab);
  Evaluation evaluation;
  LogitMetrics& metrics = evaluation.ours;
  const auto at_once = static_cast<size_t>(
      std::min({kRowsAtOnce, engine.options().max_rows, engine.options().max_logit_rows}));
  ProgressBar bar("evaluating", "positions", !flags.json);
  std::vector<double> log_p(n_vocab);
  const bool compares = reference.saved || reference.source.there();
  const bool has_control = reference.control.there();
  std::vector<std::vector<double>> log_reference(compares ? at_once : 0, std::vector<double>(n_vocab));
  std::vector<std::vector<double>> log_control(has_control ? at_once : 0, std::vector<double>(n_vocab));
  FRUGAL_TRY(const llm::SequenceId sequence, engine.open_sequence());
  for (const std::vector<llm::Token>& window : plan.windows) {
    const auto first = static_cast<size_t>(plan.first_scored);
    const std::span<const llm::Token> tokens(window);
    FRUGAL_TRY_STATUS(engine.truncate(sequence, 0));
    FRUGAL_TRY_STATUS(
        engine.prefill(sequence, tokens.first(first - 1), [](int, int) { return !interrupted(); }));
    FRUGAL_TRY_STATUS(reference.source.restart(tokens.first(first - 1)));
    FRUGAL_TRY_STATUS(reference.control.restart(tokens.first(first - 1)));
    // Row i of these predicts token i + 1 of the window.
    for (size_t begin = first - 1; begin + 1 < window.size(); begin += at_once) {
      if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
      const size_t n = std::min(at_once, window.size() - 1 - begin);
      const llm::BatchItem item{sequence, tokens.subspan(begin, n), llm::LogitRows::kAll};
      FRUGAL_TRY_STATUS(engine.forward({&item, 1}));
      FRUGAL_TRY_STATUS(reference.source.read(tokens.subspan(begin, n), log_reference));
      FRUGAL_TRY_STATUS(reference.control.read(tokens.subspan(begin, n), log_control));
      for (size_t i = 0; i < n; ++i) {
        log_softmax(engine.logits(static_cast<int>(i)), log_p);
        const auto next = static_cast<size_t>(window[begin + i + 1]);
        if (reference.saved) reference.saved->read(reference.next_row++, log_reference[i]);
        if (compares) {
          metrics.add_compared(log_p, log_reference[i], next);
        } else {
          metrics.add(log_p, next);
        }
        if (has_control) evaluation.control.add_compared(log_control[i], log_reference[i], next);
        if (save != nullptr) FRUGAL_TRY_STATUS(save->add(log_p));
      }
      bar.update(static_cast<double>(metrics.positions()), static_cast<double>(plan.positions));
    }
  }
  engine.close_sequence(sequence);
  return evaluation;
}

// Perplexity beside the reference's; distances from the reference beside those of the control from it.
std::vector<BenchRow> rows_of(const Evaluation& evaluation, const Reference& reference) {
  const LogitMetrics& metrics = evaluation.ours;
  const LogitMetrics* control = reference.control.there() ? &evaluation.control : nullptr;
  const auto n = static_cast<int>(metrics.positions());
  const std::string from = reference.source.exact.engine ? "exact arithmetic" : "the reference";
  const auto row = [&](const std::string& name, const char* unit, double ours, std::optional<double> peer,
                       const std::string& peer_name, bool less_is_better) {
    BenchRow out;
    out.name = name;
    out.unit = unit;
    out.ours = ours;
    out.peer = peer;
    if (peer) {
      out.peer_name = peer_name;
      if (ours > 0 && *peer > 0) out.ratio = less_is_better ? *peer / ours : ours / *peer;
    }
    out.n = n;
    return out;
  };
  if (reference.name.empty()) return {row("perplexity", "", metrics.perplexity(), {}, "", true)};
  const auto distance = [&](const std::string& name, const char* unit, auto figure, bool less_is_better) {
    std::optional<double> peer;
    if (control != nullptr) peer = figure(*control);
    return row(name, unit, figure(metrics), peer, "llama.cpp with its defaults", less_is_better);
  };
  return {row("perplexity", "", metrics.perplexity(), metrics.reference_perplexity(), reference.name, true),
          distance(
              "KL from " + from + ", mean", "nats", [](const LogitMetrics& m) { return m.mean_kl(); }, true),
          distance(
              "KL from " + from + ", 99th percentile", "nats",
              [](const LogitMetrics& m) { return m.kl_percentile(0.99); }, true),
          distance(
              "same top-1 as " + from, "%", [](const LogitMetrics& m) { return 100 * m.top1_agreement(); },
              false)};
}

int run(const EvalFlags& flags) {
  install_interrupt_handler();
  const auto invalid = [](std::string message) {
    return fail({ErrorCode::kInvalidArgument, std::move(message)});
  };
  if (flags.file.empty()) return invalid("there is no text to evaluate: give one with -f FILE");
  if (flags.window < 4) return invalid(strf("--window is %d, but must be 4 or more", flags.window));
  if (flags.positions < 1) return invalid(strf("--positions is %d, but must be 1 or more", flags.positions));
  if (!flags.reference.empty() && flags.reference != kLlamaCpp && flags.reference != kExact) {
    return invalid("--reference is '" + flags.reference +
                   "', but llama.cpp and exact are what there is; a saved run is given with --against");
  }
  if (!flags.reference.empty() && !flags.against.empty())
    return invalid("--reference and --against exclude each other");
  const auto text = read_file(flags.file, size_t{1} << 28);
  if (!text.ok()) return fail(text.error());
  if (!utf8_valid(*text)) return fail({ErrorCode::kCorrupt, "'" + flags.file + "' is not UTF-8 text"});

  EngineFlags engine_flags = flags.engine;
  if (engine_flags.ctx == 0) engine_flags.ctx = flags.window;
  if (engine_flags.ctx < flags.window) return invalid("--ctx is shorter than --window");
  ModelFlags model_flags = flags.model;
  if (!flags.weights.empty()) {
    const auto given = resolve_model(flags.model.model);
    if (!given.ok()) return fail(given.error());
    const auto made = model_of_type(*given, flags.weights);
    if (!made.ok()) return fail(made.error());
    model_flags.model = *made;
  }
  auto loaded = load_engine(model_flags, engine_flags, !flags.json);
  if (!loaded.ok()) return fail(loaded.error());
  const llm::ModelInfo& info = loaded->model->info();
  const auto plan = plan_windows(*loaded->model, *text, flags);
  if (!plan.ok()) return fail(plan.error());
  auto reference = open_reference(flags, *plan, *loaded->engine);
  if (!reference.ok()) return fail(reference.error());
  std::optional<LogitFileWriter> save;
  if (!flags.save_logits.empty()) {
    auto writer =
        LogitFileWriter::create(flags.save_logits, {info.file_hash, static_cast<uint32_t>(info.n_vocab),
                                                    static_cast<uint32_t>(plan->positions),
                                                    static_cast<uint32_t>(flags.window), plan->tokens_hash});
    if (!writer.ok()) return fail(writer.error());
    save.emplace(std::move(writer).value());
  }
  const auto evaluation = evaluate(flags, *plan, *loaded->engine, *reference, save ? &*save : nullptr);
  if (!evaluation.ok()) return fail(evaluation.error());
  const LogitMetrics* metrics = &evaluation->ours;
  if (save) {
    if (const Status status = save->commit(); !status.ok()) return fail(status.error());
  }

  BenchContext context;
  context.bench = "eval";
  context.threads = loaded->engine->options().n_threads;
  context.model = std::filesystem::path(info.path).filename().string();
  context.model_hash = strf("%016llx", static_cast<unsigned long long>(info.file_hash));
  context.command = this_command_line();
  const std::vector<BenchRow> rows = rows_of(*evaluation, *reference);
  if (!flags.out.empty()) {
    if (const Status status = write_bench(flags.out, context, rows); !status.ok())
      return fail(status.error());
  }
  std::string out;
  if (flags.json) {
    nlohmann::ordered_json json = {
        {"model", info.path},     {"model_hash", context.model_hash},  {"text", flags.file},
        {"window", flags.window}, {"positions", metrics->positions()}, {"perplexity", metrics->perplexity()}};
    if (!reference->name.empty()) {
      json["reference"] = {{"name", reference->name},
                           {"perplexity", metrics->reference_perplexity()},
                           {"kl_mean", metrics->mean_kl()},
                           {"kl_p99", metrics->kl_percentile(0.99)},
                           {"kl_max", metrics->max_kl()},
                           {"top1_agreement", metrics->top1_agreement()},
                           {"disagreements", metrics->disagreements()},
                           {"worst_disagreement_margin", metrics->worst_disagreement_margin()}};
    }
    if (reference->control.there()) {
      json["control"] = {{"name", "llama.cpp with its defaults, against the same reference"},
                         {"kl_mean", evaluation->control.mean_kl()},
                         {"kl_p99", evaluation->control.kl_percentile(0.99)},
                         {"top1_agreement", evaluation->control.top1_agreement()}};
    }
    out = json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  } else {
    out = strf("%zu positions of %s in windows of %d\nperplexity        %.4f\n", metrics->positions(),
               flags.file.c_str(), flags.window, metrics->perplexity());
    if (!reference->name.empty()) {
      out += strf(
          "reference         %s\n  perplexity      %.4f\n  KL mean         %.3g nats\n  KL 99 %%         "
          "%.3g nats\n"
          "  KL largest      %.3g nats\n  same top-1      %.2f %% (%zu differ; the reference's lead there: "
          "at most %.3g nats)\n",
          reference->name.c_str(), metrics->reference_perplexity(), metrics->mean_kl(),
          metrics->kl_percentile(0.99), metrics->max_kl(), 100 * metrics->top1_agreement(),
          metrics->disagreements(), metrics->worst_disagreement_margin());
    }
    if (reference->control.there()) {
      out += strf(
          "control           llama.cpp with its defaults, against the same reference\n  KL mean         %.3g "
          "nats\n"
          "  KL 99 %%         %.3g nats\n  same top-1      %.2f %%\n",
          evaluation->control.mean_kl(), evaluation->control.kl_percentile(0.99),
          100 * evaluation->control.top1_agreement());
    }
  }
  return print(out) ? kExitOk : fail({ErrorCode::kIo, "the result could not be written to stdout"});
}

}  // namespace

Action add_eval_ppl(CLI::App& app) {
  auto flags = std::make_shared<EvalFlags>();
  app.add_option("-f,--file", flags->file, "the text")->type_name("FILE");
  app.add_option("--weights", flags->weights,
                 "evaluate a version of the model in this weight type (q4_1, q4_0, q4_k, q8_0, f16), made by "
                 "llama.cpp's quantiser and kept beside the installed models")
      ->type_name("TYPE");
  app.add_option(
         "--reference", flags->reference,
         "compare with llama.cpp, run in this process on the same tokens; or with exact arithmetic: frugal "
         "with the same weights as 32-bit floats, which rounds no activation")
      ->type_name("llama.cpp|exact");
  app.add_option("--against", flags->against, "compare with a run saved by --save-logits")->type_name("FILE");
  app.add_option("--save-logits", flags->save_logits,
                 "save this run's log-probabilities (2 bytes a token of the vocabulary and position)")
      ->type_name("FILE");
  app.add_option("--positions", flags->positions, "tokens to predict and score, at most")
      ->capture_default_str();
  app.add_option("--window", flags->window, "tokens of a window; its second half is scored")
      ->capture_default_str();
  app.add_option("--out", flags->out, "also write rows as the benches do, for docs/benchmarks.md")
      ->type_name("FILE");
  add_model_options(app, flags->model);
  add_engine_options(app, flags->engine);
  app.add_flag("--json", flags->json, "one JSON object");
  return [flags] { return run(*flags); };
}

}  // namespace frugal::cli
