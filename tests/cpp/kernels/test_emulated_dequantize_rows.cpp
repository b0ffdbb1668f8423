// Dequantization by codebooks of whole rows (kernels/cuda/dequantize_rows.cuh), its own source on
// an emulated block, against the reference. test_cuda_dequantize.cpp has it on a GPU.
#include <gtest/gtest.h>

#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cuda/dequantize_rows.cuh"
#include "tests/cpp/kernels/emulated/dequantize_case.h"
#include "tests/cpp/kernels/emulated/launch.h"

namespace anyprec::testing {
namespace {

using emulated::Landing;
using emulated::RowRange;

template <int kBits, typename T>
void run(const QuantizedCase& of, const RowRange& range, int block_units, Landing landing) {
  using namespace cuda::dequantize_device;
  emulated::DequantizeCase<T> c(of, range);
  c.args.block_units = block_units;
  const auto parts = static_cast<unsigned>((c.args.units + block_units - 1) / block_units);
  emulated::launch({.grid = {c.tiles(), parts, 1},
                    .threads = kThreads,
                    .shared_bytes = kRowsSharedBytes<kBits, T>,
                    .landing = landing},
                   [&] { write_units<kBits, T>(c.args, cuda::shared); });
  c.check();
}

template <int kBits>
void run_types(const CodebookForm& form, std::int64_t n, std::int64_t k, const RowRange& range,
               int block_units = cuda::dequantize_device::kWarps) {
  const QuantizedCase c(n, k, form, kBits);
  run<kBits, float>(c, range, block_units, Landing::kLate);
  run<kBits, __half>(c, range, block_units, Landing::kEarly);
  run<kBits, __nv_bfloat16>(c, range, block_units, Landing::kLate);
}

/// body(a type whose value is b) of every precision b.
template <class Body>
void at_precisions(const Body& body) {
  [&]<int... kLess>(std::integer_sequence<int, kLess...>) {
    (body(std::integral_constant<int, kMinPrecision + kLess>{}), ...);
  }(std::make_integer_sequence<int, kMaxPrecision - kMinPrecision + 1>{});
}

std::vector<CodebookForm> row_forms() {
  std::vector<CodebookForm> result{{8, CellGroups::kOne, 0}, {0, CellGroups::kOne, 0}};
  for (const int bits : {1, 2, 3, 4, 5, 6, 7}) {
    for (const CellGroups cells :
         {CellGroups::kOne, CellGroups::kIo, CellGroups::kSym, CellGroups::kCell}) {
      result.push_back({bits, cells, 0});
    }
  }
  result.push_back({4, CellGroups::kQu, 0});
  return result;
}

TEST(EmulatedDequantizeRows, EveryFormAndPrecision) {
  for (const CodebookForm& form : row_forms()) {
    at_precisions([&](auto precision) { run_types<precision()>(form, 19, 333, {0, 19}); });
  }
}

TEST(EmulatedDequantizeRows, PartsOfTiles) {
  at_precisions([](auto precision) {
    constexpr int kBits = precision();
    for (const RowRange range : {RowRange{0, 50}, {7, 8}, {17, 45}, {16, 32}, {48, 50}}) {
      run_types<kBits>({}, 50, 264, range);
      run_types<kBits>({3, CellGroups::kIo, 0}, 50, 130, range);
    }
  });
}

TEST(EmulatedDequantizeRows, OutputsOfAnyAlignment) {
  for (const std::int64_t offset : {1, 2, 3, 4, 8}) {
    run_types<5>({}, 20, 264, {0, 20, offset});
    run_types<8>({4, CellGroups::kQu, 0}, 20, 264, {3, 20, offset});
  }
}

TEST(EmulatedDequantizeRows, AnyUnitsOfABlock) {
  for (const int block_units : {1, 3, 8, 9, 17, 40}) {
    run_types<2>({8, CellGroups::kOne, 0}, 17, 4104, {0, 17}, block_units);
    run_types<7>({0, CellGroups::kOne, 0}, 5, 4355, {1, 5}, block_units);
  }
}

TEST(EmulatedDequantizeRows, OneWeight) {
  at_precisions([](auto precision) {
    run_types<precision()>({}, 1, 1, {0, 1});
    run_types<precision()>({3, CellGroups::kSym, 0}, 1, 1, {0, 1});
  });
}

TEST(EmulatedDequantizeRows, KeepsInfinitiesAndSubnormalsOfTheTable) {
  QuantizedCase c(1, 700, {}, 5);
  c.lut[3] = 0x7c00;  // infinity
  c.lut[5] = 0xfc00;
  c.lut[6] = 0x0001;  // the smallest subnormal
  run<5, float>(c, {0, 1}, 8, Landing::kLate);
  run<5, __half>(c, {0, 1}, 8, Landing::kLate);
}

}  // namespace
}  // namespace anyprec::testing
