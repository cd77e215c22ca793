#include "cli/cot_record.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/text.h"
#include "cli/child_process.h"
#include "cli/console.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::cli {

namespace {

using Json = nlohmann::ordered_json;
using llm::Token;

Json timing_json(const CotTiming& timing) {
  return {{"s", timing.seconds},
          {"chain_s", timing.chain_seconds},
          {"j", timing.joules},
          {"tokens", timing.tokens},
          {"forwards", timing.forwards}};
}

CotTiming parse_timing(const Json& json) {
  return {json.at("s").get<double>(), json.at("chain_s").get<double>(), json.at("j").get<double>(),
          json.at("tokens").get<int>(), json.at("forwards").get<int>()};
}

Json timings_json(const std::map<std::string, CotTiming>& timings) {
  Json json = Json::object();
  for (const auto& [name, timing] : timings) json[name] = timing_json(timing);
  return json;
}

std::map<std::string, CotTiming> parse_timings(const Json& json, const char* key) {
  std::map<std::string, CotTiming> timings;
  if (!json.contains(key)) return timings;
  for (const auto& [name, timing] : json.at(key).items()) timings[name] = parse_timing(timing);
  return timings;
}

Json side_json(const CotLook::Side& side) {
  return {side.answer,  side.confidence, side.named, static_cast<int>(side.place),
          side.seconds, side.elapsed_s};
}

CotLook::Side parse_side(const Json& json) {
  return {json.at(0).get<std::string>(), json.at(1).get<float>(),
          json.at(2).get<bool>(),        static_cast<llm::Place>(std::clamp(json.at(3).get<int>(), 0, 2)),
          json.at(4).get<double>(),      json.at(5).get<double>()};
}

Json glance_json(const CotGlance& glance) {
  return {{"s", glance.seconds}, {"answer", glance.answer}, {"glanced", glance.glanced}};
}

std::optional<CotGlance> parse_glance(const Json& json, const char* key) {
  if (!json.contains(key)) return std::nullopt;
  const Json& one = json.at(key);
  return CotGlance{one.at("s").get<double>(), one.at("answer").get<std::string>(),
                   one.at("glanced").get<bool>()};
}

CotRecord from_json(const Json& json) {
  CotRecord record;
  record.key = json.at("key").get<std::string>();
  record.task = json.at("task").get<std::string>();
  record.index = json.at("index").get<int>();
  record.greedy = parse_timing(json.at("greedy"));
  record.exact = parse_timing(json.at("exact"));
  if (json.contains("peer")) record.peer = parse_timing(json.at("peer"));
  if (json.contains("pooled")) record.pooled = parse_timing(json.at("pooled"));
  record.speculators = parse_timings(json, "speculators");
  record.variants = parse_timings(json, "variants");
  record.tokens = json.at("output").get<std::vector<Token>>();
  record.same = json.at("same").get<bool>();
  record.chain_tokens = json.at("chain_tokens").get<int>();
  record.drafted = json.at("drafted").get<std::array<int, llm::kDraftSources>>();
  record.accepted = json.at("accepted").get<std::array<int, llm::kDraftSources>>();
  record.answer = json.at("answer").get<std::string>();
  record.truth = json.at("truth").get<std::string>();
  record.correct = json.at("correct").get<bool>();
  record.chain_s = json.at("trace_s").get<double>();
  for (const Json& look : json.at("looks")) {
    record.looks.push_back({look.at(0).get<int>(), look.at(1).get<int>(), look.at(2).get<int>(),
                            parse_side(look.at(3)), parse_side(look.at(4))});
  }
  record.glance = parse_glance(json, "glance");
  record.trunc = parse_glance(json, "trunc");
  return record;
}

}  // namespace

std::string record_json(const CotRecord& record) {
  Json looks = Json::array();
  for (const CotLook& look : record.looks) {
    looks.push_back(
        {look.exact, look.approximate, look.accepted, side_json(look.glance), side_json(look.trunc)});
  }
  Json json = {{"key", record.key},
               {"task", record.task},
               {"index", record.index},
               {"greedy", timing_json(record.greedy)},
               {"exact", timing_json(record.exact)},
               {"same", record.same},
               {"chain_tokens", record.chain_tokens},
               {"drafted", record.drafted},
               {"accepted", record.accepted},
               {"answer", record.answer},
               {"truth", record.truth},
               {"correct", record.correct},
               {"trace_s", record.chain_s},
               {"looks", looks},
               {"output", record.tokens}};
  if (record.peer) json["peer"] = timing_json(*record.peer);
  if (record.pooled) json["pooled"] = timing_json(*record.pooled);
  if (record.glance) json["glance"] = glance_json(*record.glance);
  if (record.trunc) json["trunc"] = glance_json(*record.trunc);
  if (!record.speculators.empty()) json["speculators"] = timings_json(record.speculators);
  if (!record.variants.empty()) json["variants"] = timings_json(record.variants);
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<CotRecord> parse_record(std::string_view line) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Error{ErrorCode::kCorrupt, "not a JSON object"};
  try {
    return from_json(json);
  } catch (const Json::exception& fault) {
    return Error{ErrorCode::kCorrupt, fault.what()};
  }
}

