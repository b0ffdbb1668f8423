#pragma once

#include <cstdint>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/plane_mma_args.h"
#include "kernels/cuda/tile_runs.cuh"

/// How the plane kernel (plane_mma.cuh) is cut, and what it keeps in shared memory.
namespace anyprec::cuda {

/// A tile of a block's run, as the copies need it.
struct PlaneTile {
  const std::uint8_t* planes;  ///< its first record in plane 0
  std::int64_t plane_stride;
  const std::uint16_t* lut;    ///< of the tile's first row
  const std::uint16_t* alpha;  ///< likewise
  int rows;                    ///< at most 16
};

template <int kBits>
__device__ __forceinline__ PlaneTile describe_plane_tile(const PlaneMmaArgs& args, int index) {
  const TableMmaProduct& product = product_of_tile(args, index);
  const std::int64_t at = index - product.tile_begin;
  const std::int64_t books = at * kTileRows * args.groups;
  return {product.planes + at * args.units * kRecordBytes, product.plane_stride,
          product.lut + books, product.alpha + books * kBits,
          static_cast<int>(min(std::int64_t{kTileRows}, product.rows - at * kTileRows))};
}

/// kParts: of 128 columns, whose codebooks may differ. They have columns of the mma of their own
/// (column S m + s is row m of x in part s, zeros elsewhere), so that 8 / kParts rows of x share a
/// fragment. kFragments: of 8 columns. kUnits: of K, in a warp's hands. kBlocks: registers and
/// shared memory are such that as many find room on a multiprocessor.
template <int kBits_, int kParts_, int kFragments_, int kUnits_, int kWarps_, int kBlocks_>
struct PlaneMmaShape {
  static constexpr int kBits = kBits_;
  static constexpr int kParts = kParts_;
  static constexpr int kFragments = kFragments_;
  static constexpr int kUnits = kUnits_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kColumns = 8 * kFragments;  ///< of the mma
  static constexpr int kRows = kColumns / kParts;  ///< of x in a pass
  static constexpr int kHalves = 2 * kUnits;
  static constexpr int kChunkUnits = kWarps * kUnits;
  static constexpr int kLaneParts = kParts == 1 ? 1 : 2;  ///< that a lane's sums belong to

  // The codebooks of a unit: for each row the words that contain its groups' alphas, and those of
  // the offsets. An odd number of words keeps eight rows in different banks.
  static constexpr int kGroups = 2 * kParts;  ///< that a unit may have
  static constexpr int kAlphaWords = kGroups * kBits / 2 + 1;
  static constexpr int kLutWords = kGroups / 2 + 1;
  static constexpr int kBookWords = (kAlphaWords + kLutWords) | 1;
  static constexpr int kUnitBytes = kBits * kRecordBytes + kTileRows * kBookWords * 4;
  static_assert(kUnitBytes % 16 == 0);

  // Partial sums are [tile][warp][row of x][row of W], 20 words a row of x: no two lanes in one
  // bank. They are added up every kSumTiles tiles.
  static constexpr int kSumTiles = 4;
  static constexpr int kPartialStride = 20;
  static constexpr int kWarpPartials = kRows * kPartialStride;
  static constexpr int kTilePartials = kWarps * kWarpPartials;

  // Where things lie in shared memory, in bytes.
  static constexpr int kPartials = 0;
  static constexpr int kGroupSums = kPartials + kSumTiles * kTilePartials * 4;
  static constexpr int kWarpGroupSums = kHalves * kColumns;
  static constexpr int kScales = kGroupSums + kWarps * kWarpGroupSums * 4;
  static constexpr int kScratch = kScales + kWarps * kColumns * 4;
  static constexpr int kPlans = kScratch + kThreads * 16;  ///< [unit][thread], 8 bytes
  static constexpr int kTiles = kPlans + kUnits * kThreads * 8;
  static constexpr int kRing = kTiles + kMaxPlaneTiles * static_cast<int>(sizeof(PlaneTile));
  static_assert(kScratch % 16 == 0 && kRing % 16 == 0);

  // Units in flight, of every warp. 164 KB a multiprocessor (compute capability 8.0), of which each
  // block costs 1 KB more, hold one block.
  static constexpr int kRoom = (kBlocks == 1 ? 163 : 112) * 1024;
  static constexpr int kFitting = (kRoom - kRing) / (kWarps * kUnitBytes);
  static constexpr int kStages = (kFitting > 8 ? 8 : kFitting) / kUnits * kUnits;
  static_assert(kStages > 0);
  static constexpr int kSharedBytes = kRing + kStages * kWarps * kUnitBytes;
};

}  // namespace anyprec::cuda
