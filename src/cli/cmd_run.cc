// frugal run: one prompt, the answer as it comes, and what it cost.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/file.h"
#include "base/text.h"
#include "cli/answer.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/decode_options.h"
#include "cli/glance_answer.h"
#include "cli/llm_options.h"
#include "cli/meter_setup.h"
#include "cli/output_pool_file.h"

namespace frugal::cli {

namespace {

struct RunFlags {
  ModelFlags model;
  EngineFlags engine;
  SamplingFlags sampling;
  DecodeFlags decode;
  std::shared_ptr<MeterSetup> meter;
  std::shared_ptr<LedgerSetup> ledger;
  std::string prompt, prompt_file, document, system, load_cache, save_cache, pool;
  bool raw = false, chat = false, cut_document = false, json = false, quiet = false;
};

// The text of a prompt or document. Invalid UTF-8 is refused: a tokenizer would make something else of it in
// silence.
Result<std::string> read_text(const std::string& path) {
  FRUGAL_TRY(std::string text, read_file(path == "-" ? "/dev/stdin" : path, size_t{1} << 28));
  if (!utf8_valid(text)) {
    return {ErrorCode::kCorrupt,
            "'" + path + "' is not UTF-8 text; convert it first, for example with iconv"};
  }
  return text;
}

int run(const RunFlags& flags) {
  install_interrupt_handler();
  const bool has_prompt = !flags.prompt.empty() || !flags.prompt_file.empty();
  if (!flags.prompt.empty() && !flags.prompt_file.empty()) {
    return fail({ErrorCode::kInvalidArgument, "give the prompt with -p or with -f, not both"});
  }
  if (flags.raw && flags.chat)
    return fail({ErrorCode::kInvalidArgument, "--raw and --chat exclude each other"});
  if (!has_prompt && flags.document.empty()) {
    return fail(
        {ErrorCode::kInvalidArgument, "there is no prompt: give one with -p TEXT, -f FILE or -f - (stdin)"});
  }
  Question question;
  question.system = flags.system;
  question.text = flags.prompt;
  question.mode = flags.raw ? PromptMode::kRaw : flags.chat ? PromptMode::kChat : PromptMode::kAuto;
  question.cut_document = flags.cut_document;
  if (!utf8_valid(flags.prompt)) {
    return fail({ErrorCode::kInvalidArgument, "the prompt of -p is not valid UTF-8"});
  }
  if (!flags.prompt_file.empty()) {
    auto text = read_text(flags.prompt_file);
    if (!text.ok()) return fail(text.error());
    question.text = std::move(text).value();
  }
  if (!flags.document.empty()) {
    auto text = read_text(flags.document);
    if (!text.ok()) return fail(text.error());
    question.document = std::move(text).value();
  }
  if (trim(question.text).empty() && trim(question.document).empty()) {
    return fail({ErrorCode::kInvalidArgument, "the prompt is empty: there is nothing to answer"});
  }
  // A bad option is told before the model is loaded.
  if (const Status status = llm::validate(flags.sampling.sampler); !status.ok()) return fail(status.error());

  auto decode = decode_options(flags.decode);
  if (!decode.ok()) return fail(decode.error());
  if (!flags.pool.empty() && flags.decode.mode != "exact")
    return fail({ErrorCode::kInvalidArgument, "--pool is for --decode exact"});

  const auto meter = open_meter(*flags.meter);
  if (!meter.ok()) return fail(meter.error());
  auto loaded = load_engine(flags.model, flags.engine, !flags.json);
  if (!loaded.ok()) return fail(loaded.error());
  llm::Engine& engine = *loaded->engine;
  auto sequence = flags.load_cache.empty() ? engine.open_sequence() : engine.load_sequence(flags.load_cache);
  if (!sequence.ok()) return fail(std::move(sequence).error());

  std::optional<OutputPoolFile> pool;
  if (!flags.pool.empty()) {
    const llm::ModelInfo& info = loaded->model->info();
    auto opened = OutputPoolFile::open(flags.pool, info.file_hash, info.n_vocab);
    if (!opened.ok()) return fail(opened.error());
    pool = std::move(opened).value();
    decode->drafts.pool = pool->pool();
  }

  auto prompt = make_prompt(*loaded->model, question, engine.options().n_ctx,
                            flags.sampling.max_tokens > 0 ? flags.sampling.max_tokens : 256);
  if (!prompt.ok()) return fail(prompt.error());
  if (!prompt->note.empty() && !flags.quiet) std::fprintf(stderr, "frugal: %s\n", prompt->note.c_str());

  const meter::Snapshot before = (*meter)->snapshot();
  std::optional<llm::GlanceResult> glance;
  Result<llm::Generation> answer = llm::Generation{};
  if (flags.decode.mode == "glance") {
    auto result =
        glance_prompt(engine, *sequence, prompt->tokens, flags.sampling, flags.decode, **meter, !flags.json);
    if (!result.ok()) return fail(result.error());
    answer = result->rationale;
    glance = std::move(result).value();
  } else {
    answer = answer_prompt(engine, *sequence, prompt->tokens, flags.sampling, *decode,
                           flags.decode.show_glance, !flags.json);
  }
  if (!answer.ok()) return fail(answer.error());
  const meter::Charge charge = (*meter)->charge(before, answer->usage);
  if (!flags.save_cache.empty()) {
    if (const Status saved = engine.save_sequence(*sequence, flags.save_cache); !saved.ok()) {
      if (!flags.json) print("\n");
      return fail(saved.error());
    }
  }
  if (pool) {
    if (const Status added = pool->add(answer->tokens); !added.ok()) {
      if (!flags.json) print("\n");
      return fail(added.error());
    }
  }
  meter::LedgerEntry entry;
  entry.kind = entry.name = "run";
  entry.model = std::filesystem::path(loaded->model->info().path).filename().string();
  entry.unit = "token";
  entry.units = static_cast<double>(answer->tokens.size());
  entry.usage = answer->usage;
  record(*flags.ledger, **meter, before, charge, entry);
  const Summary summary{*loaded, *answer, (*meter)->source()};
  bool printed = true;
  if (flags.json) {
    printed = print(summary_json(summary, glance ? glance_json(*glance) : "") + "\n");
  } else {
    printed = print("\n");
    if (!flags.quiet) std::fputs(summary_text(summary).c_str(), stderr);
    if (glance) std::fputs(glance_text(*glance).c_str(), stderr);
    if (flags.decode.stats) std::fputs(stats_text(*answer).c_str(), stderr);
  }
  if (!printed)
    return fail({ErrorCode::kIo, "the answer could not be written to stdout: closed, or no room"});
  return answer->stop == llm::StopReason::kCancelled ? kExitInterrupted : kExitOk;
}

}  // namespace

Action add_run(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  app.add_option("-p,--prompt", flags->prompt, "the question")->type_name("TEXT");
  app.add_option("-f,--file", flags->prompt_file, "read the question from this file; - is stdin")
      ->type_name("FILE");
  app.add_option("-d,--document", flags->document, "a text that the question is about, put before it")
      ->type_name("FILE");
  app.add_flag(
      "--cut-document", flags->cut_document,
      "when document, question and answer exceed the context, keep the document's beginning that fits");
  app.add_option("--system", flags->system, "what the model is told about its role, in chat form")
      ->type_name("TEXT");
  app.add_flag("--chat", flags->chat, "put the prompt into the model's chat form; an error if it has none");
  app.add_flag("--raw", flags->raw, "continue the prompt as it is (default: chat form if the model has one)");
  app.add_option("--load-cache", flags->load_cache,
                 "start from keys and values saved before; a common beginning is not computed again")
      ->type_name("FILE");
  app.add_option("--save-cache", flags->save_cache,
                 "keep the keys and values of prompt and answer for --load-cache")
      ->type_name("FILE");
  app.add_option(
         "--pool", flags->pool,
         "draft from earlier answers kept in this file, and add this one to it: for requests of one task, "
         "and for nobody else to read; does not change any answer")
      ->type_name("FILE");
  add_sampling_options(app, flags->sampling);
  add_decode_options(app, flags->decode);
  add_model_options(app, flags->model);
  add_engine_options(app, flags->engine);
  flags->meter = add_meter_options(app);
  flags->ledger = add_ledger_options(app);
  app.add_flag("-q,--quiet", flags->quiet, "the answer alone, without the figures");
  app.add_flag("--json", flags->json, "one JSON object: answer, tokens, times, memory, FLOPs, joules");
  return [flags] { return run(*flags); };
}

}  // namespace frugal::cli
