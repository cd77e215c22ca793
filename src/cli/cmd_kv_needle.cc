// frugal kv needle: whether a model with a coded cache still finds a sentence that stands far back in a long
// text, over lengths and depths; caches are compared on the same needles.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

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
constexpr std::array kCities = {"Lisbon", "Oslo",   "Quito",  "Nairobi", "Kyoto",  "Perth",
                                "Riga",   "Lima",   "Cairo",  "Dublin",  "Hanoi",  "Havana",
                                "Turin",  "Bergen", "Dakar",  "Delhi",   "Geneva", "Malmo",
                                "Naples", "Ottawa", "Prague", "Seoul",   "Tunis",  "Vienna"};

struct NeedleFlags {
  ModelFlags model;
  std::vector<std::string> texts, caches;
  std::vector<int> lengths;
  std::string dictionary, records, out;
  int depths = 5, prompts = 1, threads = 0;
  bool at_once = false, json = false;
};

struct Needle {
  std::string sentence, question, answer;
};

// Numbers that no text has by chance, another for each place.
Needle needle_of(int idx) {
  const std::string city = kCities[static_cast<size_t>(idx) % kCities.size()],
                    number = strf("%d", 10000 + (idx * 7919 + 4211) % 90000);
  return {strf("\n\nThe secret number of %s is %s.\n\n", city.c_str(), number.c_str()),
          strf("\n\nAs was said above, the secret number of %s is", city.c_str()), number};
}

// A text with needles in it, and what is asked after it.
struct Prompt {
  std::vector<llm::Token> text;
  std::vector<std::vector<llm::Token>> questions;
  std::vector<std::string> answers;
};

struct Subject {
  std::string name;
  std::unique_ptr<llm::Engine> engine;
  std::vector<int> found;  // 0 or 1 for each needle
};

// Needles [first, first + n), at the depths from `depth` on, in `length` tokens from `begin` of the hay.
Result<Prompt> prompt_of(const NeedleFlags& flags, const llm::Tokenizer& tokenizer,
                         std::span<const llm::Token> hay, int length, int first, int depth, int n) {
  Prompt prompt;
  std::vector<std::vector<llm::Token>> sentences;
  size_t question = 0, all = 0;
  for (int i = first; i < first + n; ++i) {
    const Needle needle = needle_of(i);
    FRUGAL_TRY(auto sentence, tokenizer.encode(needle.sentence, false, false));
    FRUGAL_TRY(auto asked, tokenizer.encode(needle.question, false, false));
    all += sentence.size();
    question = std::max(question, asked.size());
    sentences.push_back(std::move(sentence));
    prompt.questions.push_back(std::move(asked));
    prompt.answers.push_back(needle.answer);
  }
  if (static_cast<size_t>(length) < 2 * (all + question))
    return Error{ErrorCode::kInvalidArgument, strf("%d tokens are too few for %d needles", length, n)};
  if (tokenizer.adds_bos()) prompt.text.push_back(tokenizer.bos());
  const size_t n_hay = static_cast<size_t>(length) - all - question - prompt.text.size();
  size_t from = 0;
  for (int i = 0; i < n; ++i) {
    const size_t at =
        n_hay * static_cast<size_t>(2 * (depth + i) + 1) / static_cast<size_t>(2 * flags.depths);
    prompt.text.insert(prompt.text.end(), hay.begin() + static_cast<ptrdiff_t>(from),
                       hay.begin() + static_cast<ptrdiff_t>(at));
    const auto& sentence = sentences[static_cast<size_t>(i)];
    prompt.text.insert(prompt.text.end(), sentence.begin(), sentence.end());
    from = at;
  }
  prompt.text.insert(prompt.text.end(), hay.begin() + static_cast<ptrdiff_t>(from),
                     hay.begin() + static_cast<ptrdiff_t>(n_hay));
  return prompt;
}