Status CotRunner::open() {
  FRUGAL_TRY(greedy_, engine_.open_sequence());
  FRUGAL_TRY(exact_, engine_.open_sequence());
  return {};
}

void CotRunner::remember(const CotRecord& record) {
  std::shared_ptr<llm::OutputPool>& pool = pools_[record.task];
  if (pool == nullptr) pool = std::make_shared<llm::OutputPool>();
  pool->add(record.tokens);
}

Result<llm::Generation> CotRunner::decode(llm::SequenceId sequence, const std::vector<Token>& prompt,
                                          const llm::DecodeOptions& decode, CotTiming* timing) {
  llm::GenerateOptions options;
  options.decode = decode;
  options.decode.costs = &costs_;
  options.max_tokens = setup_.max_tokens;
  options.ignore_end = setup_.fixed_length;
  if (!setup_.fixed_length) options.stop = {std::string(kCotStop)};
  options.cancel = &interrupted();
  std::vector<std::pair<size_t, double>> shown;  // bytes of text by time
  size_t n_bytes = 0;
  double begin = setup_.clock();
  options.on_prefill = [&](int, int) {
    begin = setup_.clock();
    return true;
  };
  options.on_text = [&](std::string_view part) {
    shown.emplace_back(n_bytes += part.size(), setup_.clock());
    return true;
  };
  const meter::Snapshot before = meter_.snapshot();
  FRUGAL_TRY(llm::Generation out,
             llm::generate(engine_, sequence, engine_.model().tokenizer(), prompt, options));
  timing->seconds = timing->chain_seconds = setup_.clock() - begin;
  if (out.stop == llm::StopReason::kCancelled) return Error{ErrorCode::kCancelled, "interrupted"};
  meter_.charge(before, out.usage);
  FRUGAL_TRY(const std::string chain, chain_of(out));
  for (const auto& [bytes, at] : shown) {
    if (bytes <= chain.size() || chain.size() == out.text.size()) continue;
    timing->chain_seconds = at - begin;
    break;
  }
  timing->joules = out.usage.energy_j.value;
  timing->tokens = static_cast<int>(out.tokens.size());
  timing->forwards = out.decode_forwards;
  return out;
}

Result<std::string> CotRunner::chain_of(const llm::Generation& out) const {
  const llm::Tokenizer& tokenizer = engine_.model().tokenizer();
  const auto end = std::find_if(out.tokens.begin(), out.tokens.end(),
                                [&](Token token) { return tokenizer.is_end_of_generation(token); });
  FRUGAL_TRY(const std::string text, tokenizer.decode({out.tokens.begin(), end}));
  return text.substr(0, text.find(kCotStop));
}

Status CotRunner::run_peer(const std::vector<Token>& prompt, int n_tokens, CotTiming* timing) {
  const size_t kept = std::min(llm::common_prefix(peer_tokens_, prompt), prompt.size() - 1);
  peer_->truncate(static_cast<int>(kept));
  FRUGAL_TRY_STATUS(peer_->forward(std::span(prompt).subspan(kept)));
  peer_tokens_ = prompt;
  const double begin = wall_seconds();
  Token token = llm::likeliest_token(peer_->logits());
  for (int i = 1; i < n_tokens; ++i) {
    FRUGAL_TRY_STATUS(peer_->forward({&token, 1}));
    token = llm::likeliest_token(peer_->logits());
  }
  timing->seconds = timing->chain_seconds = wall_seconds() - begin;
  timing->tokens = n_tokens;
  timing->forwards = n_tokens - 1;
  return {};
}

// Each as a process of its own, which loads the model; its own figure of the decoding time counts.
void CotRunner::run_speculators(const std::string& prompt, CotRecord* record) {
  for (const std::string& command : setup_.speculators) {
    if (interrupted()) return;
    const auto said = run_llama_speculation(command, engine_.model().info().path, prompt,
                                            record->exact.tokens, engine_.options().n_threads);
    CotTiming& timing = record->speculators[std::filesystem::path(command).filename().string()];
    if (!said.ok()) continue;
    timing.seconds = timing.chain_seconds = said->seconds;
    timing.tokens = said->tokens;
  }
}

