#include <list>

#include "kernels/cuda/table_mma.h"
#include "kernels/cuda/table_wgmma.h"
#include "tests/cpp/kernels/cuda_case.h"

namespace anyprec::testing {
namespace {

/// What table_mma.h and table_wgmma.h promise: values in fp16, sums in fp32, y rounded once; bf16 x
/// is nearly exact.
void expect_linear(const QuantizedCase& c, DeviceInput& x, const DeviceOutput& y,
                   const double* bias) {
  const std::vector<double> x_values = x.matrix.values();
  const std::vector<double> w = reference::dequantize(c.canonical_weights());
  const std::vector<double> expected =
      reference::linear(c.canonical_weights(), x_values, x.input.rows, bias);
  const std::vector<float> found = y.values();
  const double of_value = c.form.sign_planes(c.precision) > 0 ? 0x1p-11 : 0.0;
  for (std::int64_t m = 0; m < y.m; ++m) {
    for (std::int64_t n = 0; n < y.n; ++n) {
      double products = 0, squares = 0;
      for (std::int64_t k = 0; k < c.k; ++k) {
        const double product = w[n * c.k + k] * x_values[m * c.k + k];
        products += std::abs(product);
        squares += product * product;
      }
      const double want = expected[m * c.n + n];
      // The rounding errors of a hybrid's values are independent.
      const double tolerance = products * static_cast<double>(c.k + 64) * 0x1p-26 +
                               6 * std::sqrt(squares) * of_value +
                               1.01 * std::abs(want) * rounding(y.type) + 0x1p-23;
      ASSERT_NEAR(found[m * y.stride + n], want, tolerance)
          << c.name() << " M=" << y.m << " at " << m << ", " << n;
    }
  }
  y.expect_room_untouched();
}

/// Both kernels that look weights up.
enum class Tables { kMma, kWgmma };

class CudaTables : public CudaTest, public ::testing::WithParamInterface<Tables> {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    if (GetParam() == Tables::kWgmma && !device.has_wgmma) GTEST_SKIP() << "needs a Hopper GPU";
  }
  bool serves(const cuda::Input& input, std::span<const cuda::Product> products) {
    return GetParam() == Tables::kMma ? cuda::table_mma_serves(input, {}, products, device)
                                      : cuda::table_wgmma_serves(input, products, device);
  }
  std::int64_t most_rows() const { return GetParam() == Tables::kMma ? 64 : 128; }
  /// In a workspace full of ones.
  cudaError_t multiply(const cuda::Input& input, std::span<const cuda::Product> products) {
    if (GetParam() == Tables::kMma) return cuda::table_mma(input, {}, products, device, nullptr);
    const DeviceBuffer workspace(
        std::vector<std::uint8_t>(cuda::table_wgmma_bytes(input, products), 0xff));
    const cudaError_t status =
        cuda::table_wgmma(input, products, workspace.as<void>(), device, nullptr);
    return status == cudaSuccess ? cudaDeviceSynchronize() : status;
  }
  void run(const QuantizedCase& c, std::int64_t m, ScalarType type, bool with_bias = false,
           std::int64_t padding = 0, std::int64_t offset = 0) {
    ProductCase one(c, m, type, with_bias, padding, offset);
    const std::span<const cuda::Product> products(&one.product, 1);
    ASSERT_TRUE(serves(one.x.input, products)) << c.name();
    ASSERT_EQ(multiply(one.x.input, products), cudaSuccess) << c.name();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << c.name();
    expect_linear(c, one.x, one.y, one.expected_bias());
  }
};

constexpr ScalarType kTypes[] = {ScalarType::kFloat16, ScalarType::kBFloat16};

TEST_P(CudaTables, FullTablesAtEveryPrecisionAndNumberOfRows) {
  for (int precision = 2; precision <= 8; ++precision) {
    for (const std::int64_t m : {1, 2, 3, 8, 9, 16, 17, 31, 32, 33, 64, 65, 128}) {
      if (m > most_rows()) continue;
      for (const ScalarType type : kTypes) run(QuantizedCase(33, 600, {}, precision), m, type);
    }
  }
}

TEST_P(CudaTables, EveryFormAtEveryPrecision) {
  for (int lut_bits = 0; lut_bits <= 8; ++lut_bits) {
    for (const CellGroups groups : {CellGroups::kOne, CellGroups::kIo, CellGroups::kSym,
                                    CellGroups::kQu, CellGroups::kCell}) {
      const CodebookForm form{lut_bits, groups, 0};
      if (groups == CellGroups::kQu && lut_bits != 4) continue;
      if (lut_bits == 0 && (groups == CellGroups::kIo || groups == CellGroups::kSym)) continue;
      for (int precision = 2; precision <= 8; ++precision) {
        for (const std::int64_t m : {1, 12, 20}) {
          run(QuantizedCase(20, 264, form, precision), m, kTypes[precision % 2]);
        }
      }
    }
  }
}

TEST_P(CudaTables, AnyShape) {
  for (const std::int64_t n : {1, 15, 16, 17, 250}) {
    for (const std::int64_t k : {1, 7, 31, 255, 256, 257, 1000, 4096}) {
      for (const std::int64_t m : {1, 5, 16, 40}) {
        const int precision = 2 + static_cast<int>((n + k + m) % 7);
        run(QuantizedCase(n, k, {}, precision), m, kTypes[(n + m) % 2], true);
      }
    }
  }
}

TEST_P(CudaTables, LongRowsTakeSeveralChunks) {
  for (const std::int64_t k : {4352, 9000, 14336}) {
    for (const std::int64_t m : {1, 8, 16, 32, 64}) {
      for (const int precision : {3, 4, 8}) {
        run(QuantizedCase(18, k, {3, CellGroups::kIo, 0}, precision), m, kTypes[m % 2]);
      }
    }
  }
}

TEST_P(CudaTables, ManyTilesABlock) {
  for (const int precision : {2, 4, 7, 8}) {
    for (const std::int64_t m : {1, 16, 64}) {
      run(QuantizedCase(12016, 40, {}, precision), m, ScalarType::kFloat16);
    }
  }
  run(QuantizedCase(4300, 4200, {}, 8), 3, ScalarType::kFloat16);
}

TEST_P(CudaTables, RowsOfAnyStrideAndAlignment) {
  for (const std::int64_t padding : {0, 1, 8, 24}) {
    for (const std::int64_t offset : {0, 1, 3, 4, 8}) {
      for (const std::int64_t k : {520, 521}) {
        for (const ScalarType type : kTypes) {
          run(QuantizedCase(17, k, {}, 5), 7, type, true, padding, offset);
        }
      }
    }
  }
}

TEST_P(CudaTables, SeveralMatricesAtOnce) {
  const CodebookForm form{3, CellGroups::kOne, 0};
  for (const int precision : {4, 6}) {
    const QuantizedCase cases[] = {{40, 700, form, precision, 1},
                                   {9, 700, form, precision, 2},
                                   {16, 700, form, precision, 3},
                                   {333, 700, form, precision, 4}};
    for (const std::int64_t m : {1, 10}) {
      DeviceInput x(m, 700, ScalarType::kFloat16);
      std::list<DeviceCase> weights;
      std::list<DeviceOutput> outputs;
      std::vector<cuda::Product> products;
      for (const QuantizedCase& c : cases) {
        weights.emplace_back(c);
        outputs.emplace_back(m, c.n, ScalarType::kFloat16, 3);
        products.push_back({weights.back().weights, nullptr, outputs.back().buffer.as<void>(),
                            outputs.back().stride});
      }
      ASSERT_EQ(multiply(x.input, products), cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      for (int i = 0; i < 4; ++i) {
        expect_linear(cases[i], x, *std::next(outputs.begin(), i), nullptr);
      }
    }
  }
}

TEST_P(CudaTables, TheSameInputGivesTheSameBytes) {
  const QuantizedCase c(300, 5000, {}, 6);
  const DeviceCase weights(c);
  for (const std::int64_t m : {1, 12, 30}) {
    const DeviceInput x(m, c.k, ScalarType::kBFloat16);
    std::vector<std::uint8_t> first;
    for (int i = 0; i < 5; ++i) {
      const DeviceOutput y(m, c.n, ScalarType::kBFloat16);
      const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
      ASSERT_EQ(multiply(x.input, {&product, 1}), cudaSuccess);
      if (i == 0) first = y.bytes();
      ASSERT_EQ(y.bytes(), first);
    }
  }
}

TEST_P(CudaTables, NonFiniteValuesStayInTheirRows) {
  QuantizedCase c(20, 300, {}, 5);
  for (int i = 0; i < 32; ++i) c.lut[7 * 32 + i] = 0x7e00;  // row 7: NaN
  const DeviceCase weights(c);
  const DeviceInput x(3, c.k, ScalarType::kFloat16);
  const DeviceOutput y(3, c.n, ScalarType::kFloat16);
  const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
  ASSERT_EQ(multiply(x.input, {&product, 1}), cudaSuccess);
  const std::vector<float> found = y.values();
  for (std::int64_t m = 0; m < 3; ++m) {
    for (std::int64_t n = 0; n < c.n; ++n) ASSERT_EQ(std::isnan(found[m * c.n + n]), n == 7);
  }
}

TEST_P(CudaTables, NonFiniteActivationsSpoilTheirRowAlone) {
  const QuantizedCase c(40, 600, {}, 4);
  const DeviceCase weights(c);
  for (const ScalarType type : kTypes) {
    DeviceInput x(12, c.k, type);
    x.matrix.set(2, 599, std::numeric_limits<float>::infinity());
    x.matrix.set(9, 0, std::numeric_limits<float>::quiet_NaN());
    x.upload();
    const DeviceOutput y(12, c.n, type);
    const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
    ASSERT_EQ(multiply(x.input, {&product, 1}), cudaSuccess);
    const std::vector<float> found = y.values();
    for (std::int64_t m = 0; m < 12; ++m) {
      for (std::int64_t n = 0; n < c.n; ++n) {
        ASSERT_EQ(std::isfinite(found[m * c.n + n]), m != 2 && m != 9) << m << ", " << n;
      }
    }
  }
}

TEST_P(CudaTables, ZerosAndTinyAndHugeActivations) {
  for (const float size : {0.0f, 1e-38f, 1e-20f, 1e20f, 1e38f}) {
    const QuantizedCase c(20, 300, {}, 4);
    const DeviceCase weights(c);
    DeviceInput x(9, c.k, ScalarType::kBFloat16);
    for (std::int64_t m = 0; m < 9; ++m) {
      for (std::int64_t k = 0; k < c.k; ++k) x.matrix.set(m, k, x.matrix.get(m, k) / 100 * size);
    }
    x.upload();
    const DeviceOutput y(9, c.n, ScalarType::kBFloat16);
    const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
    ASSERT_EQ(multiply(x.input, {&product, 1}), cudaSuccess);
    const std::vector<float> found = y.values();
    const std::vector<double> expected =
        reference::linear(c.canonical_weights(), x.matrix.values(), 9, nullptr);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(found[i], expected[i], std::abs(expected[i]) * 0x1p-7 + size * 1e-4 + 1e-37)
          << size;
    }
  }
}

TEST_P(CudaTables, AValueThatNoColumnHasDoesNotReachTheTail) {
  // Code 0 fills the columns past K; its value is infinite, and no column has it.
  QuantizedCase c(16, 130, {}, 4);
  for (auto& byte : c.canonical) byte = 0;
  const std::int64_t row_bytes = plane_row_bytes(c.k);
  for (std::int64_t n = 0; n < c.n; ++n) {
    for (std::int64_t k = 0; k < c.k; ++k) {
      c.canonical[(3 * c.n + n) * row_bytes + k / 8] |= 1u << (k % 8);  // code 1
    }
    c.lut[n * 16] = 0x7c00;
  }
  run(c, 2, ScalarType::kFloat16);
}

TEST_P(CudaTables, LeavesOtherTypesAndGroupsToOthers) {
  const QuantizedCase grouped(16, 256, {8, CellGroups::kOne, 128}, 4), plain(16, 256, {}, 4);
  const DeviceCase a(grouped), b(plain);
  const cuda::Product with_groups{a.weights, nullptr, nullptr, 16};
  const cuda::Product product{b.weights, nullptr, nullptr, 16};
  cuda::Input x{nullptr, 256, 1, ScalarType::kFloat16};
  EXPECT_TRUE(serves(x, {&product, 1}));
  EXPECT_FALSE(serves(x, {&with_groups, 1}));
  x.rows = most_rows() + 1;
  EXPECT_FALSE(serves(x, {&product, 1}));
  x = {nullptr, 256, 1, ScalarType::kFloat32};
  EXPECT_FALSE(serves(x, {&product, 1}));
}

INSTANTIATE_TEST_SUITE_P(Kernels, CudaTables, ::testing::Values(Tables::kMma, Tables::kWgmma),
                         [](const auto& info) {
                           return info.param == Tables::kMma ? "Mma" : "Wgmma";
                         });

}  // namespace
}  // namespace anyprec::testing
