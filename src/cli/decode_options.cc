#include "cli/decode_options.h"

#include <CLI/CLI.hpp>

#include "base/text.h"

namespace frugal::cli {

void add_decode_options(CLI::App& app, DecodeFlags& flags) {
  app.add_option("--decode", flags.mode,
                 "exact: several tokens a forward where drafts turn out right, the same answer as greedy bit "
                 "for bit; greedy: one token a forward")
      ->capture_default_str();
  app.add_option("--window", flags.window, "longest draft of a forward, 0 to 16; does not change any answer")
      ->capture_default_str();
  app.add_flag("--stats", flags.stats, "tokens per forward, and how many drafts of each kind were right");
}

Result<llm::DecodeOptions> decode_options(const DecodeFlags& flags) {
  if (flags.window < 0 || flags.window > llm::kLongestDraft) {
    return {ErrorCode::kInvalidArgument,
            strf("--window is %d, but must be from 0 (no drafts) to %d", flags.window, llm::kLongestDraft)};
  }
  llm::DecodeOptions options;
  if (flags.mode == "greedy") {
    options.max_draft = 0;
  } else if (flags.mode == "exact") {
    options.max_draft = flags.window;
  } else {
    return {ErrorCode::kInvalidArgument, "--decode is '" + flags.mode + "', but must be exact or greedy"};
  }
  return options;
}

}  // namespace frugal::cli
