#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "base/rng.h"
#include "cli/logit_file.h"
#include "cli/logit_metrics.h"

namespace frugal::cli {
namespace {

std::vector<double> row_of(Rng& rng, size_t n) {
  std::vector<float> logits(n);
  for (float& logit : logits) logit = static_cast<float>(4 * rng.normal());
  std::vector<double> log_p(n);
  log_softmax(logits, log_p);
  return log_p;
}

TEST(LogitMetrics, SmallCaseByHand) {
  const std::vector<float> even = {0, 0}, skewed = {std::log(3.0f), 0};
  std::vector<double> p(2), q(2);
  log_softmax(skewed, p);
  EXPECT_NEAR(p[0], std::log(0.75), 1e-7);
  log_softmax(even, q);
  // KL of (3/4, 1/4) from (1/2, 1/2).
  EXPECT_NEAR(kl_divergence(p, q), 0.75 * std::log(1.5) + 0.25 * std::log(0.5), 1e-7);
  EXPECT_EQ(kl_divergence(p, p), 0);

  LogitMetrics metrics;
  metrics.add_compared(q, p, 1);  // ours is even, the reference skewed; token 1 comes
  EXPECT_EQ(metrics.positions(), 1u);
  EXPECT_NEAR(metrics.perplexity(), 2, 1e-9);
  EXPECT_NEAR(metrics.reference_perplexity(), 4, 1e-6);
  EXPECT_NEAR(metrics.mean_kl(), kl_divergence(p, q), 1e-12);
  EXPECT_EQ(metrics.top1_agreement(), 1);  // the first of equals is token 0, as in the reference
  metrics.add_compared(p, std::vector<double>{std::log(0.4), std::log(0.6)}, 0);
  EXPECT_EQ(metrics.disagreements(), 1u);
  EXPECT_EQ(metrics.top1_agreement(), 0.5);
  EXPECT_NEAR(metrics.worst_disagreement_margin(), std::log(1.5), 1e-12);
}

TEST(LogitMetrics, MaskedTokensDoNotSpoilTheSum) {
  const std::vector<float> masked = {1, -std::numeric_limits<float>::infinity(), 0};
  std::vector<double> p(3);
  log_softmax(masked, p);
  EXPECT_EQ(kl_divergence(p, p), 0);
}

TEST(LogitMetrics, Percentile) {
  LogitMetrics metrics;
  const std::vector<double> q = {std::log(0.5), std::log(0.5)};
  for (int i = 0; i < 100; ++i) {
    const double a = i == 57 ? 0.9 : 0.5;  // one outlier in a hundred
    metrics.add_compared(q, std::vector<double>{std::log(a), std::log(1 - a)}, 0);
  }
  EXPECT_GT(metrics.kl_percentile(0.99), 0.3);
  EXPECT_EQ(metrics.kl_percentile(0.98), 0);
  EXPECT_EQ(metrics.kl_percentile(1), metrics.max_kl());
}

class LogitFile : public ::testing::Test {
 protected:
  void SetUp() override {
    folder = std::filesystem::temp_directory_path() / ("logit_test." + std::to_string(::getpid()));
    std::filesystem::create_directory(folder);
    path = (folder / "run.logits").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  void write(const std::vector<std::vector<double>>& rows) {
    auto writer = LogitFileWriter::create(
        path, {42, static_cast<uint32_t>(rows[0].size()), static_cast<uint32_t>(rows.size()), 128, 77});
    ASSERT_TRUE(writer.ok()) << writer.error().message;
    for (const auto& row : rows) ASSERT_TRUE(writer->add(row).ok());
    ASSERT_TRUE(writer->commit().ok());
  }
  std::string contents() {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void replace(const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

  std::filesystem::path folder;
  std::string path;
};

TEST_F(LogitFile, ReadsBackWithinHalfAStep) {
  Rng rng(1);
  std::vector<std::vector<double>> rows;
  for (int i = 0; i < 5; ++i) rows.push_back(row_of(rng, 333));
  write(rows);
  const auto reader = LogitFileReader::open(path);
  ASSERT_TRUE(reader.ok()) << reader.error().message;
  EXPECT_EQ(reader->head().model_hash, 42u);
  EXPECT_EQ(reader->head().n_positions, 5u);
  EXPECT_EQ(reader->head().window, 128u);
  EXPECT_EQ(reader->head().tokens_hash, 77u);
  std::vector<double> row(333);
  for (uint32_t i = 0; i < 5; ++i) {
    reader->read(i, row);
    // Half a step of a span below 40 nats, and the rounding of its float ends.
    for (size_t t = 0; t < row.size(); ++t) EXPECT_NEAR(row[t], rows[i][t], 0.5 * 40 / 65535 + 1e-4);
    EXPECT_LT(kl_divergence(rows[i], row), 1e-6);
  }
}

TEST_F(LogitFile, RefusesDamage) {
  Rng rng(2);
  write({row_of(rng, 50), row_of(rng, 50)});
  const std::string whole = contents();
  const auto refused = [&](const std::string& bytes, const char* why) {
    replace(bytes);
    const auto reader = LogitFileReader::open(path);
    ASSERT_FALSE(reader.ok()) << why;
    EXPECT_EQ(reader.error().code, ErrorCode::kCorrupt);
    EXPECT_NE(reader.error().message.find(why), std::string::npos) << reader.error().message;
  };
  refused("", "is not a file of saved logits");
  refused("something else entirely, and long enough to have a head in it", "is not a file of saved logits");
  refused(whole.substr(0, whole.size() - 5), "is truncated");
  std::string bytes = whole;
  bytes[8] = 9;
  refused(bytes, "another version");
  for (const size_t at : {size_t{24}, size_t{41}, whole.size() / 2, whole.size() - 1}) {
    bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ 1);
    refused(bytes, "checksum");
  }
  replace(whole);
  EXPECT_TRUE(LogitFileReader::open(path).ok());
}

TEST_F(LogitFile, UncommittedLeavesNothing) {
  {
    auto writer = LogitFileWriter::create(path, {1, 4, 2, 8, 1});
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(writer->add(std::vector<double>{-1, -2, -3, -4}).ok());
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}

}  // namespace
}  // namespace frugal::cli
