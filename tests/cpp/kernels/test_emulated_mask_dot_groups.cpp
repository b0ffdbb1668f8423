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

template <int kBits>
void add_product(cuda::MaskDotArgs& args, ProductCase& of) {
  cuda::MaskDotProduct& to = args.product[args.products++];
  to.planes = of.planes.data();
  to.plane_stride = packed_plane_bytes(of.c.n, of.c.k);
  to.lut[kBits - kMinPrecision] = of.lut.data();
  to.alpha[kBits - kMinPrecision] = of.alpha.data();
  to.bias = of.bias_data();
  to.y = of.y.data();
  to.y_stride = of.y.stride();
  to.rows = static_cast<int>(of.c.n);
  to.tile_begin = args.tiles;
  args.tiles += static_cast<int>(cuda::tile_count(of.c.n));
}

/// The kernel on `blocks` blocks whose rings have room for `stages` steps with spans of one unit.
template <int kBits, int kRows>
void launch(cuda::MaskDotArgs& args, ProductCase& first, int blocks, int stages, Landing landing) {
  using namespace cuda::mask_dot_device;
  args.x = first.x.data();
  args.x_stride = first.x.stride();
  args.type = first.type;
  args.columns = static_cast<int>(first.c.k);
  args.units = static_cast<int>(cuda::unit_count(first.c.k));
  args.ring_bytes = stages * GroupTeams<kBits>::shape().stage_bytes;
  const cuda::mask_dot_device::Layout layout(GroupTeams<kBits>::shape(), kRows, args.units,
                                             (args.tiles + blocks - 1) / blocks, sizeof(GroupTile));
  emulated::launch({.grid = {static_cast<unsigned>(blocks), 1, 1},
                    .threads = kThreads,
                    .shared_bytes = static_cast<std::size_t>(layout.ring + args.ring_bytes),
                    .landing = landing},
                   [&] { GroupBlock<kBits, kRows>(args, cuda::shared).run(); });
}

template <int kBits, int kRows>
void run(std::int64_t n, std::int64_t k, ScalarType type, int blocks, int stages, Landing landing,
         bool with_bias = true, std::int64_t padding = 0) {
  ProductCase product({n, k, {0, CellGroups::kOne, 128}, kBits}, kRows, type, with_bias, padding);
  cuda::MaskDotArgs args{};
  add_product<kBits>(args, product);
  launch<kBits, kRows>(args, product, blocks, stages, landing);
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

TEST_P(EmulatedMaskDotGroups, RowsOfSeveralChunksAThread) {
  run<3, 1>(20, 8448, kHalf, 1, 3, GetParam());
  run<2, 2>(20, 8448, kBrain, 2, 3, GetParam(), true, 3);
  run<4, 1>(17, 4352, kBrain, 1, 2, GetParam());
}

float rounded(float value, ScalarType type) {
  Matrix one(1, 1, 1, type);
  one.set(0, 0, value);
  return one.get(0, 0);
}

TEST_P(EmulatedMaskDotGroups, NormalizedRows) {
  for (const ScalarType type : {kHalf, kBrain}) {
    for (const std::int64_t k : {256, 1280, 4096}) {
      ProductCase product({20, k, {0, CellGroups::kOne, 128}, 3}, 1, type, true, 0);
      Matrix weight(1, k, k, type);
      weight.randomize(3);
      cuda::MaskDotArgs args{};
      args.fused.norm = {weight.data(), 1e-5f, 1.0f, 1.0f / static_cast<float>(k)};
      add_product<3>(args, product);
      launch<3, 1>(args, product, 2, 4, GetParam());
      double squares = 0;
      for (std::int64_t i = 0; i < k; ++i) squares += std::pow(product.x.get(0, i), 2);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(k) + 1e-5);
      for (std::int64_t i = 0; i < k; ++i) {
        const double factor = scale * (weight.get(0, i) + 1.0);
        product.x.set(0, i, static_cast<float>(product.x.get(0, i) * factor));
      }
      product.check(0x1p-12);
    }
  }
}

TEST_P(EmulatedMaskDotGroups, ResultsAreAddedToWhatIsThere) {
  ProductCase product({300, 256, {0, CellGroups::kOne, 128}, 2}, 2, kHalf, true, 3);
  cuda::MaskDotArgs args{};
  add_product<2>(args, product);
  launch<2, 2>(args, product, 1, 4, GetParam());
  const std::vector<double> results = product.y.values();
  product.y.randomize(5);
  const std::vector<double> before = product.y.values();
  args.fused.add = true;
  launch<2, 2>(args, product, 1, 4, GetParam());
  const std::vector<double> sums = product.y.values();
  for (std::size_t i = 0; i < sums.size(); ++i)
    ASSERT_EQ(sums[i], rounded(static_cast<float>(results[i] + before[i]), kHalf)) << i;
  EXPECT_TRUE(product.y.surroundings_untouched());
}

INSTANTIATE_TEST_SUITE_P(Copies, EmulatedMaskDotGroups,
                         ::testing::Values(Landing::kLate, Landing::kEarly), [](const auto& info) {
                           return info.param == Landing::kLate ? "LandLate" : "LandEarly";
                         });

}  // namespace
}  // namespace anyprec::testing
