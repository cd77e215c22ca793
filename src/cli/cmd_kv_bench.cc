// frugal kv bench: how fast a long sequence decodes with each cache, beside llama.cpp, in turn in one run, at
// one depth or several; how much of the time goes into coding tokens; and from which depth on a coded cache
// is faster than the first one.
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/bench_report.h"
#include "cli/bench_tools.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/kv_dictionary.h"
#include "llm/kernel/kernel.h"
#include "llm/kv/pass_cache.h"
#include "llm/peer/peer.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::cli {
namespace {

struct BenchFlags {
  ModelFlags model;
  std::string text, out, dictionary;
  std::vector<std::string> caches;
  std::vector<int> depths;
  int tokens = 16, repetitions = 5, threads = 0;
  std::vector<std::string> peers;
  std::string hold, fills;
  bool json = false;
};

// Caches of llama.cpp.
struct PeerSetting {
  const char* name;
  llm::peer::FlashAttention attention;
  bool q4_0;
};
constexpr PeerSetting kPeers[] = {{"f16", llm::peer::FlashAttention::kOff, false},
                                  {"f16-flash", llm::peer::FlashAttention::kOn, false},
                                  {"q4_0", llm::peer::FlashAttention::kOn, true}};

// Keeps the time of a coded cache's stores, summed over the threads.
class TimedCache final : public llm::PassCache {
 public:
  TimedCache(const llm::KvShape& shape, std::unique_ptr<KvCache> inner, std::atomic<double>* seconds)
      : PassCache(shape, std::move(inner)), seconds_(seconds) {}
  void store(int layer, int position, const float* k, const float* v) override {
    const double begin = wall_seconds();
    PassCache::store(layer, position, k, v);
    seconds_->fetch_add(wall_seconds() - begin, std::memory_order_relaxed);
  }
  bool stores_parts() const override { return inner().stores_parts(); }
  void store_part(int layer, int head, int position, const float* k, const float* v) override {
    const double begin = wall_seconds();
    inner().store_part(layer, head, position, k, v);
    seconds_->fetch_add(wall_seconds() - begin, std::memory_order_relaxed);
  }
  void settle(int layer, int part, int first, int last) override {
    const double begin = wall_seconds();
    inner().settle(layer, part, first, last);
    seconds_->fetch_add(wall_seconds() - begin, std::memory_order_relaxed);
  }

 private:
  std::atomic<double>* seconds_;
};

class TimedSource final : public llm::KvSource {
 public:
  TimedSource(std::shared_ptr<const llm::KvSource> inner, std::atomic<double>* seconds)
      : inner_(std::move(inner)), seconds_(seconds) {}
  std::string name() const override { return inner_->name(); }
  uint64_t content_hash() const override { return inner_->content_hash(); }
  Result<std::unique_ptr<llm::KvCache>> make(const llm::KvShape& shape) const override {
    FRUGAL_TRY(auto inner, inner_->make(shape));
    return std::unique_ptr<llm::KvCache>(std::make_unique<TimedCache>(shape, std::move(inner), seconds_));
  }

