#pragma once

#include <cstdint>

#include "kernels/cuda/activation_tiles.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/table_wgmma_shape.cuh"

/// What the wgmma table kernel asks the L2 cache for before it reads it.
namespace anyprec::cuda {

#if __CUDA_ARCH__ >= 900

/// A tile's codebooks, by one thread.
__device__ __forceinline__ void prefetch_codebooks(const TableForm& form, const Tile& tile) {
  const int lut_bytes = tile.rows * lut_row_bytes(form) & ~15;
  const int alpha_bytes = tile.rows * alpha_row_bytes(form) & ~15;
  if (lut_bytes > 0) ptx::prefetch_bulk(tile.lut, lut_bytes);
  if (alpha_bytes > 0) ptx::prefetch_bulk(tile.alpha, alpha_bytes);
}

/// The codebooks of the first run of every block, which the kernel that makes x's tiles asks for
/// while its predecessor ends. Thread `thread` of `threads` of its grid.
__device__ __forceinline__ void prefetch_first_codebooks(const FirstCodebooks& first, int thread,
                                                         int threads) {
  for (int i = thread; i < first.tiles; i += threads) {
    Tile tile;
    describe_tile(first.table, i, tile);
    prefetch_codebooks(first.table.form, tile);
  }
}

#endif

}  // namespace anyprec::cuda
