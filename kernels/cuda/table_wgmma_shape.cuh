#pragma once

#include <cstdint>

#include "kernels/cuda/activation_tiles.h"
#include "kernels/cuda/code_bytes.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/table_mma_shape.cuh"
#include "kernels/cuda/table_wgmma_args.h"

/// How the wgmma table kernel (table_wgmma.cuh) is cut, and what it keeps in shared memory.
namespace anyprec::cuda {

/// kRows: of x, at most. kGroups: of four warps.
template <int kBits_, int kRows_, int kGroups_>
struct TableWgmmaShape {
  static constexpr int kBits = kBits_;
  static constexpr int kRows = kRows_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kThreads = 128 * kGroups;  ///< that multiply
  static constexpr int kAllThreads = kThreads + 128;
  // Registers and shared memory leave room for a block of activation_tiles.cu (but for the largest
  // tables and sums), which makes the next launch's tiles.
  static constexpr int kAtLaunch = (64 * 1024 - kTilerThreads * 32) / kAllThreads / 8 * 8;
  // Registers move from the warps that copy to those that multiply; the block keeps its sum.
  static constexpr int kCopyRegisters = kGroups == 2 ? 64 : 48;
  static constexpr int kRegisters = kGroups == 2 ? 208 : 144;
  static_assert(kThreads * kRegisters + 128 * kCopyRegisters <= kAllThreads * kAtLaunch);

  // Tables: an entry is 256 bytes, so that an address is a byte of codes between bytes that stay.
  // - Of single values: two tiles side by side, a word a lane: row g's value in the low half, row
  //   g + 8's in the high half. The other two tiles' are 64 KB further.
  // - Of pairs of columns: the words of rows 0 to 7, then those of rows 8 to 15; up to 3 bits one
  //   for each lane of a row, a tile's table after the other's. At 4 bits two lanes share a word,
  //   and tiles lie as those of single values.
  static constexpr bool kPairsOfColumns = kPairs<kBits>;
  static constexpr bool kTilesApart = kBits <= 3;
  static constexpr int kWordCopies = kTilesApart ? 4 : 2;           ///< of a pair
  static constexpr int kEightRowsBytes = 8 * kWordCopies * 4;       ///< of pairs in an entry
  static constexpr int kPairTableBytes = kEntryBytes << 2 * kBits;  ///< of a tile, or of two
  static constexpr int kTwoTiles = 64 * 1024;
  static constexpr int kTablesBytes =
      kTilesApart ? kBlockTiles * kPairTableBytes
                  : kTwoTiles + (kPairsOfColumns ? kPairTableBytes : kEntryBytes << kBits);
  static constexpr int kMostShared =
      (kTablesBytes == 2 * kTwoTiles && kRows == 128 ? 227 : 225) * 1024;

  /// Where a tile's words are in entry 0.
  static __device__ __forceinline__ int tile_place(int index) {
    return kTilesApart ? index * kPairTableBytes
                       : index / 2 * kTwoTiles + index % 2 * (kEntryBytes / 2);
  }
  // A group's sums of a run (place_of_sum). All groups' take the place of tables that are done.
  static constexpr int kSumCount = kRows * kBlockRows;
  static constexpr int kSumsBytes = kGroups * kSumCount * 4;
  static constexpr int kQuarterBytes = kRows * kTileRowBytes;

  // Where things lie in shared memory, in bytes; the tables at 0.
  static constexpr int kParts =  // sums that blocks have sent
      kTablesBytes > kSumsBytes ? kTablesBytes : kSumsBytes;
  static constexpr int kTiles = kParts + kSumCount * 4;
  static constexpr int kScales = kTiles + 2 * kBlockTiles * static_cast<int>(sizeof(Tile));
  static_assert(kScales % 16 == 0);
  static constexpr int kMeeting = kScales + kRows * 4;  // two barriers: parts are there, are read
  static constexpr int kBarriers = kMeeting + 16;
  static constexpr int kMostSlots = 8;  ///< of a group's ring
  static constexpr int kRing = (kBarriers + kGroups * kMostSlots * 16 + 1023) / 1024 * 1024;
  static constexpr int kFitting = (kMostShared - kRing) / (kGroups * kQuarterBytes);
  static constexpr int kSlots = kFitting > kMostSlots ? kMostSlots : kFitting;
  static_assert(kSlots >= 2);
  static constexpr int kSharedBytes = kRing + kGroups * kSlots * kQuarterBytes;
};

/// What a block multiplies by: of runs cluster, cluster + clusters, ... half-units [begin, end).
struct Share {
  int first_run, step;
  int begin, end;

  __device__ __forceinline__ explicit Share(const TableWgmmaArgs& args)
      : first_run(static_cast<int>(blockIdx.x) / args.cluster),
        step(static_cast<int>(gridDim.x) / args.cluster) {
    const int rank = static_cast<int>(blockIdx.x) % args.cluster;
    begin = rank * args.run_halves / args.cluster;
    end = (rank + 1) * args.run_halves / args.cluster;
  }
};

/// By the threads that multiply.
template <int kThreads>
__device__ __forceinline__ void meet() {
  ptx::meet<1, kThreads>();
}

}  // namespace anyprec::cuda
