// Mask-dot by groups (kernels/cuda/mask_dot_groups.cuh), its own source on an emulated block,
// against the reference. test_cuda_linear.cpp has it on a GPU.
#include <gtest/gtest.h>

#include "kernels/cuda/mask_dot_groups.cuh"
#include "tests/cpp/kernels/emulated/launch.h"
#include "tests/cpp/kernels/emulated/product_case.h"

namespace anyprec::testing {
namespace {

using emulated::Landing;
using emulated::ProductCase;

/// On `blocks` blocks whose rings have room for `stages` steps with spans of one unit.
template <int kBits, int kRows>
void run(std::int64_t n, std::int64_t k, ScalarType type, int blocks, int stages, Landing landing,
         bool with_bias = true, std::int64_t padding = 0) {
  using namespace cuda::mask_dot_device;
  ProductCase product({n, k, {0, CellGroups::kOne, 128}, kBits}, kRows, type, with_bias, padding);

  cuda::MaskDotArgs args{};
  args.x = product.x.data();
  args.x_stride = product.x.stride();
  args.type = type;
  args.columns = static_cast<int>(k);
  args.units = static_cast<int>(cuda::unit_count(k));
  args.tiles = static_cast<int>(cuda::tile_count(n));
  args.products = 1;
  args.ring_bytes = stages * GroupTeams<kBits>::shape().stage_bytes;
  cuda::MaskDotProduct& to = args.product[0];
  to.planes = product.planes.data();
  to.plane_stride = packed_plane_bytes(n, k);
  to.lut[kBits - kMinPrecision] = product.lut.data();
  to.alpha[kBits - kMinPrecision] = product.alpha.data();
  to.bias = product.bias_data();
  to.y = product.y.data();
  to.y_stride = product.y.stride();
  to.rows = static_cast<int>(n);
  const cuda::mask_dot_device::Layout layout(GroupTeams<kBits>::shape(), kRows, args.units,
                                             (args.tiles + blocks - 1) / blocks, sizeof(GroupTile));
  emulated::block().landing = landing;
  emulated::launch({static_cast<unsigned>(blocks), 1, 1}, kThreads,
                   static_cast<std::size_t>(layout.ring + args.ring_bytes),
                   [&] { GroupBlock<kBits, kRows>(args, cuda::shared).run(); });
  product.check();
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

TEST_P(EmulatedMaskDotGroups, TurnsOfWarps) {
  run<4, 1>(37, 1024, kHalf, 1, 2, GetParam());
  run<5, 2>(50, 1280, kBrain, 2, 3, GetParam(), true, 3);
  run<6, 1>(200, 256, kHalf, 1, 3, GetParam());
  run<8, 1>(90, 768, kHalf, 1, 3, GetParam());
  run<8, 2>(33, 5120, kHalf, 1, 2, GetParam());
  run<7, 1>(5, 512, kHalf, 1, 3, GetParam());
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
