// anyprec/cuda.h against the reference in double precision, whichever kernel it chooses.
#include <cublas_v2.h>
#include <gtest/gtest.h>

#include <list>
#include <thread>

#include "anyprec/error.h"
#include "tests/cpp/kernels/cuda_case.h"

namespace anyprec::testing {
namespace {

constexpr ScalarType kTypes[] = {ScalarType::kFloat16, ScalarType::kBFloat16, ScalarType::kFloat32};

/// One dot product and what its terms allow as error (cuda.h, LinearPath by LinearPath).
double tolerance(cuda::LinearPath path, const double* w, const double* x, std::int64_t k, double y,
                 bool exact_values, ScalarType type) {
  double largest_w = 0, sum_x = 0, products = 0, squares = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    largest_w = std::max(largest_w, std::abs(w[i]));
    sum_x += std::abs(x[i]);
    products += std::abs(w[i] * x[i]);
    squares += w[i] * w[i] * x[i] * x[i];
  }
  const double rounded = 1.01 * std::abs(y) * rounding(type) + 0x1p-23;
  if (path == cuda::LinearPath::kMaskDot) return rounded + largest_w * sum_x * 0x1p-19;
  if (path == cuda::LinearPath::kPlaneMma) return rounded + largest_w * sum_x * 0x1p-20;
  const bool as_stored = exact_values && type != ScalarType::kBFloat16;
  const bool by_tables =
      path == cuda::LinearPath::kTableMma || path == cuda::LinearPath::kTableWgmma;
  const double of_value =
      by_tables ? (exact_values ? 0.0 : 0x1p-11) : (as_stored ? 0.0 : rounding(type));
  return rounded + products * static_cast<double>(k + 64) * 0x1p-26 +
         6 * std::sqrt(squares) * of_value;
}

class CudaLinear : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped()) {
      ASSERT_EQ(cublasCreate(&cublas_), CUBLAS_STATUS_SUCCESS);
    }
  }
  ~CudaLinear() override {
    if (cublas_ != nullptr) cublasDestroy(cublas_);
  }

  /// Runs linear with what it asks for.
  void multiply(const cuda::Input& input, std::span<const cuda::Product> products,
                cudaStream_t stream = nullptr) {
    const std::size_t bytes = cuda::linear_workspace_bytes(input, products);
    const DeviceBuffer memory(bytes);
    ASSERT_EQ(cuda::linear(input, products, {memory.as<void>(), bytes, cublas_}, stream),
              cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  }

  void expect_product(const QuantizedCase& c, DeviceInput& x, const DeviceOutput& y,
                      const std::vector<double>& bias, cuda::LinearPath path) {
    const std::vector<double> values = x.matrix.values();
    const std::vector<double> w = reference::dequantize(c.canonical_weights());
    const std::vector<double> expected = reference::linear(
        c.canonical_weights(), values, x.input.rows, bias.empty() ? nullptr : bias.data());
    const std::vector<float> found = y.values();
    const bool exact = c.form.sign_planes(c.precision) == 0;
    for (std::int64_t m = 0; m < y.m; ++m) {
      for (std::int64_t n = 0; n < y.n; ++n) {
        const double want = expected[m * c.n + n];
        ASSERT_NEAR(found[m * y.stride + n], want,
                    tolerance(path, &w[n * c.k], &values[m * c.k], c.k, want, exact, y.type))
            << c.name() << " M=" << y.m << " path " << static_cast<int>(path) << " at " << m << ", "
            << n;
      }
    }
    y.expect_room_untouched();
  }

  void run(const QuantizedCase& c, std::int64_t m, ScalarType type, bool with_bias = false,
           std::int64_t padding = 0, std::int64_t offset = 0) {
    const DeviceCase weights(c);
    DeviceInput x(m, c.k, type, padding, offset, static_cast<unsigned>(m + c.k));
    std::vector<double> bias;
    std::vector<std::uint8_t> typed(c.n * cpu::scalar_bytes(type));
    for (std::int64_t n = 0; with_bias && n < c.n; ++n) {
      const float value = static_cast<float>(n % 7) - 3.5f;
      bias.push_back(value);
      cpu::store_floats(&value, 1, type, typed.data(), n);
    }
    const DeviceBuffer device_bias(typed);
    const DeviceOutput y(m, c.n, type, padding);
    const cuda::Product product{weights.weights, with_bias ? device_bias.as<void>() : nullptr,
                                y.buffer.as<void>(), y.stride};
    multiply(x.input, {&product, 1});
    expect_product(c, x, y, bias, cuda::linear_path(x.input, {&product, 1}));
  }

  cublasHandle_t cublas_ = nullptr;
};

