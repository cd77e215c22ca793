#include "llm/decode/sampler.h"

#include <gtest/gtest.h>
#include <llama.h>

#include <cmath>
#include <limits>
#include <map>

#include "reference/naive_sampler.h"
#include "support/allocations.h"

namespace frugal::llm {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(Rng& rng, int n, double scale = 3) {
  std::vector<float> logits;
  for (int i = 0; i < n; ++i) logits.push_back(static_cast<float>(rng.normal() * scale));
  return logits;
}

Sampler make(const SamplerOptions& options, int n_vocab) {
  auto sampler = Sampler::create(options, n_vocab);
  EXPECT_TRUE(sampler.ok()) << (sampler.ok() ? "" : sampler.error().message);
  return std::move(sampler).value();
}

// Options drawn over all stages, each off now and then.
SamplerOptions random_options(Rng& rng) {
  SamplerOptions options;
  options.temperature = static_cast<float>(0.2 + 1.8 * rng.uniform());
  options.top_k = rng.below(3) == 0 ? 0 : static_cast<int>(1 + rng.below(60));
  options.top_p = rng.below(3) == 0 ? 1.0f : static_cast<float>(0.1 + 0.89 * rng.uniform());
  options.min_p = rng.below(3) == 0 ? 0.0f : static_cast<float>(0.3 * rng.uniform());
  if (rng.below(2) == 0) {
    options.repeat_penalty = static_cast<float>(0.8 + rng.uniform());
    options.frequency_penalty = static_cast<float>(rng.uniform() - 0.3);
    options.presence_penalty = static_cast<float>(rng.uniform() - 0.3);
    options.penalty_last_n = static_cast<int>(rng.below(20));
  }
  options.seed = rng.next();
  return options;
}

TEST(Sampler, ExpAgreesWithTheStandardLibrary) {
  for (double x = 0; x > -708; x -= 0.37) {
    EXPECT_NEAR(portable_exp(x) / std::exp(x), 1, 1e-15) << x;
  }
  EXPECT_EQ(portable_exp(0), 1);
  EXPECT_EQ(portable_exp(-1e9), 0);
  EXPECT_EQ(portable_exp(-std::numeric_limits<double>::infinity()), 0);
}

TEST(Sampler, GreedyTakesTheLargestAndTheFirstOfEquals) {
  Sampler sampler = make({}, 19);
  std::vector<float> logits(19, -5);
  logits[7] = logits[17] = 2;
  EXPECT_EQ(sampler.sample(logits).value(), 7);
  logits[18] = 3;
  EXPECT_EQ(sampler.sample(logits).value(), 18);
  logits.assign(19, -kInfinity);
  logits[4] = -1e30f;
  EXPECT_EQ(sampler.sample(logits).value(), 4);
}

// Every draw must be possible in the naive distribution, and over many draws come as often as it says.
TEST(Sampler, DrawsAsTheNaiveTwinSays) {
  Rng rng(1);
  for (int round = 0; round < 40; ++round) {
    const int n_vocab = static_cast<int>(5 + rng.below(600));
    const SamplerOptions options = random_options(rng);
    const std::vector<float> logits = random_logits(rng, n_vocab);
    Sampler sampler = make(options, n_vocab);
    std::vector<Token> seen;
    for (int i = 0; i < 30; ++i) {
      seen.push_back(static_cast<Token>(rng.below(static_cast<uint32_t>(n_vocab))));
      sampler.accept(seen.back());
    }
    const auto expected = reference::naive_distribution(logits, seen, options);
    std::map<Token, int> drawn;
    constexpr int kDraws = 4000;
    for (int i = 0; i < kDraws; ++i) ++drawn[sampler.sample(logits).value()];
    int total = 0;
    for (const auto& [id, p] : expected) {
      const int n = drawn.count(id) != 0 ? drawn[id] : 0;
      total += n;
      // Five standard deviations of a binomial count, and one for the rounding of tiny probabilities: over
      // some 10,000 comparisons a false alarm has a chance below 1 %; the seed is fixed, so it is decided
      // once.
      EXPECT_NEAR(n, kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p)) + 1)
          << "round " << round << " token " << id;
    }
    EXPECT_EQ(total, kDraws) << "round " << round << ": a token outside the distribution was drawn";
  }
}

