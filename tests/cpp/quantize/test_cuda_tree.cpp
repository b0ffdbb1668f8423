// The GPU's algorithm of the tree, with its blocks run by a loop over threads, beside
// quantize_matrix.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "anyprec/quantize.h"
#include "kernels/cuda/tree_row.h"

namespace anyprec {
namespace {

namespace tree = cuda::tree;

/// Threads in rising or falling order: where a phase needs one, results differ.
class SerialBlock {
 public:
  SerialBlock(int threads, bool falling) : threads_(threads), falling_(falling) {}
  int threads() const { return threads_; }
  template <class Body>
  void each(const Body& body) const {
    for (int i = 0; i < threads_; ++i) body(falling_ ? threads_ - 1 - i : i);
  }
  static double ratio(double x, double y) { return x / y; }

 private:
  int threads_;
  bool falling_;
};

struct Row {
  std::string name;
  std::vector<float> weights;
  std::vector<float> sensitivities;  // empty: all ones
};

/// One row, one group. fast_points: as if shared memory held the arrays of so many points.
QuantizedMatrix quantize_by_block(const Row& row, const QuantizeOptions& options, int threads,
                                  int fast_points, bool falling) {
  const std::size_t n = row.weights.size();
  std::vector<std::uint32_t> columns(n), keys(n);
  std::iota(columns.begin(), columns.end(), 0u);
  const auto key = [&](std::uint32_t k) { return tree::key_of(row.weights[k]); };
  std::stable_sort(columns.begin(), columns.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return key(a) < key(b); });
  std::transform(columns.begin(), columns.end(), keys.begin(), key);

