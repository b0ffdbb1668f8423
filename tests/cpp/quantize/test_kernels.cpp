#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "src/quantize/kernels.h"
#include "tests/cpp/quantize/reference.h"

// Every instruction set gives the bits of the scalar one, whose results the other tests check
// against slow references.
namespace anyprec::testing {
namespace {

using quantize::Kernels;
using quantize::kernels_for;
using quantize::kLanes;
using quantize::kPairRun;
using quantize::PrefixView;

/// Rising prefix sums of a random row, with room for kernels to read on.
struct Sums {
  explicit Sums(std::int64_t count, std::uint64_t seed = 1) {
    const WeightedRow row = heavy_tailed_row(RowKind::kOutliers, 4000, seed);
    double w = 0.0, wx = 0.0, wxx = 0.0;
    for (std::int64_t i = 0; i < count + kLanes; ++i) {
      mass.push_back(w);
      moment.push_back(wx);
      square.push_back(wxx);
      const auto at = static_cast<std::size_t>(i);
      w += row.mass[at];
      wx += row.mass[at] * row.value[at];
      wxx += row.mass[at] * row.value[at] * row.value[at];
    }
  }
  PrefixView view() const { return {mass.data(), moment.data(), square.data()}; }
  std::vector<double> mass, moment, square;
};

/// Few different values, so that ties are common.
std::vector<double> random_costs(std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<double> costs(static_cast<std::size_t>(count));
  for (double& cost : costs) cost = static_cast<double>(generator() % 4) * 0.25;
  return costs;
}

class QuantizerKernels : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  const Kernels& scalar = kernels_for(cpu::Isa::kScalar);
  const Kernels& tested = kernels_for(GetParam());
};

TEST_P(QuantizerKernels, BestIsTheScalarOne) {
  const Sums sums(200);
  for (std::int64_t count = 0; count <= 100; ++count) {
    const auto base = random_costs(count + kLanes, static_cast<std::uint64_t>(count));
    const auto expected = scalar.best(base.data(), sums.view(), sums.view()[150], count);
    const auto found = tested.best(base.data(), sums.view(), sums.view()[150], count);
    EXPECT_EQ(found.cost, expected.cost) << count;
    EXPECT_EQ(found.index, expected.index) << count;
  }
}

TEST_P(QuantizerKernels, BestOfTiesIsTheFirst) {
  // All segments of no spread cost nothing.
  const std::vector<double> rising{0,  1,  2,  3,  4,  5,  6,  7,  8, 9,
                                   10, 11, 12, 13, 14, 15, 16, 17, 18};
  const std::vector<double> zeros(rising.size(), 0.0);
  const PrefixView sums{rising.data(), zeros.data(), zeros.data()};
  for (std::int64_t first = 0; first < 11; ++first) {
    std::vector<double> base(rising.size(), 1.0);
    for (std::int64_t i = first; i < 11; i += 3) base[static_cast<std::size_t>(i)] = 0.5;
    EXPECT_EQ(tested.best(base.data(), sums, {20.0, 0.0, 0.0}, 11).index, first);
  }
}

TEST_P(QuantizerKernels, BlockIsTheScalarOne) {
  const Sums sums(300);
  for (const std::int64_t free : {0, 1}) {
    for (std::int64_t targets = 1; targets <= 20; ++targets) {
      for (std::int64_t candidates = 1; candidates <= 24; ++candidates) {
        for (const std::int64_t distance : {0, 3, 12, 40}) {
          const auto base = random_costs(candidates, 7);
          std::vector<double> expected(static_cast<std::size_t>(targets) + 1, -7.0);
          std::vector<double> found = expected;
          const auto run = [&](const Kernels& kernels, std::vector<double>& costs) {
            kernels.block(base.data(), sums.view(), candidates, sums.view() + distance, targets,
                          distance, free, free, costs.data());
          };
          run(scalar, expected);
          run(tested, found);
          EXPECT_EQ(found, expected) << targets << " targets, " << candidates << " candidates";
          EXPECT_EQ(found.back(), -7.0);
        }
      }
    }
  }
}

TEST_P(QuantizerKernels, PairsAndRelaxAreTheScalarOnes) {
  for (std::int64_t count = kPairRun; count <= 5 * kPairRun; count += kPairRun) {
    const Sums sums(count);
    std::vector<double> expected(static_cast<std::size_t>(count * count));
    std::vector<double> found(expected.size());
    scalar.pairs(sums.view(), count, expected.data());
    tested.pairs(sums.view(), count, found.data());
    ASSERT_EQ(found, expected);
    const auto base = random_costs(count, 3);
    for (const bool rightwards : {false, true}) {
      std::vector<double> expected_step(static_cast<std::size_t>(count));
      std::vector<double> step(expected_step.size());
      scalar.relax(base.data(), expected.data(), count, rightwards, expected_step.data());
      tested.relax(base.data(), expected.data(), count, rightwards, step.data());
      EXPECT_EQ(step, expected_step);
    }
  }
}

TEST_P(QuantizerKernels, SpreadIsTheScalarOne) {
  const WeightedRow row = heavy_tailed_row(RowKind::kStudent, 400, 2);
  std::vector<std::int64_t> edges{0};
  for (std::int64_t width = 1; edges.back() + width < 400; ++width) {
    edges.push_back(edges.back() + width);
  }
  std::vector<double> mass, moment, square(edges.size(), 0.0);
  for (const std::int64_t edge : edges) {
    double w = 0.0, wx = 0.0;
    for (std::int64_t i = 0; i < edge; ++i) {
      w += row.mass[static_cast<std::size_t>(i)];
      wx += row.mass[static_cast<std::size_t>(i)] * (row.value[static_cast<std::size_t>(i)] - 0.01);
    }
    mass.push_back(w);
    moment.push_back(wx);
  }
  const PrefixView sums{mass.data(), moment.data(), square.data()};
  const auto bins = static_cast<std::int64_t>(edges.size()) - 1;
  std::vector<double> expected(static_cast<std::size_t>(bins)), found(expected.size());
  scalar.spread(row.value.data(), row.mass.data(), 0.01, edges.data(), sums, bins, expected.data());
  tested.spread(row.value.data(), row.mass.data(), 0.01, edges.data(), sums, bins, found.data());
  EXPECT_EQ(found, expected);
}

/// Clusters of every size up to `largest`, and empty ones between them.
std::vector<std::int64_t> borders_of_all_sizes(std::int64_t largest) {
  std::vector<std::int64_t> borders{0};
  for (std::int64_t size = 1; size <= largest; ++size) {
    borders.push_back(borders.back() + size);
    if (size % 3 == 0) borders.push_back(borders.back());
  }
  return borders;
}

TEST_P(QuantizerKernels, SplitsAreTheScalarOnes) {
  for (const RowKind kind : {RowKind::kStudent, RowKind::kOutliers, RowKind::kUniformMass}) {
    const WeightedRow row = heavy_tailed_row(kind, 20000, 9);
    auto borders = borders_of_all_sizes(180);
    borders.push_back(borders.back() + 2500);
    ASSERT_LE(borders.back(), static_cast<std::int64_t>(row.value.size()));
    const auto clusters = static_cast<std::int64_t>(borders.size()) - 1;
    std::vector<std::int64_t> expected(2 * borders.size() - 1), found(expected.size());
    scalar.split(row.value.data(), row.mass.data(), borders.data(), clusters, expected.data());
    tested.split(row.value.data(), row.mass.data(), borders.data(), clusters, found.data());
    EXPECT_EQ(found, expected);
  }
}

TEST_P(QuantizerKernels, LeavesMergesAndTablesAreTheScalarOnes) {
  constexpr std::int64_t kClusters = 64;
  const WeightedRow row = heavy_tailed_row(RowKind::kOutliers, 3000, 4);
  auto borders = borders_of_all_sizes(60);
  borders.resize(kClusters + 1);
  const auto run = [&](const Kernels& kernels) {
    std::vector<double> values(5 * kClusters, 0.0);
    double* const first = values.data();
    const quantize::ClusterMoments moments{first, first + kClusters, first + 2 * kClusters,
                                           first + 3 * kClusters, first + 4 * kClusters};
    kernels.leaves(row.value.data(), row.mass.data(), row.mass.data(), borders.data(), kClusters,
                   moments);
    std::vector<double> results = values;
    std::vector<float> entries(kClusters);
    for (std::int64_t count = kClusters; count >= 4; count /= 2) {
      if (count < kClusters) kernels.merge(moments, count);
      results.push_back(kernels.table(moments, count, entries.data()));
      results.insert(results.end(), entries.begin(), entries.end());
    }
    return results;
  };
  EXPECT_EQ(run(tested), run(scalar));
}

INSTANTIATE_TEST_SUITE_P(Isas, QuantizerKernels, ::testing::ValuesIn(vector_isas()),
                         [](const auto& info) { return to_string(info.param); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(QuantizerKernels);

}  // namespace
}  // namespace anyprec::testing
