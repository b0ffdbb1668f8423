// The kernel by planes (kernels/cuda/plane_mma.cuh), its own source on an emulated block, against
// the reference. test_cuda_planes.cpp has it on a GPU.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/cuda/plane_mma.cuh"
#include "tests/cpp/kernels/emulated/weights.h"

namespace anyprec::testing {
namespace {

using emulated::Aligned;
using emulated::Landing;
using emulated::packed_planes;

template <class Shape>
void run_blocks(cuda::PlaneMmaArgs args, int blocks) {
  args.chunks = (args.units + Shape::kChunkUnits - 1) / Shape::kChunkUnits;
  emulated::Block& block = emulated::block();
  block.grid.x = static_cast<unsigned>(blocks);
  for (block.index.x = 0; block.index.x < block.grid.x; ++block.index.x) {
    std::memset(cuda::shared, 0xff, sizeof(cuda::shared));  // NaN
    block.run(Shape::kThreads, [&] { cuda::plane_mma<Shape>(args); });
    for (std::size_t i = Shape::kSharedBytes; i < sizeof(cuda::shared); ++i)
      ASSERT_EQ(cuda::shared[i], static_cast<char>(0xff)) << "wrote past its shared memory";
  }
}

/// The kernel with a given shape for groups of `parts` and fragments of columns, on `blocks`
/// blocks.
template <int kBits, int kParts, int kFragments>
void run(std::int64_t n, std::int64_t k, std::int64_t group_size, std::int64_t m, ScalarType type,
         int blocks, Landing landing, bool with_bias = true, std::int64_t padding = 0,
         float size = 1.0f) {
  const QuantizedCase c(n, k, {0, CellGroups::kOne, group_size}, kBits);
  const Aligned planes(packed_planes(c));
  const Aligned lut(c.lut), alpha(c.alpha);
  Matrix x(m, k, k + padding, type), y(m, n, n + padding, type);
  x.randomize(7);
  for (std::int64_t i = 0; i < m && size != 1.0f; ++i)
    for (std::int64_t j = 0; j < k; ++j) x.set(i, j, x.get(i, j) * size);
  std::vector<double> bias(n);
  std::vector<std::uint16_t> typed_bias(n);
  for (std::int64_t i = 0; i < n && with_bias; ++i) {
    const float value = static_cast<float>(i % 7) - 3.5f;
    bias[i] = value;
    cpu::store_floats(&value, 1, type, typed_bias.data(), i);
  }

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
  args.groups = static_cast<int>(c.form.groups(k));
  args.group_of = cuda::GroupOfSegment::of_size(
      args.groups == 1 ? args.units * 8 : static_cast<int>(group_size / cuda::kSegmentColumns));
  args.product[0] = {planes.data(),
                     packed_plane_bytes(n, k),
                     lut.data(),
                     alpha.data(),
                     with_bias ? typed_bias.data() : nullptr,
                     y.data(),
                     y.stride(),
                     static_cast<int>(n),
                     0};
  emulated::block().landing = landing;
  run_blocks<cuda::PlaneMmaShape<kBits, kParts, kFragments, 2, 8, 3 - kFragments>>(args, blocks);

  const std::vector<double> values = x.values();
  const std::vector<double> expected =
      reference::linear(c.canonical_weights(), values, m, with_bias ? bias.data() : nullptr);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double terms = 0;
      for (std::int64_t q = 0; q < k; ++q)
        terms += c.largest_value(j, q) * std::abs(values[i * k + q]);
      const double want = expected[i * n + j];
      ASSERT_NEAR(y.get(i, j), want,
                  terms * 0x1p-21 + 1.01 * std::abs(want) * rounding(type) + 0x1p-23)
          << c.name() << " M=" << m << " at " << i << ", " << j;
    }
  }
  EXPECT_TRUE(y.surroundings_untouched());
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
