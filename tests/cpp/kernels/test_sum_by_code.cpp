#include <gtest/gtest.h>

#include "anyprec/error.h"
#include "tests/cpp/kernels/code_sums_case.h"

namespace anyprec::testing {
namespace {

TEST(SumByCode, IsTheSumOfTheColumnsOfEachCode) {
  for_each_code_sums_case([](const CodeSumsCase& c) {
    std::vector<float> out(c.expected.size(), -1.0f);
    cpu::sum_by_code(c.sums, 0, c.sums.rows, out.data());
    for (std::size_t i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(out[i], c.expected[i], 1e-7 * c.magnitudes[i]) << c.name() << " at " << i;
    }
  });
}

TEST(SumByCode, RowsComeOutTheSameAloneAndTogether) {
  const CodeSumsCase c(7, 200, 4, 64, ScalarType::kFloat16);
  std::vector<float> all(c.expected.size()), some(c.expected.size());
  cpu::sum_by_code(c.sums, 0, 7, all.data());
  const std::int64_t row = c.sums.groups() << 4;
  cpu::sum_by_code(c.sums, 2, 5, some.data());
  for (std::int64_t i = 0; i < 3 * row; ++i) ASSERT_EQ(some[i], all[2 * row + i]) << i;
}

TEST(SumByCode, NamesWhatIsWrong) {
  float out[4];
  for (const CodeSums& sums : {CodeSums{nullptr, ScalarType::kFloat32, nullptr, 1, 1, 9, 0},
                               CodeSums{nullptr, ScalarType::kFloat32, nullptr, 1, 1, 2, 33}}) {
    EXPECT_THROW(cpu::sum_by_code(sums, 0, 1, out), InvalidArgument);
  }
}

}  // namespace
}  // namespace anyprec::testing
