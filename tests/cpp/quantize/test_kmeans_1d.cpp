#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "src/quantize/kmeans_1d.h"
#include "tests/cpp/quantize/reference.h"

namespace anyprec::testing {
namespace {

std::vector<std::int64_t> fit(const WeightedRow& row, int clusters) {
  std::vector<std::int64_t> borders(static_cast<std::size_t>(clusters) + 1, -1);
  quantize::KMeans1D kmeans;
  kmeans.fit(row.value, row.mass, borders);
  return borders;
}

void expect_valid(const std::vector<std::int64_t>& borders, std::size_t n) {
  EXPECT_EQ(borders.front(), 0);
  EXPECT_EQ(borders.back(), static_cast<std::int64_t>(n));
  for (std::size_t j = 0; j + 1 < borders.size(); ++j) ASSERT_LE(borders[j], borders[j + 1]);
}

TEST(KMeans1D, EqualsBruteForceOnSmallRows) {
  std::mt19937_64 generator(1);
  std::uniform_real_distribution<double> uniform;
  for (int trial = 0; trial < 400; ++trial) {
    const std::size_t n = 1 + generator() % 12;
    WeightedRow row;
    double value = -1.0;
    for (std::size_t i = 0; i < n; ++i) {
      value += std::exp(8.0 * uniform(generator) - 6.0);
      row.value.push_back(value);
      row.mass.push_back(trial % 2 == 0 ? 1.0 : std::exp(10.0 * uniform(generator) - 8.0));
    }
    for (int k = 1; k <= 4; ++k) {
      const auto borders = fit(row, k);
      expect_valid(borders, n);
      const long double best = brute_force_error(row, k);
      EXPECT_NEAR(static_cast<double>(partition_error(row, borders)), static_cast<double>(best),
                  1e-9 * static_cast<double>(best) + 1e-15)
          << "trial " << trial << ", n " << n << ", k " << k;
    }
  }
}

class KMeans1DOnRealRows : public ::testing::TestWithParam<RowKind> {};

TEST_P(KMeans1DOnRealRows, EqualsDynamicProgramAtEverySeed) {
  for (const std::size_t n : {257u, 600u, 1000u}) {
    const WeightedRow row = heavy_tailed_row(GetParam(), n, n);
    const auto errors = dynamic_program_errors(row, n == 1000 ? 16 : 256);
    for (int b = 1; std::size_t{1} << b <= errors.size(); ++b) {
      const int k = 1 << b;
      const auto borders = fit(row, k);
      expect_valid(borders, row.value.size());
      const auto best = static_cast<double>(errors[static_cast<std::size_t>(k) - 1]);
      // Costs are differences of sums of squares, so that is what the rounding is relative to.
      const double rounding = 1e-15 * static_cast<double>(errors[0]);
      EXPECT_NEAR(static_cast<double>(partition_error(row, borders)), best, 1e-9 * best + rounding)
          << "n " << n << ", k " << k;
    }
  }
}

// Rows long enough for several levels of bins.
TEST_P(KMeans1DOnRealRows, EqualsDynamicProgramOnLongRows) {
  const WeightedRow row = heavy_tailed_row(GetParam(), 5000, 7);
  const auto errors = dynamic_program_errors(row, 8);
  for (const int k : {2, 4, 8}) {
    const auto best = static_cast<double>(errors[static_cast<std::size_t>(k) - 1]);
    EXPECT_NEAR(static_cast<double>(partition_error(row, fit(row, k))), best, 1e-9 * best)
        << "k " << k;
  }
}

TEST_P(KMeans1DOnRealRows, OneSolverServesRowsOfAnySizeInTurn) {
  quantize::KMeans1D kmeans;
  for (const std::size_t n : {3000u, 40u, 700u, 5u, 1500u}) {
    for (const int k : {8, 64, 4}) {
      const WeightedRow row = heavy_tailed_row(GetParam(), n, n);
      std::vector<std::int64_t> borders(static_cast<std::size_t>(k) + 1, -1);
      kmeans.fit(row.value, row.mass, borders);
      EXPECT_EQ(borders, fit(row, k)) << "n " << n << ", k " << k;
    }
  }
}

std::string kind_name(const ::testing::TestParamInfo<RowKind>& info) {
  const char* const names[] = {"Student", "Outliers", "UniformMass"};
  return names[static_cast<int>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Kinds, KMeans1DOnRealRows,
                         ::testing::Values(RowKind::kStudent, RowKind::kOutliers,
                                           RowKind::kUniformMass),
                         kind_name);

TEST(KMeans1D, EveryInstructionSetGivesTheSameBorders) {
  quantize::KMeans1D scalar(quantize::kernels_for(cpu::Isa::kScalar));
  for (const cpu::Isa isa : vector_isas()) {
    quantize::KMeans1D kmeans(quantize::kernels_for(isa));
    for (std::uint64_t seed = 0; seed < 12; ++seed) {
      const WeightedRow row = heavy_tailed_row(RowKind::kOutliers, 20 + 390 * seed, seed);
      for (const int k : {4, 8, 16, 32, 128}) {
        std::vector<std::int64_t> expected(static_cast<std::size_t>(k) + 1, -1);
        std::vector<std::int64_t> borders(static_cast<std::size_t>(k) + 1, -1);
        scalar.fit(row.value, row.mass, expected);
        kmeans.fit(row.value, row.mass, borders);
        EXPECT_EQ(borders, expected) << to_string(isa) << ", seed " << seed << ", k " << k;
      }
    }
  }
}

// A grid of many clusters, whose windows stay wide.
TEST(KMeans1D, EqualsDynamicProgramWithManyClustersOfManyPoints) {
  const WeightedRow row = heavy_tailed_row(RowKind::kStudent, 1500, 5);
  const auto errors = dynamic_program_errors(row, 64);
  for (const int k : {17, 32, 64}) {
    const auto best = static_cast<double>(errors[static_cast<std::size_t>(k) - 1]);
    EXPECT_NEAR(static_cast<double>(partition_error(row, fit(row, k))), best, 1e-9 * best) << k;
  }
}

// Many partitions cost nearly the same, so windows stay wide.
TEST(KMeans1D, EqualsDynamicProgramOnEvenlySpacedPoints) {
  WeightedRow row;
  for (int i = 0; i < 2000; ++i) {
    row.value.push_back(i);
    row.mass.push_back(1.0);
  }
  const auto errors = dynamic_program_errors(row, 16);
  for (const int k : {7, 8, 13, 16}) {
    const auto best = static_cast<double>(errors[static_cast<std::size_t>(k) - 1]);
    EXPECT_NEAR(static_cast<double>(partition_error(row, fit(row, k))), best, 1e-9 * best) << k;
  }
}

TEST(KMeans1D, FewerPointsThanClustersLeavesTheLastEmpty) {
  const WeightedRow row{{-1.0, 0.5, 2.0}, {1.0, 1.0, 1.0}};
  EXPECT_EQ(fit(row, 8), (std::vector<std::int64_t>{0, 1, 2, 3, 3, 3, 3, 3, 3}));
}

// Each outlier costs 1e60 unless it is alone, which must not drown the cost of the rest.
TEST(KMeans1D, HugeOutliersOfBothSignsAreAloneAndTheRestOptimal) {
  WeightedRow row = heavy_tailed_row(RowKind::kStudent, 900, 3);
  const auto errors = dynamic_program_errors(row, 6);
  row.value.insert(row.value.begin(), -1e30);
  row.value.push_back(3e30);
  row.mass.insert(row.mass.begin(), 1.0);
  row.mass.push_back(1.0);
  const auto borders = fit(row, 8);
  EXPECT_EQ(borders[1], 1);
  EXPECT_EQ(borders[7], static_cast<std::int64_t>(row.value.size()) - 1);
  const auto best = static_cast<double>(errors[5]);
  EXPECT_NEAR(static_cast<double>(partition_error(row, borders)), best, 1e-9 * best);
}

TEST(KMeans1D, ResolvesNeighbourhoodsFarFromZero) {
  // Four tight groups around 1000, 1e-4 apart from member to member.
  WeightedRow row;
  for (int group = 0; group < 4; ++group) {
    for (int i = 0; i < 50; ++i) {
      row.value.push_back(1000.0 + group * 0.01 + i * 1e-4);
      row.mass.push_back(1.0 + i % 3);
    }
  }
  EXPECT_EQ(fit(row, 4), (std::vector<std::int64_t>{0, 50, 100, 150, 200}));
}

}  // namespace
}  // namespace anyprec::testing
