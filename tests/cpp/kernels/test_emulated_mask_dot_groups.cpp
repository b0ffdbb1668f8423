// Mask-dot by groups (kernels/cuda/mask_dot_groups.cuh), its own source on an emulated block,
// against the reference. test_cuda_linear.cpp has it on a GPU.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/cuda/mask_dot_groups.cuh"
#include "tests/cpp/kernels/emulated/weights.h"

namespace anyprec::testing {
namespace {

using emulated::Aligned;
using emulated::Landing;
using emulated::packed_planes;

template <int kBits, int kRows>
void run_blocks(const cuda::MaskDotArgs& args, int blocks) {
  using namespace cuda::mask_dot_device;
  const cuda::mask_dot_device::Layout layout(GroupTeams<kBits>::shape(), kRows, args.units,
                                             (args.tiles + blocks - 1) / blocks, sizeof(GroupTile));
  emulated::Block& block = emulated::block();
  block.grid.x = static_cast<unsigned>(blocks);
  for (block.index.x = 0; block.index.x < block.grid.x; ++block.index.x) {
    std::memset(cuda::shared, 0xff, sizeof(cuda::shared));  // NaN
    block.run(kThreads, [&] { GroupBlock<kBits, kRows>(args, cuda::shared).run(); });
    for (std::size_t i = static_cast<std::size_t>(layout.ring + args.ring_bytes);
         i < sizeof(cuda::shared); ++i)
      ASSERT_EQ(cuda::shared[i], static_cast<char>(0xff)) << "wrote past its shared memory";
  }
}

/// On `blocks` blocks whose rings have room for `stages` steps with spans of one unit.
template <int kBits, int kRows>
void run(std::int64_t n, std::int64_t k, ScalarType type, int blocks, int stages, Landing landing,
         bool with_bias = true, std::int64_t padding = 0) {
  const QuantizedCase c(n, k, {0, CellGroups::kOne, 128}, kBits);
  const Aligned planes(packed_planes(c));
  const Aligned lut(c.lut), alpha(c.alpha);
  Matrix x(kRows, k, k + padding, type), y(kRows, n, n + padding, type);
  x.randomize(7);
  std::vector<double> bias(n);
  std::vector<std::uint16_t> typed_bias(n);
  for (std::int64_t i = 0; i < n && with_bias; ++i) {
    const float value = static_cast<float>(i % 7) - 3.5f;
    bias[i] = value;
    cpu::store_floats(&value, 1, type, typed_bias.data(), i);
  }

  cuda::MaskDotArgs args{};
  args.x = x.data();
  args.x_stride = x.stride();
  args.type = type;
  args.columns = static_cast<int>(k);
  args.units = static_cast<int>(cuda::unit_count(k));
  args.tiles = static_cast<int>(cuda::tile_count(n));
  args.products = 1;
  args.ring_bytes = stages * cuda::mask_dot_device::GroupTeams<kBits>::shape().stage_bytes;
  cuda::MaskDotProduct& product = args.product[0];
  product.planes = planes.data();
  product.plane_stride = packed_plane_bytes(n, k);
  product.lut[kBits - kMinPrecision] = lut.data();
  product.alpha[kBits - kMinPrecision] = alpha.data();
  product.bias = with_bias ? typed_bias.data() : nullptr;
  product.y = y.data();
  product.y_stride = y.stride();
  product.rows = static_cast<int>(n);
  emulated::block().landing = landing;
  run_blocks<kBits, kRows>(args, blocks);

  const std::vector<double> values = x.values();
  const std::vector<double> expected =
      reference::linear(c.canonical_weights(), values, kRows, with_bias ? bias.data() : nullptr);
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double terms = 0;
      for (std::int64_t q = 0; q < k; ++q)
        terms += c.largest_value(j, q) * std::abs(values[i * k + q]);
      const double want = expected[i * n + j];
      ASSERT_NEAR(y.get(i, j), want,
                  terms * 0x1p-21 + 1.01 * std::abs(want) * rounding(type) + 0x1p-23)
          << c.name() << " M=" << kRows << " at " << i << ", " << j;
    }
  }
  EXPECT_TRUE(y.surroundings_untouched());
}

constexpr ScalarType kHalf = ScalarType::kFloat16, kBrain = ScalarType::kBFloat16;

class EmulatedMaskDotGroups : public ::testing::TestWithParam<Landing> {};

TEST_P(EmulatedMaskDotGroups, SpansOfFourUnits) {
  run<2, 1>(37, 1024, kHalf, 1, 9, GetParam());
  run<3, 1>(16, 2048, kBrain, 1, 6, GetParam(), false);
  run<4, 2>(40, 1024, kHalf, 2, 5, GetParam(), true, 3);
  run<8, 1>(33, 1024, kHalf, 1, 5, GetParam());
}

TEST_P(EmulatedMaskDotGroups, SpansOfTwoUnits) {
  run<2, 1>(50, 1536, kBrain, 1, 4, GetParam());
  run<7, 1>(35, 1024, kHalf, 1, 3, GetParam());
  run<6, 2>(20, 512, kHalf, 1, 3, GetParam());
}

TEST_P(EmulatedMaskDotGroups, SpansOfOneUnit) {
  run<2, 2>(37, 768, kHalf, 2, 4, GetParam());
  run<5, 1>(19, 256, kBrain, 1, 2, GetParam());
  run<8, 2>(70, 1280, kHalf, 1, 2, GetParam(), true, 1);
}

TEST_P(EmulatedMaskDotGroups, RingsLongerAndShorterThanARun) {
  run<3, 1>(150, 1024, kHalf, 1, 3, GetParam());
  run<2, 1>(200, 512, kHalf, 1, 20, GetParam());
  run<2, 1>(1, 256, kHalf, 1, 20, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Copies, EmulatedMaskDotGroups,
                         ::testing::Values(Landing::kLate, Landing::kEarly), [](const auto& info) {
                           return info.param == Landing::kLate ? "LandLate" : "LandEarly";
                         });

}  // namespace
}  // namespace anyprec::testing