Status CotRunner::time_ways(const std::vector<Token>& prompt, CotRecord* record, llm::Generation* greedy) {
  struct Way {
    llm::DecodeOptions decode;
    CotTiming* timing;
  };
  std::vector<Way> ways = {{setup_.decode, &record->greedy}, {setup_.decode, &record->exact}};
  ways[0].decode.max_draft = 0;
  if (setup_.pool) {
    ways.push_back({setup_.decode, &record->pooled.emplace()});
    ways[2].decode.drafts.pool = pools_[record->task];
  }
  record->same = true;
  std::optional<llm::Generation> first;
  // In turn, so that none always runs on a warmer machine.
  for (int rep = 0; rep < setup_.reps; ++rep) {
    for (size_t i = 0; i < ways.size(); ++i) {
      const size_t idx = (i + static_cast<size_t>(rep + record->index)) % ways.size();
      CotTiming timing;
      FRUGAL_TRY(llm::Generation out, decode(idx == 0 ? greedy_ : exact_, prompt, ways[idx].decode, &timing));
      if (rep == 0 || timing.seconds < ways[idx].timing->seconds) *ways[idx].timing = timing;
      if (idx == 1) {
        record->drafted = out.drafts.drafted;
        record->accepted = out.drafts.accepted;
      }
      if (first) record->same = record->same && out.tokens == first->tokens && out.text == first->text;
      if (idx == 0 && rep == 0) *greedy = out;
      if (!first) first = std::move(out);
    }
  }
  record->tokens = greedy->tokens;
  return {};
}

Status CotRunner::time_variants(const std::vector<Token>& prompt, CotRecord* record) {
  const auto time = [&](const std::string& name, const llm::DecodeOptions& options) -> Status {
    FRUGAL_TRY(const llm::Generation out, decode(exact_, prompt, options, &record->variants[name]));
    record->same = record->same && out.tokens == record->tokens;
    return {};
  };
  for (const int window : {1, 2, 3, 4, 6, 8, 12, 16}) {
    for (const bool fixed : {false, true}) {
      llm::DecodeOptions options = setup_.decode;
      options.max_draft = window;
      options.fixed = fixed;
      FRUGAL_TRY_STATUS(time(strf("window %2d%s", window, fixed ? ", fixed" : ""), options));
    }
  }
  for (const llm::DraftSource source : {llm::DraftSource::kText, llm::DraftSource::kPool,
                                        llm::DraftSource::kTrajectory, llm::DraftSource::kRecycled}) {
    llm::DecodeOptions options = setup_.decode;
    options.drafts.text = source == llm::DraftSource::kText;
    options.drafts.trajectory = source == llm::DraftSource::kTrajectory;
    options.drafts.recycled = source == llm::DraftSource::kRecycled;
    if (source == llm::DraftSource::kPool) options.drafts.pool = pools_[record->task];
    FRUGAL_TRY_STATUS(time("only " + std::string(llm::draft_source_name(source)), options));
  }
  return {};
}

llm::GenerateOptions CotRunner::rationale_options() {
  llm::GenerateOptions options;
  options.decode = setup_.decode;
  options.decode.costs = &costs_;
  options.max_tokens = setup_.max_tokens;
  options.stop = {std::string(kCotStop)};
  return options;
}

