#include "tests/cpp/kernels/code_sums_case.h"
#include "tests/cpp/kernels/cuda_case.h"

namespace anyprec::testing {
namespace {

class CudaSumByCode : public CudaTest {
 protected:
  static std::vector<float> run(const CodeSumsCase& c) {
    const DeviceBuffer values(c.values), codes(c.codes);
    const DeviceBuffer out(std::vector<float>(c.expected.size(), -1.0f));
    CodeSums sums = c.sums;
    sums.values = values.as<void>();
    sums.codes = codes.as<std::uint8_t>();
    EXPECT_EQ(cuda::sum_by_code(sums, out.as<float>(), nullptr), cudaSuccess) << c.name();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << c.name();
    return out.read<float>(c.expected.size());
  }
};

TEST_F(CudaSumByCode, IsTheSumOfTheColumnsOfEachCode) {
  for_each_code_sums_case([](const CodeSumsCase& c) {
    const std::vector<float> out = run(c);
    for (std::size_t i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(out[i], c.expected[i], 1e-5 * c.magnitudes[i]) << c.name() << " at " << i;
    }
  });
}

TEST_F(CudaSumByCode, TheSameInputGivesTheSameBytes) {
  for (const int precision : {2, 5, 8}) {
    const CodeSumsCase c(300, 4097, precision, 0, ScalarType::kFloat32);
    ASSERT_EQ(run(c), run(c));
  }
}

}  // namespace
}  // namespace anyprec::testing
