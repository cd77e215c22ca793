// frugal kv eval: how far a model with a coded cache is from the same model with f32 keys and values, for csr
// caches and for the codecs that a user could choose instead.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"
#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/kv_books.h"
#include "cli/kv_dictionary.h"
#include "cli/kv_rivals.h"
#include "cli/logit_metrics.h"
#include "llm/kv/kv_cache.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::cli {
namespace {

constexpr int kRowsAtOnce = 64;
constexpr int kReportedContext = 8192;  // at which all bytes are counted

struct EvalFlags {
  ModelFlags model;
  std::vector<std::string> texts, codecs;
  std::string dictionary, out, svg;
  int window = 2048, positions = 512, threads = 0;
  bool rounded = false, json = false;
};

struct Codec {
  std::string name;
  double bits = 0;          // a channel: codes and scales
  double bits_all = 0;      // with the whole tokens, at kReportedContext
  uint64_t bytes = 0;       // of a context of kReportedContext
  uint64_t book_bytes = 0;  // of the dictionary or books, shared by all sequences
  std::shared_ptr<const llm::KvSource> source;
  LogitMetrics metrics;
};

llm::KvShape shape_of(const llm::ModelInfo& info) {
  return {info.n_layers, info.n_kv_heads, info.head_dim, kReportedContext};
}

// Rows of a window that are compared: the last; the token before them is the first that is not prompt.
int scored_tokens(const EvalFlags& flags) { return std::min(flags.positions, flags.window / 2); }
int prompt_tokens(const EvalFlags& flags) { return flags.window - scored_tokens(flags) - 1; }

// The codecs asked for, with the bytes they take.
Result<std::vector<Codec>> codecs_of(const EvalFlags& flags, std::shared_ptr<const llm::Model> model,
                                     int threads, uint64_t* dictionary_bytes) {
  const llm::ModelInfo& info = model->info();
  const double channels = 2.0 * info.n_layers * info.n_kv_heads * info.head_dim;
  std::vector<KvRival> rivals = kv_rivals(info.head_dim);
  std::shared_ptr<const llm::Dictionary> dictionary;
  std::vector<Codec> codecs;
  std::vector<std::string> names = flags.codecs;
  if (names.empty()) {
    names = {"csr:1", "csr:1.5", "csr:2", "csr:2.6", "csr:3.5"};
    for (const KvRival& rival : rivals) names.push_back(rival.name);
    for (const std::string& name : book_rival_names()) names.push_back(name);
  }
  if (std::any_of(names.begin(), names.end(), is_book_rival)) {
    FRUGAL_TRY(dictionary, open_dictionary(model, flags.dictionary, threads, !flags.json));
    DictionaryTraining training;
    training.texts = default_training_texts();
    FRUGAL_TRY(const auto windows, training_windows(*model, training));
    FRUGAL_TRY(const auto trainer, tapped_windows(model, windows, threads, !flags.json));
    ProgressBar bar("training books of rivals", "%", !flags.json);
    FRUGAL_TRY(auto books,
               book_rivals(dictionary, *trainer, threads, names, prompt_tokens(flags), [&](double share) {
                 bar.update(100 * share, 100);
                 return !interrupted();
               }));
    for (KvRival& rival : books) rivals.push_back(std::move(rival));
  }
  for (const std::string& name : names) {
    Codec codec;
    codec.name = name;
    if (is_coded_cache(name) && name != "auto") {
      if (dictionary == nullptr) {
        FRUGAL_TRY(dictionary, open_dictionary(model, flags.dictionary, threads, !flags.json));
      }
      codec.book_bytes = *dictionary_bytes = dictionary->bytes();
      FRUGAL_TRY(codec.bits, parse_csr_bits(name));
      FRUGAL_TRY(codec.source, llm::make_csr_source(dictionary, codec.bits));
      FRUGAL_TRY(const auto cache, codec.source->make(shape_of(info)));
      codec.bytes = cache->bytes_used(kReportedContext);
      codec.bits_all = 8.0 * static_cast<double>(codec.bytes) / (channels * kReportedContext);
    } else {
      const auto rival =
          std::find_if(rivals.begin(), rivals.end(), [&](const KvRival& r) { return r.name == name; });
      if (rival == rivals.end()) {
        std::string known = "csr:BITS";
        for (const KvRival& r : rivals) known += ", " + r.name;
        for (const std::string& r : book_rival_names()) known += ", " + r;
        return Error{ErrorCode::kInvalidArgument, "there is no codec '" + name + "'; there are " + known};
      }
      codec.bits = rival->bits;
      codec.book_bytes = rival->book_bytes;
      codec.source = rival->source;
      // Charged with the same whole tokens: 192 of the ring and 4 sinks, at q8_0's 8.5 bits.
      codec.bits_all = codec.bits + 8.5 * 196 / kReportedContext +
                       8.0 * static_cast<double>(rival->sequence_bytes) / (channels * kReportedContext);
      codec.bytes = static_cast<uint64_t>(codec.bits_all * channels * kReportedContext / 8);
    }
    codecs.push_back(std::move(codec));
  }
  return codecs;
}

Result<std::vector<std::vector<llm::Token>>> windows_of(const EvalFlags& flags, const llm::Model& model) {
  std::vector<std::vector<llm::Token>> windows;
  for (const std::string& path : flags.texts) {
    FRUGAL_TRY(std::string text, read_file(path, size_t{1} << 28));
    if (!utf8_valid(text)) return Error{ErrorCode::kCorrupt, "'" + path + "' is not UTF-8 text"};
    FRUGAL_TRY(auto tokens, model.tokenizer().encode(text, true, false));
    if (tokens.size() < static_cast<size_t>(flags.window)) {
      return Error{
          ErrorCode::kInvalidArgument,
          strf("'%s' has %zu tokens, less than one window of %d; give a longer text or a smaller --window",
               path.c_str(), tokens.size(), flags.window)};
    }
    tokens.resize(static_cast<size_t>(flags.window));
    windows.push_back(std::move(tokens));
  }
  return windows;
}

// Runs one window through the reference and every codec, and compares its last `positions` rows.
Status evaluate(const EvalFlags& flags, const std::vector<llm::Token>& window, llm::Engine& reference,
                std::vector<std::unique_ptr<llm::Engine>>& engines, std::vector<Codec>& codecs,
                const std::function<void(size_t)>& advance) {
  const auto n_vocab = static_cast<size_t>(reference.model().info().n_vocab);
  const auto n_prompt = static_cast<size_t>(prompt_tokens(flags));
  const std::span<const llm::Token> tokens(window);
  std::vector<llm::Engine*> all = {&reference};
  for (auto& engine : engines) all.push_back(engine.get());
  std::vector<llm::SequenceId> sequences;
  for (llm::Engine* engine : all) {
    FRUGAL_TRY(const llm::SequenceId sequence, engine->open_sequence());
    sequences.push_back(sequence);
    FRUGAL_TRY_STATUS(
        engine->prefill(sequence, tokens.first(n_prompt), [](int, int) { return !interrupted(); }));
    advance(n_prompt);
  }
  std::vector<std::vector<double>> expected(kRowsAtOnce, std::vector<double>(n_vocab));
  std::vector<double> log_p(n_vocab);
  for (size_t begin = n_prompt; begin + 1 < window.size(); begin += kRowsAtOnce) {
    const size_t n = std::min<size_t>(kRowsAtOnce, window.size() - 1 - begin);
    for (size_t e = 0; e < all.size(); ++e) {
      if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
      const llm::BatchItem item{sequences[e], tokens.subspan(begin, n), llm::LogitRows::kAll};
      FRUGAL_TRY_STATUS(all[e]->forward({&item, 1}));
      for (size_t i = 0; i < n; ++i) {
        log_softmax(all[e]->logits(static_cast<int>(i)), e == 0 ? expected[i] : log_p);
        if (e > 0)
          codecs[e - 1].metrics.add_compared(log_p, expected[i], static_cast<size_t>(window[begin + i + 1]));
      }
      advance(n);
    }
  }
  for (size_t e = 0; e < all.size(); ++e) all[e]->close_sequence(sequences[e]);
  return {};
}

// Bits against KL, both logarithmic, a point and a label a codec.
std::string plot(const std::vector<Codec>& codecs) {
  constexpr double kWidth = 760, kHeight = 480, kLeft = 70, kRight = 150, kTop = 30, kBottom = 50;
  double least_kl = 1, largest_kl = 1e-6;
  for (const Codec& c : codecs) {
    least_kl = std::min(least_kl, std::max(1e-6, c.metrics.mean_kl()));
    largest_kl = std::max(largest_kl, c.metrics.mean_kl());
  }
  const double low = std::floor(std::log10(least_kl)), high = std::ceil(std::log10(largest_kl));
  const auto x_of = [&](double bits) {
    return kLeft + (std::log2(bits) + 0.3) / 3.6 * (kWidth - kLeft - kRight);
  };
  const auto y_of = [&](double kl) {
    return kTop +
           (high - std::log10(std::max(kl, 1e-6))) / std::max(1.0, high - low) * (kHeight - kTop - kBottom);
  };
  std::string svg = strf(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %g %g' font-family='sans-serif' font-size='12'>\n"
      "<rect width='100%%' height='100%%' fill='white'/>\n"
      "<text x='%g' y='%g' text-anchor='middle'>bits a channel, whole tokens counted</text>\n"
      "<text x='16' y='%g' transform='rotate(-90 16 %g)' text-anchor='middle'>KL from f32, nats</text>\n",
      kWidth, kHeight, (kLeft + kWidth - kRight) / 2, kHeight - 12, kHeight / 2, kHeight / 2);
  for (const double bits : {1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0}) {
    svg += strf(
        "<line x1='%.1f' y1='%g' x2='%.1f' y2='%g' stroke='#ddd'/><text x='%.1f' y='%g' "
        "text-anchor='middle'>%g</text>\n",
        x_of(bits), kTop, x_of(bits), kHeight - kBottom, x_of(bits), kHeight - kBottom + 18, bits);
  }
  for (double e = low; e <= high; ++e) {
    const double y = y_of(std::pow(10, e));
    svg += strf(
        "<line x1='%g' y1='%.1f' x2='%g' y2='%.1f' stroke='#ddd'/><text x='%g' y='%.1f' "
        "text-anchor='end'>1e%g</text>\n",
        kLeft, y, kWidth - kRight, y, kLeft - 6, y + 4, e);
  }
  for (const Codec& c : codecs) {
    const double x = x_of(c.bits_all), y = y_of(c.metrics.mean_kl());
    const bool ours = is_coded_cache(c.name);
    svg += strf("<circle cx='%.1f' cy='%.1f' r='5' fill='%s'/><text x='%.1f' y='%.1f'>%s</text>\n", x, y,
                ours ? "#06c" : "#c60", x + 8, y + 4, c.name.c_str());
  }
  return svg + "</svg>\n";
}

int run(EvalFlags flags) {
  install_interrupt_handler();
  if (flags.texts.empty()) flags.texts = default_evaluation_texts();
  if (flags.texts.empty())
    return fail({ErrorCode::kInvalidArgument, "there is no text to evaluate: give one or more with -f FILE"});
  if (flags.window < 512 || flags.positions < 1)
    return fail({ErrorCode::kInvalidArgument, "--window must be 512 or more, --positions 1 or more"});
  EngineFlags engine_flags;
  engine_flags.threads = flags.threads;
  engine_flags.ctx = flags.window;
  auto options = engine_options(engine_flags);
  if (!options.ok()) return fail(options.error());
  auto model = load_model(flags.model, options->n_threads, !flags.json);
  if (!model.ok()) return fail(model.error());
  if (!flags.rounded) {
    auto exact = llm::Model::load((*model)->info().path,
                                  {.n_threads = options->n_threads, .progress = {}, .widen = true});
    if (!exact.ok()) return fail(exact.error());
    model = std::move(exact).value();
  }
  uint64_t dictionary_bytes = 0;
  auto codecs = codecs_of(flags, *model, options->n_threads, &dictionary_bytes);
  if (!codecs.ok()) return fail(codecs.error());
  const auto windows = windows_of(flags, **model);
  if (!windows.ok()) return fail(windows.error());

  options->kv = llm::KvFormat::kF32;
  auto reference = llm::Engine::create(*model, *options);
  if (!reference.ok()) return fail(reference.error());
  std::vector<std::unique_ptr<llm::Engine>> engines;
  for (const Codec& codec : *codecs) {
    options->kv_source = codec.source;
    auto engine = llm::Engine::create(*model, *options);
    if (!engine.ok()) return fail(engine.error());
    engines.push_back(std::move(engine).value());
  }
  {
    ProgressBar bar("evaluating", "tokens", !flags.json);
    double done = 0;
    const double total = static_cast<double>(windows->size() * (engines.size() + 1)) * (flags.window - 1);
    for (const auto& window : *windows) {
      const Status status = evaluate(flags, window, **reference, engines, *codecs, [&](size_t n) {
        done += static_cast<double>(n);
        bar.update(done, total);
      });
      if (!status.ok()) return fail(status.error());
    }
  }

  const llm::ModelInfo& info = (*model)->info();
  BenchContext context;
  context.bench = "kv";
  context.threads = (*reference)->options().n_threads;
  context.model = std::filesystem::path(info.path).filename().string();
  context.model_hash = strf("%016llx", static_cast<unsigned long long>(info.file_hash));
  context.command = this_command_line();
  context.note = std::string(
                     "KL from f32 keys and values; the newest 65 to 128 tokens and the first 4 whole "
                     "in every row; activations ") +
                 (flags.rounded ? "rounded as in a run" : "not rounded");
  const double channels = 2.0 * info.n_layers * info.n_kv_heads * info.head_dim * kReportedContext;
  std::vector<BenchRow> rows;
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  std::string table = strf("%-18s %6s %8s %9s %9s %9s %8s %8s\n", "codec", "bits", "all-in", "MiB at 8k",
                           "KL", "KL 99 %", "ppl x", "top-1 %");
  for (const Codec& c : *codecs) {
    const LogitMetrics& m = c.metrics;
    const double ratio = m.perplexity() / m.reference_perplexity();
    BenchRow row;
    row.name = "kl_" + c.name;
    row.unit = "nats";
    row.ours = m.mean_kl();
    row.n = static_cast<int>(m.positions());
    row.more = {{"bits", c.bits},
                {"bits_all_in_8k", c.bits_all},
                {"bytes_8k", static_cast<double>(c.bytes)},
                {"dictionary_bytes", static_cast<double>(c.book_bytes)},
                {"bits_with_dictionary_8k", c.bits_all + 8.0 * static_cast<double>(c.book_bytes) / channels},
                {"kl_p99", m.kl_percentile(0.99)},
                {"perplexity_ratio", ratio},
                {"same_top1_percent", 100 * m.top1_agreement()}};
    nlohmann::ordered_json object = {{"name", row.name}, {"kl", row.ours}, {"positions", row.n}};
    for (const auto& [key, value] : row.more) object[key] = value;
    json.push_back(object);
    table += strf("%-18s %6.2f %8.2f %9.1f %9.5f %9.4f %8.4f %8.2f\n", c.name.c_str(), c.bits, c.bits_all,
                  static_cast<double>(c.bytes) / (1 << 20), row.ours, m.kl_percentile(0.99), ratio,
                  100 * m.top1_agreement());
    rows.push_back(std::move(row));
  }
  if (dictionary_bytes > 0)
    table += strf("dictionary of csr: %.1f MiB in memory, shared by all sequences\n",
                  static_cast<double>(dictionary_bytes) / (1 << 20));
  if (!flags.out.empty()) {
    if (const Status status = write_bench(flags.out, context, rows); !status.ok())
      return fail(status.error());
  }
  if (!flags.svg.empty()) {
    if (const Status status = write_file_atomically(flags.svg, plot(*codecs)); !status.ok())
      return fail(status.error());
  }
  const std::string out =
      flags.json ? json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n" : table;
  return print(out) ? kExitOk : fail({ErrorCode::kIo, "the result could not be written to stdout"});
}

}  // namespace

