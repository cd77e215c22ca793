// frugal cot eval: chains of thought, decoded greedily, exactly in parallel, and cut short by a glance.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>

#include "base/clock.h"
#include "base/file.h"
#include "base/team.h"
#include "base/text.h"
#include "cli/bench_report.h"
#include "cli/bench_tools.h"
#include "cli/child_process.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/cot_plot.h"
#include "cli/cot_record.h"
#include "cli/cot_report.h"
#include "cli/kv_dictionary.h"
#include "cli/llm_options.h"
#include "cli/meter_setup.h"

namespace frugal::cli {

namespace {

struct CotFlags {
  ModelFlags model;
  EngineFlags engine;
  CotSetup setup;
  std::shared_ptr<MeterSetup> meter;
  std::vector<std::string> data;
  int limit = 40, skip = 50, peer_every = 1;
  double seconds = 0;
  bool no_glance = false, no_peer = false, cpu_time = false, json = false;
  std::string records, out, svg, windows_svg;
};

using Questions = std::vector<std::pair<int, const CotQuestion*>>;

// Questions by task, each task's first `skip` left out.
Questions chosen(const CotData& data, const CotFlags& flags) {
  std::map<std::string, int> seen;
  Questions out;
  for (const CotQuestion& question : data.questions) {
    const int index = seen[question.task]++;
    if (index >= flags.skip && (flags.limit == 0 || index < flags.skip + flags.limit))
      out.emplace_back(index, &question);
  }
  // A few questions of each task in turn: task after task would leave the last ones out when time is short,
  // and question after question would compute the worked examples anew each time.
  const int in_a_row = 5;
  std::stable_sort(out.begin(), out.end(),
                   [=](const auto& a, const auto& b) { return a.first / in_a_row < b.first / in_a_row; });
  return out;
}

// The records of an earlier run in `path`; the first line says what they were made with.
Result<std::vector<CotRecord>> read_records(const std::string& path, const std::string& head) {
  std::vector<CotRecord> records;
  std::error_code ignored;
  if (path.empty() || !std::filesystem::exists(path, ignored)) return records;
  FRUGAL_TRY(const std::string text, read_file(path));
  int line_idx = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    if (++line_idx == 1) {
      if (line == head) continue;
      return Error{
          ErrorCode::kInvalidArgument,
          "'" + path + "' was made with another model or other options; choose another --records file"};
    }
    if (trim(line).empty()) continue;
    auto record = parse_record(line);
    if (!record.ok()) {
      return Error{ErrorCode::kCorrupt, strf("%s:%d: %s; delete the line or the file", path.c_str(), line_idx,
                                             record.error().message.c_str())};
    }
    records.push_back(std::move(record).value());
  }
  return records;
}

Status write_records(const std::string& path, const std::string& head,
                     const std::vector<CotRecord>& records) {
  if (path.empty()) return {};
  std::string text = head + "\n";
  for (const CotRecord& record : records) text += record_json(record) + "\n";
  return write_file_atomically(path, text);
}

Status check(const CotFlags& flags) {
  const auto refuse = [](std::string message) {
    return Status(ErrorCode::kInvalidArgument, std::move(message));
  };
  const auto need = [&](const char* option, int value, int least, int most) {
    return value >= least && value <= most
               ? Status()
               : refuse(strf("%s is %d, but must be from %d to %d", option, value, least, most));
  };
  FRUGAL_TRY_STATUS(need("--shots", flags.setup.n_shots, 0, 4));
  FRUGAL_TRY_STATUS(need("--max-tokens", flags.setup.max_tokens, 1, 1 << 20));
  FRUGAL_TRY_STATUS(need("--limit", flags.limit, 0, 1 << 30));
  FRUGAL_TRY_STATUS(need("--skip", flags.skip, 0, 1 << 30));
  FRUGAL_TRY_STATUS(need("--every", flags.setup.every, 1, 1 << 20));
  FRUGAL_TRY_STATUS(need("--reps", flags.setup.reps, 1, 100));
  FRUGAL_TRY_STATUS(need("--peer-every", flags.peer_every, 1, 1 << 30));
  FRUGAL_TRY_STATUS(need("--window", flags.setup.decode.max_draft, 0, llm::kLongestDraft));
  for (const std::string& command : flags.setup.speculators) {
    const std::string tool = command.substr(0, command.find_first_of(":@"));
    if (!finds_command(tool)) {
      return refuse(
          "--speculators: there is no command '" + tool +
          "'; `python3 scripts/bootstrap.py --peers` builds llama.cpp's tools into the folder bin of "
          "`python3 scripts/bootstrap.py --print peers`, which has to be on PATH");
    }
  }
  return {};
}

// Runs every question again as a glance and as Trunc-CoT, by the rules of the chosen point, until `end` (wall
// seconds; 0 = no limit). Rules depend on all questions, so this comes when the last of them is done.
Status run_rules(CotRunner& runner, const Questions& questions, bool shows, double end,
                 std::vector<CotRecord>* records) {
  const std::vector<CotPoint> curve = glance_curve(*records);
  if (curve.empty()) return {};
  const double target = chosen_target(curve);
  ProgressBar bar("stopping by rule", "questions", shows);
  int done = 0;
  for (CotRecord& record : *records) {
    bar.update(++done, static_cast<double>(records->size()));
    const auto same = [&](const auto& q) { return q.second->task == record.task && q.first == record.index; };
    const auto question = std::find_if(questions.begin(), questions.end(), same);
    if (question == questions.end() || is_repetitive(record.task) || (record.glance && record.trunc))
      continue;
    if (end > 0 && wall_seconds() > end) return {};
    for (const bool trunc : {false, true}) {
      const CotRule rule = rule_for(*records, record, target, trunc);
      std::optional<CotGlance>& out = trunc ? record.trunc : record.glance;
      out = CotGlance{record.exact.chain_seconds, record.answer, false};
      if (!rule.looks) continue;
      auto run = runner.run_glance(*question->second, rule, trunc);
      if (!run.ok()) return run.error().code == ErrorCode::kCancelled ? Status() : Status(run.error());
      out = std::move(run).value();
    }
  }
  return {};
}

Result<std::vector<CotRecord>> evaluate(CotFlags& flags, const CotData& data, const std::string& model_path,
                                        llm::Engine& engine, meter::PowerMeter& meter) {
  const llm::ModelInfo& info = engine.model().info();
  const std::string head = strf(
      "{\"model\": \"%016llx\", \"shots\": %d, \"max_tokens\": %d, \"fixed_length\": %d, \"every\": %d, "
      "\"window\": %d, \"fixed_window\": %d, \"reps\": %d, \"pool\": %d, \"kv\": \"%s\", \"cpu_time\": %d}",
      static_cast<unsigned long long>(info.file_hash), flags.setup.n_shots, flags.setup.max_tokens,
      flags.setup.fixed_length ? 1 : 0, flags.setup.every, flags.setup.decode.max_draft,
      flags.setup.decode.fixed ? 1 : 0, flags.setup.reps, flags.setup.pool ? 1 : 0, flags.engine.kv.c_str(),
      flags.cpu_time ? 1 : 0);
  FRUGAL_TRY(std::vector<CotRecord> records, read_records(flags.records, head));
  std::unique_ptr<llm::peer::Peer> peer;
  if (!flags.no_peer) {
    llm::peer::PeerOptions options;
    options.n_threads = engine.options().n_threads;
    options.n_ctx = engine.options().n_ctx;
    FRUGAL_TRY(peer, llm::peer::Peer::load(model_path, options));
  }
  CotRunner runner(engine, meter, peer.get(), flags.setup);
  FRUGAL_TRY_STATUS(runner.open());
  for (const CotRecord& record : records) runner.remember(record);
  const auto questions = chosen(data, flags);
  if (questions.empty()) {
    return Error{
        ErrorCode::kInvalidArgument,
        strf("no question is left: the data has %zu, and the first %d of each task are skipped (--skip)",
             data.questions.size(), flags.skip)};
  }
  ProgressBar bar("evaluating", "questions", !flags.json);
  const double end = flags.seconds > 0 ? wall_seconds() + flags.seconds : 0;
  int done = 0;
  for (const auto& [index, question] : questions) {
    bar.update(++done, static_cast<double>(questions.size()));
    const std::string key = strf("%s/%d", question->task.c_str(), index);
    if (std::any_of(records.begin(), records.end(), [&](const CotRecord& r) { return r.key == key; }))
      continue;
    if (end > 0 && wall_seconds() > end) break;
    auto record = runner.run(*question, index, index % flags.peer_every == 0);
    if (!record.ok() && record.error().code == ErrorCode::kCancelled) break;  // what there is, is reported
    if (!record.ok()) return record.error();
    records.push_back(std::move(record).value());
    FRUGAL_TRY_STATUS(write_records(flags.records, head, records));
  }
  if (records.size() == questions.size())
    FRUGAL_TRY_STATUS(run_rules(runner, questions, !flags.json, end, &records));
  FRUGAL_TRY_STATUS(write_records(flags.records, head, records));
  return records;
}

int run(CotFlags& flags) {
  install_interrupt_handler();
  flags.setup.glance = !flags.no_glance;
  if (flags.cpu_time) flags.setup.clock = process_cpu_seconds;
  if (const Status status = check(flags); !status.ok()) return fail(status.error());
  auto data = read_cot_data(flags.data);
  if (!data.ok()) return fail(data.error());
  for (const std::string& fault : data->faults) std::fprintf(stderr, "frugal: left out: %s\n", fault.c_str());
  if (data->questions.empty()) {
    return fail({ErrorCode::kCorrupt,
                 "the data holds no question; a line is one JSON object with \"task\", "
                 "\"question\", \"answer\" and, for choices, \"choices\""});
  }
  const auto meter = open_meter(*flags.meter);
  if (!meter.ok()) return fail(meter.error());
  const auto path = resolve_model(flags.model.model);
  if (!path.ok()) return fail(path.error());
  auto options = engine_options(flags.engine);
  if (!options.ok()) return fail(options.error());
  if (options->n_ctx == 0) options->n_ctx = 2048 + flags.setup.max_tokens;
  options->max_sequences = 2;
  llm::ModelOptions model_options;
  model_options.n_threads = options->n_threads;
  auto model = llm::Model::load(*path, model_options);
  if (!model.ok()) return fail(model.error());
  if (const Status status = choose_cache(flags.engine, *model, *options, !flags.json); !status.ok())
    return fail(status.error());
  auto engine = llm::Engine::create(*model, *options);
  if (!engine.ok()) return fail(engine.error());
  const auto records = evaluate(flags, *data, *path, **engine, **meter);
  if (!records.ok()) return fail(records.error());
  if (records->empty())
    return fail({ErrorCode::kCancelled, "interrupted before the first question was done"});

  BenchContext context;
  context.bench = "cot";
  context.threads = (*engine)->options().n_threads;
  context.isa = kernel_isa();
  context.model = std::filesystem::path(*path).filename().string();
  context.model_hash = strf("%016llx", static_cast<unsigned long long>((*model)->info().file_hash));
  context.command = this_command_line();
  context.note =
      "greedy, exact and llama.cpp in turn for each question, the fastest repetition of each of ours and the "
      "only one of llama.cpp; exact outputs compared with greedy; rules "
      "of the glance fitted on even questions and reported on odd ones, and the other way round; peer: " +
      llm::peer::description();
  if (flags.cpu_time) context.note = "times of ours are processor times; " + context.note;
  const std::vector<BenchRow> rows = cot_rows(*records);
  if (!flags.out.empty()) {
    if (const Status status = write_bench(flags.out, context, rows); !status.ok())
      return fail(status.error());
  }
  if (!flags.svg.empty()) {
    const Status status = write_file_atomically(flags.svg, glance_svg(glance_curve(*records)));
    if (!status.ok()) return fail(status.error());
  }
  if (const std::string picture = windows_svg(rows); !flags.windows_svg.empty() && !picture.empty()) {
    if (const Status status = write_file_atomically(flags.windows_svg, picture); !status.ok())
      return fail(status.error());
  }
  if (!print(flags.json ? bench_json(context, rows) : bench_table(rows)))
    return fail({ErrorCode::kIo, "the result could not be written to stdout"});
  return interrupted() ? kExitInterrupted : kExitOk;
}

}  // namespace

