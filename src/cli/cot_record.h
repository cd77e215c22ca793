// What `frugal cot eval` measures of one question, and the file that keeps it: a line of JSON each, so that
// an evaluation can be stopped and gone on with.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cli/cot_tasks.h"
#include "frugal/meter.h"
#include "llm/decode/glance.h"
#include "llm/peer/peer.h"

namespace frugal::cli {

// One decoding of the question.
struct CotTiming {
  double seconds = 0;        // after the prefill
  double chain_seconds = 0;  // until the chain ended (the next question, or the model's own end)
  double joules = 0;
  int tokens = 0, forwards = 0;
};

// A look at the answer in the middle of the chain, with approximate tokens and, for Trunc-CoT, without.
struct CotLook {
  struct Side {
    std::string answer;
    float confidence = 0;
    bool named = false;  // the chain was about to name its answer
    llm::Place place = llm::Place::kAnywhere;
    double seconds = 0;    // of the look
    double elapsed_s = 0;  // of the rationale until the answer is there, looks not counted
  };
  int exact = 0, approximate = 0, accepted = 0;  // accepted: of the approximate tokens, by the same forward
  Side glance, trunc;
};

// When to stop, as GlanceOptions has it.
struct CotRule {
  bool looks = false;                        // false: the whole chain
  llm::Place place = llm::Place::kAnywhere;  // only where sentences end, or the trigger is guessed
  bool wrong = false;                        // also from guesses that turned out wrong
  int stable = 0;  // looks that agree; 0: only where the chain is about to name its answer
  float confidence = 0;
};

// A question decoded with a rule, from the prompt's end to the answer.
struct CotGlance {
  double seconds = 0;
  std::string answer;
  bool glanced = false;
};

struct CotRecord {
  std::string key, task;
  int index = 0;  // among the questions of its task
  CotTiming greedy, exact;
  std::optional<CotTiming> pooled;  // exact, with the outputs of the task's earlier questions
  std::optional<CotTiming> peer;
  std::map<std::string, CotTiming> speculators;  // llama.cpp's own ways to draft; 0 tokens: did not finish
  std::map<std::string, CotTiming> variants;     // other windows, policies and drafters
  bool same = false;                             // all of ours gave the tokens of greedy
  std::vector<llm::Token> tokens;                // of greedy
  int chain_tokens = 0;
  std::array<int, llm::kDraftSources> drafted{}, accepted{};
  std::string answer;  // of the whole chain
  std::string truth;   // the right one
  bool correct = false;
  double chain_s = 0;  // the rationale of the looks, whole
  std::vector<CotLook> looks;
  std::optional<CotGlance> glance, trunc;  // by rules that were fitted on other questions
};

std::string record_json(const CotRecord& record);
// kCorrupt, with what is wrong.
Result<CotRecord> parse_record(std::string_view line);

struct CotSetup {
  int n_shots = 4;
  int max_tokens = 256;
  bool fixed_length = false;  // decode max_tokens whatever the chain does
  bool glance = true;
  int every = 8;      // tokens between two looks, besides those at ends of sentences
  int reps = 2;       // each decoding so often, in turn; the fastest counts
  bool pool = false;  // also with a pool
  bool curves = false;
  double (*clock)() = wall_seconds;  // of ours; llama.cpp is always timed by the wall clock
  llm::DecodeOptions decode;
  std::vector<std::string> speculators;  // paths of llama.cpp's tools, with ":type" where one has several
};

// Runs questions on one engine (two sequences) and, if given, on the peer.
class CotRunner {
 public:
  CotRunner(llm::Engine& engine, meter::PowerMeter& meter, llm::peer::Peer* peer, const CotSetup& setup)
      : engine_(engine), meter_(meter), peer_(peer), setup_(setup) {}
  Status open();
  // A question of an earlier run: its output goes to the pool.
  void remember(const CotRecord& record);
  // Errors of the engine; kCancelled at Ctrl-C.
  Result<CotRecord> run(const CotQuestion& question, int index, bool with_peer);
  // The question once more, cut short by the rule; as Trunc-CoT if `trunc`.
  Result<CotGlance> run_glance(const CotQuestion& question, const CotRule& rule, bool trunc);

 private:
  Result<llm::Generation> decode(llm::SequenceId sequence, const std::vector<llm::Token>& prompt,
                                 const llm::DecodeOptions& decode, CotTiming* timing);
  // Decodes in each way, in turn; keeps the fastest of each and whether all gave the same.
  Status time_ways(const std::vector<llm::Token>& prompt, CotRecord* record, llm::Generation* greedy);
  // Windows from 1 to 16, adaptive and fixed, and each drafter alone.
  Status time_variants(const std::vector<llm::Token>& prompt, CotRecord* record);
  // The text until the next question or the model's own end.
  Result<std::string> chain_of(const llm::Generation& out) const;
  llm::GenerateOptions rationale_options();
  Status trace(const CotQuestion& question, const std::vector<llm::Token>& prompt, CotRecord* record);
  Status run_peer(const std::vector<llm::Token>& prompt, int n_tokens, CotTiming* timing);
  void run_speculators(const std::string& prompt, CotRecord* record);

  llm::Engine& engine_;
  meter::PowerMeter& meter_;
  llm::peer::Peer* peer_;
  const CotSetup& setup_;
  llm::SequenceId greedy_ = 0, exact_ = 0;
  llm::StepCosts costs_;
  std::map<std::string, std::shared_ptr<llm::OutputPool>> pools_;  // by task
  std::vector<llm::Token> peer_tokens_;
};

}  // namespace frugal::cli
