// cpu::dense_product against sums in double, for both half types, over tails of N and K.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "anyprec/error.h"
#include "kernels/cpu/dense.h"

namespace anyprec::cpu {
namespace {

struct Case {
  std::int64_t rows, out_features, in_features;
};

// Values that both half types have exactly: multiples of 1/64 below 2.
struct Operands {
  std::vector<float> x, weight, bias;
  std::vector<std::uint16_t> stored;
};

std::uint16_t to_half(float value, ScalarType type) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (type == ScalarType::kBFloat16 || value == 0) return static_cast<std::uint16_t>(bits >> 16);
  const auto sign = (bits >> 16) & 0x8000u;
  const auto exponent = ((bits >> 23) & 0xffu) - 112;
  return static_cast<std::uint16_t>(sign | exponent << 10 | ((bits >> 13) & 0x3ffu));
}

Operands operands(const Case& c, ScalarType type) {
  std::mt19937 rng(7);
  std::uniform_int_distribution<int> step(-127, 127);
  std::normal_distribution<float> normal;
  Operands o;
  for (std::int64_t i = 0; i < c.rows * c.in_features; ++i) o.x.push_back(normal(rng));
  for (std::int64_t i = 0; i < c.out_features * c.in_features; ++i) {
    o.weight.push_back(static_cast<float>(step(rng)) / 64);
    o.stored.push_back(to_half(o.weight.back(), type));
  }
  for (std::int64_t i = 0; i < c.out_features; ++i) o.bias.push_back(normal(rng));
  return o;
}

std::vector<float> product(const Case& c, const Operands& o, ScalarType type, bool bias,
                           const Executor& executor, Isa isa = selected_isa()) {
  std::vector<float> y(static_cast<std::size_t>(c.rows * c.out_features), NAN);
  dense_product({.weight_type = type,
                 .rows = c.rows,
                 .out_features = c.out_features,
                 .in_features = c.in_features,
                 .x = o.x.data(),
                 .weight = o.stored.data(),
                 .bias = bias ? o.bias.data() : nullptr,
                 .y = y.data()},
                executor, isa);
  return y;
}

TEST(DenseProduct, IsTheSumOfProductsForAnyShape) {
  for (const ScalarType type : {ScalarType::kFloat16, ScalarType::kBFloat16}) {
    for (const Case& c : {Case{1, 1, 1}, Case{1, 7, 33}, Case{4, 9, 48}, Case{6, 5, 100}}) {
      const Operands o = operands(c, type);
      for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vbmi}) {
        if (!isa_supported(isa)) continue;
        const bool bias = c.rows != 4;
        const std::vector<float> y = product(c, o, type, bias, SerialExecutor(), isa);
        for (std::int64_t i = 0; i < c.rows * c.out_features; ++i) {
          const std::int64_t m = i / c.out_features;
          const std::int64_t n = i % c.out_features;
          double want = bias ? o.bias[static_cast<std::size_t>(n)] : 0;
          double scale = std::abs(want);
          for (std::int64_t k = 0; k < c.in_features; ++k) {
            const double term =
                static_cast<double>(o.x[static_cast<std::size_t>(m * c.in_features + k)]) *
                o.weight[static_cast<std::size_t>(n * c.in_features + k)];
            want += term;
            scale += std::abs(term);
          }
          ASSERT_NEAR(y[static_cast<std::size_t>(i)], want, 1e-6 * scale) << m << " " << n;
        }
      }
    }
  }
}

TEST(DenseProduct, IsTheSameOnAnyNumberOfThreads) {
  const Case c{3, 1100, 70};
  const Operands o = operands(c, ScalarType::kFloat16);
  const auto one = product(c, o, ScalarType::kFloat16, true, SerialExecutor());
  EXPECT_EQ(one, product(c, o, ScalarType::kFloat16, true, ThreadPool(3)));
}

TEST(DenseProduct, RefusesFullPrecisionWeights) {
  DenseProduct product;
  product.weight_type = ScalarType::kFloat32;
  EXPECT_THROW(dense_product(product, SerialExecutor()), InvalidArgument);
}

}  // namespace
}  // namespace anyprec::cpu
