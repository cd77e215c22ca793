#include "llm/decode/generate.h"

#include <algorithm>
#include <numeric>

#include "base/clock.h"
#include "base/text.h"
#include "llm/decode/decoding.h"

namespace frugal::llm {

namespace {

void add_share(Usage& to, const Usage& step, double share) {
  to.flops += share * step.flops;
  to.bytes_moved += share * step.bytes_moved;
  to.cpu_seconds += share * step.cpu_seconds;
  to.wall_seconds += share * step.wall_seconds;
  to.bytes_held = std::max(to.bytes_held, step.bytes_held);
}

}  // namespace

std::string_view stop_reason_name(StopReason reason) {
  switch (reason) {
    case StopReason::kEndOfGeneration:
      return "end_of_generation";
    case StopReason::kStopString:
      return "stop_string";
    case StopReason::kMaxTokens:
      return "max_tokens";
    case StopReason::kContextFull:
      return "context_full";
    case StopReason::kCallback:
      return "callback";
    case StopReason::kCancelled:
      return "cancelled";
    case StopReason::kGlance:
      return "glance";
  }
  return "unknown";
}

size_t common_prefix(std::span<const Token> a, std::span<const Token> b) {
  const size_t n = std::min(a.size(), b.size());
  return static_cast<size_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<ptrdiff_t>(n), b.begin()).first - a.begin());
}

int DraftStats::n_drafted() const { return std::accumulate(drafted.begin(), drafted.end(), 0); }
int DraftStats::n_accepted() const { return std::accumulate(accepted.begin(), accepted.end(), 0); }

Result<Generation> generate(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer,
                            std::span<const Token> prompt, const GenerateOptions& options) {
  const Usage before = engine.usage();
  FRUGAL_TRY(Decoding decoding, Decoding::create(engine, sequence, tokenizer, prompt, options));
  FRUGAL_TRY_STATUS(decoding.prefill());
  StepCosts own_costs;
  StepCosts& costs = options.decode.costs != nullptr ? *options.decode.costs : own_costs;
  while (!decoding.done()) {
    decoding.cancel_if_asked();
    if (decoding.done()) break;
    const DraftLine line = decoding.propose();
    int length = static_cast<int>(line.size());
    if (!options.decode.fixed) choose_lengths(costs, {&line, 1}, length + 1, {&length, 1});
    const BatchItem window = decoding.window(length);
    const double begin = wall_seconds();
    FRUGAL_TRY_STATUS(engine.forward({&window, 1}));
    costs.add(length + 1, wall_seconds() - begin);
    FRUGAL_TRY_STATUS(decoding.consume(0));
    decoding.show();
  }
  Generation out = decoding.finish();
  out.usage = usage_difference(engine.usage(), before);
  return out;
}

namespace {

// Lengths for all that still decode: fixed ones as asked, the rest as the costs say.
void plan(std::span<const GenerateRequest> requests, std::span<const size_t> active,
          std::span<const DraftLine> lines, const StepCosts& costs, int most_rows, std::span<int> lengths) {
  bool fixed = false;
  for (const size_t idx : active) fixed = fixed || requests[idx].options.decode.fixed;
  if (!fixed) return choose_lengths(costs, lines, most_rows, lengths);
  int room = most_rows - static_cast<int>(active.size());
  for (size_t i = 0; i < active.size(); ++i) {
    lengths[i] = std::min(room, static_cast<int>(lines[i].size()));
    room -= lengths[i];
  }
}

}  // namespace

Result<std::vector<Generation>> generate_batch(Engine& engine, const Tokenizer& tokenizer,
                                               std::span<const GenerateRequest> requests) {
  const int most_rows = std::min(engine.options().max_rows, engine.options().max_logit_rows);
  if (requests.size() > static_cast<size_t>(most_rows)) {
    return {ErrorCode::kOutOfRange,
            strf("%zu requests at once, and a forward has %d rows with logits; raise max_logit_rows",
                 requests.size(), most_rows)};
  }
  std::vector<Decoding> decodings;
  std::vector<Usage> usages(requests.size());
  decodings.reserve(requests.size());
  std::vector<size_t> active;
  StepCosts own_costs;
  StepCosts* costs = &own_costs;
  for (size_t i = 0; i < requests.size(); ++i) {
    const GenerateRequest& request = requests[i];
    const Usage before = engine.usage();
    FRUGAL_TRY(Decoding made,
               Decoding::create(engine, request.sequence, tokenizer, request.prompt, request.options));
    decodings.push_back(std::move(made));
    FRUGAL_TRY_STATUS(decodings.back().prefill());
    usages[i] = usage_difference(engine.usage(), before);
    if (!decodings.back().done()) active.push_back(i);
    if (request.options.decode.costs != nullptr) costs = request.options.decode.costs;
  }
  std::vector<DraftLine> lines;
  std::vector<BatchItem> items;
  std::vector<int> lengths;
  const auto drop_done = [&] { std::erase_if(active, [&](size_t idx) { return decodings[idx].done(); }); };
  while (true) {
    for (const size_t idx : active) decodings[idx].cancel_if_asked();
    drop_done();
    if (active.empty()) break;
    lines.clear();
    items.clear();
    for (const size_t idx : active) lines.push_back(decodings[idx].propose());
    lengths.assign(active.size(), 0);
    plan(requests, active, lines, *costs, most_rows, lengths);
    int n_rows = 0;
    for (size_t i = 0; i < active.size(); ++i) {
      items.push_back(decodings[active[i]].window(lengths[i]));
      n_rows += lengths[i] + 1;
    }
    const Usage before = engine.usage();
    const double begin = wall_seconds();
    FRUGAL_TRY_STATUS(engine.forward(items));
    costs->add(n_rows, wall_seconds() - begin);
    const Usage step = usage_difference(engine.usage(), before);
    int row = 0;
    for (size_t i = 0; i < active.size(); ++i) {
      FRUGAL_TRY_STATUS(decodings[active[i]].consume(row));
      add_share(usages[active[i]], step, (lengths[i] + 1.0) / n_rows);
      row += lengths[i] + 1;
    }
  }
  std::vector<Generation> out;
  for (size_t i = 0; i < decodings.size(); ++i) {
    out.push_back(decodings[i].finish());
    out.back().usage = usages[i];
  }
  return out;
}

}  // namespace frugal::llm
