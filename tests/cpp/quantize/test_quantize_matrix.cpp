#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "anyprec/error.h"
#include "anyprec/quantize.h"

namespace anyprec {
namespace {

QuantizedMatrix quantize(const std::vector<float>& weights, std::int64_t rows,
                         const QuantizeOptions& options = {},
                         const std::vector<float>& sensitivities = {}) {
  return quantize_matrix(
      "layer", weights.data(), sensitivities.empty() ? nullptr : sensitivities.data(), rows,
      static_cast<std::int64_t>(weights.size()) / rows, options, SerialExecutor());
}

/// Entry of the table of precision b that column k of a one-row, one-group matrix reads.
float value_at(const QuantizedMatrix& matrix, int b, std::size_t k,
               const QuantizeOptions& options = {}) {
  const std::vector<float>& lut =
      matrix.luts[static_cast<std::size_t>(b - options.lowest_precision)];
  return lut[matrix.codes[k] >> (options.parent_precision - b)];
}

std::string error_of(const std::vector<float>& weights, std::int64_t rows,
                     const QuantizeOptions& options = {},
                     const std::vector<float>& sensitivities = {}) {
  try {
    quantize(weights, rows, options, sensitivities);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "no error";
}

TEST(QuantizeMatrix, SizesFollowTheContract) {
  const std::vector<float> weights(3 * 70, 0.5f);
  const QuantizeOptions options{
      .lowest_precision = 2, .seed_precision = 4, .parent_precision = 6, .group_size = 32};
  const QuantizedMatrix matrix = quantize(weights, 3, options);
  EXPECT_EQ(matrix.out_features, 3);
  EXPECT_EQ(matrix.in_features, 70);
  EXPECT_EQ(matrix.groups, 3);
  EXPECT_EQ(matrix.codes.size(), 3u * 70u);
  ASSERT_EQ(matrix.luts.size(), 5u);
  for (std::size_t b = 2; b <= 6; ++b) EXPECT_EQ(matrix.luts[b - 2].size(), (9u << b));
  EXPECT_EQ(matrix.errors.size(), 5u);
}

TEST(QuantizeMatrix, FewDistinctValuesAreExactFromTheSeedOn) {
  std::vector<float> weights;
  for (int k = 0; k < 100; ++k) weights.push_back(static_cast<float>(k % 5) - 1.25f);
  const QuantizedMatrix matrix = quantize(weights, 1);
  for (int b = 3; b <= 8; ++b) {
    EXPECT_EQ(matrix.errors[static_cast<std::size_t>(b - 2)], 0.0) << b;
    for (std::size_t k = 0; k < weights.size(); ++k) EXPECT_EQ(value_at(matrix, b, k), weights[k]);
  }
}

TEST(QuantizeMatrix, ConstantRowsHaveOneValueEverywhere) {
  for (const float constant : {0.0f, -0.0f, 3.5f, -1e-42f, 1e30f}) {
    const QuantizedMatrix matrix = quantize(std::vector<float>(37, constant), 1);
    for (const auto& lut : matrix.luts) {
      for (const float entry : lut) EXPECT_EQ(entry, constant);
    }
    for (const std::uint8_t code : matrix.codes) EXPECT_EQ(code, matrix.codes[0]);
    for (const double error : matrix.errors) EXPECT_EQ(error, 0.0);
  }
}

TEST(QuantizeMatrix, OneColumnAndOneRow) {
  const QuantizedMatrix column = quantize({1.0f, -2.0f, 0.25f}, 3);
  for (std::size_t row = 0; row < 3; ++row) {
    for (std::size_t i = 0; i < 7; ++i) {
      const std::size_t entries = std::size_t{4} << i;
      const std::size_t code = column.codes[row] >> (6 - i);
      EXPECT_EQ(column.luts[i][row * entries + code], (row == 0 ? 1.0f : row == 1 ? -2.0f : 0.25f));
    }
  }
  EXPECT_EQ(quantize({7.0f}, 1).errors, std::vector<double>(7, 0.0));
}

TEST(QuantizeMatrix, AllZeroSensitivitiesWeighColumnsEqually) {
  std::vector<float> weights;
  for (int k = 0; k < 500; ++k) weights.push_back(std::sin(static_cast<float>(k * k)));
  const QuantizedMatrix equal = quantize(weights, 1);
  const QuantizedMatrix zero = quantize(weights, 1, {}, std::vector<float>(500, 0.0f));
  EXPECT_EQ(zero.codes, equal.codes);
  EXPECT_EQ(zero.luts, equal.luts);
  EXPECT_EQ(zero.errors, std::vector<double>(7, 0.0));
  EXPECT_GT(equal.errors.back(), 0.0);
}

TEST(QuantizeMatrix, ScaleOfSensitivitiesDoesNotMatter) {
  std::vector<float> weights, small, large;
  for (int k = 0; k < 500; ++k) {
    weights.push_back(std::sin(static_cast<float>(k * k)));
    const float sensitivity = 1.0f + std::cos(static_cast<float>(k));
    small.push_back(std::ldexp(sensitivity, -100));
    large.push_back(std::ldexp(sensitivity, 100));
  }
  EXPECT_EQ(quantize(weights, 1, {}, small).codes, quantize(weights, 1, {}, large).codes);
  EXPECT_EQ(quantize(weights, 1, {}, small).luts, quantize(weights, 1, {}, large).luts);
}

TEST(QuantizeMatrix, SensitiveColumnsAreServedFirst) {
  // Two bits cannot hold eight values; the four that matter come out exactly (but for the mass
  // floor).
  std::vector<float> weights, sensitivities;
  for (int k = 0; k < 64; ++k) {
    weights.push_back(static_cast<float>(k % 8));
    sensitivities.push_back(k % 2 == 0 ? 1.0f : 0.0f);
  }
  const QuantizeOptions options{.lowest_precision = 2, .seed_precision = 2, .parent_precision = 2};
  const QuantizedMatrix matrix = quantize(weights, 1, options, sensitivities);
  for (std::size_t k = 0; k < 64; k += 2) {
    EXPECT_NEAR(value_at(matrix, 2, k, options), weights[k], 1e-5);
  }
}

TEST(QuantizeMatrix, HugeOutliersKeepTheirValueAndSpoilNothing) {
  std::vector<float> weights;
  for (int k = 0; k < 700; ++k) weights.push_back(0.01f * std::sin(static_cast<float>(k * k)));
  weights[3] = 1e30f;
  weights[500] = -2.5e30f;
  const QuantizedMatrix matrix = quantize(weights, 1);
  for (int b = 3; b <= 8; ++b) {
    EXPECT_EQ(value_at(matrix, b, 3), 1e30f) << b;
    EXPECT_EQ(value_at(matrix, b, 500), -2.5e30f) << b;
    double worst = 0.0;
    for (std::size_t k = 0; k < weights.size(); ++k) {
      worst = std::max(worst, std::abs(static_cast<double>(value_at(matrix, b, k)) - weights[k]));
    }
    EXPECT_LT(worst, 0.01 * std::ldexp(1.0, 3 - b) + 1e-4) << b;
  }
  EXPECT_TRUE(std::isfinite(matrix.errors[0]));
}

TEST(QuantizeMatrix, LargestFloatsAndSensitivitiesStayFinite) {
  constexpr float kMax = std::numeric_limits<float>::max();
  std::vector<float> weights, sensitivities;
  for (int k = 0; k < 300; ++k) {
    weights.push_back((k % 2 == 0 ? kMax : -kMax) / static_cast<float>(1 + k / 2));
    sensitivities.push_back(kMax / static_cast<float>(1 + k % 11));
  }
  const QuantizedMatrix matrix = quantize(weights, 1, {}, sensitivities);
  for (const auto& lut : matrix.luts) {
    for (const float entry : lut) EXPECT_TRUE(std::isfinite(entry));
  }
  for (const double error : matrix.errors) EXPECT_TRUE(std::isfinite(error));
}

TEST(QuantizeMatrix, DenormalWeightsAndSensitivitiesAreToldApart) {
  std::vector<float> weights, sensitivities;
  for (int k = 0; k < 200; ++k) {
    weights.push_back(static_cast<float>(k - 100) * std::numeric_limits<float>::denorm_min());
    sensitivities.push_back(static_cast<float>(1 + k % 5) *
                            std::numeric_limits<float>::denorm_min());
  }
  const QuantizedMatrix matrix = quantize(weights, 1, {}, sensitivities);
  for (std::size_t k = 0; k < weights.size(); ++k) {
    EXPECT_NEAR(value_at(matrix, 3, k), weights[k], 15 * std::numeric_limits<float>::denorm_min());
  }
  EXPECT_GT(matrix.codes[199], matrix.codes[0]);
}

TEST(QuantizeMatrix, BadValuesNameTensorAndIndex) {
  std::vector<float> weights(4 * 50, 1.0f);
  std::vector<float> sensitivities(4 * 50, 1.0f);
  weights[2 * 50 + 17] = std::nanf("");
  weights[3 * 50 + 2] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(error_of(weights, 4), "layer: weight [2, 17] is nan; every weight must be finite");
  weights[2 * 50 + 17] = 0.0f;
  EXPECT_EQ(error_of(weights, 4), "layer: weight [3, 2] is inf; every weight must be finite");
  weights[3 * 50 + 2] = 0.0f;
  EXPECT_EQ(error_of(weights, 4, {}, sensitivities), "no error");

  sensitivities[1 * 50 + 49] = -0.25f;
  EXPECT_EQ(
      error_of(weights, 4, {}, sensitivities),
      "layer: sensitivity [1, 49] is -0.25; every sensitivity must be finite and not negative");
  sensitivities[1 * 50 + 48] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(
      error_of(weights, 4, {}, sensitivities),
      "layer: sensitivity [1, 48] is -inf; every sensitivity must be finite and not negative");
  sensitivities[0] = std::nanf("");
  EXPECT_EQ(error_of(weights, 4, {}, sensitivities),
            "layer: sensitivity [0, 0] is nan; every sensitivity must be finite and not negative");
}

TEST(QuantizeMatrix, TheFirstBadIndexIsNamedOnManyThreads) {
  std::vector<float> weights(2000 * 300, 1.0f);
  for (std::size_t i = 77 * 300 + 5; i < weights.size(); i += 301) weights[i] = std::nanf("");
  const ThreadPool pool(4);
  try {
    quantize_matrix("w", weights.data(), nullptr, 2000, 300, {}, pool);
    FAIL() << "no error";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "w: weight [77, 5] is nan; every weight must be finite");
  }
}

TEST(QuantizeMatrix, NegativeZeroSensitivityIsZero) {
  EXPECT_EQ(error_of({1.0f, 2.0f}, 1, {}, {-0.0f, 1.0f}), "no error");
}

TEST(QuantizeMatrix, OptionsOutOfRangeSayWhatWasWanted) {
  const std::vector<float> weights(64, 1.0f);
  const auto message = [&](int lowest, int seed, int parent, std::int64_t group_size) {
    return error_of(weights, 1, {lowest, seed, parent, group_size});
  };
  EXPECT_EQ(message(2, 9, 9, 0), "layer: seed_precision is 9; wanted 2 to 8");
  EXPECT_EQ(message(1, 1, 8, 0), "layer: seed_precision is 1; wanted 2 to 8");
  EXPECT_EQ(message(1, 3, 8, 0),
            "layer: lowest_precision is 1; wanted 2 to 3 (the seed precision)");
  EXPECT_EQ(message(4, 3, 8, 0),
            "layer: lowest_precision is 4; wanted 2 to 3 (the seed precision)");
  EXPECT_EQ(message(2, 3, 9, 0),
            "layer: parent_precision is 9; wanted 3 (the seed precision) to 8");
  EXPECT_EQ(message(2, 4, 3, 0),
            "layer: parent_precision is 3; wanted 4 (the seed precision) to 8");
  EXPECT_EQ(message(2, 3, 8, 48), "layer: group_size is 48; wanted 0 or a positive multiple of 32");
  EXPECT_EQ(message(2, 3, 8, -32),
            "layer: group_size is -32; wanted 0 or a positive multiple of 32");
  EXPECT_THROW(quantize_matrix("layer", weights.data(), nullptr, 0, 64, {}, SerialExecutor()),
               InvalidArgument);
  EXPECT_THROW(quantize_matrix("layer", weights.data(), nullptr, 1, 0, {}, SerialExecutor()),
               InvalidArgument);
}

}  // namespace
}  // namespace anyprec
