#include <list>

#include "kernels/cuda/plane_mma.h"
#include "tests/cpp/kernels/cuda_case.h"

namespace anyprec::testing {
namespace {

constexpr ScalarType kTypes[] = {ScalarType::kFloat16, ScalarType::kBFloat16};

CodebookForm groups_of(std::int64_t size) { return {0, CellGroups::kOne, size}; }

class CudaPlanes : public CudaTest {
 protected:
  /// What plane_mma.h promises: exact values, sums in fp32, y rounded once. The terms of the sums
  /// are those of the codebook, which may be larger than the values.
  void expect_linear(const QuantizedCase& c, DeviceInput& x, const DeviceOutput& y,
                     const double* bias) {
    const std::vector<double> x_values = x.matrix.values();
    const std::vector<double> expected =
        reference::linear(c.canonical_weights(), x_values, x.input.rows, bias);
    const std::vector<float> found = y.values();
    for (std::int64_t n = 0; n < y.n; ++n) {
      std::vector<double> largest(c.k);
      for (std::int64_t k = 0; k < c.k; ++k) {
        const bool first = k == 0 || (c.form.group_size > 0 && k % c.form.group_size == 0);
        largest[k] = first ? c.largest_value(n, k) : largest[k - 1];
      }
      for (std::int64_t m = 0; m < y.m; ++m) {
        double terms = 0;
        for (std::int64_t k = 0; k < c.k; ++k)
          terms += largest[k] * std::abs(x_values[m * c.k + k]);
        const double want = expected[m * c.n + n];
        ASSERT_NEAR(found[m * y.stride + n], want,
                    terms * 0x1p-20 + 1.01 * std::abs(want) * rounding(y.type) + 0x1p-23)
            << c.name() << " M=" << y.m << " at " << m << ", " << n;
      }
    }
    y.expect_room_untouched();
  }
  void run(const QuantizedCase& c, std::int64_t m, ScalarType type, bool with_bias = false,
           std::int64_t padding = 0, std::int64_t offset = 0) {
    ProductCase one(c, m, type, with_bias, padding, offset);
    const std::span<const cuda::Product> products(&one.product, 1);
    ASSERT_TRUE(cuda::plane_mma_serves(one.x.input, products, device)) << c.name();
    ASSERT_EQ(cuda::plane_mma(one.x.input, products, device, nullptr), cudaSuccess) << c.name();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << c.name();
    expect_linear(c, one.x, one.y, one.expected_bias());
  }
};

TEST_F(CudaPlanes, OnesGiveTheSumsOfTheWeights) {
  // The simplest product: what fails here is the layout, not the arithmetic.
  for (const std::int64_t size : {128, 64, 32}) {
    const QuantizedCase c(16, 256, groups_of(size), 2);
    const DeviceCase weights(c);
    DeviceInput x(1, 256, ScalarType::kFloat16);
    for (std::int64_t k = 0; k < 256; ++k) x.matrix.set(0, k, 1.0f);
    x.upload();
    const DeviceOutput y(1, 16, ScalarType::kFloat16);
    const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), 16};
    ASSERT_EQ(cuda::plane_mma(x.input, {&product, 1}, device, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    expect_linear(c, x, y, nullptr);
  }
}

TEST_F(CudaPlanes, EveryPrecisionAndGroupSize) {
  for (const std::int64_t size : {0, 32, 64, 96, 128, 160, 256, 384, 608}) {
    for (int precision = 2; precision <= 8; ++precision) {
      for (const std::int64_t m : {1, 5, 12}) {
        run(QuantizedCase(35, 600, groups_of(size), precision), m, kTypes[precision % 2], m == 5);
      }
    }
  }
}

TEST_F(CudaPlanes, FromOneRowToMany) {
  for (const std::int64_t size : {64, 96, 128}) {
    for (const std::int64_t m : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64}) {
      for (const int precision : {2, 3, 8}) {
        run(QuantizedCase(33, 520, groups_of(size), precision), m, kTypes[m % 2]);
      }
    }
  }
}

TEST_F(CudaPlanes, AnyShape) {
  for (const std::int64_t n : {1, 15, 16, 17, 250}) {
    for (const std::int64_t k : {1, 7, 31, 127, 128, 129, 255, 256, 257, 1000, 4096}) {
      for (const std::int64_t m : {1, 5, 16, 40}) {
        const int precision = 2 + static_cast<int>((n + k + m) % 7);
        const std::int64_t size = std::int64_t{32} << (n + m) % 3;
        run(QuantizedCase(n, k, groups_of(size), precision), m, kTypes[(n + m) % 2], true);
      }
    }
  }
}

TEST_F(CudaPlanes, LongRowsTakeSeveralChunks) {
  for (const std::int64_t k : {4352, 9000, 14336}) {
    for (const std::int64_t m : {1, 8, 16, 24}) {
      for (const int precision : {3, 8}) {
        run(QuantizedCase(18, k, groups_of(128), precision), m, kTypes[m % 2]);
      }
    }
    run(QuantizedCase(18, k, groups_of(32), 4), 3, ScalarType::kFloat16);
  }
}

TEST_F(CudaPlanes, ManyTilesABlock) {
  for (const int precision : {2, 3, 8}) {
    for (const std::int64_t m : {1, 16}) {
      run(QuantizedCase(14336, 40, groups_of(32), precision), m, ScalarType::kFloat16);
    }
  }
  run(QuantizedCase(12016, 300, groups_of(128), 4), 20, ScalarType::kFloat16);
  run(QuantizedCase(10003, 4200, groups_of(128), 2), 3, ScalarType::kFloat16);
}

TEST_F(CudaPlanes, RowsOfAnyStrideAndAlignment) {
  for (const std::int64_t padding : {0, 1, 8, 24}) {
    for (const std::int64_t offset : {0, 1, 3, 4, 8}) {
      for (const std::int64_t k : {520, 521}) {
        for (const ScalarType type : kTypes) {
          run(QuantizedCase(17, k, groups_of(128), 5), 7, type, true, padding, offset);
        }
      }
    }
  }
}

TEST_F(CudaPlanes, SeveralMatricesAtOnce) {
  for (const int precision : {3, 6}) {
    const CodebookForm form = groups_of(128);
    const QuantizedCase cases[] = {{40, 700, form, precision, 1},
                                   {9, 700, form, precision, 2},
                                   {16, 700, form, precision, 3},
                                   {3333, 700, form, precision, 4}};
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
      ASSERT_EQ(cuda::plane_mma(x.input, products, device, nullptr), cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      auto y = outputs.begin();
      for (const QuantizedCase& c : cases) expect_linear(c, x, *y++, nullptr);
    }
  }
}

TEST_F(CudaPlanes, TheSameInputGivesTheSameBytes) {
  const QuantizedCase c(2300, 5000, groups_of(128), 6);
  const DeviceCase weights(c);
  for (const std::int64_t m : {1, 12, 30}) {
    const DeviceInput x(m, c.k, ScalarType::kBFloat16);
    std::vector<std::uint8_t> first;
    for (int i = 0; i < 10; ++i) {
      const DeviceOutput y(m, c.n, ScalarType::kBFloat16);
      const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
      ASSERT_EQ(cuda::plane_mma(x.input, {&product, 1}, device, nullptr), cudaSuccess);
      if (i == 0) first = y.bytes();
      ASSERT_EQ(y.bytes(), first) << "M=" << m;
    }
  }
}

TEST_F(CudaPlanes, ACapturedGraphOfDependentLaunchesReadsItsPredecessorsResults) {
  // y of one is x of the next, and successors start early.
  const QuantizedCase c(512, 512, groups_of(128), 4);
  const DeviceCase weights(c);
  const DeviceInput x(3, 512, ScalarType::kFloat16);
  const auto chain = [&](const std::vector<DeviceOutput*>& outputs, cudaStream_t stream) {
    cuda::Input input = x.input;
    for (DeviceOutput* y : outputs) {
      const cuda::Product product{weights.weights, nullptr, y->buffer.as<void>(), 512};
      ASSERT_EQ(cuda::plane_mma(input, {&product, 1}, device, stream), cudaSuccess);
      if (stream == nullptr) {
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      }
      input.x = y->buffer.as<void>();
    }
  };
  std::list<DeviceOutput> memory;
  std::vector<DeviceOutput*> apart, captured;
  for (int i = 0; i < 4; ++i) {
    apart.push_back(&memory.emplace_back(3, 512, ScalarType::kFloat16));
    captured.push_back(&memory.emplace_back(3, 512, ScalarType::kFloat16));
  }
  chain(apart, nullptr);
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  chain(captured, stream);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (int i = 0; i < 20; ++i) ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(captured[i]->bytes(), apart[i]->bytes()) << i;
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(CudaPlanes, NonFiniteValuesStayInTheirRows) {
  QuantizedCase c(20, 300, groups_of(128), 5);
  for (int i = 0; i < 3 * 5; ++i) c.alpha[7 * 3 * 5 + i] = 0x7e00;  // row 7: NaN
  const DeviceCase weights(c);
  const DeviceInput x(3, c.k, ScalarType::kFloat16);
  const DeviceOutput y(3, c.n, ScalarType::kFloat16);
  const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
  ASSERT_EQ(cuda::plane_mma(x.input, {&product, 1}, device, nullptr), cudaSuccess);
  const std::vector<float> found = y.values();
  for (std::int64_t m = 0; m < 3; ++m) {
    for (std::int64_t n = 0; n < c.n; ++n) ASSERT_EQ(std::isnan(found[m * c.n + n]), n == 7);
  }
}

TEST_F(CudaPlanes, NonFiniteActivationsSpoilTheirRowAlone) {
  for (const std::int64_t size : {32, 64, 128}) {
    const QuantizedCase c(40, 600, groups_of(size), 4);
    const DeviceCase weights(c);
    for (const ScalarType type : kTypes) {
      DeviceInput x(12, c.k, type);
      x.matrix.set(2, 599, std::numeric_limits<float>::infinity());
      x.matrix.set(9, 0, std::numeric_limits<float>::quiet_NaN());
      x.upload();
      const DeviceOutput y(12, c.n, type);
      const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
      ASSERT_EQ(cuda::plane_mma(x.input, {&product, 1}, device, nullptr), cudaSuccess);
      const std::vector<float> found = y.values();
      for (std::int64_t m = 0; m < 12; ++m) {
        for (std::int64_t n = 0; n < c.n; ++n) {
          ASSERT_EQ(std::isfinite(found[m * c.n + n]), m != 2 && m != 9) << m << ", " << n;
        }
      }
    }
  }
}

TEST_F(CudaPlanes, ZerosAndTinyAndHugeActivations) {
  const QuantizedCase c(20, 300, groups_of(64), 4);
  const DeviceCase weights(c);
  const auto expect_sizes = [&](ScalarType type, float size, float relative, float absolute) {
    DeviceInput x(9, c.k, type);
    for (std::int64_t m = 0; m < 9; ++m) {
      for (std::int64_t k = 0; k < c.k; ++k) x.matrix.set(m, k, x.matrix.get(m, k) / 100 * size);
    }
    x.upload();
    const DeviceOutput y(9, c.n, type);
    const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
    ASSERT_EQ(cuda::plane_mma(x.input, {&product, 1}, device, nullptr), cudaSuccess);
    const std::vector<float> found = y.values();
    const std::vector<double> expected =
        reference::linear(c.canonical_weights(), x.matrix.values(), 9, nullptr);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(found[i], expected[i], std::abs(expected[i]) * relative + size * 1e-4 + absolute)
          << size;
    }
  };
  for (const float size : {0.0f, 1e-38f, 1e-20f, 1e20f, 1e38f}) {
    expect_sizes(ScalarType::kBFloat16, size, 0x1p-7f, 1e-37f);
  }
  for (const float size : {0.0f, 1e-7f, 1e-5f, 1e-3f, 6e4f}) {
    expect_sizes(ScalarType::kFloat16, size, 0x1p-10f, 0x1p-24f);
  }
}

TEST_F(CudaPlanes, LeavesOtherFormsAndTypesToOthers) {
  const QuantizedCase table(16, 256, {8, CellGroups::kOne, 128}, 4);
  const QuantizedCase binary(16, 256, groups_of(128), 4);
  const DeviceCase a(table), b(binary);
  const cuda::Product by_table{a.weights, nullptr, nullptr, 16};
  const cuda::Product product{b.weights, nullptr, nullptr, 16};
  cuda::Input x{nullptr, 256, 1, ScalarType::kFloat16};
  EXPECT_TRUE(cuda::plane_mma_serves(x, {&product, 1}, device));
  EXPECT_FALSE(cuda::plane_mma_serves(x, {&by_table, 1}, device));
  x.rows = 65;
  EXPECT_FALSE(cuda::plane_mma_serves(x, {&product, 1}, device));
  x = {nullptr, 256, 1, ScalarType::kFloat32};
  EXPECT_FALSE(cuda::plane_mma_serves(x, {&product, 1}, device));
}

}  // namespace
}  // namespace anyprec::testing