Action add_cot_eval(CLI::App& app) {
  auto flags = std::make_shared<CotFlags>();
  app.add_option("--data", flags->data, "files with a question a line, as JSON")
      ->required()
      ->type_name("FILES");
  app.add_option("--shots", flags->setup.n_shots, "worked examples before each question, 0 to 4")
      ->capture_default_str();
  app.add_option("-n,--max-tokens", flags->setup.max_tokens, "length of a chain")->capture_default_str();
  app.add_flag(
      "--fixed-length", flags->setup.fixed_length,
      "time chains of exactly --max-tokens, whatever they say; answers are still read where they end");
  app.add_option("--limit", flags->limit, "questions of each task; 0 = all")->capture_default_str();
  app.add_option("--skip", flags->skip,
                 "first questions of each task to leave out: what was fitted was fitted on these")
      ->capture_default_str();
  app.add_option("--window", flags->setup.decode.max_draft, "longest draft, 0 to 16")->capture_default_str();
  app.add_flag("--fixed-window", flags->setup.decode.fixed,
               "always drafts of --window tokens, paying or not");
  app.add_option("--every", flags->setup.every, "tokens between two looks at the answer")
      ->capture_default_str();
  app.add_option("--reps", flags->setup.reps, "each decoding so often, in turn; the fastest of each counts")
      ->capture_default_str();
  app.add_flag("--pool", flags->setup.pool,
               "also time exact decoding with a pool: the outputs of the task's earlier questions");
  app.add_flag(
      "--curves", flags->setup.curves,
      "on every --peer-every'th question also time windows of 1 to 16, adaptive and fixed, and each drafter "
      "alone");
  app.add_flag("--no-glance", flags->no_glance, "exact decoding only");
  app.add_flag("--cpu-time", flags->cpu_time,
               "time ours by the processor time of its threads: for a machine that others use, with -t 1 and "
               "--no-peer");
  app.add_flag("--no-peer", flags->no_peer, "without llama.cpp");
  app.add_option("--peer-every", flags->peer_every, "run llama.cpp on every so manieth question")
      ->capture_default_str();
  app.add_option(
         "--speculators", flags->setup.speculators,
         "also run these on the questions where llama.cpp runs: its llama-lookup, llama-lookahead and "
         "llama-speculative-simple:TYPE, TYPE being ngram-mod, ngram-simple or the like, with @N for N "
         "tokens at "
         "most "
         "(scripts/bootstrap.py --peers builds them)")
      ->type_name("COMMANDS")
      ->delimiter(',');
  app.add_option("--records", flags->records,
                 "keep what was measured of each question here, and go on from what is there")
      ->type_name("FILE");
  app.add_option("--seconds", flags->seconds,
                 "begin no question after this time; 0 = no limit. With --records the same command goes on "
                 "later, and "
                 "rules are run when all questions are done")
      ->capture_default_str();
  app.add_option("--out", flags->out, "also write the rows to this file, for docs/benchmarks.md")
      ->type_name("FILE");
  app.add_option("--svg", flags->svg, "draw agreement over time saved into this file")->type_name("FILE");
  app.add_option("--windows-svg", flags->windows_svg,
                 "draw speed over window sizes into this file, with --curves")
      ->type_name("FILE");
  add_model_options(app, flags->model);
  add_engine_options(app, flags->engine);
  flags->meter = add_meter_options(app);
  app.add_flag("--json", flags->json, "the rows as JSON");
  return [flags] { return run(*flags); };
}

}  // namespace frugal::cli
