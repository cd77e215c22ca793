#include <gtest/gtest.h>

#include <map>

#include "cli/cot_plot.h"
#include "cli/cot_record.h"
#include "cli/cot_report.h"
#include "cli/cot_tasks.h"
#include "support/temp_file.h"

namespace frugal::cli {
namespace {

using frugal::test::TempFile;

TEST(CotData, LeavesOutMalformedLinesByNumber) {
  const TempFile file(
      std::string("{\"task\": \"gsm8k\", \"question\": \"1 + 1?\", \"answer\": \"2\", \"id\": \"a\"}\n"
                  "{\"task\": \"gsm8k\", \"question\": \n"
                  "\n"
                  "[1, 2]\n"
                  "{\"task\": \"chess\", \"question\": \"e4?\", \"answer\": \"e5\"}\n"
                  "{\"task\": \"csqa\", \"question\": \"Where?\", \"answer\": \"A\", \"choices\": null}\n"
                  "{\"task\": \"csqa\", \"question\": \"Where?\", \"answer\": 7}\n"
                  "\xff\xfe\n"
                  "{\"task\": \"csqa\", \"question\": \"Where?\", \"answer\": \"A\", \"choices\": {\"A\": "
                  "\"here\", \"B\": \"there\"}}"));
  const auto data = read_cot_data({file.path()});
  ASSERT_TRUE(data.ok()) << data.error().message;
  ASSERT_EQ(data->questions.size(), 2u);
  EXPECT_EQ(data->questions[1].choices.size(), 2u);
  ASSERT_EQ(data->faults.size(), 6u);
  const int lines[] = {2, 4, 5, 6, 7, 8};
  for (size_t i = 0; i < 6; ++i)
    EXPECT_NE(data->faults[i].find(":" + std::to_string(lines[i]) + ": "), std::string::npos)
        << data->faults[i];
}

TEST(CotData, AnEmptyFileHasNoQuestionsAndAMissingOneIsAnError) {
  const TempFile empty{std::string()};
  EXPECT_TRUE(read_cot_data({empty.path()})->questions.empty());
  EXPECT_FALSE(read_cot_data({empty.path() + ".not-there"}).ok());
}

TEST(CotPrompt, EndsWhereTheChainBegins) {
  CotQuestion question{"", "csqa", "Where?", {{"A", "here"}, {"B", "there"}}, "A"};
  EXPECT_EQ(cot_prompt(question, 0),
            "Q: Where? Answer Choices: (A) here (B) there\nA: Let's think step by step.");
  for (const std::string& task : cot_tasks()) {
    question.task = task;
    const std::string prompt = cot_prompt(question, 4);
    size_t n = 0;
    for (size_t at = 0; (at = prompt.find(cot_trigger(task), at)) != std::string::npos; ++at) ++n;
    EXPECT_EQ(n, 4u) << task;
  }
}

TEST(CotAnswer, IsReadInNormalForm) {
  EXPECT_EQ(cot_answer("gsm8k", "2 * 3 = 6. The answer is 5. No, the answer is $1,234.00."), "1234");
  EXPECT_EQ(cot_answer("gsm8k", "the answer is -7 degrees"), "-7");
  EXPECT_EQ(cot_answer("gsm8k", "the answer is 0.5"), "0.5");
  EXPECT_EQ(cot_answer("gsm8k", "2 * 3 = 6."), "");
  EXPECT_EQ(cot_answer("gsm8k", "the answer is unknown"), "");
  EXPECT_EQ(cot_answer("csqa", "Therefore, the answer is (B)."), "B");
  EXPECT_EQ(cot_answer("aqua", "the answer is c"), "C");
  EXPECT_EQ(cot_answer("csqa", "the answer is sink"), "");
  EXPECT_EQ(cot_answer("strategyqa", "So the answer is Yes."), "yes");
  EXPECT_EQ(cot_answer("strategyqa", "the answer is maybe"), "");
}

CotRecord record_of(int index, std::string answer, std::vector<std::string> looks) {
  CotRecord record;
  record.task = "csqa";
  record.key = "csqa/" + std::to_string(index);
  record.index = index;
  record.answer = answer;
  record.truth = answer;
  record.correct = true;
  record.same = true;
  record.greedy = {1, 1, 2, 11, 10};
  record.exact = {0.5, 0.5, 1, 11, 5};
  record.chain_s = 10;
  for (size_t i = 0; i < looks.size(); ++i) {
    const double at = static_cast<double>(i + 1);
    record.looks.push_back(
        {static_cast<int>(i),
         4,
         4,
         {looks[i], 0.9f, false, i % 2 != 0 ? llm::Place::kSentence : llm::Place::kAnywhere, 0.1, at},
         {"X", 0.9f, false, llm::Place::kSentence, 0.1, at}});
  }
  return record;
}

TEST(CotReport, RulesPayForTheirLooksAndAreJudgedOnOtherQuestions) {
  std::vector<CotRecord> records;
  for (int i = 0; i < 10; ++i) records.push_back(record_of(i, "B", {"A", "B", "B", "B"}));
  const std::vector<CotPoint> curve = glance_curve(records);
  ASSERT_FALSE(curve.empty());
  for (const CotPoint& point : curve) {
    EXPECT_EQ(point.glance.n, 10);  // each by a rule that was fitted without it
    // At full agreement looks where sentences end, and the first of those: after 2 s, for 0.1 s.
    if (point.target == 1.0) {
      EXPECT_DOUBLE_EQ(point.glance.agreement, 1);
      EXPECT_NEAR(point.glance.saved, 1 - 2.1 / 10, 1e-9);
      EXPECT_DOUBLE_EQ(point.glance.trunc_agreement, 0);
      EXPECT_DOUBLE_EQ(point.trunc.saved, 0);  // X is never right: its rule does not look
    }
  }
}

TEST(CotReport, NamesTheRowsThatAreAskedFor) {
  std::vector<CotRecord> records;
  for (int i = 0; i < 4; ++i) records.push_back(record_of(i, "B", {"B", "B"}));
  records[1].same = false;
  std::map<std::string, double> rows;
  for (const BenchRow& row : cot_rows(records)) rows[row.name] = row.ours;
  EXPECT_DOUBLE_EQ(rows.at("exact_speedup"), 2);
  EXPECT_DOUBLE_EQ(rows.at("exact_differences"), 1);
  for (const char* name :
       {"exact_speedup/csqa", "glance_saved", "glance_agreement", "trunc_agreement", "accuracy"})
    EXPECT_TRUE(rows.contains(name)) << name;
  EXPECT_FALSE(rows.contains("exact_vs_llamacpp"));  // was not run
}

TEST(CotReport, KeepsPoolsPeersAndVariantsApart) {
  std::vector<CotRecord> records;
  for (int i = 0; i < 4; ++i) {
    CotRecord record = record_of(i, "B", {});
    record.pooled = CotTiming{0.25, 0.25, 1, 11, 3};
    record.speculators["llama-speculative-simple:ngram-mod"] = CotTiming{2, 2, 0, 11, 0};
    record.speculators["llama-lookahead"] = i == 0 ? CotTiming{4, 4, 0, 11, 0} : CotTiming{};
    record.variants["window  4"] = CotTiming{0.8, 0.8, 1, 11, 4};
    record.variants["window  4, fixed"] = CotTiming{1.6, 1.6, 1, 11, 5};
    records.push_back(record);
    record.task = "quote";
    record.exact = {0.25, 0.25, 1, 11, 2};
    records.push_back(record);
  }
  std::map<std::string, BenchRow> rows;
  for (const BenchRow& row : cot_rows(records)) rows[row.name] = row;
  EXPECT_DOUBLE_EQ(rows.at("exact_speedup").ours, 2);  // quotes are no chains
  EXPECT_DOUBLE_EQ(rows.at("repetitive_speedup/quote").ratio, 4);
  EXPECT_DOUBLE_EQ(rows.at("exact_pool_speedup").ours, 4);
  EXPECT_DOUBLE_EQ(rows.at("exact_vs_ngram-mod").ours, 4);
  EXPECT_EQ(rows.at("exact_vs_llama-lookahead").n, 1);
  EXPECT_DOUBLE_EQ(rows.at("not finished by llama-lookahead").ours, 3);
  EXPECT_FALSE(rows.contains("not finished by ngram-mod"));
  EXPECT_DOUBLE_EQ(rows.at("window  4").ratio, 1.25);
  EXPECT_DOUBLE_EQ(rows.at("window  4, fixed").ratio, 0.625);
  EXPECT_EQ(rows.at("exact_differences").n, 8);
  EXPECT_EQ(rows.at("accuracy").n, 4);
  std::vector<BenchRow> list;
  for (const auto& [name, row] : rows) list.push_back(row);
  EXPECT_NE(windows_svg(list).find("adaptive"), std::string::npos);
  EXPECT_EQ(windows_svg({}), "");
}

TEST(CotReport, ARuleMaySkipLooks) {
  // The first two looks agree by chance; those at ends of sentences do not.
  std::vector<CotRecord> records;
  for (int i = 0; i < 10; ++i) records.push_back(record_of(i, "B", {"A", "A", "C", "B", "C", "B", "C", "B"}));
  for (const CotPoint& point : glance_curve(records)) {
    if (point.target < 1) continue;
    EXPECT_DOUBLE_EQ(point.glance.agreement, 1);
    // Two that agree of those at ends of sentences; three looks are paid for.
    EXPECT_NEAR(point.glance.saved, 1 - 6.3 / 10, 1e-9);
  }
}

TEST(CotReport, TheChainsOwnWordAndWrongGuesses) {
  std::vector<CotRecord> records;
  for (int i = 0; i < 10; ++i) {
    CotRecord record = record_of(i, "B", {"A", "A", "A", "B"});
    // The first looks stood on wrong guesses; the last is the chain's own word, by its own surety no stop.
    for (size_t k = 0; k < 3; ++k) record.looks[k].accepted = 0;
    record.looks[3].glance.named = true;
    record.looks[3].glance.confidence = 0.1f;
    record.glance = CotGlance{0.25, "B", true};
    record.trunc = CotGlance{1, "X", true};
    records.push_back(record);
  }
  const std::vector<CotPoint> curve = glance_curve(records);
  for (const CotPoint& point : curve) {
    if (point.target < 1) continue;
    EXPECT_DOUBLE_EQ(point.glance.agreement, 1);
    EXPECT_NEAR(point.glance.saved, 1 - 4.2 / 10, 1e-9);  // two looks at ends of sentences
  }
  const CotRule rule = rule_for(records, records[0], 1, false);
  EXPECT_TRUE(rule.looks && rule.place == llm::Place::kSentence && !rule.wrong);
  EXPECT_FALSE(rule_for(records, records[0], 1, true).looks);
  std::map<std::string, double> rows;
  for (const BenchRow& row : cot_rows(records)) rows[row.name] = row.ours;
  EXPECT_DOUBLE_EQ(rows.at("measured: glance_saved"), 0.5);
  EXPECT_DOUBLE_EQ(rows.at("measured: glance_agreement"), 1);
  EXPECT_DOUBLE_EQ(rows.at("measured: trunc_saved/csqa"), -1);
  EXPECT_DOUBLE_EQ(rows.at("measured: trunc_accuracy"), 0);
}

TEST(CotRecord, SurvivesItsFile) {
  CotRecord record = record_of(3, "B", {"A", "B"});
  record.peer = CotTiming{4, 4, 0, 11, 10};
  record.pooled = CotTiming{1, 1, 0, 11, 3};
  record.speculators["a"] = CotTiming{4, 4, 0, 11, 10};
  record.variants["b"] = CotTiming{4, 4, 0, 11, 10};
  record.glance = CotGlance{0.5, "B", true};
  record.trunc = CotGlance{0.7, "", false};
  record.tokens = {7, 8, 9};
  record.drafted = {1, 2, 3, 4};
  const auto back = parse_record(record_json(record));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(record_json(*back), record_json(record));
  EXPECT_FALSE(parse_record("{\"key\": 1}").ok());
  EXPECT_FALSE(parse_record("").ok());
}

}  // namespace
}  // namespace frugal::cli