TEST_F(CudaLinear, EveryFormAndPrecision) {
  for (int lut_bits = 0; lut_bits <= 8; ++lut_bits) {
    for (const CellGroups groups : {CellGroups::kOne, CellGroups::kIo, CellGroups::kSym,
                                    CellGroups::kQu, CellGroups::kCell}) {
      if (groups == CellGroups::kQu && lut_bits != 4) continue;
      if (lut_bits == 0 && (groups == CellGroups::kIo || groups == CellGroups::kSym)) continue;
      for (const std::int64_t group_size : {0, 64, 128}) {
        for (int precision = 2; precision <= 8; ++precision) {
          const QuantizedCase c(37, 600, {lut_bits, groups, group_size}, precision);
          for (const std::int64_t m : {1, 2, 5}) run(c, m, kTypes[(precision + m) % 3], m == 2);
        }
      }
    }
  }
}

TEST_F(CudaLinear, GroupsOfBinaryCodesOfAnySizeAndNumberOfRows) {
  for (const std::int64_t size : {32, 64, 96, 128, 256}) {
    for (const int precision : {2, 4, 8}) {
      for (const std::int64_t m : {1, 2, 3, 16, 17, 64, 65}) {
        for (const ScalarType type : kTypes) {
          run(QuantizedCase(37, 600, {0, CellGroups::kOne, size}, precision), m, type, true);
        }
      }
    }
  }
}

TEST_F(CudaLinear, GroupsOf128BinaryCodesByMaskDot) {
  const CodebookForm form{0, CellGroups::kOne, 128};
  for (const std::int64_t k : {256, 768, 1024, 1536, 4096, 14336}) {  // spans of 1, 2 and 4 units
    for (int precision = 2; precision <= 8; ++precision) {
      for (const std::int64_t m : {1, 2}) {
        const QuantizedCase c(37, k, form, precision);
        const DeviceCase weights(c);
        const DeviceInput x(m, k, kTypes[precision % 3]);
        const DeviceOutput y(m, c.n, kTypes[precision % 3]);
        const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), y.stride};
        ASSERT_EQ(cuda::linear_path(x.input, {&product, 1}), cuda::LinearPath::kMaskDot);
        run(c, m, kTypes[precision % 3], m == 2, 3);
      }
    }
  }
  for (const int precision : {2, 8}) {
    for (const std::int64_t m : {1, 2}) {
      run(QuantizedCase(12016, 512, form, precision), m, kTypes[0]);
    }
  }
}

TEST_F(CudaLinear, AnyShape) {
  for (const std::int64_t n : {1, 15, 16, 17, 250}) {
    for (const std::int64_t k : {1, 7, 31, 255, 256, 257, 1000, 4096}) {
      for (const std::int64_t m : {1, 2, 3, 16, 40}) {
        const int precision = 2 + static_cast<int>((n + k + m) % 7);
        run(QuantizedCase(n, k, {3, CellGroups::kIo, 0}, precision), m, kTypes[(n + m) % 3], true);
      }
    }
  }
}

TEST_F(CudaLinear, FromOneRowToMany) {
  for (const std::int64_t m : {1, 2, 3, 4, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 100, 257}) {
    for (const int precision : {2, 3, 4, 5, 8}) {
      run(QuantizedCase(50, 520, {}, precision), m, kTypes[m % 2]);
      run(QuantizedCase(50, 520, {3, CellGroups::kOne, 0}, precision), m, kTypes[m % 3]);
    }
  }
}

