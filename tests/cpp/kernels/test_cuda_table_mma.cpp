#include <list>

#include "kernels/cuda/table_mma.h"
#include "tests/cpp/kernels/cuda_case.h"

namespace anyprec::testing {
namespace {

/// What table_mma.h promises: values in fp16, sums in fp32, y rounded once; bf16 x is nearly exact.
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

class CudaTableMma : public CudaTest {
 protected:
  void run(const QuantizedCase& c, std::int64_t m, ScalarType type, bool with_bias = false,
           std::int64_t padding = 0, std::int64_t offset = 0) {
    const DeviceCase weights(c);
    DeviceInput x(m, c.k, type, padding, offset, static_cast<unsigned>(m + c.k));
    std::vector<double> bias(c.n);
    std::vector<std::uint16_t> typed_bias(c.n);
    for (std::int64_t n = 0; n < c.n; ++n) {
      const float value = static_cast<float>(n % 7) - 3.5f;
      bias[n] = value;
      cpu::store_floats(&value, 1, type, typed_bias.data(), n);
    }
    const DeviceBuffer device_bias(typed_bias);
    const DeviceOutput y(m, c.n, type, padding);
    const cuda::Product product{weights.weights, with_bias ? device_bias.as<void>() : nullptr,
                                y.buffer.as<void>(), y.stride};
    ASSERT_TRUE(cuda::table_mma_serves(x.input, {&product, 1}, device)) << c.name();
    ASSERT_EQ(cuda::table_mma(x.input, {&product, 1}, device, nullptr), cudaSuccess) << c.name();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << c.name();
    expect_linear(c, x, y, with_bias ? bias.data() : nullptr);
  }
};

constexpr ScalarType kTypes[] = {ScalarType::kFloat16, ScalarType::kBFloat16};

TEST_F(CudaTableMma, FullTablesAtEveryPrecisionAndNumberOfRows) {
  for (int precision = 2; precision <= 8; ++precision) {
    for (const std::int64_t m : {1, 2, 3, 8, 9, 16, 17, 31, 32, 33, 64}) {
      for (const ScalarType type : kTypes) run(QuantizedCase(33, 600, {}, precision), m, type);
    }
  }
}

TEST_F(CudaTableMma, EveryFormAtEveryPrecision) {
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

TEST_F(CudaTableMma, AnyShape) {
  for (const std::int64_t n : {1, 15, 16, 17, 250}) {
    for (const std::int64_t k : {1, 7, 31, 255, 256, 257, 1000, 4096}) {
      for (const std::int64_t m : {1, 5, 16, 40}) {
        const int precision = 2 + static_cast<int>((n + k + m) % 7);
        run(QuantizedCase(n, k, {}, precision), m, kTypes[(n + m) % 2], true);
      }
    }
  }
}

TEST_F(CudaTableMma, LongRowsTakeSeveralChunks) {
  for (const std::int64_t k : {4352, 9000, 14336}) {
    for (const std::int64_t m : {1, 8, 16, 32, 64}) {
      for (const int precision : {3, 4, 8}) {
        run(QuantizedCase(18, k, {3, CellGroups::kIo, 0}, precision), m, kTypes[m % 2]);
      }
    }
  }
}

TEST_F(CudaTableMma, ManyTilesABlock) {
  for (const int precision : {2, 4, 7, 8}) {
    for (const std::int64_t m : {1, 16, 64}) {
      run(QuantizedCase(12016, 40, {}, precision), m, ScalarType::kFloat16);
    }
  }
  run(QuantizedCase(4300, 4200, {}, 8), 3, ScalarType::kFloat16);
}

TEST_F(CudaTableMma, RowsOfAnyStrideAndAlignment) {
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

TEST_F(CudaTableMma, SeveralMatricesAtOnce) {
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
      ASSERT_EQ(cuda::table_mma(x.input, products, device, nullptr), cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      for (int i = 0; i < 4; ++i) {
        expect_linear(cases[i], x, *std::next(outputs.begin(), i), nullptr);
      }
    }
  }
}

TEST_F(CudaTableMma, TheSameInputGivesTheSameBytes) {
  const QuantizedCase c(300, 5000, {}, 6);
  const DeviceCase weights(c);
  for (const std::int64_t m : {1, 12, 30}) {
    const DeviceInput x(m, c.k, ScalarType::kBFloat16);
    std::vector<std::uint8_t> first;
    for (int i = 0; i < 5; ++i) {
      const DeviceOutput y(m, c.n, ScalarType::kBFloat16);
      const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
      ASSERT_EQ(cuda::table_mma(x.input, {&product, 1}, device, nullptr), cudaSuccess);
      if (i == 0) first = y.bytes();
      ASSERT_EQ(y.bytes(), first);
    }
  }
}

TEST_F(CudaTableMma, NonFiniteValuesStayInTheirRows) {
  QuantizedCase c(20, 300, {}, 5);
  for (int i = 0; i < 32; ++i) c.lut[7 * 32 + i] = 0x7e00;  // row 7: NaN
  const DeviceCase weights(c);
  const DeviceInput x(3, c.k, ScalarType::kFloat16);
  const DeviceOutput y(3, c.n, ScalarType::kFloat16);
  const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
  ASSERT_EQ(cuda::table_mma(x.input, {&product, 1}, device, nullptr), cudaSuccess);
  const std::vector<float> found = y.values();
  for (std::int64_t m = 0; m < 3; ++m) {
    for (std::int64_t n = 0; n < c.n; ++n) ASSERT_EQ(std::isnan(found[m * c.n + n]), n == 7);
  }
}

TEST_F(CudaTableMma, NonFiniteActivationsSpoilTheirRowAlone) {
  const QuantizedCase c(40, 600, {}, 4);
  const DeviceCase weights(c);
  for (const ScalarType type : kTypes) {
    DeviceInput x(12, c.k, type);
    x.matrix.set(2, 599, std::numeric_limits<float>::infinity());
    x.matrix.set(9, 0, std::numeric_limits<float>::quiet_NaN());
    x.upload();
    const DeviceOutput y(12, c.n, type);
    const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
    ASSERT_EQ(cuda::table_mma(x.input, {&product, 1}, device, nullptr), cudaSuccess);
    const std::vector<float> found = y.values();
    for (std::int64_t m = 0; m < 12; ++m) {
      for (std::int64_t n = 0; n < c.n; ++n) {
        ASSERT_EQ(std::isfinite(found[m * c.n + n]), m != 2 && m != 9) << m << ", " << n;
      }
    }
  }
}

TEST_F(CudaTableMma, ZerosAndTinyAndHugeActivations) {
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
    ASSERT_EQ(cuda::table_mma(x.input, {&product, 1}, device, nullptr), cudaSuccess);
    const std::vector<float> found = y.values();
    const std::vector<double> expected =
        reference::linear(c.canonical_weights(), x.matrix.values(), 9, nullptr);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(found[i], expected[i], std::abs(expected[i]) * 0x1p-7 + size * 1e-4 + 1e-37)
          << size;
    }
  }
}

TEST_F(CudaTableMma, AValueThatNoColumnHasDoesNotReachTheTail) {
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

TEST_F(CudaTableMma, LeavesOtherTypesAndGroupsToOthers) {
  const QuantizedCase grouped(16, 256, {8, CellGroups::kOne, 128}, 4), plain(16, 256, {}, 4);
  const DeviceCase a(grouped), b(plain);
  const cuda::Product with_groups{a.weights, nullptr, nullptr, 16};
  const cuda::Product product{b.weights, nullptr, nullptr, 16};
  cuda::Input x{nullptr, 256, 1, ScalarType::kFloat16};
  EXPECT_TRUE(cuda::table_mma_serves(x, {&product, 1}, device));
  EXPECT_FALSE(cuda::table_mma_serves(x, {&with_groups, 1}, device));
  x.rows = 65;
  EXPECT_FALSE(cuda::table_mma_serves(x, {&product, 1}, device));
  x = {nullptr, 256, 1, ScalarType::kFloat32};
  EXPECT_FALSE(cuda::table_mma_serves(x, {&product, 1}, device));
}

}  // namespace
}  // namespace anyprec::testing
