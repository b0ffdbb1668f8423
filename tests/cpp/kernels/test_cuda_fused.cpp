// Linear layers with what surrounds them (kernels/cuda/fused.h), against launches of their own.
#include <gtest/gtest.h>

#include <list>

#include "anyprec/error.h"
#include "kernels/cuda/decoder.h"
#include "kernels/cuda/fused.h"
#include "tests/cpp/kernels/cuda_case.h"

namespace anyprec::testing {
namespace {

using cuda::Fused;

struct Case {
  std::int64_t m, k;
  CodebookForm form;
  int precision;
  ScalarType type;
  std::string name() const {
    return QuantizedCase(1, k, form, precision).name() + " M=" + std::to_string(m);
  }
};

constexpr CodebookForm kFull{8}, kHybrid{3, CellGroups::kIo, 0}, kBinary{0};
constexpr CodebookForm kBinaryGroups{0, CellGroups::kOne, 128};
constexpr ScalarType kHalf = ScalarType::kFloat16, kBrain = ScalarType::kBFloat16;

std::vector<Case> cases() {
  return {{1, 4096, kFull, 2, kHalf},
          {1, 4096, kFull, 3, kBrain},
          {1, 1075, kFull, 3, kHalf},
          {1, 4096, kFull, 4, kHalf},
          {1, 4096, kFull, 4, kBrain},
          {1, 4096, kFull, 6, kBrain},
          {1, 720, kFull, 5, kHalf},
          {1, 4096, kFull, 7, kHalf},
          {1, 4096, kHybrid, 3, kHalf},
          {1, 768, kHybrid, 6, kBrain},
          {1, 300, kBinary, 4, ScalarType::kFloat32},
          {1, 1024, kBinaryGroups, 3, kHalf}};
}

/// Matrices of one x, whose products lie side by side in y.
struct Products {
  Products(const Case& c, std::initializer_list<std::int64_t> rows, bool with_bias)
      : x(c.m, c.k, c.type, 0, 0, 5) {
    std::int64_t n = 0;
    for (const std::int64_t each : rows) n += each;
    y.emplace(c.m, n, c.type);
    std::int64_t at = 0;
    for (const std::int64_t each : rows) {
      const auto seed = static_cast<unsigned>(at + 1);
      matrices.emplace_back(each, c.k, c.form, c.precision, seed);
      weights.emplace_back(matrices.back());
      biases.emplace_back(bias_of(each, c.type));
      products.push_back(
          {weights.back().weights, with_bias ? biases.back().as<void>() : nullptr, address(at), n});
      at += each;
    }
  }
  void* address(std::int64_t column) const {
    return y->buffer.as<char>() + column * cpu::scalar_bytes(y->type);
  }
  static std::vector<std::uint8_t> bias_of(std::int64_t n, ScalarType type) {
    std::vector<std::uint8_t> typed(n * cpu::scalar_bytes(type));
    for (std::int64_t i = 0; i < n; ++i) {
      const float value = static_cast<float>(i % 5) - 2.0f;
      cpu::store_floats(&value, 1, type, typed.data(), i);
    }
    return typed;
  }
  std::vector<float> run(const Fused& fused) {
    EXPECT_EQ(cuda::linear_fused(x.input, {}, fused, products, nullptr), cudaSuccess);
    DeviceBuffer::check(cudaDeviceSynchronize());
    return y->values();
  }

  DeviceInput x;
  std::optional<DeviceOutput> y;
  std::list<QuantizedCase> matrices;
  std::list<DeviceCase> weights;
  std::list<DeviceBuffer> biases;
  std::vector<cuda::Product> products;
};

class CudaFused : public CudaTest {};

TEST_F(CudaFused, NormsOfXComeFirst) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name());
    Products products(c, {48, 9, 1601}, true);
    const DeviceInput weight(1, c.k, c.type, 0, 0, 9);
    const Fused fused{.norm = {weight.input.x, 1e-5f, 1.0f}};
    ASSERT_TRUE(cuda::linear_fuses(products.x.input, fused, products.products));
    const std::vector<float> found = products.run(fused);

