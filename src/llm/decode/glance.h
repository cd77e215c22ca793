// Glance: an early answer from a chain of thought that is not finished (FastCoT, Zhang et al. 2023).
//
// While the rationale is decoded exactly, the answer is asked for now and then. The window's forward does
// both: behind the last exact token and the approximate ones (the draft) it carries the answer trigger, whose
// last row says the answer's first token and how sure the model is of it. The same forward judges the
// approximate tokens: a look whose guesses all turn exact is as good as one that waited for them. Places to
// ask from are the ends of sentences, which likely guesses reach before exact tokens do. The trigger's rows
// are guesses, too: where they are the model's own next choice, the chain is about to name its answer, and
// that answer is the one that the look has. When the answer has stayed the same for several looks and is sure
// enough, or the chain is about to name it, decoding stops there. The rationale is exact as far as it goes;
// the answer is a glance: it may differ from the one that the whole chain would have given. Dropping the
// approximate tokens gives the control, Trunc-CoT.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "llm/decode/decoding.h"

namespace frugal::llm {

struct GlanceOptions {
  std::string trigger = " Therefore, the answer is";
  int answer_tokens = 1;  // longest answer, in tokens; it also ends before a full stop or a line's end
  int approximate = kLongestDraft;  // most approximate tokens before the trigger; 0 = Trunc-CoT
  bool sentences = true;            // look where a sentence ends, not only where the trigger is guessed
  int every = 16;                   // look after so many exact tokens without a look, too; 0 = do not
  int first = 8;                    // exact tokens before the first look
  int stable = 2;                   // looks in a row that have to agree; 0 = only the chain's own word counts
  float confidence = 0.6f;          // least probability of the answer in each of them
  bool wrong = false;               // count looks whose approximate tokens turned out wrong
  // What the rationale may cost; when it is spent, the answer is drawn whatever it is. 0 = no limit.
  int most_tokens = 0;
  int most_iterations = 0;  // forwards after the prefill
  double most_seconds = 0;
  std::function<bool()> spent;       // other budgets; may be empty
  double (*clock)() = wall_seconds;  // by which looks and the result are timed
};

// Where a look is taken: anywhere, where a sentence ends, or where the draft guesses the trigger itself, so
// that its rows come for nothing.
enum class Place : uint8_t { kAnywhere, kSentence, kTrigger };

// The answer at one place of the rationale.
struct Look {
  std::string answer;
  float confidence = 0;  // probability of its tokens
  int exact = 0;         // tokens of the rationale that were exact
  int approximate = 0;   // tokens that were not
  int accepted = 0;      // of those, how many turned exact with the step that follows, up to the first wrong
  bool named = false;    // the trigger is the model's own next choice: the chain is about to name its answer
  Place place = Place::kAnywhere;
  double seconds = 0;  // that the look took
};

struct GlanceResult {
  Generation rationale;
  bool glanced =
      false;  // false: the chain ended by itself, and the answer is in its text or drawn at its end
  bool out_of_budget = false;
  std::string answer;
  std::vector<Look> looks;  // the last is the one that counts
  double seconds = 0;       // from the prompt's end to the answer
  double agreement = 0;     // share of the last `stable` looks that gave the answer
};

// A decoding that can be looked at. The steps of generate(), one by one.
class Glancer {
 public:
  // The errors of generate(), and kInvalidArgument for a trigger without tokens.
  static Result<Glancer> create(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer,
                                std::span<const Token> prompt, const GenerateOptions& options,
                                const GlanceOptions& glance);
  Status prefill() { return decoding_.prefill(); }
  bool done() const { return decoding_.done(); }
  void cancel_if_asked() { decoding_.cancel_if_asked(); }
  // One window.
  Status step() { return step({}, nullptr); }
  // Has the chain said the trigger itself, or is in the middle of it? To ask once more only confuses it.
  bool said() const;
  // Draws the whole answer of a look that has its first token, if the chain is about to name it.
  Result<Look> named_answer(Look look);
  // The place that a look would be taken from now: what the exact text ends with, or likely guesses
  // (`approximate`: at most so many) reach, if it was not asked at yet.
  Place place(int approximate);
  // One window with the trigger behind it: a look that costs the trigger's rows. `look` gets the answer's
  // first token, or nothing (exact = 0) where the context has no room for the trigger.
  Status step_and_look(Look* look);
  // The answer now, with at most `approximate` guessed tokens before the trigger, or before what is left of
  // it where the exact text has begun it. Leaves the cache as it was. Stops where the answer's probability
  // falls below `least`. `accepted` is of the step that comes next.
  Result<Look> look(int approximate, float least = 0);
  // How many guesses of the last look are exact by now.
  int accepted(const Look& look) const;
  // Ends the rationale where it is.
  Generation finish() {
    decoding_.end(StopReason::kGlance);
    return decoding_.finish();
  }
  const std::vector<Token>& tokens() const { return decoding_.tokens(); }

 private:
  Glancer(Engine& engine, const Tokenizer& tokenizer, const GenerateOptions& options,
          const GlanceOptions& glance, Decoding decoding, std::vector<Token> trigger);

  // Guesses that are taken as the rationale's next tokens.
  struct Reach {
    int length = 0;
    Place place = Place::kAnywhere;
  };
  Reach reach(DraftLine line, int most) const;
  Status step(std::span<const Token> trigger, Look* look);
  // Tokens of the trigger that the exact text ends with.
  int begun() const;
  // Are the trigger's tokens the model's own choices, in the rows from `row` on?
  bool is_named(int row) const;
  // Adds the likeliest token of a row to the answer; true when it ends there.
  Result<bool> read_answer(std::span<const float> logits, std::vector<Token>* answer, Look* look) const;

  Engine* engine_;
  const Tokenizer* tokenizer_;
  const GenerateOptions* options_;
  const GlanceOptions* glance_;
  Decoding decoding_;
  std::vector<Token> trigger_;
  std::vector<Token> guesses_;  // of the last look
  int asked_ = -1;              // the place of the last look at a sentence's end, in tokens
  std::unique_ptr<StepCosts> own_costs_;
  StepCosts* costs_;
};

// Ends a sentence after which a question may stand: a full stop or its like, or a line's end.
bool ends_sentence(std::string_view text);

// The stop rule: do the last looks agree, and surely enough, or is the chain about to name the answer?
bool agreed(std::span<const Look> looks, const GlanceOptions& glance);

// Decodes the rationale until it ends, the rule stops it, or the budget is spent, and draws the answer.
Result<GlanceResult> glance(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer,
                            std::span<const Token> prompt, const GenerateOptions& options,
                            const GlanceOptions& glance);

}  // namespace frugal::llm
