#pragma once

#include <cstdint>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/table_build.cuh"
#include "kernels/cuda/table_mma_args.h"
#include "kernels/cuda/tile_runs.cuh"

/// How the table kernel (table_mma.cuh) is cut, and what it keeps in shared memory.
namespace anyprec::cuda {

/// A tile of a block's run: looked up once, not at every use.
struct Tile {
  const std::uint8_t* planes;  ///< its first record in plane 0
  std::int64_t plane_stride;
  const char* lut;
  const char* alpha;
  const void* bias;  ///< or null
  void* y;
  std::int64_t y_stride;
  std::int64_t first_row;  ///< of W
  int rows;                ///< at most 16
};

__device__ __forceinline__ int lut_row_bytes(const TableForm& form) { return 2 << form.table_bits; }
__device__ __forceinline__ int alpha_row_bytes(const TableForm& form) {
  return 2 * form.signs * form.classes;
}

__device__ __forceinline__ void describe_tile(const TableMmaArgs& args, int index, Tile& tile) {
  const TableMmaProduct& product = product_of_tile(args, index);
  const std::int64_t at = index - product.tile_begin;
  const std::int64_t first_row = at * kTileRows;
  tile.planes = product.planes + at * args.units * kRecordBytes;
  tile.plane_stride = product.plane_stride;
  tile.lut = reinterpret_cast<const char*>(product.lut) + first_row * lut_row_bytes(args.form);
  tile.alpha =
      reinterpret_cast<const char*>(product.alpha) + first_row * alpha_row_bytes(args.form);
  tile.bias = product.bias;
  tile.y = product.y;
  tile.y_stride = product.y_stride;
  tile.first_row = first_row;
  tile.rows = static_cast<int>(min(std::int64_t{kTileRows}, product.rows - first_row));
}

/// kFragments: of 8 rows of x. kUnits: of K, in a warp's hands. kBlocks: on a multiprocessor.
/// kSharedX: x, one row of it, lies in shared memory instead of registers.
template <int kBits_, int kFragments_, int kUnits_, int kWarps_, int kBlocks_,
          bool kSharedX_ = false>
struct TableMmaShape {
  static constexpr int kBits = kBits_;
  static constexpr int kFragments = kFragments_;
  static constexpr int kUnits = kUnits_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr bool kSharedX = kSharedX_;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRows = kSharedX ? 1 : 8 * kFragments;  ///< of x in a pass
  static constexpr int kChunkUnits = kWarps * kUnits;
  static_assert(kUnits <= 2);

  // Partial sums are [warp][row of x][row of W], 20 words a row of x: no two lanes in one bank.
  static constexpr int kPartialStride = 20;
  static constexpr int kWarpPartials = kRows * kPartialStride;

  // Where things lie in shared memory, in bytes. The table is at 0.
  static constexpr int kStaged = kTableBytes<kBits>;
  static constexpr int kExpanded = kStaged + kStageBytes<kBits>;
  static constexpr int kPartials = kExpanded + kExpandedBytes<kBits>;
  static constexpr int kScales = kPartials + kWarps * kWarpPartials * 4;
  static constexpr int kTiles = kScales + (kWarps * kRows * 4 + 15) / 16 * 16;
  static constexpr int kX = kTiles + kMaxTiles * static_cast<int>(sizeof(Tile));
  static constexpr int kRing = kX + (kSharedX ? kWarps * kUnits * kRecordBytes : 0);
  static constexpr int kUnitBytes = kBits * kRecordBytes;

  // Units in flight, of every warp: what fits on a multiprocessor of compute capability 9.0 (228
  // KB, of which each block costs 1 KB more) beside the running sums of a few tiles.
  static constexpr int kRoomForSums = kFragments > 1 ? 16 * 1024 : 1024;
  static constexpr int kFitting =
      (228 * 1024 / kBlocks - 1024 - kRoomForSums - kRing) / (kWarps * kUnitBytes);
  static constexpr int kStages = kFitting < 1 ? 1 : (kFitting > 4 ? 4 : kFitting);
  static constexpr int kSums = kRing + kStages * kWarps * kUnitBytes;
};

}  // namespace anyprec::cuda
