#include "cli/answer.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/glance_answer.h"
#include "cli/meter_setup.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::cli {

namespace {

using llm::Token;

// The user's message with the document before it.
std::string with_document(const Question& question, std::string_view document) {
  if (document.empty()) return question.text;
  if (question.text.empty()) return std::string(document);
  return std::string(document) + "\n\n" + question.text;
}

Result<std::vector<Token>> encode_question(const llm::Model& model, const Question& question, bool chat,
                                           std::string_view document) {
  const llm::Tokenizer& tokenizer = model.tokenizer();
  const std::string text = with_document(question, document);
  if (!chat) return tokenizer.encode(text, /*add_special=*/true, /*parse_special=*/false);
  std::vector<llm::ChatMessage> messages;
  if (!question.system.empty()) messages.push_back({"system", question.system});
  for (const Turn& turn : question.history) messages.push_back({turn.role, turn.text});
  messages.push_back({"user", text});
  FRUGAL_TRY(const std::string prompt,
             tokenizer.apply_chat_template(messages, /*add_generation_prompt=*/true));
  return tokenizer.encode(prompt, /*add_special=*/true, /*parse_special=*/true);
}

// The longest beginning of the document with which the question fits `limit` tokens: a search by halves,
// since a longer text has at least nearly as many tokens, checked at the end.
Result<Prompt> cut_to_fit(const llm::Model& model, const Question& question, bool chat, size_t limit) {
  Prompt best;
  best.chat = chat;
  size_t low = 0, high = question.document.size();
  while (low < high) {
    const size_t middle = low + (high - low + 1) / 2;
    const size_t whole = utf8_complete_prefix(std::string_view(question.document).substr(0, middle));
    FRUGAL_TRY(std::vector<Token> tokens,
               encode_question(model, question, chat, std::string_view(question.document).substr(0, whole)));
    if (tokens.size() <= limit) {
      low = middle;
      best.tokens = std::move(tokens);
    } else {
      high = middle - 1;
    }
  }
  if (!best.tokens.empty()) {
    best.note = strf("the document was cut to its first %s of %s, which fit the context",
                     human_bytes(static_cast<double>(low)).c_str(),
                     human_bytes(static_cast<double>(question.document.size())).c_str());
  }
  return best;
}

nlohmann::ordered_json estimate_json(const Estimate& estimate) {
  if (!estimate.known()) return nullptr;
  return {{"value", estimate.value},
          {"low", estimate.low},
          {"high", estimate.high},
          {"provenance", provenance_name(estimate.provenance)}};
}

}  // namespace

Result<Prompt> make_prompt(const llm::Model& model, const Question& question, int n_ctx, int room) {
  const bool has_template = !model.tokenizer().chat_template_kind().empty();
  if (question.mode == PromptMode::kChat && !has_template) {
    return Error{
        ErrorCode::kUnsupported,
        "this model has no chat form that frugal knows (`frugal inspect` shows its template); use --raw"};
  }
  Prompt prompt;
  prompt.chat = question.mode == PromptMode::kChat || (question.mode == PromptMode::kAuto && has_template);
  FRUGAL_TRY(prompt.tokens, encode_question(model, question, prompt.chat, question.document));
  const auto limit = static_cast<size_t>(std::max(0, n_ctx - room));
  if (prompt.tokens.size() > limit && question.cut_document && !question.document.empty()) {
    const size_t whole = prompt.tokens.size();
    FRUGAL_TRY(prompt, cut_to_fit(model, question, prompt.chat, limit));
    if (prompt.tokens.empty()) {
      return Error{ErrorCode::kOutOfRange,
                   strf("question and answer alone exceed the context of %d tokens (%zu with the document)",
                        n_ctx, whole)};
    }
  } else if (prompt.tokens.size() >= static_cast<size_t>(n_ctx)) {
    return Error{ErrorCode::kOutOfRange,
                 strf("the prompt has %zu tokens and the context %d; shorten it, raise --ctx (the model was "
                      "trained for %d)%s",
                      prompt.tokens.size(), n_ctx, model.info().n_ctx_train,
                      question.document.empty() ? "" : ", or let --cut-document keep what fits")};
  }
  return prompt;
}