 private:
  std::shared_ptr<const llm::KvSource> inner_;
  std::atomic<double>* seconds_;
};

struct Contender {
  std::string name;
  std::unique_ptr<llm::Engine> engine;
  llm::SequenceId sequence = 0;
  std::unique_ptr<llm::peer::Peer> peer;
  bool filled = false;
  double prefill_s = 0;  // 0: taken from a file
  std::vector<double> per_second;
  // Of coded caches: seconds of coding, and its share of the threads' time in percent.
  std::unique_ptr<std::atomic<double>> coding_s;
  double coding_of_prefill = 0, coding_of_decode = 0;
  std::vector<std::pair<int, double>> token_s;  // (depth, seconds of a token)
};

// Share of the threads' time since `begin` that went into coding, in percent.
double coding_share(const Contender& c, double begin) {
  const double all = (wall_seconds() - begin) * c.engine->options().n_threads;
  return c.coding_s ? 100 * c.coding_s->load() / all : 0;
}

// A contender filled earlier, from its file; kInvalidArgument when it was of another text.
Status take_up(Contender& c, const std::string& kept, std::span<const llm::Token> wanted) {
  std::vector<llm::Token> held;
  if (c.engine) {
    if (c.filled) c.engine->close_sequence(c.sequence);
    FRUGAL_TRY(c.sequence, c.engine->load_sequence(kept));
    const auto tokens = c.engine->tokens(c.sequence);
    held.assign(tokens.begin(), tokens.end());
  } else {
    FRUGAL_TRY(held, c.peer->restore(kept));
  }
  c.filled = true;
  if (!std::equal(held.begin(), held.end(), wanted.begin(), wanted.end()))
    return Error{ErrorCode::kInvalidArgument, "'" + kept + "' is of another text: remove it"};
  return {};
}

// Fills a contender that holds `from` of the tokens with all of them. `kept`: a file to take that from, and
// to leave it in; or empty.
Status fill(Contender& c, const std::string& kept, std::span<const llm::Token> tokens, int from,
            const std::function<bool(int, int)>& progress) {
  std::error_code ignored;
  if (!kept.empty() && std::filesystem::exists(kept, ignored)) return take_up(c, kept, tokens);
  const auto part = tokens.subspan(static_cast<size_t>(from));
  const double begin = wall_seconds();
  if (c.coding_s) c.coding_s->store(0);
  if (c.engine) {
    if (!c.filled) {
      FRUGAL_TRY(c.sequence, c.engine->open_sequence());
    }
    FRUGAL_TRY_STATUS(c.engine->prefill(c.sequence, part, progress));
  } else {
    FRUGAL_TRY_STATUS(c.peer->forward(part));
  }
  c.filled = true;
  c.prefill_s += wall_seconds() - begin;
  if (c.coding_s) c.coding_of_prefill = coding_share(c, begin);
  if (kept.empty()) return {};
  return c.engine ? c.engine->save_sequence(c.sequence, kept) : c.peer->save(kept, tokens);
}

// Decodes the tokens one by one from the depth on, and takes them back.
Status decode(Contender& c, std::span<const llm::Token> tokens, int depth) {
  const double begin = wall_seconds();
  if (c.coding_s) c.coding_s->store(0);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
    if (c.engine) {
      const llm::BatchItem item{c.sequence, tokens.subspan(i, 1), llm::LogitRows::kLast};
      FRUGAL_TRY_STATUS(c.engine->forward({&item, 1}));
    } else {
      FRUGAL_TRY_STATUS(c.peer->forward(tokens.subspan(i, 1)));
    }
  }
  c.per_second.push_back(static_cast<double>(tokens.size()) / (wall_seconds() - begin));
  if (c.coding_s) c.coding_of_decode = coding_share(c, begin);
  if (c.engine) return c.engine->truncate(c.sequence, depth);
  c.peer->truncate(depth);
  return {};
}

