#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "tests/cpp/kernels/emulated/launch.h"
#include "tests/cpp/kernels/emulated/product_case.h"

// As nvcc says it of compute capability 9.0a.
#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#include "kernels/cuda/activation_tiles.cuh"
#include "kernels/cuda/table_wgmma.cuh"
#undef __CUDA_ARCH_FEAT_SM90_ALL
#undef __CUDA_ARCH__

namespace anyprec::testing::emulated {

/// Products of one x on the emulated wgmma table kernel, by tiles from the emulated kernel that
/// makes them.
struct TableWgmmaCase {
  std::vector<std::int64_t> n;  ///< of each product
  std::int64_t k, m;
  CodebookForm form = {};
  ScalarType type = ScalarType::kFloat16;
  int cluster = 1;   ///< blocks that share a run
  int clusters = 1;  ///< of them
  bool with_bias = true;
  std::int64_t padding = 0;  ///< elements between rows of x and y
  Landing landing = Landing::kLate;
  unsigned order = 0;
};

/// x as tiles, in memory that is NaN before and has nothing of them after.
class TilesOfX {
 public:
  TilesOfX(std::int64_t k, int rows)
      : rows_(rows), tile_bytes_(cuda::activation_tile_bytes(k, rows)) {
    const std::size_t words = (tile_bytes_ + static_cast<std::size_t>(rows) * 4) / sizeof(Word);
    words_.resize(words + kMargin);
    std::memset(words_.data(), 0xff, words_.size() * sizeof(Word));
  }
  std::uint8_t* tiles() { return reinterpret_cast<std::uint8_t*>(words_.data()); }
  float* scales() { return reinterpret_cast<float*>(tiles() + tile_bytes_); }

  void make(const TableWgmmaCase& of, Matrix& x, const cuda::FirstCodebooks& ahead) {
    using namespace cuda::activation_tiles_device;
    const cuda::Input input{x.data(), x.stride(), of.m, of.type};
    const Args args(input, of.k, {tiles(), scales(), rows_}, ahead);
    const unsigned parts = of.order % 3 + 1;
    launch({.grid = {static_cast<unsigned>(rows_), parts, 1},
            .threads = kThreads,
            .shared_bytes = kThreads / 32 * sizeof(std::uint32_t),
            .landing = of.landing,
            .order = of.order},
           [&] {
             auto* const of_warps = reinterpret_cast<std::uint32_t*>(cuda::shared);
             if (args.fours()) {
               make_tiles<true>(args, of_warps);
             } else {
               make_tiles<false>(args, of_warps);
             }
           });
    const auto* const end = reinterpret_cast<const std::uint8_t*>(scales() + rows_);
    EXPECT_TRUE(std::all_of(end, end + kMargin * sizeof(Word), [](std::uint8_t byte) {
      return byte == 0xff;
    })) << "x's tiles are written past their end";
  }

 private:
  static constexpr std::size_t kMargin = 4;
  struct alignas(16) Word {
    char bytes[16];
  };
  int rows_;
  std::size_t tile_bytes_;
  std::vector<Word> words_;
};

template <class Shape>
void run_shape(const TableWgmmaCase& of) {
  constexpr int kBits = Shape::kBits;
  cuda::TableWgmmaArgs args{};
  cuda::TableMmaArgs& table = args.table;
  table.type = of.type;
  table.x_rows = static_cast<int>(of.m);
  table.columns = static_cast<int>(of.k);
  table.units = static_cast<int>(cuda::unit_count(of.k));
  table.form = cuda::TableForm(of.form, kBits);
  std::deque<ProductCase> products;
  for (const std::int64_t n : of.n) {
    const QuantizedCase weights(n, of.k, of.form, kBits);
    ProductCase& product = products.emplace_back(weights, of.m, of.type, of.with_bias, of.padding);
    table.product[table.products++] = {
        product.planes.data(), packed_plane_bytes(n, of.k), product.lut.data(),
        product.alpha.data(),  product.bias_data(),         product.y.data(),
        product.y.stride(),    static_cast<int>(n),         table.tiles};
    table.tiles += static_cast<int>(cuda::tile_count(n));
  }
  args.runs = (table.tiles + cuda::kBlockTiles - 1) / cuda::kBlockTiles;
  args.run_halves = static_cast<int>((of.k + cuda::kHalfColumns - 1) / cuda::kHalfColumns);
  args.cluster = of.cluster;
  ASSERT_LE(of.cluster, args.run_halves);
  ASSERT_LE(of.clusters, args.runs);

  TilesOfX x(of.k, Shape::kRows);
  args.x_tiles = x.tiles();
  args.x_scales = x.scales();
  x.make(of, products.front().x, {table, std::min(table.tiles, of.clusters * cuda::kBlockTiles)});
  launch({.grid = {static_cast<unsigned>(of.clusters * of.cluster), 1, 1},
          .threads = Shape::kAllThreads,
          .shared_bytes = Shape::kSharedBytes,
          .cluster = of.cluster,
          .landing = of.landing,
          .order = of.order},
         [&] { cuda::multiply_runs<Shape>(args, block().memory); });
  // Values of a hybrid are rounded once.
  for (ProductCase& product : products) product.check(table.form.signs > 0 ? 0x1p-11 : 0.0);
}

/// In the shape for its rows of x.
template <int kBits>
void run(const TableWgmmaCase& of) {
  switch (cuda::table_wgmma_kernel<kBits>(of.m).x_rows) {
    case 8:
      return run_shape<cuda::TableWgmmaShape<kBits, 8, 3>>(of);
    case 16:
      return run_shape<cuda::TableWgmmaShape<kBits, 16, 3>>(of);
    case 32:
      return run_shape<cuda::TableWgmmaShape<kBits, 32, 3>>(of);
    case 64:
      return run_shape<cuda::TableWgmmaShape<kBits, 64, 3>>(of);
    case 128:
      return run_shape<cuda::TableWgmmaShape<kBits, 128, 2>>(of);
    default:
      FAIL() << "a shape without a test";
  }
}

}  // namespace anyprec::testing::emulated
