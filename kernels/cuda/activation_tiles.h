#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "anyprec/cuda.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/table_mma_args.h"

namespace anyprec::cuda {

/// Rows of x as the B operand of wgmma, ready to be copied to shared memory.
///
/// In fp16; bf16 rows are scaled by a power of two, which scales[row] undoes. A tile has the rows
/// (kTileColumns columns of each, 128 bytes) of a quarter of a unit (layout.h); tiles are
/// [unit][quarter]. Quarter 2 h + i has steps 4 i .. 4 i + 3 of half-unit h: step s has for lane t,
/// at 2 t, 2 t + 1 and 8 + 2 t, 8 + 2 t + 1 of its sixteen places, columns 32 t + 4 s + {0, 1} and
/// + {2, 3}: those of the weights that the lane has looked up. 16-byte piece i of row m lies at
/// i ^ (m % 8).
inline constexpr int kTileColumns = kUnitColumns / 4;
inline constexpr int kTileRowBytes = kTileColumns * 2;
/// Of a block that makes tiles, each with at most 32 registers.
inline constexpr int kTilerThreads = 128;

struct ActivationTiles {
  std::uint8_t* tiles;  ///< [units, 4, rows, kTileRowBytes], 16-byte aligned
  float* scales;        ///< [rows]
  int rows;             ///< those past x's are zeros; a multiple of 8
};

constexpr std::size_t activation_tile_bytes(std::int64_t in_features, int rows) {
  return static_cast<std::size_t>(unit_count(in_features)) * 4 * rows * kTileRowBytes;
}

/// The codebooks that the kernel which multiplies by the tiles reads first: those of the first
/// `tiles` tiles of W.
struct FirstCodebooks {
  TableMmaArgs table;
  int tiles;
};

/// Asks the L2 cache for these codebooks while its predecessor ends.
cudaError_t activations_to_tiles(const Input& input, std::int64_t in_features,
                                 const ActivationTiles& to, const FirstCodebooks& ahead,
                                 const Device& device, cudaStream_t stream);

}  // namespace anyprec::cuda
