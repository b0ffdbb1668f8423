#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>

#include "src/quantize/kernels.h"
#include "tests/cpp/quantize/reference.h"

namespace anyprec::testing {
namespace {

std::int64_t best_split(const WeightedRow& row, std::int64_t begin, std::int64_t end) {
  const std::int64_t borders[] = {begin, end};
  std::int64_t children[3];
  quantize::kernels_for(cpu::selected_isa())
      .split(row.value.data(), row.mass.data(), borders, 1, children);
  return children[1];
}

void expect_optimal(const WeightedRow& row, std::int64_t begin, std::int64_t end) {
  const std::int64_t cut = best_split(row, begin, end);
  ASSERT_GT(cut, begin);
  ASSERT_LT(cut, end);
  long double best = std::numeric_limits<long double>::infinity();
  for (std::int64_t i = begin + 1; i < end; ++i) {
    best = std::min(best, segment_error(row, begin, i) + segment_error(row, i, end));
  }
  const long double found = segment_error(row, begin, cut) + segment_error(row, cut, end);
  EXPECT_NEAR(static_cast<double>(found), static_cast<double>(best),
              1e-9 * static_cast<double>(best))
      << "points " << begin << " to " << end;
}

TEST(BestSplit, EqualsBruteForceOnEveryRangeOfASmallRow) {
  const WeightedRow row = heavy_tailed_row(RowKind::kStudent, 40, 1);
  for (std::int64_t begin = 0; begin < 40; ++begin) {
    for (std::int64_t end = begin + 2; end <= 40; ++end) expect_optimal(row, begin, end);
  }
}

TEST(BestSplit, EqualsBruteForceOnLongRows) {
  for (const RowKind kind : {RowKind::kStudent, RowKind::kOutliers, RowKind::kUniformMass}) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      const WeightedRow row = heavy_tailed_row(kind, 900 + 7 * seed, seed);
      const auto n = static_cast<std::int64_t>(row.value.size());
      expect_optimal(row, 0, n);
      expect_optimal(row, static_cast<std::int64_t>(seed), n / 2);
      expect_optimal(row, n / 3, n - static_cast<std::int64_t>(seed));
    }
  }
}

// Nothing of a cluster's own structure may be lost to a far heavier or far larger neighbour.
TEST(BestSplit, EqualsBruteForceAmongExtremes) {
  WeightedRow row;
  row.value.push_back(-1e30);
  row.mass.push_back(1e4);
  for (int i = 0; i < 300; ++i) {
    row.value.push_back(1.0 + i * i * 1.2e-7);
    row.mass.push_back(i % 7 == 0 ? 1e-6 : 2e-6);
  }
  row.value.push_back(1e30);
  row.mass.push_back(1e4);
  expect_optimal(row, 1, 301);
  expect_optimal(row, 5, 290);
  EXPECT_EQ(best_split(row, 0, 301), 1);
  EXPECT_EQ(best_split(row, 1, 302), 301);
}

TEST(BestSplit, DenormalValuesAreToldApart) {
  WeightedRow row;
  for (int i = 0; i < 60; ++i) {
    row.value.push_back((i < 20 ? i : i + 100) * std::ldexp(1.0, -149));
    row.mass.push_back(1e-6);
  }
  EXPECT_EQ(best_split(row, 0, 60), 20);
}

TEST(BestSplit, SinglePointGoesLeftAndNothingStaysNothing) {
  const WeightedRow row{{1.0, 2.0}, {1.0, 1.0}};
  EXPECT_EQ(best_split(row, 1, 2), 2);
  EXPECT_EQ(best_split(row, 1, 1), 1);
  EXPECT_EQ(best_split(row, 0, 2), 1);
}

}  // namespace
}  // namespace anyprec::testing