TEST(Sampler, TheSameDrawAsTheNaiveTwinForTheSameNumber) {
  Rng rng(2);
  int compared = 0;
  for (int round = 0; round < 2000; ++round) {
    const int n_vocab = static_cast<int>(2 + rng.below(2000));
    SamplerOptions options = random_options(rng);
    options.top_k =
        static_cast<int>(1 + rng.below(50));  // ranks the candidates, so the order of the sums is known
    const std::vector<float> logits = random_logits(rng, n_vocab);
    Sampler sampler = make(options, n_vocab);
    std::vector<Token> seen;
    for (uint32_t i = rng.below(40); i > 0; --i) {
      seen.push_back(static_cast<Token>(rng.below(static_cast<uint32_t>(n_vocab))));
      sampler.accept(seen.back());
    }
    if (options.top_k >= n_vocab) continue;
    const auto distribution = reference::naive_distribution(logits, seen, options);
    const double number = Rng(options.seed).uniform();
    double sum = 0;
    bool near_a_boundary = false;
    Token expected = distribution.back().id;
    bool found = false;
    for (const auto& [id, p] : distribution) {
      sum += p;
      near_a_boundary = near_a_boundary || std::fabs(sum - number) < 1e-12;
      if (!found && sum > number) {
        expected = id;
        found = true;
      }
    }
    if (near_a_boundary) continue;
    ++compared;
    EXPECT_EQ(sampler.sample(logits).value(), expected) << "round " << round;
  }
  EXPECT_GT(compared, 1500);
}

TEST(Sampler, PenaltyWindowForgets) {
  SamplerOptions options;
  options.presence_penalty = 10;
  options.penalty_last_n = 2;
  Sampler sampler = make(options, 4);
  const std::vector<float> logits = {3, 2, 1, 0};
  EXPECT_EQ(sampler.sample(logits).value(), 0);
  sampler.accept(0);
  EXPECT_EQ(sampler.sample(logits).value(), 1);
  sampler.accept(1);
  EXPECT_EQ(sampler.sample(logits).value(), 2);
  sampler.accept(99);  // not of this vocabulary: takes a place in the window, nothing else
  EXPECT_EQ(sampler.sample(logits).value(), 0);
  sampler.reset();
  sampler.accept(0);
  EXPECT_EQ(sampler.sample(logits).value(), 1);
}

TEST(Sampler, SeedDecidesAndResetRepeats) {
  Rng rng(3);
  const std::vector<float> logits = random_logits(rng, 300, 1);
  SamplerOptions options;
  options.temperature = 1;
  options.seed = 42;
  Sampler a = make(options, 300), b = make(options, 300);
  options.seed = 43;
  Sampler other = make(options, 300);
  std::vector<Token> first, second, third, again;
  for (int i = 0; i < 50; ++i) {
    first.push_back(a.sample(logits).value());
    second.push_back(b.sample(logits).value());
    third.push_back(other.sample(logits).value());
  }
  a.reset();
  for (int i = 0; i < 50; ++i) again.push_back(a.sample(logits).value());
  EXPECT_EQ(first, second);
  EXPECT_EQ(first, again);
  EXPECT_NE(first, third);
}

// Written down, so that another platform or compiler that draws otherwise is found out.
TEST(Sampler, KnownDraws) {
  std::vector<float> logits;
  for (int i = 0; i < 50; ++i) logits.push_back(static_cast<float>((i * 37) % 50) / 10);
  SamplerOptions options;
  options.temperature = 0.9f;
  options.seed = 7;
  Sampler sampler = make(options, 50);
  std::vector<Token> drawn;
  for (int i = 0; i < 12; ++i) {
    drawn.push_back(sampler.sample(logits).value());
    sampler.accept(drawn.back());
  }
  EXPECT_EQ(drawn, (std::vector<Token>{17, 43, 28, 35, 4, 16, 21, 16, 25, 32, 24, 43}));
}

TEST(Sampler, BrokenLogitsAreAnError) {
  for (const float temperature : {0.0f, 1.0f}) {
    SamplerOptions options;
    options.temperature = temperature;
    Sampler sampler = make(options, 10);
    std::vector<float> logits(10, 1.0f);
    logits[3] = std::numeric_limits<float>::quiet_NaN();
    auto result = sampler.sample(logits);
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::kCorrupt);
    EXPECT_NE(result.error().message.find("NaN as the logit of token 3"), std::string::npos);
    logits[3] = kInfinity;
    EXPECT_EQ(sampler.sample(logits).error().code, ErrorCode::kCorrupt);
    logits.assign(10, -kInfinity);
    EXPECT_EQ(sampler.sample(logits).error().code, ErrorCode::kCorrupt);
    EXPECT_EQ(sampler.sample(std::vector<float>(9, 0)).error().code, ErrorCode::kInvalidArgument);
    logits[6] = 1;  // all others masked: the only one that can come
    EXPECT_EQ(sampler.sample(logits).value(), 6);
  }
}

TEST(Sampler, ExtremeLogitsStayDefined) {
  SamplerOptions options;
  options.temperature = 0.01f;
  options.repeat_penalty = 0.01f;
  options.frequency_penalty = -100;
  options.top_k = 0;
  Sampler sampler = make(options, 4);
  for (Token t = 0; t < 4; ++t) sampler.accept(t);
  const float most = std::numeric_limits<float>::max();
  const Token drawn = sampler.sample(std::vector<float>{most, -most, 0, most / 2}).value();
  EXPECT_TRUE(drawn == 0 || drawn == 3) << drawn;  // dividing by 0.01 puts both at the largest float
  options.repeat_penalty = 100;
  Sampler heavy = make(options, 4);
  for (Token t = 0; t < 4; ++t) heavy.accept(t);
  EXPECT_TRUE(heavy.sample(std::vector<float>(4, -most)).ok());
}

