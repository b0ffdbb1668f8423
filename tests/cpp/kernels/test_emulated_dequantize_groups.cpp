// Dequantization by groups (kernels/cuda/dequantize_groups.cuh), its own source on an emulated
// block, against the reference. test_cuda_dequantize.cpp has it on a GPU.
#include <gtest/gtest.h>

#include "kernels/cuda/dequantize_groups.cuh"
#include "tests/cpp/kernels/emulated/dequantize_case.h"
#include "tests/cpp/kernels/emulated/launch.h"

namespace anyprec::testing {
namespace {

using emulated::RowRange;

template <int kBits, typename T>
void run(const CodebookForm& form, std::int64_t n, std::int64_t k, const RowRange& range) {
  using namespace cuda::dequantize_device;
  emulated::DequantizeCase<T> c(QuantizedCase(n, k, form, kBits), range);
  const uint3 grid{c.tiles(), static_cast<unsigned>((c.args.units + kWarps - 1) / kWarps), 1};
  emulated::launch({.grid = grid, .threads = kThreads, .shared_bytes = kWarps * kValuesBytes<T>},
                   [&] {
                     if (c.args.form.table_bits == 0) {
                       write_groups<kBits, true, T>(c.args, cuda::shared);
                     } else {
                       write_groups<kBits, false, T>(c.args, cuda::shared);
                     }
                   });
  c.check();
}

template <int kBits>
void run_types(const CodebookForm& form, std::int64_t n, std::int64_t k, const RowRange& range) {
  run<kBits, float>(form, n, k, range);
  run<kBits, __half>(form, n, k, range);
  run<kBits, __nv_bfloat16>(form, n, k, range);
}

TEST(EmulatedDequantizeGroups, BinaryCoding) {
  run_types<2>({0, CellGroups::kOne, 128}, 33, 600, {0, 33});
  run_types<3>({0, CellGroups::kOne, 64}, 33, 512, {5, 30});
  run_types<5>({0, CellGroups::kOne, 32}, 16, 333, {0, 16});
  run_types<8>({0, CellGroups::kOne, 96}, 40, 1000, {17, 39, 3});
}

TEST(EmulatedDequantizeGroups, TablesAndHybrids) {
  run_types<4>({8, CellGroups::kOne, 64}, 33, 600, {0, 33});
  run_types<8>({8, CellGroups::kOne, 128}, 20, 264, {0, 20, 1});
  run_types<6>({4, CellGroups::kQu, 96}, 19, 576, {3, 18});
  run_types<7>({3, CellGroups::kIo, 32}, 19, 330, {0, 19});
  run_types<2>({3, CellGroups::kSym, 256}, 19, 520, {0, 19});
}

TEST(EmulatedDequantizeGroups, MoreUnitsThanWarps) {
  run<3, __half>({0, CellGroups::kOne, 128}, 20, 2600, {0, 20});
}

}  // namespace
}  // namespace anyprec::testing
