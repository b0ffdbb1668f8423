#pragma once

#include "kernels/cuda/table_mma_args.h"

/// Tiles of 16 rows of W among blocks and among the products of a call.
namespace anyprec::cuda {

__device__ __forceinline__ const TableMmaProduct& product_of_tile(const TableMmaArgs& args,
                                                                  int index) {
  int i = 0;
  while (i + 1 < args.products && index >= args.product[i + 1].tile_begin) ++i;
  return args.product[i];
}

/// A block's share of all tiles.
struct TileRun {
  int first;
  int tiles;
};

/// The first blocks take one tile more: blocks that share a multiprocessor then balance.
__device__ __forceinline__ TileRun run_of_block(int all_tiles) {
  const int share = all_tiles / gridDim.x, extra = all_tiles % gridDim.x;
  const int block = blockIdx.x;
  return {block * share + min(block, extra), share + (block < extra ? 1 : 0)};
}

}  // namespace anyprec::cuda
