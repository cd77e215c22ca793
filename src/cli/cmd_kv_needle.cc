// frugal kv needle: whether a model with a coded cache still finds a sentence that stands far back in a long
// text, over lengths and depths.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>

#include "base/file.h"
#include "base/text.h"
#include "cli/bench_report.h"
#include "cli/bench_tools.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/kv_dictionary.h"
#include "cli/logit_metrics.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::cli {
namespace {

constexpr int kAnswerTokens = 12;

struct NeedleFlags {
  ModelFlags model;
  std::vector<std::string> texts, caches;
  std::vector<int> lengths;
  std::string dictionary, out;
  int depths = 5, threads = 0;
  bool json = false;
};

struct Needle {
  std::string sentence, question, answer;
};

// Numbers that no text has by chance, another for each place.
Needle needle_of(int idx) {
  constexpr const char* kCities[] = {"Lisbon", "Oslo", "Quito", "Nairobi", "Kyoto", "Perth", "Riga"};
  const std::string city = kCities[idx % 7], number = strf("%d", 10000 + (idx * 7919 + 4211) % 90000);
  return {strf("\n\nThe secret number of %s is %s.\n\n", city.c_str(), number.c_str()),
          strf("\n\nAs was said above, the secret number of %s is", city.c_str()), number};
}

struct Subject {
  std::string name;
  std::unique_ptr<llm::Engine> engine;
  int found = 0;
};

// Whether the greedy continuation of `prompt` has the answer.
Result<bool> finds(llm::Engine& engine, const std::vector<llm::Token>& prompt, const std::string& answer) {
  FRUGAL_TRY(const llm::SequenceId sequence, engine.open_sequence());
  FRUGAL_TRY_STATUS(engine.prefill(sequence, prompt, [](int, int) { return !interrupted(); }));
  std::vector<llm::Token> said;
  for (int i = 0; i < kAnswerTokens; ++i) {
    const std::span<const float> logits = engine.logits(0);
    const auto next =
        static_cast<llm::Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    said.push_back(next);
    const llm::BatchItem item{sequence, {&said.back(), 1}, llm::LogitRows::kLast};
    FRUGAL_TRY_STATUS(engine.forward({&item, 1}));
  }
  engine.close_sequence(sequence);
  FRUGAL_TRY(const std::string text, engine.model().tokenizer().decode(said));
  return text.find(answer) != std::string::npos;
}

Status ask(const NeedleFlags& flags, const llm::Model& model, const std::vector<std::vector<llm::Token>>& hay,
           std::vector<Subject>& subjects, int* asked, const std::function<void(double)>& advance) {
  const double total = static_cast<double>(hay.size() * flags.lengths.size()) * flags.depths;
  for (const std::vector<llm::Token>& text : hay) {
    for (const int length : flags.lengths) {
      for (int depth = 0; depth < flags.depths; ++depth, ++*asked) {
        const Needle needle = needle_of(*asked);
        FRUGAL_TRY(const auto sentence, model.tokenizer().encode(needle.sentence, false, false));
        FRUGAL_TRY(const auto question, model.tokenizer().encode(needle.question, false, false));
        const size_t n = static_cast<size_t>(length) - sentence.size() - question.size();
        const size_t at = n * static_cast<size_t>(2 * depth + 1) / static_cast<size_t>(2 * flags.depths);
        std::vector<llm::Token> prompt(text.begin(), text.begin() + static_cast<ptrdiff_t>(at));
        prompt.insert(prompt.end(), sentence.begin(), sentence.end());
        prompt.insert(prompt.end(), text.begin() + static_cast<ptrdiff_t>(at),
                      text.begin() + static_cast<ptrdiff_t>(n));
        prompt.insert(prompt.end(), question.begin(), question.end());
        for (Subject& subject : subjects) {
          FRUGAL_TRY(const bool found, finds(*subject.engine, prompt, needle.answer));
          subject.found += found ? 1 : 0;
        }
        advance((*asked + 1) / total);
      }
    }
  }
  return {};
}

int run(NeedleFlags flags) {
  install_interrupt_handler();
  if (flags.texts.empty()) flags.texts = default_evaluation_texts();
  if (flags.caches.empty()) flags.caches = {"f16", "csr:2"};
  if (flags.lengths.empty()) flags.lengths = {1024, 2048, 4096};
  for (const int length : flags.lengths) {
    if (length < 256) return fail({ErrorCode::kInvalidArgument, "--length must be 256 or more"});
  }
  if (flags.depths < 1) return fail({ErrorCode::kInvalidArgument, "--depths must be 1 or more"});
  const int longest = *std::max_element(flags.lengths.begin(), flags.lengths.end());
  EngineFlags engine;
  engine.threads = flags.threads;
  engine.ctx = longest + kAnswerTokens;
  engine.kv_dict = flags.dictionary;
  auto options = engine_options(engine);
  if (!options.ok()) return fail(options.error());
  const auto model = load_model(flags.model, options->n_threads, !flags.json);
  if (!model.ok()) return fail(model.error());
  std::vector<std::vector<llm::Token>> hay;
  for (const std::string& path : flags.texts) {
    const auto text = read_file(path, size_t{1} << 28);
    if (!text.ok()) return fail(text.error());
    auto tokens = (*model)->tokenizer().encode(utf8_sanitized(*text), true, false);
    if (!tokens.ok()) return fail(tokens.error());
    if (tokens->size() >= static_cast<size_t>(longest)) hay.push_back(std::move(tokens).value());
  }
  if (hay.empty())
    return fail(
        {ErrorCode::kInvalidArgument,
         strf("no text has %d tokens: give a longer one with -f FILE, or a smaller --length", longest)});
  std::vector<Subject> subjects;
  for (const std::string& name : flags.caches) {
    engine.kv = name;
    auto own = engine_options(engine);
    if (!own.ok()) return fail(own.error());
    if (const Status status = choose_cache(engine, *model, *own, !flags.json); !status.ok())
      return fail(status.error());
    auto made = llm::Engine::create(*model, *own);
    if (!made.ok()) return fail(made.error());
    subjects.push_back({name, std::move(made).value()});
  }
  int asked = 0;
  {
    ProgressBar bar("asking", "%", !flags.json);
    const Status status =
        ask(flags, **model, hay, subjects, &asked, [&](double share) { bar.update(100 * share, 100); });
    if (!status.ok()) return fail(status.error());
  }
  std::vector<BenchRow> rows;
  for (const Subject& subject : subjects) {
    BenchRow row;
    row.name = strf("needles found, %s", subject.name.c_str());
    row.unit = "%";
    row.ours = 100.0 * subject.found / asked;
    row.n = asked;
    rows.push_back(std::move(row));
  }
  BenchContext context;
  context.bench = "kv_needle";
  context.threads = subjects.front().engine->options().n_threads;
  context.model = std::filesystem::path((*model)->info().path).filename().string();
  context.model_hash = strf("%016llx", static_cast<unsigned long long>((*model)->info().file_hash));
  context.command = this_command_line();
  return report_bench(context, rows, flags.out, flags.json);
}

}  // namespace

Action add_kv_needle(CLI::App& app) {
  auto flags = std::make_shared<NeedleFlags>();
  add_model_options(app, flags->model);
  app.add_option("-f,--file", flags->texts, "texts to hide a sentence in (default: what this machine has)")
      ->type_name("FILE");
  app.add_option("--kv", flags->caches, "caches (default: f16, csr:2)")
      ->allow_extra_args(false)
      ->type_name("NAME");
  app.add_option("--length", flags->lengths, "tokens of a prompt (default: 1024, 2048, 4096)")
      ->allow_extra_args(false);
  app.add_option("--depths", flags->depths, "places of the sentence, evenly over the prompt")
      ->capture_default_str();
  app.add_option("--kv-dict", flags->dictionary, "dictionary of the csr caches (default: the model's own)")
      ->type_name("FILE");
  app.add_option("-t,--threads", flags->threads, "threads; 0 = one for each usable processor")
      ->capture_default_str();
  app.add_option("--out", flags->out, "also write rows as the benches do, for docs/benchmarks.md")
      ->type_name("FILE");
  app.add_flag("--json", flags->json, "rows as JSON");
  return [flags] { return run(*flags); };
}

}  // namespace frugal::cli