// For each question, whether the greedy continuation has its answer. The text is read once.
Result<std::vector<int>> finds(llm::Engine& engine, const Prompt& prompt) {
  std::vector<int> found;
  FRUGAL_TRY(const llm::SequenceId sequence, engine.open_sequence());
  FRUGAL_TRY_STATUS(engine.prefill(sequence, prompt.text, [](int, int) { return !interrupted(); }));
  for (size_t i = 0; i < prompt.questions.size(); ++i) {
    FRUGAL_TRY_STATUS(engine.truncate(sequence, static_cast<int>(prompt.text.size())));
    FRUGAL_TRY_STATUS(engine.prefill(sequence, prompt.questions[i]));
    std::vector<llm::Token> said;
    for (int step = 0; step < kAnswerTokens; ++step) {
      if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
      const std::span<const float> logits = engine.logits(0);
      said.push_back(
          static_cast<llm::Token>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
      const llm::BatchItem item{sequence, {&said.back(), 1}, llm::LogitRows::kLast};
      FRUGAL_TRY_STATUS(engine.forward({&item, 1}));
    }
    FRUGAL_TRY(const std::string text, engine.model().tokenizer().decode(said));
    found.push_back(text.find(prompt.answers[i]) != std::string::npos ? 1 : 0);
  }
  engine.close_sequence(sequence);
  return found;
}

// What was found so far, a line of JSON a prompt: for each cache a list of 0 and 1. The first line says of
// what.
Result<std::vector<nlohmann::json>> read_records(const std::string& path, const nlohmann::json& head) {
  std::vector<nlohmann::json> records;
  std::error_code ignored;
  if (path.empty() || !std::filesystem::exists(path, ignored)) return records;
  FRUGAL_TRY(const std::string text, read_file(path, size_t{1} << 26));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    nlohmann::json record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (record.is_discarded())
      return Error{ErrorCode::kCorrupt, "'" + path + "' has a line that is not JSON: remove it"};
    records.push_back(std::move(record));
  }
  if (records.empty() || records.front() != head) {
    return Error{
        ErrorCode::kInvalidArgument,
        "'" + path + "' was made with another model or other options; choose another --records file"};
  }
  return records;
}

Status ask(const NeedleFlags& flags, const llm::Model& model, const std::vector<std::vector<llm::Token>>& hay,
           const nlohmann::json& head, std::vector<Subject>& subjects,
           const std::function<void(double)>& advance) {
  FRUGAL_TRY(std::vector<nlohmann::json> records, read_records(flags.records, head));
  if (records.empty()) records.push_back(head);
  const int together = flags.at_once ? flags.depths : 1;
  const double total =
      static_cast<double>(hay.size() * flags.lengths.size()) * flags.prompts * flags.depths / together;
  int needle = 0;
  size_t done = 0;
  for (const std::vector<llm::Token>& text : hay) {
    for (const int length : flags.lengths) {
      const size_t room = text.size() - static_cast<size_t>(length);
      for (int i = 0; i < flags.prompts; ++i) {
        const auto begin = room * static_cast<size_t>(i) / static_cast<size_t>(flags.prompts);
        for (int depth = 0; depth < flags.depths; depth += together, needle += together) {
          if (++done >= records.size()) {
            FRUGAL_TRY(const Prompt prompt,
                       prompt_of(flags, model.tokenizer(), std::span(text).subspan(begin), length, needle,
                                 depth, together));
            nlohmann::json record = nlohmann::json::object();
            for (const Subject& subject : subjects) {
              FRUGAL_TRY(const std::vector<int> found, finds(*subject.engine, prompt));
              record[subject.name] = found;
            }
            records.push_back(std::move(record));
            std::string lines;
            for (const nlohmann::json& line : records) lines += line.dump() + "\n";
            if (!flags.records.empty()) FRUGAL_TRY_STATUS(write_file_atomically(flags.records, lines));
          }
          for (Subject& subject : subjects) {
            const nlohmann::json& found = records[done].value(subject.name, nlohmann::json::array());
            for (const nlohmann::json& one : found) subject.found.push_back(one == 1 ? 1 : 0);
            if (subject.found.size() != static_cast<size_t>(needle + together))
              return Error{ErrorCode::kCorrupt, "'" + flags.records + "' lacks answers: remove it"};
          }
          advance(static_cast<double>(done) / total);
        }
      }
    }
  }
  return {};
}

