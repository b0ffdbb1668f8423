// Dequantization by groups (kernels/cuda/dequantize_groups.cuh), its own source on an emulated
// block, against the reference. test_cuda_dequantize.cpp has it on a GPU.
#include <gtest/gtest.h>

#include "kernels/cuda/dequantize_groups.cuh"
#include "tests/cpp/kernels/emulated/launch.h"
#include "tests/cpp/kernels/emulated/weights.h"

namespace anyprec::testing {
namespace {

using emulated::Aligned;
using emulated::packed_planes;

/// Rows [begin, end) of all of W, `offset` elements off alignment.
template <int kBits, typename T>
void run(const CodebookForm& form, ScalarType type, std::int64_t n, std::int64_t k,
         std::int64_t begin, std::int64_t end, std::int64_t offset = 0) {
  using namespace cuda::dequantize_device;
  const QuantizedCase c(n, k, form, kBits);
  const Aligned planes(packed_planes(c));
  Matrix out(1, offset + (end - begin) * k, offset + (end - begin) * k, type);
  DequantizeArgs args{};
  args.planes = planes.data();
  args.plane_stride = packed_plane_bytes(n, k);
  args.lut = c.lut.data();
  args.alpha = c.alpha.data();
  args.out = static_cast<T*>(out.data()) + offset;
  args.columns = k;
  args.row_begin = begin;
  args.row_end = end;
  args.out_features = n;
  args.units = static_cast<int>(cuda::unit_count(k));
  args.group_size = static_cast<int>(form.group_size);
  args.groups = static_cast<int>(form.groups(k));
  args.vector = reinterpret_cast<std::uintptr_t>(args.out) % 16 == 0 && k % 8 == 0;
  args.form = cuda::TableForm(form, kBits);

  const uint3 grid{static_cast<unsigned>(cuda::tile_count(end) - begin / cuda::kTileRows),
                   static_cast<unsigned>((args.units + kWarps - 1) / kWarps), 1};
  emulated::launch(grid, kThreads, kWarps * kValuesBytes<T>, [&] {
    if (args.form.table_bits == 0) {
      write_groups<kBits, true, T>(args, cuda::shared);
    } else {
      write_groups<kBits, false, T>(args, cuda::shared);
    }
  });

  const std::vector<double> expected = reference::dequantize(c.canonical_weights());
  const bool exact = args.form.signs == 0 && type != ScalarType::kBFloat16;
  for (std::int64_t i = 0; i < (end - begin) * k; ++i) {
    const double want = expected[begin * k + i];
    ASSERT_NEAR(out.get(0, offset + i), want,
                exact ? 0.0 : std::abs(want) * 1.01 * rounding(type) + 4e-7)
        << c.name() << " at " << i;
  }
  for (std::int64_t i = 0; i < offset; ++i) EXPECT_TRUE(std::isnan(out.get(0, i)));
  EXPECT_TRUE(out.surroundings_untouched());
}

template <int kBits>
void run_types(const CodebookForm& form, std::int64_t n, std::int64_t k, std::int64_t begin,
               std::int64_t end, std::int64_t offset = 0) {
  run<kBits, float>(form, ScalarType::kFloat32, n, k, begin, end, offset);
  run<kBits, __half>(form, ScalarType::kFloat16, n, k, begin, end, offset);
  run<kBits, __nv_bfloat16>(form, ScalarType::kBFloat16, n, k, begin, end, offset);
}

TEST(EmulatedDequantizeGroups, BinaryCoding) {
  run_types<2>({0, CellGroups::kOne, 128}, 33, 600, 0, 33);
  run_types<3>({0, CellGroups::kOne, 64}, 33, 512, 5, 30);
  run_types<5>({0, CellGroups::kOne, 32}, 16, 333, 0, 16);
  run_types<8>({0, CellGroups::kOne, 96}, 40, 1000, 17, 39, 3);
}

TEST(EmulatedDequantizeGroups, TablesAndHybrids) {
  run_types<4>({8, CellGroups::kOne, 64}, 33, 600, 0, 33);
  run_types<8>({8, CellGroups::kOne, 128}, 20, 264, 0, 20, 1);
  run_types<6>({4, CellGroups::kQu, 96}, 19, 576, 3, 18);
  run_types<7>({3, CellGroups::kIo, 32}, 19, 330, 0, 19);
  run_types<2>({3, CellGroups::kSym, 256}, 19, 520, 0, 19);
}

TEST(EmulatedDequantizeGroups, MoreUnitsThanWarps) {
  run<3, __half>({0, CellGroups::kOne, 128}, ScalarType::kFloat16, 20, 2600, 0, 20);
}

}  // namespace
}  // namespace anyprec::testing