Result<std::vector<Contender>> contenders_of(const BenchFlags& flags, std::shared_ptr<const llm::Model> model,
                                             const llm::EngineOptions& base) {
  std::vector<Contender> all;
  for (const std::string& name : flags.caches) {
    EngineFlags engine;
    engine.kv = name;
    engine.threads = flags.threads;
    engine.ctx = base.n_ctx;
    engine.kv_dict = flags.dictionary;
    FRUGAL_TRY(llm::EngineOptions options, engine_options(engine));
    FRUGAL_TRY_STATUS(choose_cache(engine, model, options, !flags.json));
    Contender c;
    c.name = name;
    if (options.kv_source) {
      c.coding_s = std::make_unique<std::atomic<double>>(0.0);
      options.kv_source = std::make_shared<TimedSource>(options.kv_source, c.coding_s.get());
    }
    FRUGAL_TRY(c.engine, llm::Engine::create(model, options));
    all.push_back(std::move(c));
  }
  for (const PeerSetting& setting : kPeers) {
    if (std::find(flags.peers.begin(), flags.peers.end(), setting.name) == flags.peers.end()) continue;
    llm::peer::PeerOptions options;
    options.n_threads = base.n_threads > 0 ? base.n_threads : all[0].engine->options().n_threads;
    options.n_ctx = base.n_ctx;
    options.flash_attention = setting.attention;
    options.rope_scale = flags.model.rope_scale;
    if (setting.q4_0) options.cache = "q4_0";
    Contender c;
    c.name = strf("llama.cpp %s", setting.name);
    FRUGAL_TRY(c.peer, llm::peer::Peer::load(model->info().path, options));
    all.push_back(std::move(c));
  }
  return all;
}

