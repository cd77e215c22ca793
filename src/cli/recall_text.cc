#include "cli/recall_text.h"

#include <array>
#include <string>

#include "base/rng.h"
#include "base/text.h"

namespace frugal::cli {
namespace {

constexpr std::array kOnsets = {"b", "d", "f", "g", "k", "l", "m",  "n",
                                "p", "r", "s", "t", "v", "z", "st", "tr"};
constexpr std::array kRhymes = {"a", "e", "i", "o", "u", "an", "el", "in", "or", "us"};
constexpr std::array kThings = {"price", "age", "length", "code", "year", "weight", "address", "value"};

template <typename List>
std::string one_of(const List& list, Rng& rng) {
  return list[static_cast<size_t>(rng.below(list.size()))];
}

std::string name_of(Rng& rng) {
  std::string name;
  const int syllables = 2 + static_cast<int>(rng.below(2));
  for (int i = 0; i < syllables; ++i) name += one_of(kOnsets, rng) + one_of(kRhymes, rng);
  name[0] = static_cast<char>(name[0] - 'a' + 'A');
  return name;
}

struct Fact {
  std::string before, answer, after;  // "\nThe age of Karo is", " 4071", ".\n"
};

Fact fact_of(int kind, Rng& rng) {
  const std::string name = name_of(rng);
  const std::string number = strf("%d", 1000 + static_cast<int>(rng.below(99000)));
  switch (kind % 4) {
    case 0:
      return {"\nThe " + one_of(kThings, rng) + " of " + name + " is", " " + number, ".\n"};
    case 1:
      return {"\n" + name + " =", " " + number, "\n"};
    case 2:
      return {"\n" + name + " lives in", " " + name_of(rng), ".\n"};
    default:
      return {"\n\"" + name + "\":", " " + number, ",\n"};
  }
}

}  // namespace

Result<RecallText> recall_text(const llm::Tokenizer& tokenizer, std::span<const llm::Token> text, int n,
                               uint64_t seed) {
  Rng rng(seed);
  RecallText out;
  size_t from = 0;
  const auto encode = [&](const std::string& words) { return tokenizer.encode(words, false, false); };
  for (int i = 0; i < n; ++i) {
    const Fact fact = fact_of(i, rng);
    const size_t at = text.size() * static_cast<size_t>(2 * i + 1) / static_cast<size_t>(2 * n);
    out.text.insert(out.text.end(), text.begin() + static_cast<ptrdiff_t>(from),
                    text.begin() + static_cast<ptrdiff_t>(at));
    FRUGAL_TRY(const auto sentence, encode(fact.before + fact.answer + fact.after));
    out.text.insert(out.text.end(), sentence.begin(), sentence.end());
    RecallText::Question question;
    FRUGAL_TRY(question.tokens, encode(fact.before + fact.answer));
    FRUGAL_TRY(const auto before, encode(fact.before));
    while (question.answer < before.size() && question.tokens[question.answer] == before[question.answer])
      ++question.answer;
    out.questions.push_back(std::move(question));
    from = at;
  }
  out.text.insert(out.text.end(), text.begin() + static_cast<ptrdiff_t>(from), text.end());
  return out;
}

}  // namespace frugal::cli
