#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "anyprec/quantize.h"
#include "tests/cpp/quantize/reference.h"

namespace anyprec::testing {
namespace {

struct Matrix {
  std::int64_t rows;
  std::int64_t columns;
  std::vector<float> weights;
  std::vector<float> sensitivities;
};

/// rounded: weights on a coarse grid, as those of 16-bit or quantized models are, so that many are
/// equal.
Matrix random_matrix(std::int64_t rows, std::int64_t columns, std::uint64_t seed,
                     bool rounded = false) {
  std::mt19937_64 generator(seed);
  std::student_t_distribution<double> student(4.0);
  std::normal_distribution<double> normal;
  Matrix matrix{rows, columns, {}, {}};
  for (std::int64_t i = 0; i < rows * columns; ++i) {
    const double weight = 0.02 * student(generator);
    matrix.weights.push_back(
        static_cast<float>(rounded ? std::round(weight * 512.0) / 512.0 : weight));
    const double gradient = normal(generator) * std::exp(normal(generator));
    matrix.sensitivities.push_back(static_cast<float>(gradient * gradient));
  }
  return matrix;
}

QuantizedMatrix quantize(const Matrix& matrix, const QuantizeOptions& options = {},
                         const Executor& executor = SerialExecutor()) {
  return quantize_matrix("layer", matrix.weights.data(), matrix.sensitivities.data(), matrix.rows,
                         matrix.columns, options, executor);
}

bool same_bytes(const QuantizedMatrix& a, const QuantizedMatrix& b) {
  return a.codes == b.codes && a.luts == b.luts && a.errors == b.errors;
}

class QuantizeProperties : public ::testing::TestWithParam<int> {
 protected:
  QuantizeOptions options() const { return {.seed_precision = GetParam()}; }
};

TEST_P(QuantizeProperties, EveryTableEntryIsTheWeightedMeanOfItsCluster) {
  for (const bool rounded : {false, true}) {
    const Matrix matrix = random_matrix(3, 333, 5, rounded);
    const QuantizedMatrix quantized = quantize(matrix, options());
    for (std::int64_t row = 0; row < matrix.rows; ++row) {
      const float* w = matrix.weights.data() + row * matrix.columns;
      const float* s = matrix.sensitivities.data() + row * matrix.columns;
      const std::uint8_t* codes = quantized.codes.data() + row * matrix.columns;
      const double mean_sensitivity =
          std::accumulate(s, s + matrix.columns, 0.0) / static_cast<double>(matrix.columns);
      for (int b = 2; b <= 8; ++b) {
        const std::size_t entries = std::size_t{1} << b;
        std::vector<double> mass(entries), moment(entries);
        for (std::int64_t k = 0; k < matrix.columns; ++k) {
          const double column_mass = s[k] / mean_sensitivity + 1e-6;
          mass[codes[k] >> (8 - b)] += column_mass;
          moment[codes[k] >> (8 - b)] += column_mass * w[k];
        }
        const float* table = quantized.luts[static_cast<std::size_t>(b - 2)].data() +
                             static_cast<std::size_t>(row) * entries;
        for (std::size_t c = 0; c < entries; ++c) {
          if (mass[c] == 0.0) continue;
          EXPECT_NEAR(table[c], moment[c] / mass[c], 1e-6 * std::abs(table[c]) + 1e-9)
              << "row " << row << ", precision " << b << ", entry " << c;
        }
      }
    }
  }
}

TEST_P(QuantizeProperties, EmptyClustersInheritAndTablesNeverFall) {
  for (const std::int64_t columns : {1, 5, 40, 333, 3000}) {
    const Matrix matrix = random_matrix(2, columns, 6, columns == 333);
    const QuantizedMatrix quantized = quantize(matrix, options());
    for (std::int64_t row = 0; row < matrix.rows; ++row) {
      std::vector<bool> filled(256);
      for (std::int64_t k = 0; k < columns; ++k) {
        filled[quantized.codes[static_cast<std::size_t>(row * columns + k)]] = true;
      }
      for (int b = 2; b <= 8; ++b) {
        const std::size_t entries = std::size_t{1} << b;
        const float* table = quantized.luts[static_cast<std::size_t>(b - 2)].data() +
                             static_cast<std::size_t>(row) * entries;
        EXPECT_TRUE(std::is_sorted(table, table + entries)) << columns << ", precision " << b;
        if (b == 2) continue;
        const float* parents = quantized.luts[static_cast<std::size_t>(b - 3)].data() +
                               static_cast<std::size_t>(row) * entries / 2;
        const std::size_t leaves = 256 / entries;
        const auto is_empty = [&](std::size_t c) {
          return std::none_of(filled.begin() + static_cast<std::ptrdiff_t>(c * leaves),
                              filled.begin() + static_cast<std::ptrdiff_t>((c + 1) * leaves),
                              [](bool leaf) { return leaf; });
        };
        for (std::size_t c = 0; c < entries; c += 2) {
          if (is_empty(c) && is_empty(c + 1)) {
            EXPECT_EQ(table[c], parents[c / 2]);
            EXPECT_EQ(table[c + 1], parents[c / 2]);
          } else if (b > GetParam() && is_empty(c + 1)) {
            EXPECT_EQ(table[c], table[c + 1]);
          }
        }
      }
    }
  }
}

TEST_P(QuantizeProperties, ErrorsAreThoseOfTheTablesAndNeverRise) {
  const Matrix matrix = random_matrix(4, 700, 8);
  const QuantizedMatrix quantized = quantize(matrix, options());
  for (int b = 2; b <= 8; ++b) {
    const auto i = static_cast<std::size_t>(b - 2);
    double error = 0.0;
    for (std::int64_t at = 0; at < matrix.rows * matrix.columns; ++at) {
      const auto row = static_cast<std::size_t>(at / matrix.columns);
      const std::size_t code = quantized.codes[static_cast<std::size_t>(at)] >> (8 - b);
      const double value = quantized.luts[i][(row << b) + code];
      const double distance = matrix.weights[static_cast<std::size_t>(at)] - value;
      error += matrix.sensitivities[static_cast<std::size_t>(at)] * distance * distance;
    }
    EXPECT_NEAR(quantized.errors[i], error, 1e-9 * error) << "precision " << b;
    if (b > 2) {
      EXPECT_LT(quantized.errors[i], quantized.errors[i - 1]) << "precision " << b;
    }
  }
}

TEST_P(QuantizeProperties, TheSeedIsTheOptimum) {
  const Matrix matrix = random_matrix(1, 400, 9);
  const QuantizedMatrix quantized = quantize(matrix, options());
  const double mean =
      std::accumulate(matrix.sensitivities.begin(), matrix.sensitivities.end(), 0.0) /
      static_cast<double>(matrix.columns);
  std::vector<std::size_t> order(static_cast<std::size_t>(matrix.columns));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return matrix.weights[a] < matrix.weights[b]; });
  WeightedRow row;
  std::vector<std::int64_t> borders{0};
  int code = quantized.codes[order[0]] >> (8 - GetParam());
  for (std::size_t i = 0; i < order.size(); ++i) {
    row.value.push_back(matrix.weights[order[i]]);
    row.mass.push_back(matrix.sensitivities[order[i]] / mean + 1e-6);
    const int next = quantized.codes[order[i]] >> (8 - GetParam());
    if (next != code) borders.push_back(static_cast<std::int64_t>(i));
    code = next;
  }
  borders.push_back(static_cast<std::int64_t>(order.size()));
  const int clusters = 1 << GetParam();
  EXPECT_EQ(static_cast<int>(borders.size()), clusters + 1);
  const auto best = static_cast<double>(dynamic_program_errors(row, clusters).back());
  EXPECT_NEAR(static_cast<double>(partition_error(row, borders)), best, 1e-9 * best);
}

