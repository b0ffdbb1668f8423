#include <array>

#include "anyprec/error.h"
#include "tests/cpp/kernels/cuda_case.h"

namespace anyprec::testing {
namespace {

constexpr ScalarType kTypes[] = {ScalarType::kFloat32, ScalarType::kBFloat16, ScalarType::kFloat16};

class CudaDequantize : public CudaTest {
 protected:
  /// Rows [begin, end), `offset` elements off alignment.
  void run(const QuantizedCase& c, ScalarType type, std::int64_t begin, std::int64_t end,
           std::int64_t offset = 0) {
    const DeviceCase weights(c);
    const std::int64_t room = 64;
    const DeviceOutput out(1, offset + (end - begin) * c.k + room, type);
    ASSERT_EQ(
        cuda::dequantize(weights.weights, begin, end,
                         out.buffer.as<char>() + offset * cpu::scalar_bytes(type), type, nullptr),
        cudaSuccess)
        << c.name();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << c.name();
    const std::vector<float> found = out.values();
    const std::vector<double> expected = reference::dequantize(c.canonical_weights());
    for (std::int64_t i = 0; i < (end - begin) * c.k; ++i) {
      const double want = expected[begin * c.k + i];
      const double tolerance = std::abs(want) * 1.01 * rounding(type) + 4e-7;
      ASSERT_NEAR(found[offset + i], want, tolerance) << c.name() << " at " << i;
    }
    const std::vector<std::uint8_t> bytes = out.bytes();
    const std::size_t size = cpu::scalar_bytes(type);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const auto element = static_cast<std::int64_t>(i / size) - offset;
      if (element >= 0 && element < (end - begin) * c.k) continue;
      ASSERT_EQ(bytes[i], 0xff) << c.name() << ": wrote outside";
    }
  }
};

TEST_F(CudaDequantize, EveryFormAndPrecision) {
  for (const CodebookForm& form : forms()) {
    for (int precision = 2; precision <= 8; ++precision) {
      for (const std::int64_t k : {33, 576}) {
        const QuantizedCase c(19, k, form, precision);
        for (const ScalarType type : kTypes) run(c, type, 0, 19);
      }
    }
  }
}

TEST_F(CudaDequantize, AnyShapeAndRange) {
  for (const std::int64_t k : {1, 8, 130, 256, 1000, 4104}) {
    for (const auto& [n, begin, end] : {std::array<std::int64_t, 3>{1, 0, 1},
                                        {50, 0, 50},
                                        {50, 7, 8},
                                        {50, 17, 45},
                                        {50, 9, 9}}) {
      for (const ScalarType type : kTypes) {
        const int precision = 2 + static_cast<int>((n + k + begin) % 7);
        for (const CodebookForm& form : {CodebookForm{}, CodebookForm{0, CellGroups::kOne, 128},
                                         CodebookForm{3, CellGroups::kIo, 32}}) {
          run(QuantizedCase(n, k, form, precision), type, begin, end);
        }
      }
    }
  }
}

TEST_F(CudaDequantize, OutputsOfAnyAlignment) {
  for (const std::int64_t offset : {1, 2, 3, 4, 8}) {
    for (const ScalarType type : kTypes) {
      run(QuantizedCase(20, 264, {}, 5), type, 0, 20, offset);
      run(QuantizedCase(20, 264, {8, CellGroups::kOne, 64}, 4), type, 0, 20, offset);
      run(QuantizedCase(20, 264, {0, CellGroups::kOne, 64}, 4), type, 0, 20, offset);
    }
  }
}

TEST_F(CudaDequantize, ManyTiles) {
  run(QuantizedCase(5000, 520, {3, CellGroups::kIo, 0}, 6), ScalarType::kFloat16, 0, 5000);
  run(QuantizedCase(5000, 520, {0, CellGroups::kOne, 128}, 6), ScalarType::kFloat16, 0, 5000);
}

TEST_F(CudaDequantize, KeepsInfinitiesAndNaNsOfTheTable) {
  QuantizedCase c(1, 700, {}, 5);
  c.lut[3] = 0x7c00;  // infinity
  c.lut[5] = 0x7e00;  // NaN
  c.lut[6] = 0x0001;  // the smallest subnormal
  const DeviceCase weights(c);
  const DeviceOutput out(1, 700, ScalarType::kFloat32);
  ASSERT_EQ(
      cuda::dequantize(weights.weights, 0, 1, out.buffer.as<void>(), ScalarType::kFloat32, nullptr),
      cudaSuccess);
  const std::vector<float> found = out.values();
  const std::vector<double> expected = reference::dequantize(c.canonical_weights());
  for (std::int64_t k = 0; k < 700; ++k) {
    if (std::isnan(expected[k])) {
      EXPECT_TRUE(std::isnan(found[k]));
    } else {
      EXPECT_EQ(found[k], expected[k]);
    }
  }
}

TEST_F(CudaDequantize, RejectsRowsThatAreNotThere) {
  const QuantizedCase c(3, 40, {}, 4);
  const DeviceCase weights(c);
  EXPECT_THROW(static_cast<void>(
                   cuda::dequantize(weights.weights, 1, 4, nullptr, ScalarType::kFloat32, nullptr)),
               InvalidArgument);
}

}  // namespace
}  // namespace anyprec::testing
