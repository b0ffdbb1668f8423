#include <gtest/gtest.h>

#include "anyprec/error.h"
#include "tests/cpp/kernels/quantized_case.h"

namespace anyprec::testing {
namespace {

constexpr ScalarType kTypes[] = {ScalarType::kFloat32, ScalarType::kBFloat16, ScalarType::kFloat16};

class Dequantize : public ::testing::TestWithParam<cpu::Isa> {};

TEST_P(Dequantize, FullTablesAreExactInFloat32AndFloat16) {
  for (const std::int64_t k : {1, 31, 33, 256, 257, 600, 1536}) {
    for (int precision = 2; precision <= 8; ++precision) {
      const QuantizedCase c(5, k, {}, precision);
      const std::vector<double> expected = reference::dequantize(c.canonical_weights());
      for (const ScalarType type : {ScalarType::kFloat32, ScalarType::kFloat16}) {
        Matrix out(5, k, k, type);
        cpu::dequantize(c.weights(), 0, 5, out.data(), type, GetParam());
        ASSERT_EQ(out.values(), expected) << c.name();
        ASSERT_TRUE(out.surroundings_untouched()) << c.name();
      }
    }
  }
}

TEST_P(Dequantize, EveryFormIsRightToTheRoundingOfItsType) {
  for (const CodebookForm& form : forms()) {
    for (int precision = 2; precision <= 8; ++precision) {
      for (const std::int64_t k : {33, 576, 1000}) {
        const QuantizedCase c(3, k, form, precision);
        const std::vector<double> expected = reference::dequantize(c.canonical_weights());
        for (const ScalarType type : kTypes) {
          Matrix out(3, k, k, type);
          cpu::dequantize(c.weights(), 0, 3, out.data(), type, GetParam());
          const std::vector<double> found = out.values();
          for (std::size_t i = 0; i < expected.size(); ++i) {
            ASSERT_NEAR(found[i], expected[i], std::abs(expected[i]) * 1.01 * rounding(type) + 4e-7)
                << c.name() << " at " << i;
          }
        }
      }
    }
  }
}

TEST_P(Dequantize, TakesARangeOfRows) {
  const QuantizedCase c(9, 300, {}, 4);
  const std::vector<double> all = reference::dequantize(c.canonical_weights());
  Matrix out(3, 300, 300, ScalarType::kFloat32);
  cpu::dequantize(c.weights(), 4, 7, out.data(), ScalarType::kFloat32, GetParam());
  EXPECT_EQ(out.values(), std::vector<double>(all.begin() + 4 * 300, all.begin() + 7 * 300));
}

TEST_P(Dequantize, KeepsInfinitiesAndNaNsOfTheTable) {
  QuantizedCase c(1, 700, {}, 5);
  c.lut[3] = 0x7c00;  // infinity
  c.lut[4] = 0xfc00;  // -infinity
  c.lut[5] = 0x7e00;  // NaN
  c.lut[6] = 0x0001;  // the smallest subnormal
  const std::vector<double> expected = reference::dequantize(c.canonical_weights());
  Matrix out(1, 700, 700, ScalarType::kFloat32);
  cpu::dequantize(c.weights(), 0, 1, out.data(), ScalarType::kFloat32, GetParam());
  for (std::int64_t k = 0; k < 700; ++k) {
    if (std::isnan(expected[k])) {
      EXPECT_TRUE(std::isnan(out.get(0, k)));
    } else {
      EXPECT_EQ(out.get(0, k), expected[k]);
    }
  }
}

TEST_P(Dequantize, RejectsRowsThatAreNotThere) {
  const QuantizedCase c(3, 40, {}, 4);
  Matrix out(4, 40, 40, ScalarType::kFloat32);
  EXPECT_THROW(cpu::dequantize(c.weights(), 1, 4, out.data(), ScalarType::kFloat32, GetParam()),
               InvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Isa, Dequantize, ::testing::ValuesIn(supported_isas()),
                         [](const auto& info) { return cpu::to_string(info.param); });

}  // namespace
}  // namespace anyprec::testing
