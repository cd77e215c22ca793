// frugal chat: a conversation at the terminal. Line editing and history by libedit; each turn costs only what
// is new.
#include <editline/readline.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/file.h"
#include "base/text.h"
#include "cli/answer.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/decode_options.h"
#include "cli/llm_options.h"
#include "cli/meter_setup.h"

namespace frugal::cli {

namespace {

struct ChatFlags {
  ModelFlags model;
  EngineFlags engine;
  SamplingFlags sampling;
  DecodeFlags decode;
  std::shared_ptr<MeterSetup> meter;
  std::shared_ptr<LedgerSetup> ledger;
  std::string system, history_file;
  bool json = false;
};

constexpr const char* kHelp =
    "/help         this list\n"
    "/reset        forget the conversation\n"
    "/save FILE    write the conversation to FILE, as JSON\n"
    "/stats        what the last answer cost\n"
    "/exit         leave (so does Ctrl-D)\n"
    "Ctrl-C stops an answer. A line that ends with \\ goes on in the next one.\n";

// Reads lines: edited and remembered on a terminal, as they are from a pipe.
class LineReader {
 public:
  explicit LineReader(std::string history_file)
      : history_file_(std::move(history_file)), terminal_(isatty(STDIN_FILENO) == 1) {
    if (!terminal_) return;
    using_history();
    stifle_history(1000);
    if (!history_file_.empty()) read_history(history_file_.c_str());
  }

  // Nothing at the end of the input.
  std::optional<std::string> read(const char* prompt) {
    if (!terminal_) return read_plain();
    // libedit waits in read(2). Ctrl-C there gives an empty line, as in a shell, and never ends the program.
    interrupted() = false;
    char* line = readline(prompt);
    if (interrupted()) {
      interrupted() = false;
      std::free(line);
      std::fputs("\n", stdout);
      return "";
    }
    if (line == nullptr) return std::nullopt;
    std::string text(line);
    std::free(line);
    if (!trim(text).empty()) {
      add_history(text.c_str());
      if (!history_file_.empty() && write_history(history_file_.c_str()) != 0 && !warned_) {
        warned_ = true;
        std::fprintf(stderr, "frugal: warning: the history cannot be written to %s\n", history_file_.c_str());
      }
    }
    return text;
  }

 private:
  std::optional<std::string> read_plain() {
    std::string line;
    for (int c = std::fgetc(stdin); c != EOF; c = std::fgetc(stdin)) {
      if (c == '\n') return line;
      line += static_cast<char>(c);
    }
    return line.empty() ? std::nullopt : std::optional<std::string>(line);
  }

  std::string history_file_;
  bool terminal_, warned_ = false;
};

class Chat {
 public:
  Chat(const ChatFlags& flags, const llm::DecodeOptions& decode, LoadedEngine& loaded,
       llm::SequenceId sequence, meter::PowerMeter& meter)
      : flags_(flags), decode_(decode), loaded_(loaded), sequence_(sequence), meter_(meter) {
    decode_.costs = &costs_;
  }

  // Answers one line. False when the conversation is over.
  bool handle(const std::string& line) {
    const std::string_view text = trim(line);
    if (text.empty()) return true;
    if (text.front() == '/') return command(text);
    answer(line);
    return true;
  }

 private:
  bool command(std::string_view text) {
    const size_t space = text.find(' ');
    const std::string_view name = text.substr(0, space);
    const std::string argument(space == std::string_view::npos ? "" : trim(text.substr(space)));
    if (name == "/exit" || name == "/quit") return false;
    if (name == "/help") {
      print(kHelp);
    } else if (name == "/reset") {
      turns_.clear();
      print("The conversation is forgotten.\n");
    } else if (name == "/stats") {
      print(stats_.empty() ? "Nothing was answered yet.\n" : stats_ + "\n");
    } else if (name == "/save") {
      save(argument);
    } else {
      std::fprintf(stderr, "frugal: error: there is no command %s; /help lists them\n",
                   std::string(name).c_str());
    }
    return true;
  }