TEST_F(CudaLinear, LongRowsAndManyTiles) {
  for (const std::int64_t k : {14336, 28672, 65536}) {
    for (const int precision : {2, 4, 8}) {
      for (const std::int64_t m : {1, 2}) {
        run(QuantizedCase(18, k, {3, CellGroups::kOne, 0}, precision), m, kTypes[precision % 2]);
      }
    }
  }
  for (const int precision : {2, 4, 6, 8}) {
    for (const CellGroups groups : {CellGroups::kOne, CellGroups::kIo, CellGroups::kSym}) {
      run(QuantizedCase(12016, 270, {3, groups, 0}, precision), 1, kTypes[0]);
    }
  }
}

TEST_F(CudaLinear, RowsOfAnyStrideAndAlignment) {
  for (const std::int64_t padding : {0, 1, 8, 24}) {
    for (const std::int64_t offset : {0, 1, 3, 4, 8}) {
      for (const std::int64_t k : {520, 521}) {
        for (const std::int64_t m : {1, 2, 7}) {
          for (const ScalarType type : kTypes) {
            run(QuantizedCase(17, k, {3, CellGroups::kSym, 0}, 5), m, type, true, padding, offset);
          }
        }
      }
    }
  }
}

TEST_F(CudaLinear, SeveralMatricesAtOnce) {
  const CodebookForm form{3, CellGroups::kIo, 0};
  for (const int precision : {3, 6}) {
    const QuantizedCase cases[] = {{40, 700, form, precision, 1},
                                   {9, 700, form, precision, 2},
                                   {16, 700, form, precision, 3},
                                   {3333, 700, form, precision, 4}};
    for (const std::int64_t m : {1, 2, 10, 100}) {
      const ScalarType type = kTypes[m % 2];
      DeviceInput x(m, 700, type);
      std::list<DeviceCase> weights;
      std::list<DeviceOutput> outputs;
      std::vector<cuda::Product> products;
      for (const QuantizedCase& c : cases) {
        weights.emplace_back(c);
        outputs.emplace_back(m, c.n, type, 3);
        products.push_back({weights.back().weights, nullptr, outputs.back().buffer.as<void>(),
                            outputs.back().stride});
      }
      multiply(x.input, products);
      const cuda::LinearPath path = cuda::linear_path(x.input, products);
      auto y = outputs.begin();
      for (const QuantizedCase& c : cases) expect_product(c, x, *y++, {}, path);
    }
  }
}

TEST_F(CudaLinear, PlanesOfXGiveTheSameBytes) {
  for (const std::int64_t k : {300, 4096, 14336}) {
    const QuantizedCase c(100, k, {0, CellGroups::kOne, 0}, 5);
    const DeviceCase weights(c);
    for (const std::int64_t m : {1, 2}) {
      const DeviceInput x(m, k, ScalarType::kFloat16);
      const DeviceOutput direct(m, c.n, ScalarType::kFloat16);
      const DeviceOutput by_planes(m, c.n, ScalarType::kFloat16);
      cuda::Product product{weights.weights, nullptr, direct.buffer.as<void>(), c.n};
      ASSERT_EQ(cuda::linear_path(x.input, {&product, 1}), cuda::LinearPath::kMaskDot);
      multiply(x.input, {&product, 1});
      const DeviceBuffer planes(m * cuda::activation_planes_bytes(k));
      const DeviceBuffer scales(m * 2 * sizeof(float));
      ASSERT_EQ(
          cuda::activations_to_planes(x.input, k, planes.as<void>(), scales.as<float>(), nullptr),
          cudaSuccess);
      product.y = by_planes.buffer.as<void>();
      ASSERT_EQ(cuda::linear_from_planes(x.input, {planes.as<void>(), scales.as<float>()},
                                         {&product, 1}, nullptr),
                cudaSuccess);
      EXPECT_EQ(by_planes.bytes(), direct.bytes());
    }
  }
}