Result<llm::Generation> answer_prompt(llm::Engine& engine, llm::SequenceId sequence,
                                      const std::vector<Token>& prompt, const SamplingFlags& flags,
                                      const llm::DecodeOptions& decode, bool show_glance, bool stream) {
  llm::GenerateOptions options;
  options.sampler = flags.sampler;
  options.decode = decode;
  options.max_tokens = flags.max_tokens;
  options.stop = flags.stop;
  options.ignore_end = flags.ignore_end;
  options.cancel = &interrupted();
  ProgressBar bar("reading the prompt", "tokens", stream);
  GlanceView view(engine.model().tokenizer(), stream && show_glance);
  options.on_prefill = [&bar](int done, int total) {
    bar.update(done, total);
    return true;
  };
  if (stream) {
    options.on_text = [&](std::string_view text) {
      bar.finish();
      return view.text(text);
    };
    if (show_glance) options.on_window = [&](auto tokens) { view.approximate(tokens); };
  }
  auto out = llm::generate(engine, sequence, engine.model().tokenizer(), prompt, options);
  view.clear();
  return out;
}

// "f16", "csr:2.6"
std::string cache_name(const llm::EngineOptions& options) {
  return options.kv_source != nullptr ? options.kv_source->name()
                                      : std::string(llm::kv_format_name(options.kv));
}

std::string summary_text(const Summary& summary) {
  const llm::Generation& answer = summary.answer;
  const llm::ModelInfo& info = summary.loaded.model->info();
  const llm::EngineOptions& options = summary.loaded.engine->options();
  const int fresh = answer.prompt_tokens - answer.reused_tokens;
  std::string out = strf("\n%s, %s weights, %s cache, %d threads\n",
                         std::filesystem::path(info.path).filename().string().c_str(),
                         human_bytes(static_cast<double>(info.weight_bytes)).c_str(),
                         cache_name(options).c_str(), options.n_threads);
  out += strf("load      %s\n", human_seconds(summary.loaded.load_s).c_str());
  out += strf("prefill   %s for %d tokens (%.1f tokens/s)%s\n", human_seconds(answer.prefill_s).c_str(),
              fresh, answer.prefill_tokens_per_s(),
              answer.reused_tokens > 0 ? strf(", %d more from the cache", answer.reused_tokens).c_str() : "");
  out += strf("decode    %s for %zu tokens (%.1f tokens/s); stopped by %s\n",
              human_seconds(answer.decode_s).c_str(), answer.tokens.size(), answer.decode_tokens_per_s(),
              std::string(llm::stop_reason_name(answer.stop)).c_str());
  out += strf("memory    %s at most; cache %s\n", human_bytes(peak_memory_bytes()).c_str(),
              human_bytes(static_cast<double>(answer.kv_bytes)).c_str());
  out += strf("work      %sFLOP, %s moved, %s of CPU time\n", human_count(answer.usage.flops).c_str(),
              human_bytes(answer.usage.bytes_moved).c_str(), human_seconds(answer.usage.cpu_seconds).c_str());
  out += strf("energy    %s; %s\n", estimate_text(answer.usage.energy_j, "J").c_str(),
              summary.power.description.c_str());
  if (answer.usage.carbon_gco2e.known()) {
    out += strf("carbon    %s\n", estimate_text(answer.usage.carbon_gco2e, "gCO2e").c_str());
  }
  if (!answer.tokens.empty() && answer.usage.energy_j.known()) {
    const double each = 1 / static_cast<double>(answer.tokens.size());
    out += strf("a token   %.3g J%s, prompt included\n", each * answer.usage.energy_j.value,
                answer.usage.carbon_gco2e.known()
                    ? strf(" and %.3g gCO2e", each * answer.usage.carbon_gco2e.value).c_str()
                    : "");
  }
  return out;
}