  void save(const std::string& path) {
    if (path.empty()) {
      std::fputs("frugal: error: /save needs a file: /save FILE\n", stderr);
      return;
    }
    nlohmann::ordered_json messages = nlohmann::ordered_json::array();
    if (!flags_.system.empty()) messages.push_back({{"role", "system"}, {"content", flags_.system}});
    for (const Turn& turn : turns_) messages.push_back({{"role", turn.role}, {"content", turn.text}});
    const nlohmann::ordered_json out = {{"model", loaded_.model->info().path}, {"messages", messages}};
    const Status status =
        write_file_atomically(path, out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    if (!status.ok()) {
      fail(status.error());
    } else {
      print(strf("%zu messages are in %s.\n", turns_.size(), path.c_str()));
    }
  }

  void answer(const std::string& text) {
    Question question;
    question.system = flags_.system;
    question.history = turns_;
    question.text = text;
    question.mode = PromptMode::kChat;
    if (!utf8_valid(text)) {
      fail({ErrorCode::kInvalidArgument, "that line is not valid UTF-8"});
      return;
    }
    const auto prompt = make_prompt(*loaded_.model, question, loaded_.engine->options().n_ctx, 1);
    if (!prompt.ok()) {
      fail(prompt.error());
      if (prompt.error().code == ErrorCode::kOutOfRange) std::fputs("/reset starts anew.\n", stderr);
      return;
    }
    const meter::Snapshot before = meter_.snapshot();
    auto answer = answer_prompt(*loaded_.engine, sequence_, prompt->tokens, flags_.sampling, decode_,
                                flags_.decode.show_glance, !flags_.json);
    interrupted() = false;
    if (!answer.ok()) {
      fail(answer.error());
      return;
    }
    const meter::Charge charge = meter_.charge(before, answer->usage);
    meter::LedgerEntry entry;
    entry.kind = "run";
    entry.name = "chat";
    entry.model = std::filesystem::path(loaded_.model->info().path).filename().string();
    entry.unit = "token";
    entry.units = static_cast<double>(answer->tokens.size());
    entry.usage = answer->usage;
    record(*flags_.ledger, meter_, before, charge, entry);
    const Summary summary{loaded_, *answer, meter_.source()};
    stats_ = flags_.json ? summary_json(summary) : summary_text(summary) + stats_text(*answer);
    if (flags_.json) {
      print(nlohmann::json::parse(stats_).dump() + "\n");  // a line for each answer
    } else {
      print(answer->stop == llm::StopReason::kCancelled ? " [stopped]\n" : "\n");
      if (flags_.decode.stats) std::fputs(stats_text(*answer).c_str(), stderr);
    }
    turns_.push_back({"user", text});
    turns_.push_back({"assistant", answer->text});
  }

  const ChatFlags& flags_;
  llm::StepCosts costs_;  // learnt over the conversation
  llm::DecodeOptions decode_;
  LoadedEngine& loaded_;
  llm::SequenceId sequence_;
  meter::PowerMeter& meter_;
  std::vector<Turn> turns_;
  std::string stats_;
};

std::string default_history_file() {
  const char* home = std::getenv("HOME");
  return home != nullptr && *home != '\0' ? std::string(home) + "/.frugal_history" : "";
}

int run(const ChatFlags& flags) {
  install_interrupt_handler();
  if (const Status status = llm::validate(flags.sampling.sampler); !status.ok()) return fail(status.error());
  if (flags.decode.mode == "glance") {
    return fail({ErrorCode::kInvalidArgument,
                 "a conversation is decoded exactly; --decode glance is for `frugal run`"});
  }
  const auto decode = decode_options(flags.decode);
  if (!decode.ok()) return fail(decode.error());
  const auto meter = open_meter(*flags.meter);
  if (!meter.ok()) return fail(meter.error());
  auto loaded = load_engine(flags.model, flags.engine, !flags.json);
  if (!loaded.ok()) return fail(loaded.error());
  const auto sequence = loaded->engine->open_sequence();
  if (!sequence.ok()) return fail(sequence.error());
  Question probe;
  probe.text = "?";
  probe.mode = PromptMode::kChat;
  if (const auto prompt = make_prompt(*loaded->model, probe, loaded->engine->options().n_ctx, 1);
      !prompt.ok()) {
    return fail(prompt.error());
  }
  const bool terminal = isatty(STDIN_FILENO) == 1;
  if (terminal && !flags.json) {
    std::printf("%s. /help lists the commands.\n",
                std::filesystem::path(loaded->model->info().path).filename().string().c_str());
  }
  Chat chat(flags, *decode, *loaded, *sequence, **meter);
  LineReader reader(flags.history_file);
  while (true) {
    std::optional<std::string> line = reader.read("> ");
    while (line && !line->empty() && line->back() == '\\') {
      line->back() = '\n';
      const auto more = reader.read("| ");
      if (!more) break;
      *line += *more;
    }
    if (!line || !chat.handle(*line)) break;
    if (!terminal && interrupted()) return kExitInterrupted;
  }
  if (terminal) print("\n");
  return kExitOk;
}

}  // namespace

Action add_chat(CLI::App& app) {
  auto flags = std::make_shared<ChatFlags>();
  flags->sampling.max_tokens = 0;
  app.add_option("--system", flags->system, "what the model is told about its role")->type_name("TEXT");
  app.add_option("--history", flags->history_file,
                 "lines typed, kept between conversations (default: ~/.frugal_history)")
      ->type_name("FILE");
  add_sampling_options(app, flags->sampling);
  add_decode_options(app, flags->decode);
  add_model_options(app, flags->model);
  add_engine_options(app, flags->engine);
  flags->meter = add_meter_options(app);
  flags->ledger = add_ledger_options(app);
  app.add_flag("--json", flags->json,
               "one JSON object a line for each answer, for programs that talk through a pipe");
  return [flags] {
    if (flags->history_file.empty()) flags->history_file = default_history_file();
    return run(*flags);
  };
}

}  // namespace frugal::cli