uint64_t resident_bytes() {
  const auto statm = read_file("/proc/self/statm", 4096);
  unsigned long long total = 0, resident = 0;
  if (!statm.ok() || std::sscanf(statm->c_str(), "%llu %llu", &total, &resident) != 2) return 0;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

// How many copies of a contender's sequence an engine of its own holds, all of them decoding together, before
// the memory of this process has grown by `limit`.
Result<int> sequences_held(const Contender& c, std::shared_ptr<const llm::Model> model, llm::Token next,
                           uint64_t limit) {
  const auto path =
      std::filesystem::temp_directory_path() / strf("frugal_hold_%d", static_cast<int>(::getpid()));
  FRUGAL_TRY_STATUS(c.engine->save_sequence(c.sequence, path.string()));
  llm::EngineOptions options = c.engine->options();
  options.max_sequences = static_cast<int>(limit / std::max<uint64_t>(1, c.engine->kv_bytes(c.sequence))) + 1;
  options.max_rows = std::max(options.max_rows, options.max_sequences);
  const uint64_t before = resident_bytes();
  auto made = llm::Engine::create(std::move(model), options);
  Status status = made.ok() ? Status() : Status(made.error());
  std::vector<llm::BatchItem> items;
  while (status.ok() && static_cast<int>(items.size()) < options.max_sequences && !interrupted()) {
    const auto loaded = (*made)->load_sequence(path.string());
    if (!loaded.ok()) status = loaded.error();
    if (!loaded.ok()) break;
    items.push_back({*loaded, {&next, 1}, llm::LogitRows::kLast});
    if (resident_bytes() > before + limit) {
      (*made)->close_sequence(*loaded);
      items.pop_back();
      break;
    }
  }
  if (status.ok() && !items.empty()) status = (*made)->forward(items);
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  FRUGAL_TRY_STATUS(std::move(status));
  return static_cast<int>(items.size());
}

// Fills every contender up to `depth` and decodes there, in turn: a row each.
Status measure(const BenchFlags& flags, std::span<const llm::Token> tokens, int from, int depth,
               std::vector<Contender>& contenders, std::vector<BenchRow>& rows) {
  {
    ProgressBar bar("reading", "tokens", !flags.json);
    double done = 0;
    const double total = static_cast<double>(contenders.size()) * (depth - from);
    const uint64_t model = contenders.front().engine->model().info().file_hash;
    for (Contender& c : contenders) {
      std::string kept;
      if (!flags.fills.empty())
        kept = flags.fills +
               strf("/%016llx.%d.%s.kv", static_cast<unsigned long long>(model), depth, c.name.c_str());
      FRUGAL_TRY_STATUS(fill(c, kept, tokens.first(static_cast<size_t>(depth)), from, [&](int part, int) {
        bar.update(done + part, total);
        return !interrupted();
      }));
      done += depth - from;
    }
  }
  ProgressBar bar("decoding", "rounds", !flags.json);
  for (int repetition = 0; repetition <= flags.repetitions; ++repetition) {
    for (Contender& c : contenders) {
      FRUGAL_TRY_STATUS(
          decode(c, tokens.subspan(static_cast<size_t>(depth), static_cast<size_t>(flags.tokens)), depth));
      if (repetition == 0) c.per_second.clear();  // warm-up
    }
    bar.update(repetition + 1, flags.repetitions + 1);
  }
  bar.finish();
  const Contender& first = contenders.front();
  for (Contender& c : contenders) {
    BenchRow row =
        &c == &first ? bench_row("", "tokens/s", Better::kHigher, c.per_second)
                     : bench_row("", "tokens/s", Better::kHigher, c.per_second, first.per_second, first.name);
    row.name = strf("decode at depth %d, %s", depth, c.name.c_str());
    if (c.prefill_s > 0) row.more.push_back({"prefill_tokens_per_s", depth / c.prefill_s});
    if (c.engine) row.more.push_back({"cache_bytes", static_cast<double>(c.engine->kv_bytes(c.sequence))});
    if (c.coding_s) {
      if (c.prefill_s > 0) row.more.push_back({"coding_percent_of_prefill", c.coding_of_prefill});
      row.more.push_back({"coding_percent_of_decode", c.coding_of_decode});
    }
    c.token_s.push_back({depth, 1 / row.ours});
    rows.push_back(std::move(row));
  }
  for (Contender& c : contenders) c.per_second.clear();
  return {};
}

// The depth from which on a token takes less time than with `first`: on the line between the two depths where
// that changes; nothing when it does not change.
std::optional<double> crossover(const Contender& c, const Contender& first) {
  for (size_t i = 1; i < c.token_s.size(); ++i) {
    const double before = c.token_s[i - 1].second - first.token_s[i - 1].second,
                 after = c.token_s[i].second - first.token_s[i].second;
    if (before > 0 && after <= 0) {
      return c.token_s[i - 1].first +
             (c.token_s[i].first - c.token_s[i - 1].first) * before / (before - after);
    }
  }
  return std::nullopt;
}

int run(BenchFlags flags) {
  install_interrupt_handler();
  if (flags.text.empty())
    return fail({ErrorCode::kInvalidArgument, "there is no text: give a long one with -f FILE"});
  if (flags.depths.empty()) flags.depths = {8000};
  std::sort(flags.depths.begin(), flags.depths.end());
  if (flags.depths.front() < 256 || flags.tokens < 1 || flags.tokens > 64 || flags.repetitions < 1)
    return fail({ErrorCode::kInvalidArgument,
                 "--depth must be 256 or more, --tokens 1 to 64, --repetitions 1 or more"});
  if (flags.caches.empty()) flags.caches = {"f16", "csr:2.6", "csr:2"};
  EngineFlags engine_flags;
  engine_flags.threads = flags.threads;
  auto options = engine_options(engine_flags);
  if (!options.ok()) return fail(options.error());
  const auto model = load_model(flags.model, options->n_threads, !flags.json);
  if (!model.ok()) return fail(model.error());
  const int deepest = flags.depths.back();
  options->n_ctx = deepest + flags.tokens;
  const auto text = read_file(flags.text, size_t{1} << 28);
  if (!text.ok()) return fail(text.error());
  auto tokens = (*model)->tokenizer().encode(*text, true, false);
  if (!tokens.ok()) return fail(tokens.error());
  const auto wanted = static_cast<size_t>(deepest + flags.tokens);
  if (tokens->size() < wanted) {
    return fail(
        {ErrorCode::kInvalidArgument, strf("'%s' has %zu tokens, and %zu are wanted; give a longer text",
                                           flags.text.c_str(), tokens->size(), wanted)});
  }
  const std::span<const llm::Token> all(*tokens);
  auto contenders = contenders_of(flags, *model, *options);
  if (!contenders.ok()) return fail(contenders.error());
  std::vector<BenchRow> rows;
  int from = 0;
  for (const int depth : flags.depths) {
    const Status status = measure(flags, all, from, depth, *contenders, rows);
    if (!status.ok()) return fail(status.error());
    from = depth;
  }
  const Contender& first = contenders->front();
  for (const Contender& c : *contenders) {
    const std::optional<double> depth = crossover(c, first);
    if (!c.coding_s || !depth) continue;
    BenchRow row;
    row.name = strf("depth from which %s is faster than %s", c.name.c_str(), first.name.c_str());
    row.unit = "tokens";
    row.ours = std::round(*depth);
    row.n = flags.repetitions;
    rows.push_back(std::move(row));
  }
  for (const Contender& c : *contenders) {
    if (flags.hold.empty() || !c.engine) continue;
    const auto limit = parse_memory_size(flags.hold);
    if (!limit.ok()) return fail(limit.error());
    const auto held = sequences_held(c, *model, all[static_cast<size_t>(deepest)], *limit);
    if (!held.ok()) return fail(held.error());
    BenchRow row;
    row.name = strf("sequences of %d tokens decoding in %s, %s", deepest, flags.hold.c_str(), c.name.c_str());
    row.unit = "sequences";
    row.ours = *held;
    row.n = 1;
    rows.push_back(std::move(row));
  }
  BenchContext context;
  context.bench = "kv_speed";
  context.threads = first.engine->options().n_threads;
  context.isa = llm::kernels().name;
  context.model = std::filesystem::path((*model)->info().path).filename().string();
  context.model_hash = strf("%016llx", static_cast<unsigned long long>((*model)->info().file_hash));
  context.command = this_command_line();
  return report_bench(context, rows, flags.out, flags.json);
}

}  // namespace

