// Kernels of codes: all integer, so every set has to give the bits of sums done one by one.
#include "llm/kernel/codes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/rng.h"

namespace frugal::llm {
namespace {

constexpr uint8_t kBits[] = {8, 6, 4, 3, 2, 1, 0};

struct Case {
  std::vector<uint8_t> bits;
  std::vector<std::vector<bool>> streams;  // [panel and token], with nothing after the end
  size_t stride = 0;                       // of panels
  std::vector<std::byte> panel;
  std::vector<uint8_t> tables = std::vector<uint8_t>(kTableBytes);

  // Streams of whole bytes, with any number of them left beside rows of 4.
  explicit Case(Rng& rng, size_t n_panels = 4) {
    for (uint8_t& level : tables) level = static_cast<uint8_t>(rng.below(kLevelMax + 1));
    constexpr size_t kGroups = 11;
    for (size_t g = 0; g < kGroups; ++g) bits.push_back(kBits[g < 7 ? g : rng.below(7)]);
    while (stream_bits(bits.data(), kGroups) % 8 != 0) bits.back() = kBits[rng.below(7)];
    const auto n_bits = static_cast<size_t>(stream_bits(bits.data(), kGroups));
    stride = 2 * n_bits + 8;  // something else stands there
    panel.resize(n_panels * stride + 64, std::byte{0xff});
    for (size_t p = 0; p < n_panels; ++p) {
      for (int token = 0; token < 16; ++token) {
        std::vector<bool>& stream = streams.emplace_back();
        const bool ones = rng.below(8) == 0;
        for (const uint8_t b : bits) {
          for (int i = 0; i < 4; ++i) {  // a code of 8 bits is a level
            const uint32_t code = rng.below(b == 8 ? kLevelMax + 1 : 1u << b);
            for (int bit = 0; bit < b; ++bit) stream.push_back(ones && b < 8 ? true : code >> bit & 1);
          }
        }
        uint32_t words[kMaxStreamWords] = {};
        for (size_t i = 0; i < n_bits; ++i) words[i / 32] |= static_cast<uint32_t>(stream[i]) << i % 32;
        put_stream(&panel[p * stride], static_cast<int>(n_bits), token, words);
        stream.resize(n_bits + 8, false);
      }
    }
  }
  int level(size_t token, size_t group, size_t i) const {
    const auto at = static_cast<size_t>(stream_bits(bits.data(), group)) + i * bits[group];
    int window = 0;
    for (size_t bit = 0; bit < (bits[group] == 8 ? 8 : kWindowBits); ++bit)
      window |= static_cast<int>(streams[token][at + bit]) << bit;
    return bits[group] == 8 ? window : tables[static_cast<size_t>(kWindows * bits[group] + window)];
  }
};

TEST(Codes, EverySetGivesTheSumsOfLevels) {
  Rng rng(3);
  for (const char* name : {"generic", "avx2", "avx512"}) {
    const CodeKernels* set = find_code_kernels(name);
    if (set == nullptr) continue;
    SCOPED_TRACE(name);
    for (int round = 0; round < 20; ++round) {
      const Case c(rng);
      const size_t n_groups = c.bits.size(), n_cols = 1 + rng.below(20);
      std::vector<int8_t> x(n_cols * 4 * n_groups);
      // The extremes, now and then: 16 bits must not overflow.
      for (int8_t& v : x)
        v = static_cast<int8_t>(rng.below(4) == 0 ? 127 : static_cast<int>(rng.below(255)) - 127);
      std::vector<int32_t> zeros(n_cols);
      std::vector<float> scales(n_cols), y(n_cols * kCodeBlock, 0.25f);
      for (size_t col = 0; col < n_cols; ++col) {
        zeros[col] = static_cast<int32_t>(rng.below(2000)) - 1000;
        scales[col] = static_cast<float>(rng.uniform());
      }
      set->dot_keys(c.panel.data(), c.stride, CodeLayout(c.bits.data(), n_groups), c.tables.data(), x.data(),
                    n_cols, zeros.data(), scales.data(), y.data(), kCodeBlock);
      for (size_t col = 0; col < n_cols; ++col) {
        for (size_t t = 0; t < kCodeBlock; ++t) {
          int32_t sum = 0;
          for (size_t g = 0; g < n_groups; ++g) {
            for (size_t i = 0; i < 4 && c.bits[g] > 0; ++i)
              sum += c.level(t, g, i) * x[col * 4 * n_groups + 4 * g + i];
          }
          const float added = scales[col] * static_cast<float>(sum - zeros[col]);
          ASSERT_EQ(y[col * kCodeBlock + t], 0.25f + added);
        }
      }
    }
  }
}

TEST(Codes, EverySetGivesTheWeightedSumsOfValues) {
  Rng rng(4);
  for (const char* name : {"generic", "avx2", "avx512"}) {
    const CodeKernels* set = find_code_kernels(name);
    if (set == nullptr) continue;
    SCOPED_TRACE(name);
    for (const auto& [n_cols, n_blocks] :
         {std::pair<size_t, size_t>{1, 1}, {2, 4}, {3, 3}, {3, 4}, {4, 4}, {5, 2}, {6, 4}}) {
      const Case c(rng, 4 * n_blocks);
      const size_t n_groups = c.bits.size(), n_tokens = n_blocks * kCodeBlock, stride = kCodeBlock + 16;
      std::vector<uint8_t> w(n_cols * n_tokens), plain(n_tokens);
      std::vector<int32_t> zeros(n_cols), values(n_cols * n_tokens);
      std::vector<float> scales(n_cols), y(n_cols * 4 * n_groups, 0.5f), level_scales(9);
      for (float& x : level_scales) x = static_cast<float>(rng.uniform());
      const std::vector<float> ones(n_tokens, 1.0f);
      for (size_t col = 0; col < n_cols; ++col) {
        std::vector<float> weights(n_blocks * stride);
        for (float& x : weights) x = rng.below(4) == 0 ? 1.0f : static_cast<float>(rng.uniform());
        if (col == 3) std::fill(weights.begin(), weights.end(), 0.0f);
        if (col == 2) std::fill(weights.begin(), weights.end(), 1.0f);  // the largest sums
        uint8_t* own = &w[col * n_tokens];
        scales[col] = set->quantize_weights(weights.data(), stride, ones.data(), n_blocks, kDither.of, own,
                                            &zeros[col]);
        int32_t sum = 0;
        ASSERT_EQ(find_code_kernels("generic")->quantize_weights(weights.data(), stride, ones.data(),
                                                                 n_blocks, kDither.of, plain.data(), &sum),
                  scales[col]);
        ASSERT_EQ(zeros[col], sum);
        double off = 0;
        for (size_t t = 0; t < n_tokens; ++t) {
          ASSERT_EQ(own[t], plain[t]);
          // Less than a step off, and 254 * 2^-23 of a step by rounding.
          const float error = static_cast<float>(own[t]) - weights[t / kCodeBlock * stride + t % kCodeBlock] *
                                                               static_cast<float>(kWeightMax);
          ASSERT_NEAR(error, 0, 0.999f);
          off += error;
          values[col * n_tokens + t] = own[t];
        }
        // The dither's mean is 0: of independent errors of at most a half in the mean square, 5 times what
        // their sum comes to.
        ASSERT_NEAR(off, 0, 2.5 * std::sqrt(static_cast<double>(n_tokens)));
      }
      std::vector<float*> columns;
      for (size_t col = 0; col < n_cols; ++col) columns.push_back(&y[col * 4 * n_groups]);
      set->dot_values(c.panel.data(), c.stride, n_blocks, CodeLayout(c.bits.data(), n_groups),
                      c.tables.data(), level_scales.data(), w.data(), n_cols, zeros.data(), scales.data(),
                      columns.data());
      for (size_t col = 0; col < n_cols; ++col) {
        for (size_t g = 0; g < n_groups; ++g) {
          for (size_t i = 0; i < 4; ++i) {
            int32_t sum = 0;
            for (size_t t = 0; t < n_tokens; ++t) sum += c.level(t, g, i) * values[col * n_tokens + t];
            const float scale = scales[col] * level_scales[c.bits[g]];
            const float added = c.bits[g] == 0 ? 0 : scale * static_cast<float>(sum - zeros[col]);
            ASSERT_EQ(y[(col * n_groups + g) * 4 + i], 0.5f + added) << col << " " << int{c.bits[g]};
          }
        }
      }
    }
  }
}

// Against every path there is, and set against set.
TEST(Codes, EverySetFindsTheBestPath) {
  Rng rng(9);
  for (int round = 0; round < 60; ++round) {
    const size_t n = round < 40 ? 4 : 30;
    std::vector<float> levels(5 * kWindows), y, weights;
    for (float& level : levels) level = static_cast<float>(rng.normal());
    std::vector<uint8_t> bits;
    for (size_t i = 0; i < n; ++i) {
      y.push_back(static_cast<float>(rng.normal()));
      weights.push_back(static_cast<float>(rng.uniform()) + 0.1f);
      bits.push_back(static_cast<uint8_t>(1 + rng.below(n == 4 ? 3 : 4)));
    }
    const int after = static_cast<int>(rng.below(kWindows));
    const auto cost_of = [&](const std::vector<uint8_t>& codes) {
      double cost = 0;
      for (size_t i = 0, window = static_cast<size_t>(after); i < n; ++i) {
        window = (window << bits[i] | codes[i]) % kWindows;
        const double off = static_cast<double>(y[i] - levels[kWindows * bits[i] + window]);
        cost += static_cast<double>(weights[i]) * off * off;
      }
      return cost;
    };
    double least = 1e30;
    for (uint32_t all = 0; n == 4 && all < 1u << 12; ++all) {
      std::vector<uint8_t> codes;
      for (size_t i = 0; i < n; ++i) codes.push_back(static_cast<uint8_t>(all >> (3 * i) & 7));
      bool possible = true;
      for (size_t i = 0; i < n; ++i) possible = possible && codes[i] < 1 << bits[i];
      if (possible) least = std::min(least, cost_of(codes));
    }
    std::vector<uint8_t> first;
    for (const char* name : {"generic", "avx2", "avx512"}) {
      const CodeKernels* set = find_code_kernels(name);
      if (set == nullptr) continue;
      std::vector<uint8_t> codes(n);
      set->code_path(y.data(), weights.data(), bits.data(), n, after, levels.data(), codes.data());
      if (first.empty()) first = codes;
      EXPECT_EQ(codes, first) << name;
      // Side by side with other tokens, each is coded as alone.
      std::vector<float> side_by_side(n * kPathTokens);
      int afters[kPathTokens];
      for (size_t t = 0; t < kPathTokens; ++t) {
        afters[t] = (after + static_cast<int>(t)) % kWindows;
        for (size_t i = 0; i < n; ++i)
          side_by_side[i * kPathTokens + t] = y[i] + 0.3f * static_cast<float>(t);
      }
      std::vector<uint8_t> together(n * kPathTokens);
      set->code_paths(side_by_side.data(), weights.data(), bits.data(), n, afters, levels.data(),
                      together.data());
      for (size_t t = 0; t < kPathTokens; ++t) {
        std::vector<float> own;
        std::vector<uint8_t> alone(n), of;
        for (size_t i = 0; i < n; ++i) {
          own.push_back(side_by_side[i * kPathTokens + t]);
          of.push_back(together[i * kPathTokens + t]);
        }
        set->code_path(own.data(), weights.data(), bits.data(), n, afters[t], levels.data(), alone.data());
        EXPECT_EQ(of, alone) << name;
      }
      if (n == 4) {
        EXPECT_NEAR(cost_of(codes), least, 1e-5) << name;  // floats: 4 sums of about 1
      }
    }
  }
}

TEST(Codes, EverySetTurnsFactorsAndLooksUpScalesAlike) {
  Rng rng(5);
  const auto normals = [&](size_t n) {
    std::vector<float> x(n);
    for (float& v : x) v = static_cast<float>(rng.normal());
    return x;
  };
  for (const size_t n_pairs : {16, 32, 128}) {
    const size_t n_fast = n_pairs / 2 - 2, n_full = n_pairs * 3 / 4;
    const std::vector<float> factors = normals(2 * n_pairs * kTurnCols), middles = normals(2 * n_pairs * 4),
                             table = normals(16), powers = normals(n_pairs * kTurnTerms);
    constexpr float kInverse[kTurnCols] = {100, 50, 0, 80};
    std::vector<std::byte> codes(4 * 11);
    for (std::byte& code : codes) code = static_cast<std::byte>(rng.below(256));
    std::vector<int16_t> first;
    for (const char* name : {"generic", "avx2", "avx512"}) {
      const CodeKernels* set = find_code_kernels(name);
      if (set == nullptr) continue;
      SCOPED_TRACE(name);
      std::vector<int16_t> x((2 * n_fast + kEvenRows + kOddRows) * kTurnLanes, int16_t{77});
      std::vector<float> scales(kCodeBlock);
      set->turn_factors(factors.data(), kInverse, middles.data(), n_pairs, n_fast, n_full, powers.data(),
                        x.data());
      set->expand_scales(codes.data(), 11, table.data(), scales.data());
      if (first.empty()) first = x;
      EXPECT_EQ(x, first);
      for (size_t lane = 0; lane < kTurnLanes; ++lane) {
        const size_t col = lane % kTurnCols, block = lane / kTurnCols;
        const auto row = [&](size_t i) { return x[i / 2 * 2 * kTurnLanes + lane * 2 + i % 2]; };
        const double inverse = static_cast<double>(kInverse[col]);
        double terms[kTurnTerms] = {};
        for (size_t i = 0; i < n_pairs; ++i) {
          const double c = factors[i * kTurnCols + col], s = factors[(n_pairs + i) * kTurnCols + col],
                       at = middles[i * 4 + block], by = middles[(n_pairs + i) * 4 + block];
          const double a = c * at + s * by, b = s * at - c * by;
          if (i < n_fast) {  // to the nearest, of floats with rounded products
            EXPECT_NEAR(row(i), inverse * a, 0.501);
            EXPECT_NEAR(row(n_fast + kEvenRows + i), inverse * b, 0.501);
            continue;
          }
          for (size_t term = 0; term < (i < n_full ? kTurnTerms : 2); ++term)
            terms[term] += (term % 2 == 0 ? a : b) * static_cast<double>(powers[i * kTurnTerms + term]);
        }
        for (size_t term = 0; term < kTurnTerms; ++term) {
          ASSERT_LT(inverse * std::fabs(terms[term]), 32000);
          EXPECT_NEAR(row((term % 2 == 0 ? n_fast : 2 * n_fast + kEvenRows) + term / 2),
                      inverse * terms[term], 0.51);
        }
        EXPECT_EQ(row(n_fast + kEvenTerms), 0);
      }
      for (size_t t = 0; t < kCodeBlock; ++t) {
        const auto byte = static_cast<size_t>(codes[t / 16 * 11 + t % 16 / 2]);
        EXPECT_EQ(scales[t], table[t % 2 == 0 ? byte & 15 : byte >> 4]);
      }
    }
  }
}

TEST(Codes, EverySetLooksUpBooksAlike) {
  Rng rng(12);
  constexpr size_t kStride = 21, kBlocks = 3, kWeightStride = 7 * kCodeBlock;
  std::vector<std::byte> indices(4 * kBlocks * kStride);
  for (std::byte& index : indices) index = static_cast<std::byte>(rng.below(256));
  const auto index_of = [&](size_t t) { return static_cast<size_t>(indices[t / 16 * kStride + t % 16]); };
  for (const size_t n_cols : {size_t{1}, size_t{2}, size_t{3}, size_t{7}}) {
    std::vector<float> products(n_cols * kBookEntries), w(kBlocks * kWeightStride);
    for (float& x : products) x = static_cast<float>(rng.normal());
    for (float& x : w) x = static_cast<float>(rng.uniform());
    std::vector<float> first, first_bins;
    for (const char* name : {"generic", "avx2", "avx512"}) {
      const CodeKernels* set = find_code_kernels(name);
      if (set == nullptr) continue;
      SCOPED_TRACE(name);
      std::vector<int16_t> tables(product_tables(n_cols));
      std::vector<float> scales(n_cols), y(n_cols * kCodeBlock, 0.25f), bins(n_cols * kBookEntries);
      alignas(64) float apart[2 * kBookEntries * kBinCols];
      for (size_t c = 0; c < n_cols; ++c)
        scales[c] = set->quantize_products(&products[c * kBookEntries], tables.data(), c);
      const size_t some = n_cols / 3;  // columns need not begin with the first
      set->add_products(indices.data(), kStride, tables.data(), 0, some, scales.data(), y.data(), kCodeBlock);
      set->add_products(indices.data(), kStride, tables.data(), some, n_cols - some, &scales[some],
                        &y[some * kCodeBlock], kCodeBlock);
      std::vector<const float*> from;
      std::vector<float*> to;
      for (size_t c = 0; c < n_cols; ++c) {
        from.push_back(&w[c * kCodeBlock]);
        to.push_back(&bins[c * kBookEntries]);
      }
      std::fill(std::begin(apart), std::end(apart), 0.5f);
      set->add_to_bins(indices.data(), kStride, 5, kBlocks, from.data(), kWeightStride, n_cols, apart);
      set->spread_bins(apart, n_cols, to.data());
      if (first.empty()) first = y, first_bins = bins;
      EXPECT_EQ(y, first);
      EXPECT_EQ(bins, first_bins);
      for (size_t c = 0; c < n_cols; ++c) {
        for (size_t t = 0; t < kCodeBlock; ++t) {  // half of a step, and rounding of floats
          ASSERT_NEAR(y[c * kCodeBlock + t], 0.25f + products[c * kBookEntries + index_of(t)],
                      0.51f * scales[c] + 1e-6f);
        }
        std::vector<float> expected(kBookEntries, 0.5f);
        for (size_t t = 5; t < kBlocks * kCodeBlock; ++t)
          expected[index_of(t)] += w[t / kCodeBlock * kWeightStride + c * kCodeBlock + t % kCodeBlock];
        for (size_t e = 0; e < kBookEntries; ++e) ASSERT_EQ(bins[c * kBookEntries + e], expected[e]);
      }
      std::vector<float> bad(kBookEntries, 1.0f);
      bad[200] = n_cols == 1 ? INFINITY : std::nanf("");
      EXPECT_TRUE(std::isnan(set->quantize_products(bad.data(), tables.data(), 0)));
    }
  }
}

// Sums are whole, so the only rounding is that of the product with the scale.
TEST(Codes, EverySetScoresABlockFromItsMiddle) {
  Rng rng(6);
  constexpr size_t kHalf = kCodeBlock / 2, kEven = 12, kOdd = 10, kWidth = kEven + kOdd;
  const auto whole_numbers = [&](size_t n, int most) {
    std::vector<int16_t> x(n);
    for (int16_t& v : x) v = static_cast<int16_t>(static_cast<int>(rng.below(2 * most + 1)) - most);
    return x;
  };
  const std::vector<int16_t> even = whole_numbers(kEven * kHalf, 16384),
                             odd = whole_numbers(kOdd * kHalf, 16384);
  for (const size_t n_cols : {1, 2, 3, 4, 7}) {
    std::vector<int16_t> x = whole_numbers(kTurnLanes * kWidth, 5000);
    x[0] = 32000;
    std::vector<float> scales(n_cols);
    for (float& scale : scales) scale = static_cast<float>(rng.uniform());
    for (const char* name : {"generic", "avx2", "avx512"}) {
      const CodeKernels* set = find_code_kernels(name);
      if (set == nullptr) continue;
      std::vector<float> y(n_cols * kCodeBlock);
      set->turned_scores(x.data(), n_cols, scales.data(), even.data(), kEven, odd.data(), kOdd, y.data());
      for (size_t c = 0; c < n_cols; ++c) {
        for (size_t t = 0; t < kCodeBlock; ++t) {
          const size_t offset = t < kHalf ? kHalf - 1 - t : t - kHalf;
          int64_t sum = 0;
          for (size_t row = 0; row < kWidth; ++row) {
            const bool is_even = row < kEven;
            const size_t rows = is_even ? kEven : kOdd, at = is_even ? row : row - kEven;
            const int64_t part =
                int64_t{x[row / 2 * 2 * kTurnLanes + 2 * c + row % 2]} *
                (is_even ? even : odd)[offset / 16 * rows * 16 + at / 2 * 32 + offset % 16 * 2 + at % 2];
            sum += is_even || t >= kHalf ? part : -part;
          }
          ASSERT_LT(std::llabs(sum), INT32_MAX);
          ASSERT_EQ(y[c * kCodeBlock + t], scales[c] * static_cast<float>(sum)) << name;
        }
      }
    }
  }
}

TEST(Codes, WeightsThatAreNotFiniteShow) {
  for (const char* name : {"generic", "avx2", "avx512"}) {
    const CodeKernels* set = find_code_kernels(name);
    if (set == nullptr) continue;
    for (const float bad : {std::nanf(""), INFINITY}) {
      std::vector<float> weights(kCodeBlock, 0.5f), ones(kCodeBlock, 1.0f);
      weights[20] = bad;
      std::vector<uint8_t> w(kCodeBlock);
      int32_t sum = 0;
      EXPECT_TRUE(std::isnan(
          set->quantize_weights(weights.data(), kCodeBlock, ones.data(), 1, kDither.of, w.data(), &sum)))
          << name;
    }
  }
}

}  // namespace
}  // namespace frugal::llm