TEST_F(CudaLinear, APrecisionInDeviceMemoryChangesACapturedGraph) {
  for (const CodebookForm form : {CodebookForm{3, CellGroups::kIo, 0}, CodebookForm{0},
                                  CodebookForm{0, CellGroups::kOne, 128}}) {
    const std::int64_t columns = form.group_size == 0 ? 900 : 1024;
    std::list<QuantizedCase> cases;
    std::list<DeviceCase> weights;
    cuda::Codebooks codebooks;
    for (int b = 2; b <= 8; ++b) {
      // The same codes at each precision: the case's seed fixes them.
      cases.emplace_back(70, columns, form, b, 1);
      cases.back().canonical = cases.front().canonical;
      weights.emplace_back(cases.back());
      codebooks.lut[b - 2] = weights.back().weights.lut;
      codebooks.alpha[b - 2] = weights.back().weights.alpha;
    }
    DeviceInput x(1, columns, ScalarType::kFloat16);
    const DeviceOutput y(1, 70, ScalarType::kFloat16);
    const cuda::Product product{weights.front().weights, nullptr, y.buffer.as<void>(), 70};
    const DeviceBuffer precision(sizeof(int));
    cudaStream_t stream;
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    ASSERT_EQ(cuda::linear_at(x.input, precision.as<int>(), {&product, 1}, {&codebooks, 1}, stream),
              cudaSuccess);
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    for (const QuantizedCase& c : cases) {
      precision.write(std::vector<int>{c.precision});
      ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
      ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      expect_product(c, x, y, {}, cuda::LinearPath::kMaskDot);
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

TEST_F(CudaLinear, TheSameInputGivesTheSameBytesOnConcurrentStreams) {
  const QuantizedCase c(3000, 1000, {3, CellGroups::kSym, 0}, 6);
  const DeviceCase weights(c);
  for (const std::int64_t m : {1, 5, 12}) {
    const DeviceInput x(m, c.k, ScalarType::kBFloat16);
    const DeviceOutput first(m, c.n, ScalarType::kBFloat16);
    const cuda::Product product{weights.weights, nullptr, first.buffer.as<void>(), c.n};
    multiply(x.input, {&product, 1});
    std::vector<std::thread> threads;
    std::vector<int> equal(4);
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        cudaStream_t stream;
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
        const std::size_t bytes = cuda::linear_workspace_bytes(x.input, {&product, 1});
        const DeviceBuffer memory(bytes);
        const cuda::Workspace workspace{memory.as<void>(), bytes};
        bool all = true;
        for (int i = 0; i < 20; ++i) {
          const DeviceOutput y(m, c.n, ScalarType::kBFloat16);
          const cuda::Product own{weights.weights, nullptr, y.buffer.as<void>(), c.n};
          all &= cuda::linear(x.input, {&own, 1}, workspace, stream) == cudaSuccess;
          all &= cudaStreamSynchronize(stream) == cudaSuccess;
          all &= y.bytes() == first.bytes();
        }
        cudaStreamDestroy(stream);
        equal[t] = all;
      });
    }
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(equal, std::vector<int>(4, 1)) << "M=" << m;
  }
}

TEST_F(CudaLinear, NonFiniteActivationsSpoilTheirRowAlone) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const std::int64_t m : {2, 3, 100}) {
    const QuantizedCase c(40, 300, {3, CellGroups::kOne, 0}, 4);
    const DeviceCase weights(c);
    for (const float bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
      DeviceInput x(m, c.k, ScalarType::kFloat16);
      x.matrix.set(1, 77, bad);
      x.upload();
      const DeviceOutput y(m, c.n, ScalarType::kFloat16);
      const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), c.n};
      multiply(x.input, {&product, 1});
      const std::vector<float> found = y.values();
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t n = 0; n < c.n; ++n)
          ASSERT_EQ(std::isfinite(found[i * c.n + n]), i != 1) << "M=" << m << " row " << i;
    }
  }
}