Status CotRunner::trace(const CotQuestion& question, const std::vector<Token>& prompt, CotRecord* record) {
  const llm::GenerateOptions options = rationale_options();
  llm::GlanceOptions glance;
  glance.trigger = cot_trigger(question.task);
  glance.answer_tokens = cot_answer_tokens(question.task);
  glance.clock = setup_.clock;
  const auto side = [&](const llm::Look& look, double elapsed_s) {
    return CotLook::Side{cot_normal(question.task, look.answer),
                         look.confidence,
                         look.named,
                         look.place,
                         look.seconds,
                         elapsed_s};
  };
  FRUGAL_TRY(auto glancer,
             llm::Glancer::create(engine_, exact_, engine_.model().tokenizer(), prompt, options, glance));
  FRUGAL_TRY_STATUS(glancer.prefill());
  int next = setup_.every;
  while (!glancer.done()) {
    const int n = static_cast<int>(glancer.tokens().size());
    llm::Look with;
    CotLook look;
    const llm::Place place = glancer.said() ? llm::Place::kAnywhere : glancer.place(glance.approximate);
    const bool asks = !glancer.said() && (n >= next || place != llm::Place::kAnywhere);
    if (asks) {
      next = n + setup_.every;
      FRUGAL_TRY(const llm::Look without, glancer.look(0));
      look.trunc = side(without, record->chain_s);
    }
    const double begin = setup_.clock();
    if (!asks) {
      FRUGAL_TRY_STATUS(glancer.step());
    } else if (glance.answer_tokens == 1 || place == llm::Place::kTrigger) {  // as llm::glance()
      FRUGAL_TRY_STATUS(glancer.step_and_look(&with));
      if (glance.answer_tokens > 1) {
        FRUGAL_TRY(with, glancer.named_answer(std::move(with)));
      }
    } else {
      FRUGAL_TRY(with, glancer.look(glance.approximate));
      FRUGAL_TRY_STATUS(glancer.step());
      with.accepted = glancer.accepted(with);
    }
    record->chain_s += setup_.clock() - begin - with.seconds;
    if (with.exact == 0) continue;
    look.exact = with.exact;
    look.approximate = with.approximate;
    look.accepted = with.accepted;
    look.glance = side(with, record->chain_s);
    record->looks.push_back(std::move(look));
  }
  if (record->answer.empty()) {  // a chain that names no answer is asked for it at its end
    auto last = glancer.look(0);
    if (last.ok()) record->answer = cot_normal(question.task, last->answer);
  }
  return {};
}

Result<CotGlance> CotRunner::run_glance(const CotQuestion& question, const CotRule& rule, bool trunc) {
  const llm::Tokenizer& tokenizer = engine_.model().tokenizer();
  FRUGAL_TRY(const std::vector<Token> prompt,
             tokenizer.encode(cot_prompt(question, setup_.n_shots), true, false));
  llm::GlanceOptions glance;
  glance.trigger = cot_trigger(question.task);
  glance.answer_tokens = cot_answer_tokens(question.task);
  glance.clock = setup_.clock;
  glance.approximate = trunc ? 0 : llm::kLongestDraft;
  glance.sentences = rule.place != llm::Place::kTrigger;
  glance.every = rule.place == llm::Place::kAnywhere ? setup_.every : 0;
  glance.first = 1;
  glance.stable = rule.stable;
  glance.confidence = rule.confidence;
  glance.wrong = rule.wrong;
  llm::GenerateOptions options = rationale_options();
  options.cancel = &interrupted();
  FRUGAL_TRY(const llm::GlanceResult result,
             llm::glance(engine_, exact_, tokenizer, prompt, options, glance));
  if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
  CotGlance out;
  out.seconds = result.seconds;
  out.glanced = result.glanced;
  // A chain that went on to its end names its answer itself.
  if (!result.glanced) out.answer = cot_answer(question.task, result.rationale.text);
  if (out.answer.empty()) out.answer = cot_normal(question.task, result.answer);
  return out;
}

Result<CotRecord> CotRunner::run(const CotQuestion& question, int index, bool with_peer) {
  const llm::Tokenizer& tokenizer = engine_.model().tokenizer();
  FRUGAL_TRY(
      const std::vector<Token> prompt,
      tokenizer.encode(cot_prompt(question, setup_.n_shots), /*add_special=*/true, /*parse_special=*/false));
  CotRecord record;
  record.key = strf("%s/%d", question.task.c_str(), index);
  record.task = question.task;
  record.index = index;
  llm::Generation greedy;
  FRUGAL_TRY_STATUS(time_ways(prompt, &record, &greedy));
  FRUGAL_TRY(const std::string chain, chain_of(greedy));
  FRUGAL_TRY(const std::vector<Token> chain_tokens, tokenizer.encode(chain, false, false));
  record.chain_tokens = static_cast<int>(chain_tokens.size());
  record.answer = cot_answer(question.task, chain);
  if (with_peer && peer_ != nullptr) {
    record.peer.emplace();
    FRUGAL_TRY_STATUS(run_peer(prompt, record.exact.tokens, &*record.peer));
    run_speculators(cot_prompt(question, setup_.n_shots), &record);
  }
  if (with_peer && setup_.curves) FRUGAL_TRY_STATUS(time_variants(prompt, &record));
  if (setup_.glance && !is_repetitive(question.task)) FRUGAL_TRY_STATUS(trace(question, prompt, &record));
  record.truth = cot_normal(question.task, question.answer);
  record.correct = !record.answer.empty() && record.answer == record.truth;
  remember(record);
  if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
  return record;
}

}  // namespace frugal::cli
