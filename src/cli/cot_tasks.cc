#include "cli/cot_tasks.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"

namespace frugal::cli {

namespace {

struct Example {
  std::string_view question, rationale, answer;
};
struct Task {
  std::string_view name;
  Example examples[4];
};

// Four worked examples of each task, written for this file.
constexpr Task kTasks[] = {
    {"gsm8k",
     {{"A baker makes 6 trays of rolls with 12 rolls on each tray. She sells 50 rolls in the "
       "morning and half of what is left in the afternoon. How many rolls does she have at the "
       "end of the day?",
       "First, the baker makes 6 * 12 = 72 rolls. After the morning she has 72 - 50 = 22 rolls "
       "left. In the afternoon she sells half of them, which is 22 / 2 = 11 rolls. So she has "
       "22 - 11 = 11 rolls at the end of the day.",
       "11"},
      {"Tom reads 15 pages of a book every weekday and 30 pages on each day of the weekend. How "
       "many pages does he read in 2 weeks?",
       "First, a week has 5 weekdays, so Tom reads 5 * 15 = 75 pages on weekdays. A weekend has "
       "2 days, so he reads 2 * 30 = 60 pages on the weekend. In one week he reads 75 + 60 = "
       "135 pages. In 2 weeks he reads 2 * 135 = 270 pages.",
       "270"},
      {"A bus ticket costs $3 and a train ticket costs $7 more than a bus ticket. Nora buys 4 "
       "bus tickets and 2 train tickets. How much does she pay in total?",
       "First, a train ticket costs 3 + 7 = 10 dollars. The 4 bus tickets cost 4 * 3 = 12 "
       "dollars. The 2 train tickets cost 2 * 10 = 20 dollars. In total she pays 12 + 20 = 32 "
       "dollars.",
       "32"},
      {"A tank holds 200 liters of water. It loses 8 liters every hour, and after 10 hours 45 "
       "liters are poured in. How many liters are in the tank then?",
       "First, in 10 hours the tank loses 10 * 8 = 80 liters. After that the tank has 200 - 80 "
       "= 120 liters. Then 45 liters are poured in, so the tank has 120 + 45 = 165 liters.",
       "165"}}},
    {"aqua",
     {{"A shop buys a lamp for $80 and sells it for $100. What is its profit in percent of the "
       "price it paid? Answer Choices: (A) 10% (B) 15% (C) 20% (D) 25% (E) 30%",
       "First, the profit is 100 - 80 = 20 dollars. The price that the shop paid is 80 dollars. "
       "The profit in percent is 20 / 80 * 100 = 25. That is choice D.",
       "D"},
      {"A train needs 3 hours for 240 km. How long does it need for 400 km at the same speed? "
       "Answer Choices: (A) 4 hours (B) 4.5 hours (C) 5 hours (D) 5.5 hours (E) 6 hours",
       "First, the speed of the train is 240 / 3 = 80 km per hour. For 400 km it needs 400 / 80 "
       "= 5 hours. That is choice C.",
       "C"},
      {"The sum of two numbers is 30 and their difference is 6. What is the larger number? "
       "Answer Choices: (A) 12 (B) 18 (C) 20 (D) 22 (E) 24",
       "First, let the numbers be x and y. Then x + y = 30 and x - y = 6. Adding both gives 2 * "
       "x = 36, so x = 18. The larger number is 18. That is choice B.",
       "B"},
      {"A rectangle is 3 times as long as it is wide, and its perimeter is 64. What is its "
       "area? Answer Choices: (A) 192 (B) 144 (C) 256 (D) 128 (E) 96",
       "First, let the width be x, so the length is 3 * x. The perimeter is 2 * (x + 3 * x) = 8 "
       "* x = 64, so x = 8. The width is 8 and the length is 24. The area is 8 * 24 = 192. That "
       "is choice A.",
       "A"}}},
    {"csqa",
     {{"Where would you put a dirty plate after a meal at home? Answer Choices: (A) oven (B) "
       "sink (C) garden (D) bed (E) bookshelf",
       "First, the question is about a dirty plate after a meal. A dirty plate has to be "
       "washed, and plates are washed with water. Of the choices, only a sink has water for "
       "washing plates. So the answer has to be sink. That is choice B.",
       "B"},
      {"What do people feel when they wait for a long time for something that is boring? Answer "
       "Choices: (A) hunger (B) love (C) luck (D) impatience (E) courage",
       "First, the question is about how people feel when they wait for a long time. Waiting "
       "for something boring makes people want it to end. Of the choices, impatience is the "
       "feeling of wanting something to end. So the answer has to be impatience. That is choice "
       "D.",
       "D"},
      {"He needed light to read at night, what did he switch on? Answer Choices: (A) lamp (B) "
       "fridge (C) radio (D) fan (E) oven",
       "First, the question is about light for reading at night. The thing that he switched on "
       "has to give light. Of the choices, a lamp is made to give light. So the answer has to "
       "be lamp. That is choice A.",
       "A"},
      {"What grows on an apple tree in the fall? Answer Choices: (A) bread (B) stones (C) snow "
       "(D) shoes (E) fruit",
       "First, the question is about what grows on an apple tree. Apples grow on an apple tree, "
       "and apples are a kind of fruit. Of the choices, only fruit grows on a tree. So the "
       "answer has to be fruit. That is choice E.",
       "E"}}},
    {"strategyqa",
     {{"Could a person walk from London to Tokyo without crossing water?",
       "First, London is on the island of Great Britain. Tokyo is on an island of Japan. An "
       "island has water on all sides. Thus, a person who walks from London to Tokyo has to "
       "cross water. So the answer is no.",
       "no"},
      {"Would a block of ice melt in a running oven?",
       "First, ice melts when it is warmer than 0 degrees Celsius. A running oven is hotter "
       "than 100 degrees Celsius. Thus, the block of ice is in a place that is much warmer than "
       "0 degrees. So the answer is yes.",
       "yes"},
      {"Can a spider have more legs than two dogs together?",
       "First, a spider has 8 legs. A dog has 4 legs, so two dogs have 2 * 4 = 8 legs. 8 is not "
       "more than 8. Thus, a spider does not have more legs than two dogs. So the answer is no.",
       "no"},
      {"Could a teacher speak to her whole class of thirty with a microphone?",
       "First, a microphone makes a voice louder, so that many people can hear it. A class of "
       "thirty people is a small group. Thus, the whole class can hear the teacher when she "
       "speaks with a microphone. So the answer is yes.",
       "yes"}}},
};

const Task* find_task(std::string_view name) {
  for (const Task& task : kTasks) {
    if (task.name == name) return &task;
  }
  return nullptr;
}

bool has_choices(std::string_view task) { return task == "aqua" || task == "csqa"; }

std::string closing(std::string_view task, std::string_view answer) {
  return cot_trigger(task) + (has_choices(task) ? "" : " ") + std::string(answer) +
         (has_choices(task) ? ")." : ".");
}

// The question of one line; the error says what is wrong with it.
Result<CotQuestion> parse_line(std::string_view line) {
  const auto bad = [](std::string what) { return Error{ErrorCode::kCorrupt, std::move(what)}; };
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return bad("not a JSON object");
  CotQuestion question;
  for (const auto& [key, to] : {std::pair<const char*, std::string*>{"task", &question.task},
                                {"question", &question.text},
                                {"answer", &question.answer}}) {
    if (!json.contains(key) || !json[key].is_string() || json[key].get_ref<const std::string&>().empty())
      return bad(strf("\"%s\" is missing, empty or no text", key));
    *to = json[key].get<std::string>();
  }
  if (find_task(question.task) == nullptr && !is_repetitive(question.task))
    return bad("the task \"" + question.task + "\" is none of gsm8k, aqua, csqa, strategyqa, quote, edit");
  if (json.contains("id") && json["id"].is_string()) question.id = json["id"].get<std::string>();
  if (json.contains("choices") && json["choices"].is_object()) {
    for (const auto& [letter, text] : json["choices"].items()) {
      if (!text.is_string()) return bad("choice \"" + letter + "\" is no text");
      question.choices.emplace_back(letter, text.get<std::string>());
    }
  }
  if (has_choices(question.task) && question.choices.empty()) return bad("\"choices\" is missing or empty");
  return question;
}

}  // namespace

const std::vector<std::string>& cot_tasks() {
  static const std::vector<std::string> names = {"gsm8k", "aqua", "csqa", "strategyqa"};
  return names;
}

const std::vector<std::string>& repetitive_tasks() {
  static const std::vector<std::string> names = {"quote", "edit"};
  return names;
}

bool is_repetitive(std::string_view task) { return task == "quote" || task == "edit"; }

Result<CotData> read_cot_data(const std::vector<std::string>& paths) {
  CotData data;
  for (const std::string& path : paths) {
    FRUGAL_TRY(const std::string text, read_file(path, size_t{1} << 28));
    int line_idx = 0;
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find('\n', at), text.size());
      const std::string_view line = trim(std::string_view(text).substr(at, end - at));
      at = end + 1;
      ++line_idx;
      if (line.empty()) continue;
      auto question = utf8_valid(line) ? parse_line(line) : Error{ErrorCode::kCorrupt, "not UTF-8 text"};
      if (question.ok()) {
        data.questions.push_back(std::move(question).value());
      } else {
        data.faults.push_back(strf("%s:%d: %s", path.c_str(), line_idx, question.error().message.c_str()));
      }
    }
  }
  return data;
}