TEST(Sampler, OptionsOutOfRangeAreNamed) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto refused = [](const char* name, auto change) {
    SamplerOptions options;
    change(options);
    const Status status = validate(options);
    ASSERT_FALSE(status.ok()) << name;
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(status.error().message.rfind(std::string(name) + " is ", 0), 0u) << status.error().message;
    EXPECT_FALSE(Sampler::create(options, 10).ok());
  };
  refused("temperature", [](auto& o) { o.temperature = -0.1f; });
  refused("temperature", [&](auto& o) { o.temperature = nan; });
  refused("temperature", [](auto& o) { o.temperature = kInfinity; });
  refused("top_k", [](auto& o) { o.top_k = -1; });
  refused("top_p", [](auto& o) { o.top_p = 0; });
  refused("top_p", [](auto& o) { o.top_p = 1.01f; });
  refused("min_p", [](auto& o) { o.min_p = -0.01f; });
  refused("repeat_penalty", [](auto& o) { o.repeat_penalty = 0; });
  refused("frequency_penalty", [&](auto& o) { o.frequency_penalty = nan; });
  refused("presence_penalty", [](auto& o) { o.presence_penalty = 101; });
  refused("penalty_last_n", [](auto& o) { o.penalty_last_n = -1; });
  EXPECT_TRUE(validate({}).ok());
  EXPECT_FALSE(Sampler::create({}, 0).ok());
}

TEST(Sampler, AllocatesNothingOnceMade) {
  Rng rng(5);
  for (int round = 0; round < 20; ++round) {
    const SamplerOptions options = round == 0 ? SamplerOptions{} : random_options(rng);
    const std::vector<float> logits = random_logits(rng, 5000);
    Sampler sampler = make(options, 5000);
    const size_t before = test::allocation_count();
    for (int i = 0; i < 100; ++i) sampler.accept(sampler.sample(logits).value());
    EXPECT_EQ(test::allocation_count(), before);
  }
}

// llama.cpp's chain, cut off before its own draw: the surviving tokens and their probabilities are ours.
TEST(Sampler, KeepsTheTokensThatLlamaCppKeeps) {
  Rng rng(6);
  int rounds_compared = 0;
  for (int round = 0; round < 300; ++round) {
    const int n_vocab = static_cast<int>(60 + rng.below(3000));
    const SamplerOptions options = random_options(rng);
    const std::vector<float> logits = random_logits(rng, n_vocab);
    std::vector<Token> seen;
    for (int i = 0; i < 25; ++i) seen.push_back(static_cast<Token>(rng.below(40)));

    llama_sampler* chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(
        chain, llama_sampler_init_penalties(n_vocab, options.penalty_last_n, options.repeat_penalty,
                                            options.frequency_penalty, options.presence_penalty));
    llama_sampler_chain_add(chain, llama_sampler_init_top_k(options.top_k));
    llama_sampler_chain_add(chain, llama_sampler_init_top_p(options.top_p, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_min_p(options.min_p, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_temp(options.temperature));
    llama_sampler_chain_add(chain, llama_sampler_init_dist(1));
    for (const Token token : seen) llama_sampler_accept(chain, token);
    std::vector<llama_token_data> data;
    for (int i = 0; i < n_vocab; ++i) data.push_back({i, logits[static_cast<size_t>(i)], 0});
    llama_token_data_array array{data.data(), data.size(), -1, false};
    llama_sampler_apply(chain, &array);
    llama_sampler_free(chain);
    std::map<Token, double> theirs;
    for (size_t i = 0; i < array.size; ++i) theirs[array.data[i].id] = static_cast<double>(array.data[i].p);

    const auto expected = reference::naive_distribution(logits, seen, options);
    // llama.cpp adds up top-p in float: a token whose cumulative probability stands within rounding of p may
    // differ.
    if (theirs.size() != expected.size()) {
      EXPECT_LE(std::max(theirs.size(), expected.size()) - std::min(theirs.size(), expected.size()), 1u);
      continue;
    }
    ++rounds_compared;
    for (const auto& [id, p] : expected) {
      ASSERT_TRUE(theirs.count(id) != 0) << "round " << round << " token " << id;
      EXPECT_NEAR(theirs[id], p, 1e-5 * p + 1e-9) << "round " << round << " token " << id;
    }
    // And our sampler draws from that set alone.
    Sampler sampler = make(options, n_vocab);
    for (const Token token : seen) sampler.accept(token);
    for (int i = 0; i < 50; ++i)
      EXPECT_TRUE(theirs.count(sampler.sample(logits).value()) != 0) << "round " << round;
  }
  EXPECT_GE(rounds_compared, 295);
}

}  // namespace
}  // namespace frugal::llm
