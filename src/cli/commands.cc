#include "cli/commands.h"

namespace frugal::cli {

std::span<const Command> commands() {
  static constexpr Command kCommands[] = {
      {"bench cascade", "the cascade plane's figures", add_bench_cascade},
      {"bench llm", "decode, prefill, load time and memory beside llama.cpp", add_bench_llm},
      {"cascade profile", "measure what each chain takes on this machine", add_cascade_profile},
      {"cascade replay", "serve a cascade's test requests by its real models, metered", add_cascade_replay},
      {"cascade report", "performance, FLOPs, energy and carbon of a cascade, as a page", add_cascade_report},
      {"cascade serve", "answer over HTTP which chain each request is worth", add_cascade_serve},
      {"cascade simulate", "a day of a recommender under a compute budget", add_cascade_simulate},
      {"cascade train", "fit the reward model of a cascade on logged chains", add_cascade_train},
      {"bench meter", "measure the power model, the meter's own cost and the job planner", add_bench_meter},
      {"chat", "talk with a model at the terminal", add_chat},
      {"cot eval", "chains of thought: exact parallel decoding and glances, beside greedy and llama.cpp",
       add_cot_eval},
      {"dnn inspect", "list and draw the parts that a network can be cut into", add_dnn_inspect},
      {"dnn plan", "say where each part of a network should run, and why", add_dnn_plan},
      {"dnn profile", "measure what each part of a network costs here", add_dnn_profile},
      {"dnn run", "run a network over device, edge and cloud", add_dnn_run},
      {"dnn testbed", "measure plans over emulated hosts and links, with faults", add_dnn_testbed},
      {"dnn worker", "join a tier and compute what plans give it", add_dnn_worker},
      {"docs options", "print the options of every command as Markdown", add_docs_options},
      {"doctor", "say what this machine offers, and what frugal does without", add_doctor},
      {"eval ppl", "perplexity of a text, and how far a run is from a reference", add_eval_ppl},
      {"inspect", "say what is in a model file, and whether frugal runs it", add_inspect},
      {"jobs submit", "queue a command for the cleanest hours before its deadline", add_jobs_submit},
      {"jobs plan", "say when the queued jobs will run, by the present forecast", add_jobs_plan},
      {"jobs run", "serve the queue: start, pause and resume jobs", add_jobs_run},
      {"jobs list", "jobs, how they ended, and what waiting saved", add_jobs_list},
      {"jobs cancel", "take jobs out of the queue, or end them", add_jobs_cancel},
      {"jobs retry", "queue jobs again that failed or were interrupted", add_jobs_retry},
      {"jobs exec", "execute one job now; the runner does so for each", add_jobs_exec},
      {"kv bench", "decoding speed of each cache at depth, beside llama.cpp", add_kv_bench},
      {"kv eval", "quality of cache codecs against the bits they take", add_kv_eval},
      {"kv generate", "whether long answers still come to an end with a coded cache", add_kv_generate},
      {"kv needle", "whether a cache still finds a sentence far back in a long text", add_kv_needle},
      {"kv train", "train the dictionary of a model's csr caches", add_kv_train},
      {"meter doctor", "say where power figures come from here, and how to get better ones",
       add_meter_doctor},
      {"meter run", "run a command and say what it cost: energy, carbon, time, memory", add_meter_run},
      {"meter calibrate", "fit the load model to this host: typed watts, a wall meter, or its own counters",
       add_meter_calibrate},
      {"meter watch", "the host's power as it is, in the terminal", add_meter_watch},
      {"meter serve", "the ledger's sums for Prometheus, on loopback", add_meter_serve},
      {"report", "sum up the ledger: energy, carbon and SCI by day, project or model", add_report},
      {"run", "answer one prompt, and say what it cost", add_run},
  };
  return kCommands;
}

std::string_view group_summary(std::string_view group) {
  if (group == "bench") return "measure speed beside a peer";
  if (group == "cascade") return "recommenders that give each request the compute it is worth";
  if (group == "cot") return "chains of thought, several tokens a forward";
  if (group == "dnn") return "one network over device, edge and cloud, without loss";
  if (group == "docs") return "parts of the documentation that are generated";
  if (group == "jobs") return "work that waits for clean power";
  if (group == "kv") return "caches of keys and values: dictionaries and their quality";
  if (group == "meter") return "what runs cost, and where the figures come from";
  if (group == "eval") return "measure quality beside a reference";
  return "";
}

}  // namespace frugal::cli