    const DeviceOutput normed(c.m, c.k, c.type);
    decoder::RmsNorm norm;
    norm.type = c.type;
    norm.rows = c.m;
    norm.columns = c.k;
    norm.x = products.x.input.x;
    norm.weight = weight.input.x;
    norm.eps = 1e-5f;
    norm.offset = 1.0f;
    norm.y = normed.buffer.as<void>();
    ASSERT_EQ(cuda::rms_norm(norm, {}, nullptr), cudaSuccess);
    products.x.input.x = normed.buffer.as<void>();
    const std::vector<float> wanted = products.run({});
    const std::vector<float> x = normed.values();
    std::int64_t at = 0;
    for (const QuantizedCase& matrix : products.matrices) {
      const std::vector<double> w = reference::dequantize(matrix.canonical_weights());
      for (std::int64_t m = 0; m < c.m; ++m) {
        for (std::int64_t n = 0; n < matrix.n; ++n) {
          double squares = 0;
          for (std::int64_t i = 0; i < c.k; ++i) {
            const double term = w[n * c.k + i] * x[m * c.k + i];
            squares += term * term;
          }
          // A scale that differs in its last bit rounds some elements of x to their neighbours.
          const double y = wanted[m * products.y->stride + at + n];
          ASSERT_NEAR(found[m * products.y->stride + at + n], y,
                      rounding(c.type) * (2 * std::sqrt(squares) + 2.01 * std::abs(y)))
              << m << ", " << n;
        }
      }
      at += matrix.n;
    }
  }
}

TEST_F(CudaFused, ResultsAreAddedToWhatIsThere) {
  std::vector<Case> all = cases();
  for (const Case& c : {Case{1, 14336, kFull, 2, kHalf}, Case{1, 14336, kFull, 5, kHalf},
                        Case{2, 4096, kFull, 2, kHalf}, Case{2, 1000, kFull, 2, kBrain}}) {
    all.push_back(c);
  }
  for (const Case& c : all) {
    SCOPED_TRACE(c.name());
    Products products(c, {4100}, true);
    const std::vector<float> product = products.run({});
    const DeviceInput before(c.m, 4100, c.type, 0, 0, 3);
    DeviceBuffer::check(cudaMemcpy(products.y->buffer.as<void>(), before.input.x,
                                   static_cast<std::size_t>(before.matrix_bytes),
                                   cudaMemcpyDeviceToDevice));
    const std::vector<float> there = products.y->values();
    const std::vector<float> found = products.run({.norm = {}, .add = true});
    for (std::size_t i = 0; i < found.size(); ++i) {
      const float sum = product[i] + there[i];
      float wanted;
      std::uint32_t typed;
      cpu::store_floats(&sum, 1, c.type, &typed, 0);
      cpu::load_floats(&typed, 0, 1, c.type, &wanted);
      ASSERT_EQ(found[i], wanted) << i;
    }
  }
}

TEST_F(CudaFused, WhatNoKernelTakesIsRefused) {
  const auto fuses = [](const Case& c, bool add) {
    Products products(c, {32, 48}, false);
    const DeviceInput weight(1, c.k, c.type);
    Fused fused;
    if (!add) fused.norm = {weight.input.x, 1e-5f, 0.0f};
    fused.add = add;
    const bool result = cuda::linear_fuses(products.x.input, fused, products.products);
    if (!result) {
      EXPECT_THROW(cuda::linear_fused(products.x.input, {}, fused, products.products, nullptr),
                   InvalidArgument);
    }
    return result;
  };
  EXPECT_FALSE(fuses({1, 8192, kFull, 4, kHalf}, false));
  EXPECT_FALSE(fuses({1, 8192, kFull, 2, kHalf}, false));
  EXPECT_FALSE(fuses({1, 4090, kFull, 4, kHalf}, false));
  EXPECT_TRUE(fuses({1, 4090, kFull, 2, kHalf}, false));
  EXPECT_FALSE(fuses({2, 4096, kFull, 2, kHalf}, false));
  EXPECT_TRUE(fuses({2, 4096, kFull, 2, kHalf}, true));
  EXPECT_FALSE(fuses({2, 4096, kFull, 4, kHalf}, true));
  EXPECT_FALSE(fuses({1, 4096, kFull, 8, kHalf}, true));
  EXPECT_FALSE(fuses({40, 4096, kFull, 4, kHalf}, true));
}

}  // namespace
}  // namespace anyprec::testing