std::string cot_trigger(std::string_view task) {
  return has_choices(task) ? " Therefore, the answer is (" : " Therefore, the answer is";
}

int cot_answer_tokens(std::string_view task) { return task == "gsm8k" ? 8 : 1; }

std::string cot_prompt(const CotQuestion& question, int n_shots) {
  std::string out;
  if (is_repetitive(question.task)) return question.text;
  const Task& task = *find_task(question.task);
  for (int i = 0; i < std::min(n_shots, 4); ++i) {
    const Example& example = task.examples[i];
    out += strf("Q: %s\nA: Let's think step by step. %s%s\n\n", std::string(example.question).c_str(),
                std::string(example.rationale).c_str(), closing(task.name, example.answer).c_str());
  }
  out += "Q: " + question.text;
  if (!question.choices.empty()) {
    out += " Answer Choices:";
    for (const auto& [letter, text] : question.choices) out += " (" + letter + ") " + text;
  }
  return out + "\nA: Let's think step by step.";
}

std::string cot_normal(std::string_view task, std::string_view answer) {
  std::string out;
  if (task == "gsm8k") {
    size_t at = answer.find_first_of("0123456789");
    if (at == std::string_view::npos) return "";
    if (at > 0 && answer[at - 1] == '-') out = "-";
    for (; at < answer.size(); ++at) {
      const char c = answer[at];
      if (c == ',') continue;
      const bool point = c == '.' && out.find('.') == std::string::npos;  // a second one ends the sentence
      if (std::isdigit(static_cast<unsigned char>(c)) == 0 && !point) break;
      out += c;
    }
    // 12.00 and 12. are 12.
    if (out.find('.') != std::string::npos) {
      while (out.back() == '0') out.pop_back();
      if (out.back() == '.') out.pop_back();
    }
    return out;
  }
  for (const char c : answer) {
    if (std::isalpha(static_cast<unsigned char>(c)) != 0) {
      out += c;
    } else if (!out.empty()) {
      break;
    }
  }
  if (has_choices(task))
    return out.size() == 1 ? std::string(1, static_cast<char>(std::toupper(out[0]))) : "";
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out == "yes" || out == "no" ? out : "";
}

std::string cot_answer(std::string_view task, std::string_view chain) {
  constexpr std::string_view kMarker = "answer is";
  const size_t at = chain.rfind(kMarker);
  return at == std::string_view::npos ? "" : cot_normal(task, chain.substr(at + kMarker.size()));
}

}  // namespace frugal::cli
