// The subcommands of `frugal`, a file each (cmd_<name>.cc). To add one: write its file, declare its `add_`
// function here, and put a row into the table in commands.cc.
#pragma once

#include <functional>
#include <span>
#include <string_view>

namespace CLI {
class App;
}

namespace frugal::cli {

// Exit codes, documented in docs/cli.md. A metered command's own code passes through (`frugal meter run`).
enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,     // the work failed: the message says why
  kExitUsage = 2,       // the command line or a config file is wrong
  kExitBadInput = 3,    // a file is not there, or not what it should be: corrupt, truncated, of another model
  kExitNoResource = 4,  // memory, disk, permission or a processor feature is missing
  kExitInterrupted = 130,  // Ctrl-C
};

// What to run once the command line is parsed; returns the exit code.
using Action = std::function<int()>;

struct Command {
  std::string_view name;     // "run", or "bench llm" for a nested one
  std::string_view summary;  // one line, for `frugal --help`
  Action (*add)(
      CLI::App& app);  // declares the options on `app`, once: they yield help, config files and docs
};

std::span<const Command> commands();

// One line about a group of nested commands ("bench"), for `frugal --help`.
std::string_view group_summary(std::string_view group);

// One per file, alphabetical.
Action add_bench_cascade(CLI::App& app);
Action add_bench_llm(CLI::App& app);
Action add_cascade_profile(CLI::App& app);
Action add_cascade_replay(CLI::App& app);
Action add_cascade_report(CLI::App& app);
Action add_cascade_serve(CLI::App& app);
Action add_cascade_simulate(CLI::App& app);
Action add_cascade_train(CLI::App& app);
Action add_bench_meter(CLI::App& app);
Action add_chat(CLI::App& app);
Action add_cot_eval(CLI::App& app);
Action add_dnn_inspect(CLI::App& app);
Action add_dnn_plan(CLI::App& app);
Action add_dnn_profile(CLI::App& app);
Action add_dnn_run(CLI::App& app);
Action add_dnn_testbed(CLI::App& app);
Action add_dnn_worker(CLI::App& app);
Action add_docs_options(CLI::App& app);
Action add_doctor(CLI::App& app);
Action add_eval_ppl(CLI::App& app);
Action add_inspect(CLI::App& app);
Action add_jobs_cancel(CLI::App& app);
Action add_jobs_exec(CLI::App& app);
Action add_jobs_list(CLI::App& app);
Action add_jobs_plan(CLI::App& app);
Action add_jobs_retry(CLI::App& app);
Action add_jobs_run(CLI::App& app);
Action add_jobs_submit(CLI::App& app);
Action add_meter_calibrate(CLI::App& app);
Action add_kv_bench(CLI::App& app);
Action add_kv_eval(CLI::App& app);
Action add_kv_generate(CLI::App& app);
Action add_kv_needle(CLI::App& app);
Action add_kv_train(CLI::App& app);
Action add_meter_doctor(CLI::App& app);
Action add_meter_run(CLI::App& app);
Action add_meter_serve(CLI::App& app);
Action add_meter_watch(CLI::App& app);
Action add_report(CLI::App& app);
Action add_run(CLI::App& app);

}  // namespace frugal::cli