TEST_P(QuantizeProperties, PermutingColumnsPermutesCodesAndNothingElse) {
  for (const bool rounded : {false, true}) {
    const Matrix matrix = random_matrix(2, 777, 11, rounded);
    std::vector<std::size_t> order(777);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937_64(3));
    Matrix permuted = matrix;
    for (std::size_t at = 0; at < permuted.weights.size(); ++at) {
      const std::size_t from = at / 777 * 777 + order[at % 777];
      permuted.weights[at] = matrix.weights[from];
      permuted.sensitivities[at] = matrix.sensitivities[from];
    }
    const QuantizedMatrix a = quantize(matrix, options());
    const QuantizedMatrix b = quantize(permuted, options());
    EXPECT_EQ(a.luts, b.luts);
    EXPECT_EQ(a.errors, b.errors);
    for (std::size_t at = 0; at < permuted.weights.size(); ++at) {
      ASSERT_EQ(b.codes[at], a.codes[at / 777 * 777 + order[at % 777]]) << at;
    }
  }
}

TEST_P(QuantizeProperties, EqualWeightsShareACode) {
  const Matrix matrix = random_matrix(1, 900, 12, true);
  const QuantizedMatrix quantized = quantize(matrix, options());
  for (std::size_t i = 0; i < 900; ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (matrix.weights[i] == matrix.weights[j]) {
        ASSERT_EQ(quantized.codes[i], quantized.codes[j]);
      } else {
        ASSERT_EQ(matrix.weights[i] < matrix.weights[j] && quantized.codes[i] > quantized.codes[j],
                  false);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, QuantizeProperties, ::testing::Values(2, 3, 4, 5, 8));

TEST(QuantizeDeterminism, AnyNumberOfThreadsGivesTheSameBytes) {
  const Matrix matrix = random_matrix(150, 613, 13);
  const QuantizeOptions options{.group_size = 128};
  const QuantizedMatrix serial = quantize(matrix, options);
  for (const int threads : {1, 2, 3, 7}) {
    const ThreadPool pool(threads);
    for (int repeat = 0; repeat < 3; ++repeat) {
      EXPECT_TRUE(same_bytes(quantize(matrix, options, pool), serial)) << threads << " threads";
    }
  }
}

TEST(QuantizeGroups, EqualSlicesQuantizedAlone) {
  // The last group is shorter, and not a multiple of 8 columns.
  const Matrix matrix = random_matrix(5, 203, 14);
  const QuantizedMatrix grouped = quantize(matrix, {.group_size = 64});
  ASSERT_EQ(grouped.groups, 4);
  std::vector<double> errors(7, 0.0);
  for (std::int64_t group = 0; group < 4; ++group) {
    const std::int64_t begin = group * 64;
    const std::int64_t columns = std::min<std::int64_t>(64, 203 - begin);
    Matrix slice{5, columns, {}, {}};
    for (std::int64_t row = 0; row < 5; ++row) {
      for (std::int64_t k = 0; k < columns; ++k) {
        const auto at = static_cast<std::size_t>(row * 203 + begin + k);
        slice.weights.push_back(matrix.weights[at]);
        slice.sensitivities.push_back(matrix.sensitivities[at]);
      }
    }
    const QuantizedMatrix alone = quantize(slice);
    for (std::size_t i = 0; i < 7; ++i) errors[i] += alone.errors[i];
    for (std::size_t row = 0; row < 5; ++row) {
      for (std::size_t k = 0; k < static_cast<std::size_t>(columns); ++k) {
        EXPECT_EQ(alone.codes[row * static_cast<std::size_t>(columns) + k],
                  grouped.codes[row * 203 + static_cast<std::size_t>(begin) + k]);
      }
      for (std::size_t i = 0; i < 7; ++i) {
        const std::size_t entries = std::size_t{4} << i;
        for (std::size_t c = 0; c < entries; ++c) {
          EXPECT_EQ(alone.luts[i][row * entries + c],
                    grouped.luts[i][(row * 4 + static_cast<std::size_t>(group)) * entries + c]);
        }
      }
    }
  }
  for (std::size_t i = 0; i < 7; ++i) {
    EXPECT_NEAR(grouped.errors[i], errors[i], 1e-12 * errors[i]);
  }
}

TEST(QuantizeGroups, AGroupWiderThanTheRowIsTheRow) {
  const Matrix matrix = random_matrix(3, 100, 15);
  EXPECT_TRUE(same_bytes(quantize(matrix, {.group_size = 128}), quantize(matrix)));
}

}  // namespace
}  // namespace anyprec::testing
