// Questions of chain-of-thought tasks: reading them, asking them with or without worked examples, and finding
// the answer in a chain.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "frugal/result.h"

namespace frugal::cli {

// "gsm8k", "aqua", "csqa", "strategyqa"
const std::vector<std::string>& cot_tasks();

// "quote", "edit": input that the answer repeats; the question is the prompt, and there is no chain.
const std::vector<std::string>& repetitive_tasks();
bool is_repetitive(std::string_view task);

struct CotQuestion {
  std::string id, task, text;
  std::vector<std::pair<std::string, std::string>> choices;  // letter and text; none: a free answer
  std::string answer;
};

struct CotData {
  std::vector<CotQuestion> questions;
  std::vector<std::string> faults;  // "FILE:LINE: what is wrong": lines that were left out
};

// Reads files of one JSON object a line: {"task", "question", "choices" (object or null), "answer", "id"}. A
// line that is none becomes a fault and the rest is read. kNotFound and the like for a file that cannot be
// read.
Result<CotData> read_cot_data(const std::vector<std::string>& paths);

// The question after `n_shots` (0 to 4) worked examples of its task; of a repetitive one, its text.
std::string cot_prompt(const CotQuestion& question, int n_shots);
// What a chain ends with before the next question: the stop string.
inline constexpr std::string_view kCotStop = "\nQ:";
// What draws the answer, and how many tokens an answer may have.
std::string cot_trigger(std::string_view task);
int cot_answer_tokens(std::string_view task);

// The answer in normal form ("72", "B", "yes"): after the last "answer is" of a chain; empty when there is
// none.
std::string cot_answer(std::string_view task, std::string_view chain);
// The same of an answer drawn by the trigger ("72 dollars", "B", "Yes").
std::string cot_normal(std::string_view task, std::string_view answer);

}  // namespace frugal::cli
