#pragma once

#include <cstdint>

#include "kernels/cuda/table_mma_args.h"

namespace anyprec::cuda {

/// Rows of W that a block multiplies by at a time: four tiles, the rows of a wgmma.
inline constexpr int kBlockTiles = 4;
inline constexpr int kBlockRows = 64;

struct TableWgmmaArgs {
  TableMmaArgs table;           ///< x, chunk_units, chunks and one_shl_16 are not used
  const std::uint8_t* x_tiles;  ///< activation_tiles.h
  const float* x_scales;
  int runs;        ///< of kBlockRows rows
  int run_halves;  ///< half-units of K
  int cluster;     ///< blocks that share a run, each a part of its half-units
};

/// One kernel and what its launch needs.
struct TableWgmmaKernel {
  void (*kernel)(TableWgmmaArgs);
  int threads;
  int x_rows;  ///< rows of x in a pass
  int shared_bytes;
};

/// The kernel of precision b for `rows` rows of x. One source a precision (table_wgmma_b*.cu).
template <int kBits>
TableWgmmaKernel table_wgmma_kernel(std::int64_t rows);

}  // namespace anyprec::cuda
