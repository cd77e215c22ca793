#include "llm/decode/drafts.h"

#include <algorithm>

#include "base/check.h"
#include "llm/decode/draft_priors.h"

namespace frugal::llm {

namespace {

constexpr size_t kTrajectorySlots = 4096, kRecycledSlots = 16384;  // powers of two
constexpr int kLongestLine = 64;
// Contexts of a place that are looked at, the longest first; shorter ones rarely know better.
constexpr int kContexts = 6;
// Observations that the prior is worth.
constexpr float kPriorWeight = 12;
// Misses that the prior of their scale is worth, and what a draft keeps of its weight when the next comes.
constexpr float kScaleWeight = 2, kFade = 0.95f;

int length_class(int length) {
  constexpr int kAtMost[] = {1, 2, 3, 4, 6, 9, 15, 31};
  int idx = 0;
  while (idx < kLengthClasses - 1 && length > kAtMost[idx]) ++idx;
  return idx;
}

// `count` of `total` continuations of a context are the candidate.
int count_class(int count, int total) {
  if (count >= total) return total <= 1 ? 0 : total == 2 ? 1 : 2;
  const float share = static_cast<float>(count) / static_cast<float>(total);
  return share >= 0.66f ? 3 : share >= 0.4f ? 4 : 5;
}

size_t slot_of(Token before, Token token, size_t n_slots) {
  const uint64_t key =
      static_cast<uint64_t>(static_cast<uint32_t>(before)) << 32 | static_cast<uint32_t>(token);
  return static_cast<size_t>((key ^ key >> 31) * 0x9e3779b97f4a7c15ull >> 24) & (n_slots - 1);
}

}  // namespace

std::string_view draft_source_name(DraftSource source) {
  switch (source) {
    case DraftSource::kText:
      return "text";
    case DraftSource::kPool:
      return "pool";
    case DraftSource::kTrajectory:
      return "trajectory";
    case DraftSource::kRecycled:
      return "recycled";
  }
  return "unknown";
}

void AcceptanceTable::clear() {
  std::copy(std::begin(kDraftPriors), std::end(kDraftPriors), rates_.begin());
  missed_ = expected_misses_ = 0;
  tried_.fill(0);
  accepted_.fill(0);
}

float AcceptanceTable::rate(int bucket) const {
  const float scale = (missed_ + kScaleWeight) / (expected_misses_ + kScaleWeight);
  const float miss = (1 - rates_[static_cast<size_t>(bucket)]) * std::clamp(scale, 0.5f, 4.0f);
  return std::max(0.01f, 1 - miss);
}

void AcceptanceTable::add(int bucket, bool accepted) {
  const auto idx = static_cast<size_t>(bucket);
  missed_ = kFade * missed_ + (accepted ? 0.0f : 1.0f);
  expected_misses_ = kFade * expected_misses_ + 1 - rates_[idx];
  ++tried_[idx];
  accepted_[idx] += accepted ? 1 : 0;
  rates_[idx] = (kPriorWeight * kDraftPriors[idx] + static_cast<float>(accepted_[idx])) /
                (kPriorWeight + static_cast<float>(tried_[idx]));
}

OutputPool::OutputPool(size_t max_tokens) : max_tokens_(max_tokens), automaton_(max_tokens) {
  tokens_.reserve(max_tokens);
}

void OutputPool::add(std::span<const Token> output) {
  output = output.first(std::min(output.size(), max_tokens_ / 2));
  if (tokens_.size() + output.size() + 1 > max_tokens_) {
    const size_t kept = std::min(tokens_.size(), max_tokens_ / 2 - 1);
    tokens_.erase(tokens_.begin(), tokens_.end() - static_cast<ptrdiff_t>(kept));
    automaton_.clear();
    for (const Token token : tokens_) automaton_.push(token);
  }
  ++generation_;
  // -1 stands between outputs: no suffix reaches over the border.
  tokens_.push_back(-1);
  tokens_.insert(tokens_.end(), output.begin(), output.end());
  for (size_t i = tokens_.size() - output.size() - 1; i < tokens_.size(); ++i) automaton_.push(tokens_[i]);
}

Drafts::Drafts(const DraftOptions& options, size_t max_tokens)
    : options_(options), text_(options.text ? max_tokens : 0) {
  if (options_.trajectory) trajectory_.resize(kTrajectorySlots);
  if (options_.recycled) recycled_.resize(kRecycledSlots);
  line_.reserve(kLongestLine);
}

void Drafts::push(Token token) {
  if (options_.text) text_.push(token);
  learn_pool();
  if (options_.pool != nullptr) advance(options_.pool->automaton(), in_pool_, token);
  before_ = last_;
  last_ = token;
}

// A pool that has grown since has other classes: the place in it is found again within a few tokens.
void Drafts::learn_pool() {
  if (options_.pool == nullptr || options_.pool->generation() == pool_generation_) return;
  pool_generation_ = options_.pool->generation();
  in_pool_ = {};
}

void Drafts::advance(const SuffixAutomaton& automaton, Place& place, Token token) {
  while (true) {
    const SuffixAutomaton::State next = automaton.step(place.state, token);
    if (next >= 0) {
      place.state = next;
      ++place.length;
      return;
    }
    if (place.state == SuffixAutomaton::kRoot) {
      place.length = 0;
      return;
    }
    place.state = automaton.link(place.state);
    place.length = automaton.length(place.state);
  }
}

void Drafts::offer(DraftToken& best, Token token, DraftSource source, int bucket) const {
  const float rate = acceptance_.rate(bucket);
  if (rate <= best.confidence) return;
  best = {token, rate, source, static_cast<uint8_t>(bucket)};
}

void Drafts::offer_from(const SuffixAutomaton& automaton, Place place, DraftSource source,
                        DraftToken& best) const {
  const int first_bucket = source == DraftSource::kPool ? kTextBuckets : 0;
  SuffixAutomaton::State state = place.state;
  int length = place.length;
  for (int i = 0; i < kContexts && state > SuffixAutomaton::kRoot;) {
    int total = 0, most = 0, latest = 0;
    Token token = -1;
    automaton.for_each_edge(state, [&](const SuffixAutomaton::Edge& edge) {
      if (edge.token < 0) return;  // the border between outputs of a pool
      const int count = std::max(1, automaton.count(edge.target));
      const int end = automaton.last_end(edge.target);
      total += count;
      if (count > most || (count == most && end > latest)) {
        most = count;
        latest = end;
        token = edge.token;
      }
    });
    if (token >= 0) {
      offer(best, token, source,
            first_bucket + length_class(length) * kCountClasses + count_class(most, total));
      ++i;
    }
    state = automaton.link(state);
    length = automaton.length(state);
  }
}

void Drafts::offer_computed(Token before, Token token, DraftToken& best) const {
  if (options_.trajectory) {
    const Guess& guess = trajectory_[slot_of(before, token, kTrajectorySlots)];
    if (guess.token == token && guess.before == before)
      offer(best, guess.next, DraftSource::kTrajectory, kTrajectoryBucket);
  }
  if (options_.recycled) {
    const Guess& guess = recycled_[slot_of(-1, token, kRecycledSlots)];
    if (guess.token == token) offer(best, guess.next, DraftSource::kRecycled, kRecycledBucket);
  }
}

std::span<const DraftToken> Drafts::propose(int n) {
  line_.clear();
  if (last_ < 0) return line_;
  Token before = before_, last = last_;
  Place in_text{text_.earlier(), 0}, in_pool = in_pool_;
  if (options_.text && !text_.full()) {
    in_text.length = text_.length(in_text.state);
  } else {
    in_text = {};
  }
  for (int i = 0; i < std::min(n, kLongestLine); ++i) {
    DraftToken best;
    offer_from(text_, in_text, DraftSource::kText, best);
    if (options_.pool != nullptr) offer_from(options_.pool->automaton(), in_pool, DraftSource::kPool, best);
    offer_computed(before, last, best);
    if (best.token < 0) break;
    line_.push_back(best);
    if (options_.text) advance(text_, in_text, best.token);
    if (options_.pool != nullptr) advance(options_.pool->automaton(), in_pool, best.token);
    before = last;
    last = best.token;
  }
  return line_;
}

void Drafts::judge(std::span<const DraftToken> draft, int accepted, bool rejected) {
  FRUGAL_DCHECK(accepted + (rejected ? 1 : 0) <= static_cast<int>(draft.size()));
  for (int i = 0; i < accepted + (rejected ? 1 : 0); ++i)
    acceptance_.add(draft[static_cast<size_t>(i)].bucket, i < accepted);
}

void Drafts::observe(Token before, Token token, Token chosen, bool exact) {
  if (options_.trajectory && !exact)
    trajectory_[slot_of(before, token, kTrajectorySlots)] = {before, token, chosen};
  if (options_.recycled) recycled_[slot_of(-1, token, kRecycledSlots)] = {-1, token, chosen};
}

}  // namespace frugal::llm