  std::vector<float> value(n);
  std::vector<double> sensitivity(n);
  std::vector<int> first(n + 1);
  const auto size = static_cast<int>(n);
  std::vector<double> fast(static_cast<std::size_t>(tree::fast_bytes(fast_points)) / 8 + 1);
  std::vector<double> slow(static_cast<std::size_t>(tree::fast_bytes(size)) / 8 + 1);
  std::vector<int> trail(
      static_cast<std::size_t>(tree::trail_entries(size, options.seed_precision)));
  const tree::RowMemory memory{.points = {.value = value.data(),
                                          .sensitivity = sensitivity.data(),
                                          .first = first.data(),
                                          .scale = 0.0,
                                          .floor = 0.0,
                                          .count = 0},
                               .fast = fast.data(),
                               .fast_points = fast_points,
                               .slow = slow.data(),
                               .trail = trail.data()};
  QuantizedMatrix result;
  result.out_features = 1;
  result.in_features = static_cast<std::int64_t>(n);
  result.codes.resize(n);
  const int lowest = options.lowest_precision;
  tree::RowResult to{};
  to.codes = result.codes.data();
  for (int b = lowest; b <= options.parent_precision; ++b) {
    to.luts[b - 2] = result.luts.emplace_back(std::size_t{1} << b).data();
  }
  result.errors.resize(result.luts.size());
  to.errors = result.errors.data();
  const auto state = std::make_unique<tree::BlockState>();
  tree::quantize_row(
      SerialBlock(threads, falling), *state, memory,
      {.keys = keys.data(),
       .columns = columns.data(),
       .sensitivities = row.sensitivities.empty() ? nullptr : row.sensitivities.data(),
       .size = size},
      {lowest, options.seed_precision, options.parent_precision}, to);
  return result;
}

QuantizedMatrix quantize_by_cpu(const Row& row, const QuantizeOptions& options) {
  return quantize_matrix(row.name, row.weights.data(),
                         row.sensitivities.empty() ? nullptr : row.sensitivities.data(), 1,
                         static_cast<std::int64_t>(row.weights.size()), options, SerialExecutor());
}

/// Errors of nested partitions as exact as the CPU's: to 1e-9, and what rounding leaves of the sum
/// of squares.
void expect_as_good(const Row& row, const QuantizeOptions& options, int threads, int fast_points) {
  SCOPED_TRACE(row.name + ", " + std::to_string(row.weights.size()) + " columns, seed " +
               std::to_string(options.seed_precision) + ", threads " + std::to_string(threads));
  const QuantizedMatrix cpu = quantize_by_cpu(row, options);
  const QuantizedMatrix block = quantize_by_block(row, options, threads, fast_points, false);
  const QuantizedMatrix other = quantize_by_block(row, options, threads, fast_points, true);
  EXPECT_EQ(other.codes, block.codes);
  EXPECT_EQ(other.luts, block.luts);
  EXPECT_EQ(other.errors, block.errors);
  ASSERT_EQ(block.luts.size(), cpu.luts.size());
  double squares = 0.0;
  for (std::size_t k = 0; k < row.weights.size(); ++k) {
    const double s = row.sensitivities.empty() ? 1.0 : row.sensitivities[k];
    squares += s * row.weights[k] * row.weights[k];
  }
  const auto seed = static_cast<std::size_t>(options.seed_precision - options.lowest_precision);
  const double tolerance = 1e-9 * cpu.errors[seed] + 1e-13 * squares;
  EXPECT_NEAR(block.errors[seed], cpu.errors[seed], tolerance);
}

void expect_the_same(const Row& row, const QuantizeOptions& options, int threads, int fast_points) {
  expect_as_good(row, options, threads, fast_points);
  SCOPED_TRACE(row.name + ", " + std::to_string(row.weights.size()) + " columns, seed " +
               std::to_string(options.seed_precision) + ", threads " + std::to_string(threads));
  const QuantizedMatrix cpu = quantize_by_cpu(row, options);
  const QuantizedMatrix block = quantize_by_block(row, options, threads, fast_points, false);
  EXPECT_EQ(block.codes, cpu.codes);
  for (std::size_t i = 0; i < cpu.luts.size(); ++i) {
    EXPECT_NEAR(block.errors[i], cpu.errors[i], 1e-9 * cpu.errors[i] + 1e-300);
    for (std::size_t c = 0; c < cpu.luts[i].size(); ++c) {
      EXPECT_NEAR(block.luts[i][c], cpu.luts[i][c], 1e-6 * std::fabs(cpu.luts[i][c]))
          << i << " " << c;
    }
  }
}

Row heavy_tailed(std::size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::student_t_distribution<float> weight(4.0f);
  std::normal_distribution<float> normal;
  Row row{"heavy tails", {}, {}};
  for (std::size_t k = 0; k < n; ++k) {
    row.weights.push_back(0.02f * weight(generator));
    const float gradient = normal(generator) * std::exp(normal(generator));
    row.sensitivities.push_back(gradient * gradient);
  }
  return row;
}

TEST(CudaTree, HasTheCodesOfTheCpuForRowsOfAnyLength) {
  for (const std::size_t n : {1u, 2u, 3u, 7u, 8u, 9u, 31u, 64u, 100u, 255u, 257u, 576u, 1500u}) {
    for (const int threads : {64, 128}) {
      expect_the_same(heavy_tailed(n, static_cast<unsigned>(n)), {}, threads, 1000);
    }
  }
  expect_the_same(heavy_tailed(4096, 1), {}, 512, 5000);
}

TEST(CudaTree, HasTheCodesOfTheCpuFromEverySeed) {
  for (int seed = 2; seed <= 8; ++seed) {
    const QuantizeOptions options{.lowest_precision = 2, .seed_precision = seed};
    expect_the_same(heavy_tailed(700, static_cast<unsigned>(seed)), options, 64, 700);
  }
  expect_the_same(heavy_tailed(300, 9),
                  {.lowest_precision = 4, .seed_precision = 4, .parent_precision = 4}, 64, 0);
  expect_the_same(heavy_tailed(300, 9),
                  {.lowest_precision = 3, .seed_precision = 4, .parent_precision = 6}, 64, 0);
}

TEST(CudaTree, SensitivitiesOverDecadesAndZeros) {
  Row row = heavy_tailed(900, 3);
  for (std::size_t k = 0; k < row.sensitivities.size(); k += 3) row.sensitivities[k] = 0.0f;
  expect_the_same(row, {}, 64, 900);
  for (float& s : row.sensitivities) s = s * s * s;
  expect_the_same(row, {}, 128, 900);
  row.sensitivities.assign(row.weights.size(), 0.0f);
  expect_the_same(row, {}, 64, 900);
  row.sensitivities.clear();
  expect_the_same(row, {}, 64, 900);
}

TEST(CudaTree, RepeatedValues) {
  Row row = heavy_tailed(3000, 4);
  for (float& w : row.weights) w = std::round(w * 1000.0f) / 1000.0f;
  row.name = "rounded";
  expect_the_same(row, {}, 256, 100);
  for (std::size_t k = 0; k < row.weights.size(); ++k) {
    if (k % 4 != 1) row.weights[k] = k % 2 == 0 ? 0.0f : -0.0f;
  }
  row.name = "pruned";
  expect_the_same(row, {}, 256, 3000);
  for (std::size_t k = 0; k < row.weights.size(); ++k) row.weights[k] = static_cast<float>(k % 5);
  row.name = "five values";
  expect_the_same(row, {}, 64, 3000);
  for (const float constant : {0.0f, -0.0f, 3.5f, -1e-42f, 1e30f}) {
    row.name = "constant";
    row.weights.assign(37, constant);
    row.sensitivities.clear();
    expect_the_same(row, {}, 64, 3000);
  }
}

TEST(CudaTree, Outliers) {
  for (const float outlier : {1e2f, 1e4f, -1e4f}) {
    Row row = heavy_tailed(1200, 5);
    row.name = "outlier";
    row.weights[77] = outlier;
    expect_the_same(row, {}, 128, 1200);
    row.weights[78] = -1.5f * outlier;
    row.weights[79] = -1.5f * outlier;
    expect_the_same(row, {}, 128, 1200);
  }
}

TEST(CudaTree, TiesAreAsGood) {
  // Equal masses on a grid: many partitions cost the same.
  Row row{"grid", {}, {}};
  for (int k = 0; k < 1000; ++k) row.weights.push_back(static_cast<float>((k * 37) % 1000));
  for (const int threads : {64, 256}) expect_as_good(row, {}, threads, 1000);
}

TEST(CudaTree, GapsBetweenModes) {
  // The best borders jump over gaps: a few targets have nearly all candidates.
  Row row = heavy_tailed(2000, 6);
  for (std::size_t k = 0; k < row.weights.size(); ++k)
    row.weights[k] += static_cast<float>(k % 3) * 5.0f;
  row.name = "three modes";
  for (const int seed : {2, 3, 5}) {
    expect_the_same(row, {.lowest_precision = 2, .seed_precision = seed}, 256, 2000);
  }
}

}  // namespace
}  // namespace anyprec
