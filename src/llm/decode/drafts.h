// Drafts: guesses of the next tokens of one sequence, from nothing but what it has said and computed itself.
//
// Every place of a draft is offered candidates by several sources: what followed the longest suffixes of
// prompt and output earlier (suffix automaton), what followed them in earlier outputs of the same task (a
// pool, only if the caller lends one), what the model itself computed after the same two tokens in rows that
// were rejected (the Jacobi trajectory), and what it last computed after the same token (token recycling, Luo
// et al. 2024). Each candidate falls into a bucket of its source and evidence; the acceptance of a bucket is
// estimated while decoding, from a prior that was fitted once. The likeliest candidate is taken, and its
// estimate is the confidence that decides how long the draft may be.
//
// A draft never changes an answer; it changes how many forward passes the answer takes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "frugal/llm.h"
#include "llm/decode/suffix_automaton.h"

namespace frugal::llm {

enum class DraftSource : uint8_t { kText, kPool, kTrajectory, kRecycled };
inline constexpr int kDraftSources = 4;
// "text", "pool", "trajectory", "recycled"
std::string_view draft_source_name(DraftSource source);

struct DraftToken {
  Token token = -1;
  float confidence = 0;  // estimated probability that it is accepted, given that those before it are
  DraftSource source = DraftSource::kText;
  uint8_t bucket = 0;
};

// Buckets of evidence: classes of match length x classes of agreement for text and pool, a few for the rest.
inline constexpr int kLengthClasses = 9, kCountClasses = 6;
inline constexpr int kTextBuckets = kLengthClasses * kCountClasses;
inline constexpr int kTrajectoryBucket = 2 * kTextBuckets;
inline constexpr int kRecycledBucket = kTrajectoryBucket + 2;
inline constexpr int kDraftBuckets = kRecycledBucket + 4;

// Share of drafts accepted, by bucket: a prior worth a few observations, and what was seen since. Requests
// differ more than buckets show (a chain of thought after examples, a chat without any), so the chance of a
// miss is also scaled by how many of the last drafts missed, against how many should have.
class AcceptanceTable {
 public:
  AcceptanceTable() { clear(); }
  void clear();  // back to the prior
  void add(int bucket, bool accepted);
  float rate(int bucket) const;
  int tried(int bucket) const { return tried_[static_cast<size_t>(bucket)]; }
  int accepted(int bucket) const { return accepted_[static_cast<size_t>(bucket)]; }

 private:
  std::array<float, kDraftBuckets> rates_{};
  float missed_ = 0, expected_misses_ = 0;  // of the last drafts, older ones fading
  std::array<int, kDraftBuckets> tried_{}, accepted_{};
};

// Outputs of earlier requests of one task and tenant. Who lends it to requests decides who shares their
// speed; answers are the same with and without it. Bounded: when it is full the older half is forgotten.
class OutputPool {
 public:
  explicit OutputPool(size_t max_tokens = 32768);
  void add(std::span<const Token> output);
  const SuffixAutomaton& automaton() const { return automaton_; }
  uint64_t generation() const { return generation_; }  // changes when states of before mean nothing any more
  size_t size() const { return tokens_.size(); }

 private:
  size_t max_tokens_;
  uint64_t generation_ = 0;
  std::vector<Token> tokens_;
  SuffixAutomaton automaton_;
};

struct DraftOptions {
  bool text = true;                        // suffixes of prompt and output
  bool trajectory = true;                  // rows computed after a rejected token
  bool recycled = true;                    // successors of single tokens
  std::shared_ptr<const OutputPool> pool;  // null: none
};

// The drafter of one sequence. Bounded memory, taken when it is made; a draft allocates nothing.
class Drafts {
 public:
  // `max_tokens`: of prompt and output together; what comes after is not learnt.
  Drafts(const DraftOptions& options, size_t max_tokens);

  // An exact token: of the prompt, or decoded.
  void push(Token token);

  // At most `n` guesses of what follows the tokens pushed; the best line, weakest tails included, until no
  // source has a candidate. Valid until the next call.
  std::span<const DraftToken> propose(int n);

  // What became of a draft: its first `accepted` tokens were right, and if `rejected`, the one after was
  // wrong (false: nothing after was judged).
  void judge(std::span<const DraftToken> draft, int accepted, bool rejected);

  // The model's own choice after `token` whose predecessor was `before`, in a row of a window. `exact`: all
  // tokens before were right.
  void observe(Token before, Token token, Token chosen, bool exact);

  const AcceptanceTable& acceptance() const { return acceptance_; }
  AcceptanceTable& acceptance() { return acceptance_; }

 private:
  struct Place {  // where a line stands within an automaton
    SuffixAutomaton::State state = SuffixAutomaton::kRoot;
    int length = 0;
  };
  struct Guess {
    Token before = -1, token = -1, next = -1;
  };
  static void advance(const SuffixAutomaton& automaton, Place& place, Token token);
  void offer(DraftToken& best, Token token, DraftSource source, int bucket) const;
  void offer_from(const SuffixAutomaton& automaton, Place place, DraftSource source, DraftToken& best) const;
  void offer_computed(Token before, Token token, DraftToken& best) const;
  void learn_pool();

  DraftOptions options_;
  SuffixAutomaton text_;
  Place in_pool_;
  uint64_t pool_generation_ = 0;
  Token before_ = -1, last_ = -1;  // the last two tokens pushed
  std::vector<Guess> trajectory_;  // direct-mapped by the pair of tokens
  std::vector<Guess> recycled_;    // direct-mapped by the token
  AcceptanceTable acceptance_;
  std::vector<DraftToken> line_;
};

}  // namespace frugal::llm