Action add_kv_bench(CLI::App& app) {
  auto flags = std::make_shared<BenchFlags>();
  add_model_options(app, flags->model);
  app.add_option("-f,--file", flags->text, "a text longer than the depth")->type_name("FILE");
  app.add_option("--kv", flags->caches,
                 "caches, the first being what the others are compared with (default: f16, csr:2.6, csr:2)")
      ->allow_extra_args(false)
      ->type_name("NAME");
  app.add_option("--peer", flags->peers,
                 "llama.cpp too, with this cache: f16, f16-flash (flash attention) or q4_0; more than once")
      ->allow_extra_args(false)
      ->check(CLI::IsMember({"f16", "f16-flash", "q4_0"}))
      ->type_name("CACHE");
  app.add_option("--hold", flags->hold,
                 "also how many copies of the sequence decode together in this much memory, as 1G")
      ->type_name("SIZE");
  app.add_option(
         "--rope-scale", flags->model.rope_scale,
         "stretch the context by this factor (linear RoPE scaling), for depths beyond the model's own")
      ->capture_default_str()
      ->type_name("FACTOR");
  app.add_option("--fills", flags->fills,
                 "keep filled caches in this folder, and take those of the same text and depth from there")
      ->type_name("FOLDER");
  app.add_option("--depth", flags->depths, "tokens in the cache; more than once (default: 8000)")
      ->allow_extra_args(false);
  app.add_option("--tokens", flags->tokens, "tokens decoded in a round")->capture_default_str();
  app.add_option("--repetitions", flags->repetitions, "rounds")->capture_default_str();
  app.add_option("-t,--threads", flags->threads, "threads; 0 = one for each usable processor")
      ->capture_default_str();
  app.add_option("--kv-dict", flags->dictionary, "dictionary of the csr caches (default: the model's own)")
      ->type_name("FILE");
  app.add_option("--out", flags->out, "also write rows as the benches do, for docs/benchmarks.md")
      ->type_name("FILE");
  app.add_flag("--json", flags->json, "rows as JSON");
  return [flags] { return run(*flags); };
}

}  // namespace frugal::cli
