// The kernel by planes (kernels/cuda/plane_mma.cuh), its own source on an emulated block, against
// the reference. test_cuda_planes.cpp has it on a GPU.
#include <gtest/gtest.h>

#include "kernels/cuda/plane_mma.cuh"
#include "tests/cpp/kernels/emulated/launch.h"
#include "tests/cpp/kernels/emulated/product_case.h"

namespace anyprec::testing {
namespace {

using emulated::Landing;
using emulated::ProductCase;

/// The kernel with a given shape for groups of `parts` and fragments of columns, on `blocks`
/// blocks.
template <int kBits, int kParts, int kFragments>
void run(std::int64_t n, std::int64_t k, std::int64_t group_size, std::int64_t m, ScalarType type,
         int blocks, Landing landing, bool with_bias = true, std::int64_t padding = 0,
         float size = 1.0f) {
  using Shape = cuda::PlaneMmaShape<kBits, kParts, kFragments, 2, 8, 3 - kFragments>;
  ProductCase product({n, k, {0, CellGroups::kOne, group_size}, kBits}, m, type, with_bias,
                      padding);
  Matrix& x = product.x;
  for (std::int64_t i = 0; i < m && size != 1.0f; ++i)
    for (std::int64_t j = 0; j < k; ++j) x.set(i, j, x.get(i, j) * size);

  cuda::PlaneMmaArgs args{};
  args.x = x.data();
  args.x_stride = x.stride();
  args.type = type;
  args.x_is_vector =
      reinterpret_cast<std::uintptr_t>(args.x) % 16 == 0 && x.stride() % 8 == 0 && k % 8 == 0;
  args.x_rows = static_cast<int>(m);
  args.columns = static_cast<int>(k);
  args.units = static_cast<int>(cuda::unit_count(k));
  args.tiles = static_cast<int>(cuda::tile_count(n));
  args.products = 1;
  args.chunks = (args.units + Shape::kChunkUnits - 1) / Shape::kChunkUnits;
  args.groups = static_cast<int>(product.c.form.groups(k));
  args.group_of = cuda::GroupOfSegment::of_size(
      args.groups == 1 ? args.units * 8 : static_cast<int>(group_size / cuda::kSegmentColumns));
  args.product[0] = {product.planes.data(), packed_plane_bytes(n, k), product.lut.data(),
                     product.alpha.data(),  product.bias_data(),      product.y.data(),
                     product.y.stride(),    static_cast<int>(n),      0};
  emulated::launch({.grid = {static_cast<unsigned>(blocks), 1, 1},
                    .threads = Shape::kThreads,
                    .shared_bytes = Shape::kSharedBytes,
                    .landing = landing},
                   [&] { cuda::plane_mma<Shape>(args); });
  product.check();
}

constexpr ScalarType kHalf = ScalarType::kFloat16, kBrain = ScalarType::kBFloat16;

class EmulatedPlanes : public ::testing::TestWithParam<Landing> {};

TEST_P(EmulatedPlanes, GroupsOf128Columns) {
  run<2, 1, 1>(16, 256, 128, 1, kHalf, 1, GetParam(), false);
  run<2, 1, 1>(37, 600, 128, 3, kBrain, 2, GetParam());
  run<3, 1, 2>(17, 600, 128, 12, kHalf, 2, GetParam(), true, 3);
  run<8, 1, 1>(33, 300, 128, 8, kHalf, 2, GetParam());
}

TEST_P(EmulatedPlanes, OtherGroups) {
  run<3, 2, 1>(35, 600, 64, 3, kHalf, 1, GetParam());
  run<5, 2, 2>(19, 600, 64, 9, kBrain, 2, GetParam());
  run<3, 4, 2>(21, 600, 96, 5, kHalf, 1, GetParam());
  run<8, 4, 2>(21, 330, 32, 5, kHalf, 1, GetParam(), true, 1);
  run<3, 4, 2>(19, 1000, 160, 2, kBrain, 1, GetParam());
  run<4, 1, 1>(18, 700, 256, 2, kHalf, 1, GetParam());
  run<3, 1, 1>(18, 700, 384, 2, kHalf, 1, GetParam());
  run<4, 1, 2>(18, 700, 0, 20, kHalf, 1, GetParam());
}

TEST_P(EmulatedPlanes, ManyTilesAndSeveralChunks) {
  run<2, 4, 2>(150, 40, 32, 9, kHalf, 1, GetParam());
  run<3, 1, 1>(100, 4500, 128, 2, kHalf, 1, GetParam(), true, 8);
  run<2, 1, 2>(100, 4360, 128, 18, kBrain, 1, GetParam(), false, 8);
}

TEST_P(EmulatedPlanes, TinyAndHugeActivations) {
  for (const float size : {0.0f, 1e-8f, 1e-6f, 500.0f}) {
    run<2, 1, 1>(16, 256, 128, 2, kHalf, 1, GetParam(), false, 0, size);
  }
  for (const float size : {1e-36f, 1e30f}) {
    run<2, 1, 1>(16, 256, 128, 2, kBrain, 1, GetParam(), false, 0, size);
  }
}

TEST_P(EmulatedPlanes, OneWeight) { run<3, 4, 2>(1, 1, 32, 1, kHalf, 1, GetParam()); }

INSTANTIATE_TEST_SUITE_P(Copies, EmulatedPlanes, ::testing::Values(Landing::kLate, Landing::kEarly),
                         [](const auto& info) {
                           return info.param == Landing::kLate ? "LandLate" : "LandEarly";
                         });

}  // namespace
}  // namespace anyprec::testing