// Needles that `other` finds less those that `first` finds, in percent of all, with an interval of 95 %: half
// a needle more in each cell of the table of both (Agresti and Min 2005).
BenchRow difference(const Subject& other, const Subject& first) {
  double only_other = 0, only_first = 0;
  for (size_t i = 0; i < other.found.size(); ++i) {
    only_other += other.found[i] > first.found[i] ? 1 : 0;
    only_first += other.found[i] < first.found[i] ? 1 : 0;
  }
  const double n = static_cast<double>(other.found.size()), m = n + 2, b = only_other + 0.5,
               c = only_first + 0.5;
  const double centre = (b - c) / m, error = 1.96 * std::sqrt((b + c - (b - c) * (b - c) / m)) / m;
  BenchRow row;
  row.name = strf("needles found, %s less %s", other.name.c_str(), first.name.c_str());
  row.unit = "% of all";
  row.ours = 100 * (only_other - only_first) / n;
  row.n = static_cast<int>(n);
  row.more = {{"only_" + other.name, only_other},
              {"only_" + first.name, only_first},
              {"interval95_low", 100 * (centre - error)},
              {"interval95_high", 100 * (centre + error)}};
  return row;
}

int run(NeedleFlags flags) {
  install_interrupt_handler();
  if (flags.texts.empty()) flags.texts = default_evaluation_texts();
  if (flags.caches.empty()) flags.caches = {"f16", "csr:2"};
  if (flags.lengths.empty()) flags.lengths = {1024, 2048, 4096};
  for (const int length : flags.lengths) {
    if (length < 256) return fail({ErrorCode::kInvalidArgument, "--length must be 256 or more"});
  }
  if (flags.depths < 1 || flags.prompts < 1)
    return fail({ErrorCode::kInvalidArgument, "--depths and --prompts must be 1 or more"});
  if (flags.at_once && flags.depths > static_cast<int>(kCities.size())) {
    return fail({ErrorCode::kInvalidArgument,
                 strf("--at-once: at most %zu needles stand in one prompt", kCities.size())});
  }
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
    auto tokens = (*model)->tokenizer().encode(utf8_sanitized(*text), false, false);
    if (!tokens.ok()) return fail(tokens.error());
    if (tokens->size() >= static_cast<size_t>(longest)) hay.push_back(std::move(tokens).value());
  }
  if (hay.empty())
    return fail(
        {ErrorCode::kInvalidArgument,
         strf("no text has %d tokens: give a longer one with -f FILE, or a smaller --length", longest)});
  nlohmann::json head = {{"model", (*model)->info().file_hash},
                         {"texts", flags.texts},
                         {"lengths", flags.lengths},
                         {"depths", flags.depths},
                         {"prompts", flags.prompts},
                         {"at_once", flags.at_once}};
  std::vector<Subject> subjects;
  for (const std::string& name : flags.caches) {
    engine.kv = name;
    auto own = engine_options(engine);
    if (!own.ok()) return fail(own.error());
    if (const Status status = choose_cache(engine, *model, *own, !flags.json); !status.ok())
      return fail(status.error());
    head["caches"].push_back({name, own->kv_source ? own->kv_source->content_hash() : 0});
    auto made = llm::Engine::create(*model, *own);
    if (!made.ok()) return fail(made.error());
    subjects.push_back({name, std::move(made).value(), {}});
  }
  {
    ProgressBar bar("asking", "%", !flags.json);
    const Status status =
        ask(flags, **model, hay, head, subjects, [&](double share) { bar.update(100 * share, 100); });
    if (!status.ok()) return fail(status.error());
  }
  std::vector<BenchRow> rows;
  for (const Subject& subject : subjects) {
    BenchRow row;
    row.name = strf("needles found, %s", subject.name.c_str());
    row.unit = "%";
    row.n = static_cast<int>(subject.found.size());
    row.ours = 100.0 * static_cast<double>(std::count(subject.found.begin(), subject.found.end(), 1)) / row.n;
    rows.push_back(std::move(row));
  }
  for (size_t i = 1; i < subjects.size(); ++i) rows.push_back(difference(subjects[i], subjects.front()));
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
  app.add_option("--prompts", flags->prompts, "prompts from other parts of each text")->capture_default_str();
  app.add_flag("--at-once", flags->at_once,
               "the sentences of all places stand in one prompt, which is read once and asked for each");
  app.add_option("--records", flags->records, "keep what was found here, and go on from what is there")
      ->type_name("FILE");
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