std::string stats_text(const llm::Generation& answer) {
  const llm::DraftStats& drafts = answer.drafts;
  std::string out =
      strf("forwards  %d for %zu tokens, %.2f tokens each; %d of %d drafted tokens were right\n",
           answer.decode_forwards, answer.tokens.size(), answer.tokens_per_forward(), drafts.n_accepted(),
           drafts.n_drafted());
  for (size_t i = 0; i < drafts.drafted.size(); ++i) {
    if (drafts.drafted[i] == 0) continue;
    out += strf("  %-10s  %d of %d (%.0f %%)\n",
                std::string(llm::draft_source_name(static_cast<llm::DraftSource>(i))).c_str(),
                drafts.accepted[i], drafts.drafted[i], 100.0 * drafts.accepted[i] / drafts.drafted[i]);
  }
  out += "  forwards by length of draft:";
  for (size_t i = 0; i < drafts.windows.size(); ++i) {
    if (drafts.windows[i] > 0) out += strf(" %zu:%d", i, drafts.windows[i]);
  }
  return out + "\n";
}

nlohmann::ordered_json stats_json(const llm::Generation& answer) {
  nlohmann::ordered_json by_source;
  for (size_t i = 0; i < answer.drafts.drafted.size(); ++i) {
    by_source[std::string(llm::draft_source_name(static_cast<llm::DraftSource>(i)))] = {
        {"drafted", answer.drafts.drafted[i]}, {"accepted", answer.drafts.accepted[i]}};
  }
  return {{"forwards", answer.decode_forwards},
          {"tokens_per_forward", answer.tokens_per_forward()},
          {"drafted", answer.drafts.n_drafted()},
          {"accepted", answer.drafts.n_accepted()},
          {"by_source", by_source},
          {"forwards_by_draft_length", answer.drafts.windows}};
}

std::string summary_json(const Summary& summary, const std::string& glance) {
  const llm::Generation& answer = summary.answer;
  const llm::ModelInfo& info = summary.loaded.model->info();
  const llm::EngineOptions& options = summary.loaded.engine->options();
  nlohmann::ordered_json out = {
      {"text", answer.text},
      {"stop_reason", llm::stop_reason_name(answer.stop)},
      {"tokens", answer.tokens},
      {"prompt_tokens", answer.prompt_tokens},
      {"reused_tokens", answer.reused_tokens},
      {"answer_tokens", answer.tokens.size()},
      {"load_s", summary.loaded.load_s},
      {"prefill_s", answer.prefill_s},
      {"decode_s", answer.decode_s},
      {"prefill_tokens_per_s", answer.prefill_tokens_per_s()},
      {"decode_tokens_per_s", answer.decode_tokens_per_s()},
      {"decoding", stats_json(answer)},
      {"peak_memory_bytes", peak_memory_bytes()},
      {"cache_bytes", answer.kv_bytes},
      {"flops", answer.usage.flops},
      {"bytes_moved", answer.usage.bytes_moved},
      {"cpu_s", answer.usage.cpu_seconds},
      {"energy_j", estimate_json(answer.usage.energy_j)},
      {"carbon_gco2e", estimate_json(answer.usage.carbon_gco2e)},
      {"power_source",
       {{"kind", meter::source_kind_name(summary.power.kind)}, {"description", summary.power.description}}},
      {"model",
       {{"path", info.path},
        {"architecture", info.architecture},
        {"weight_bytes", info.weight_bytes},
        {"hash", strf("%016llx", static_cast<unsigned long long>(info.file_hash))}}},
      {"threads", options.n_threads},
      {"kv", cache_name(options)},
      {"context", options.n_ctx}};
  if (!answer.stop_string.empty()) out["stop_string"] = answer.stop_string;
  if (!glance.empty()) out["glance"] = nlohmann::ordered_json::parse(glance);
  return out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace frugal::cli
