// Facts in a text: they stand where they should, and are asked for with what they say.
#include "cli/recall_text.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "support/temp_file.h"
#include "support/tiny_gguf.h"

namespace frugal::cli {
namespace {

class Recall : public testing::Test {
 protected:
  void SetUp() override {
    const frugal::test::TempFile file(llm::test::tiny_gguf({}));
    model_ = llm::Model::load(file.path()).value();
    text_ = encoded("one fine day ");
    while (text_.size() < 900) text_.insert(text_.end(), text_.begin(), text_.begin() + 9);
  }
  std::vector<llm::Token> encoded(const std::string& words) const {
    return model_->tokenizer().encode(words, false, false).value();
  }
  std::string decoded(const std::vector<llm::Token>& tokens) const {
    return model_->tokenizer().decode(tokens).value();
  }
  RecallText recall(int n, uint64_t seed) const {
    return recall_text(model_->tokenizer(), text_, n, seed).value();
  }

  std::shared_ptr<const llm::Model> model_;
  std::vector<llm::Token> text_;
};

TEST_F(Recall, FactsStandEvenlyInTheTextAndQuestionsEndWithWhatTheySay) {
  const RecallText found = recall(8, 3);
  ASSERT_EQ(found.questions.size(), 8u);
  const std::string whole = decoded(found.text);
  size_t facts = 0, last = 0;
  for (const RecallText::Question& question : found.questions) {
    ASSERT_GT(question.answer, 0u);
    ASSERT_LT(question.answer, question.tokens.size());
    const std::string said = decoded(question.tokens);
    const size_t at = whole.find(said);
    ASSERT_NE(at, std::string::npos) << said;
    EXPECT_GT(at, last);
    EXPECT_GT(at - last, whole.size() / 40) << said;
    last = at;
    facts += question.tokens.size();
    const std::string asked =
        decoded({question.tokens.begin(), question.tokens.begin() + static_cast<ptrdiff_t>(question.answer)});
    EXPECT_EQ(whole.find(asked), whole.rfind(asked)) << asked;  // one answer each
  }
  // Nothing but the text and the facts, which end with a sign or two.
  EXPECT_GE(found.text.size(), text_.size() + facts);
  EXPECT_LE(found.text.size(), text_.size() + facts + 3 * 8);
  EXPECT_TRUE(std::equal(text_.begin(), text_.begin() + static_cast<ptrdiff_t>(text_.size() / 16),
                         found.text.begin()));
}

TEST_F(Recall, ASeedGivesTheSameFactsAndAnotherOthers) {
  const RecallText one = recall(4, 1), same = recall(4, 1), other = recall(4, 2);
  EXPECT_EQ(one.text, same.text);
  std::set<std::vector<llm::Token>> asked;
  for (const RecallText* of : {&one, &other}) {
    for (const RecallText::Question& question : of->questions) asked.insert(question.tokens);
  }
  EXPECT_EQ(asked.size(), 8u);
}

}  // namespace
}  // namespace frugal::cli