TEST_F(CudaLinear, ZerosAndTinyAndHugeActivations) {
  const QuantizedCase c(40, 300, {3, CellGroups::kOne, 0}, 4);
  const DeviceCase weights(c);
  for (const float size : {0.0f, 1e-38f, 1e-20f, 1e30f}) {
    DeviceInput x(1, c.k, ScalarType::kFloat32);
    for (std::int64_t k = 0; k < c.k; ++k) x.matrix.set(0, k, size * (k % 5 - 2.0f));
    x.upload();
    const DeviceOutput y(1, c.n, ScalarType::kFloat32);
    const cuda::Product product{weights.weights, nullptr, y.buffer.as<void>(), c.n};
    multiply(x.input, {&product, 1});
    const std::vector<double> values = x.matrix.values();
    const auto expected = reference::linear(c.canonical_weights(), values, 1, nullptr);
    const std::vector<float> found = y.values();
    // Below 2^-100 activations are in steps of 2^-121.
    for (std::int64_t n = 0; n < c.n; ++n)
      ASSERT_NEAR(found[n], expected[n], 2e-5 * size * c.k + 0x1p-121 * c.k) << size;
  }
}

TEST_F(CudaLinear, PackingIsUndoneByUnpacking) {
  for (const std::int64_t n : {1, 16, 33}) {
    for (const std::int64_t k : {1, 8, 255, 256, 257, 1000}) {
      const QuantizedCase c(n, k, {}, 8);
      const DeviceCase packed(c);
      const DeviceBuffer back(c.canonical.size());
      ASSERT_EQ(cuda::unpack_planes(packed.planes.as<std::uint8_t>(), 8, n, k,
                                    back.as<std::uint8_t>(), nullptr),
                cudaSuccess);
      EXPECT_EQ(back.read<std::uint8_t>(c.canonical.size()), c.canonical);
    }
  }
}

TEST_F(CudaLinear, WrongArgumentsAreNamed) {
  const QuantizedCase c(20, 300, {3, CellGroups::kOne, 0}, 5);
  const DeviceCase weights(c);
  const DeviceInput x(1, c.k, ScalarType::kFloat16);
  const DeviceOutput y(1, c.n, ScalarType::kFloat16);
  const cuda::Product good{weights.weights, nullptr, y.buffer.as<void>(), c.n};
  const auto message = [&](const cuda::Input& input, std::span<const cuda::Product> products) {
    try {
      (void)cuda::linear(input, products, {}, nullptr);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  cuda::Product bad = good;
  bad.weights.planes += 4;
  EXPECT_EQ(message(x.input, {&bad, 1}), "linear: planes: address is not a multiple of 16");
  bad = good;
  bad.weights.lut += 1;
  EXPECT_EQ(message(x.input, {&bad, 1}), "linear: lut: address is not a multiple of 16");
  bad = good;
  bad.weights.alpha = nullptr;
  EXPECT_EQ(message(x.input, {&bad, 1}),
            "linear: alpha is null, but precision 5 has 2 signed planes");
  bad = good;
  bad.weights.precision = 9;
  EXPECT_EQ(message(x.input, {&bad, 1}), "linear: precision is 9, wanted 2 to 8");
  bad = good;
  bad.y = nullptr;
  EXPECT_EQ(message(x.input, {&bad, 1}), "linear: y is null");
  EXPECT_EQ(message({nullptr, c.k, 1, ScalarType::kFloat16}, {&good, 1}), "linear: x is null");
  EXPECT_EQ(message(x.input, {}), "linear: 0 products, wanted 1 to 4");
  cuda::Input two = x.input;
  two.rows = 2;
  bad = good;
  bad.y_stride = 19;
  EXPECT_EQ(message(two, {&bad, 1}), "linear: y_stride is 19, wanted at least 20");
  two.x_stride = c.k - 1;
  EXPECT_EQ(message(two, {&good, 1}), "linear: x_stride is 299, wanted at least 300");
  two.x_stride = c.k;
  two.rows = 1000;
  EXPECT_EQ(message(two, {&good, 1}),
            "linear: workspace of 0 bytes, wanted " +
                std::to_string(cuda::linear_workspace_bytes(two, {&good, 1})));
}

TEST_F(CudaLinear, WorksOnASecondDevice) {
  int devices = 0;
  ASSERT_EQ(cudaGetDeviceCount(&devices), cudaSuccess);
  if (devices < 2) GTEST_SKIP() << "needs two GPUs";
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  for (const std::int64_t m : {1, 12}) {
    run(QuantizedCase(50, 600, {3, CellGroups::kOne, 0}, 5), m, ScalarType::kFloat16);
  }
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
}

}  // namespace
}  // namespace anyprec::testing