Action add_kv_eval(CLI::App& app) {
  auto flags = std::make_shared<EvalFlags>();
  add_model_options(app, flags->model);
  app.add_option(
         "-f,--file", flags->texts,
         "texts, best of kinds that the dictionary was not trained on (default: what this machine has)")
      ->type_name("FILE");
  app.add_option("--codec", flags->codecs, "csr:BITS or the name of a rival; more than once (default: all)")
      ->allow_extra_args(false)
      ->type_name("NAME");
  app.add_option("--window", flags->window, "tokens taken of each text")->capture_default_str();
  app.add_option("--positions", flags->positions, "the last tokens of a window, compared; at most half of it")
      ->capture_default_str();
  app.add_option("--kv-dict", flags->dictionary, "dictionary of the csr caches (default: the model's own)")
      ->type_name("FILE");
  app.add_option("-t,--threads", flags->threads, "threads; 0 = one for each usable processor")
      ->capture_default_str();
  app.add_option("--out", flags->out, "also write rows as the benches do, for docs/benchmarks.md")
      ->type_name("FILE");
  app.add_option("--svg", flags->svg, "also draw bits against KL")->type_name("FILE");
  app.add_flag("--rounded", flags->rounded,
               "round activations as runs do: alone worth a KL of about 0.004, so small losses do not show");
  app.add_flag("--json", flags->json, "one JSON array");
  return [flags] { return run(*flags); };
}

}  // namespace frugal::cli
