// frugal kv generate: whether long answers still come to an end with a coded cache, and how often they are
// those of the first cache. Errors of a cache add up over an answer; a model that has lost its thread repeats
// itself until it is stopped.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>

#include "base/text.h"
#include "cli/answer.h"
#include "cli/bench_report.h"
#include "cli/bench_tools.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/kv_dictionary.h"
#include "llm/decode/sampler.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::cli {
namespace {

constexpr const char* kQuestions[] = {
    "Write a long story about a lighthouse keeper who finds a map.",
    "Explain how a bicycle stays upright, step by step.",
    "Write a letter to a friend about a journey through the mountains.",
    "What are the main differences between a frog and a toad?",
    "Give me a detailed recipe for vegetable soup and explain every step.",
    "Describe the water cycle for a pupil of ten years.",
    "Write a dialogue between a baker and a customer who is never content.",
    "List ten inventions that changed the world and say why.",
    "How does a library decide which books to keep?",
    "Tell the history of the bicycle in several paragraphs.",
    "Explain what a computer program is, with an example in Python.",
    "Write an essay on the advantages and disadvantages of living in a big city.",
};

struct GenerateFlags {
  ModelFlags model;
  std::vector<std::string> caches;
  std::string dictionary, out;
  int limit = 1024, seeds = 2, threads = 0;
  double temperature = 0.6;
  bool json = false;
};

struct Answers {
  std::string name;
  std::vector<std::vector<llm::Token>> said;  // [questions * seeds]
  int ended = 0, loops = 0;
};

// Whether the last 96 tokens are one piece of at most 32 over and over.
bool repeats(const std::vector<llm::Token>& said) {
  constexpr size_t kTail = 96, kLongest = 32;
  if (said.size() < kTail) return false;
  for (size_t period = 1; period <= kLongest; ++period) {
    if (std::equal(said.end() - (kTail - period), said.end(), said.end() - kTail)) return true;
  }
  return false;
}

// Answers all prompts side by side.
Result<Answers> answer_all(llm::Engine& engine, const GenerateFlags& flags,
                           const std::vector<std::vector<llm::Token>>& prompts,
                           const std::function<void(double)>& advance) {
  struct Running {
    size_t idx;
    llm::SequenceId sequence;
    llm::Sampler sampler;
    llm::Token next;
  };
  Answers answers;
  answers.said.resize(prompts.size());
  std::vector<Running> running;
  const auto& tokenizer = engine.model().tokenizer();
  // False when the answer is over.
  const auto take = [&](Running& r, int row) -> Result<bool> {
    FRUGAL_TRY(r.next, r.sampler.sample(engine.logits(row)));
    r.sampler.accept(r.next);
    if (tokenizer.is_end_of_generation(r.next)) {
      ++answers.ended;
      return false;
    }
    auto& said = answers.said[r.idx];
    said.push_back(r.next);
    if (said.size() < static_cast<size_t>(flags.limit)) return true;
    answers.loops += repeats(said) ? 1 : 0;
    return false;
  };
  for (size_t i = 0; i < prompts.size(); ++i) {
    llm::SamplerOptions options;
    options.temperature = static_cast<float>(flags.temperature);
    options.seed = i;
    FRUGAL_TRY(auto sampler, llm::Sampler::create(options, engine.model().info().n_vocab));
    FRUGAL_TRY(const llm::SequenceId sequence, engine.open_sequence());
    FRUGAL_TRY_STATUS(engine.prefill(sequence, prompts[i], nullptr));
    running.push_back({i, sequence, std::move(sampler), 0});
    FRUGAL_TRY(const bool more, take(running.back(), 0));
    if (!more) running.pop_back();
  }
  for (int step = 1; !running.empty(); ++step) {
    if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
    std::vector<llm::BatchItem> items;
    for (Running& r : running) items.push_back({r.sequence, {&r.next, 1}, llm::LogitRows::kLast});
    FRUGAL_TRY_STATUS(engine.forward(items));
    std::vector<Running> still;
    for (size_t i = 0; i < running.size(); ++i) {
      FRUGAL_TRY(const bool more, take(running[i], static_cast<int>(i)));
      if (more) {
        still.push_back(std::move(running[i]));
      } else {
        engine.close_sequence(running[i].sequence);
      }
    }
    running = std::move(still);
    advance(static_cast<double>(step) / flags.limit);
  }
  return answers;
}

BenchRow row_of(const Answers& of, const Answers& first) {
  const auto n = static_cast<double>(of.said.size());
  double tokens = 0, same = 0, common = 0;
  for (size_t i = 0; i < of.said.size(); ++i) {
    const auto &a = of.said[i], &b = first.said[i];
    const auto end =
        std::mismatch(a.begin(), a.begin() + static_cast<ptrdiff_t>(std::min(a.size(), b.size())), b.begin());
    tokens += static_cast<double>(a.size());
    same += a == b ? 1 : 0;
    common += static_cast<double>(end.first - a.begin());
  }
  BenchRow row;
  row.name = strf("answers that end, %s", of.name.c_str());
  row.unit = "%";
  row.ours = 100.0 * of.ended / n;
  row.n = static_cast<int>(of.said.size());
  row.more = {{"mean_tokens", tokens / n},
              {"end_in_a_loop_percent", 100.0 * of.loops / n},
              {"same_as_first_cache_percent", 100 * same / n},
              {"mean_tokens_before_they_differ", common / n}};
  return row;
}

int run(GenerateFlags flags) {
  install_interrupt_handler();
  if (flags.caches.empty()) flags.caches = {"f16", "csr:2"};
  if (flags.limit < 128 || flags.seeds < 1 || flags.seeds > 8)
    return fail({ErrorCode::kInvalidArgument, "--max-tokens must be 128 or more, --seeds 1 to 8"});
  EngineFlags engine;
  engine.threads = flags.threads;
  engine.kv_dict = flags.dictionary;
  const auto options = engine_options(engine);
  if (!options.ok()) return fail(options.error());
  const auto model = load_model(flags.model, options->n_threads, !flags.json);
  if (!model.ok()) return fail(model.error());
  std::vector<std::vector<llm::Token>> prompts;
  size_t longest = 0;
  for (const char* text : kQuestions) {
    Question question;
    question.text = text;
    auto prompt = make_prompt(**model, question, 4096, 1);
    if (!prompt.ok()) return fail(prompt.error());
    longest = std::max(longest, prompt->tokens.size());
    for (int seed = 0; seed < flags.seeds; ++seed) prompts.push_back(prompt->tokens);
  }
  engine.ctx = static_cast<int>(longest) + flags.limit;
  std::vector<Answers> all;
  for (const std::string& name : flags.caches) {
    engine.kv = name;
    auto own = engine_options(engine);
    if (!own.ok()) return fail(own.error());
    own->max_sequences = static_cast<int>(prompts.size());
    if (const Status status = choose_cache(engine, *model, *own, !flags.json); !status.ok())
      return fail(status.error());
    const auto made = llm::Engine::create(*model, *own);
    if (!made.ok()) return fail(made.error());
    ProgressBar bar("answering with " + name, "%", !flags.json);
    auto answers = answer_all(**made, flags, prompts, [&](double share) { bar.update(100 * share, 100); });
    if (!answers.ok()) return fail(answers.error());
    answers->name = name;
    all.push_back(std::move(answers).value());
  }
  std::vector<BenchRow> rows;
  for (const Answers& answers : all) rows.push_back(row_of(answers, all.front()));
  BenchContext context;
  context.bench = "kv_generate";
  context.threads = options->n_threads;
  context.model = std::filesystem::path((*model)->info().path).filename().string();
  context.model_hash = strf("%016llx", static_cast<unsigned long long>((*model)->info().file_hash));
  context.command = this_command_line();
  return report_bench(context, rows, flags.out, flags.json);
}

}  // namespace

Action add_kv_generate(CLI::App& app) {
  auto flags = std::make_shared<GenerateFlags>();
  add_model_options(app, flags->model);
  app.add_option("--kv", flags->caches,
                 "caches; answers are compared with the first one's (default: f16, csr:2)")
      ->allow_extra_args(false)
      ->type_name("NAME");
  app.add_option("-n,--max-tokens", flags->limit, "where an answer that does not end is stopped")
      ->capture_default_str();
  app.add_option("--seeds", flags->seeds, "answers to each of twelve questions")->capture_default_str();
  app.add_option("--temperature", flags->temperature, "0 = greedy")->capture_default_str();
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
