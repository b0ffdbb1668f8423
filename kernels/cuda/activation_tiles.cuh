#pragma once

#include <cstdint>

#include "kernels/cuda/activation_fragments.cuh"
#include "kernels/cuda/activation_tiles.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/table_wgmma_ahead.cuh"

/// From x to its tiles (activation_tiles.h).
namespace anyprec::cuda::activation_tiles_device {

// Few threads with few registers: a block has its place beside one of the kernel that multiplies by
// the tiles (table_wgmma_shape.cuh), so it is there and waiting when its predecessor ends.
inline constexpr int kThreads = kTilerThreads;
inline constexpr int kPieces = kTileRowBytes / 16;

struct Args {
  const std::uint16_t* x;
  std::int64_t x_stride;
  int x_rows;
  int columns;
  int units;
  bool bfloat16;
  bool pairs;  ///< two neighbouring elements are aligned to 4 bytes
  ActivationTiles to;
  FirstCodebooks ahead;

  Args(const Input& input, std::int64_t in_features, const ActivationTiles& tiles,
       const FirstCodebooks& first_codebooks)
      : x(static_cast<const std::uint16_t*>(input.x)),
        x_stride(input.x_stride),
        x_rows(static_cast<int>(input.rows)),
        columns(static_cast<int>(in_features)),
        units(static_cast<int>(unit_count(in_features))),
        bfloat16(input.type == ScalarType::kBFloat16),
        pairs(reinterpret_cast<std::uintptr_t>(x) % 4 == 0 && x_stride % 2 == 0),
        to(tiles),
        ahead(first_codebooks) {}

  /// Runs of four elements are aligned to 8 bytes, and whole.
  bool fours() const {
    return reinterpret_cast<std::uintptr_t>(x) % 8 == 0 && x_stride % 4 == 0 && columns % 4 == 0;
  }
};

/// Columns 2 word and 2 word + 1 of a row; zeros past K.
__device__ __forceinline__ std::uint32_t load_pair(const Args& args, const std::uint16_t* row,
                                                   int word) {
  const int column = 2 * word;
  if (column + 1 < args.columns) {
    if (args.pairs) return *reinterpret_cast<const std::uint32_t*>(row + column);
    return row[column] | static_cast<std::uint32_t>(row[column + 1]) << 16;
  }
  return column < args.columns ? row[column] : 0u;
}

/// of_warps: shared memory, a word a warp.
__device__ __forceinline__ std::uint32_t block_max(std::uint32_t value, std::uint32_t* of_warps) {
  value = __reduce_max_sync(0xffffffffu, value);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  return __reduce_max_sync(0xffffffffu, of_warps[threadIdx.x % (kThreads / 32)]);
}

/// Row m's pieces of quarter `quarter`, in which piece i lies at i ^ (m % 8).
__device__ __forceinline__ uint4* pieces_of(const Args& args, int quarter, int m) {
  const std::int64_t row = static_cast<std::int64_t>(quarter) * args.to.rows + m;
  return reinterpret_cast<uint4*>(args.to.tiles) + row * kPieces;
}

/// Two pieces: columns 32 t + 4 four .. + 3 of half-unit `half`, t = 0 .. 3.
__device__ __forceinline__ void two_pieces(const Args& args, const std::uint16_t* row, int columns,
                                           int m, int half, int four, float scale) {
  const int first = half * kHalfColumns + 4 * four;
  uint2 words[4] = {};
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    if (first + 32 * t < columns) {
      words[t] = *reinterpret_cast<const uint2*>(row + first + 32 * t);
    }
    if (args.bfloat16) {
      words[t].x = scaled_halves(words[t].x, scale);
      words[t].y = scaled_halves(words[t].y, scale);
    }
  }
  uint4* const to = pieces_of(args, 2 * half + four / 4, m);
  const int piece = (2 * four) % kPieces ^ (m & 7);
  to[piece] = make_uint4(words[0].x, words[1].x, words[2].x, words[3].x);
  to[piece ^ 1] = make_uint4(words[0].y, words[1].y, words[2].y, words[3].y);
}

/// Words 16 t + j of a half-unit, t = 0 .. 3, are its piece j.
__device__ __forceinline__ void one_piece(const Args& args, const std::uint16_t* row, int words,
                                          int m, int quarter, int piece, float scale) {
  const int first_word = quarter / 2 * (kHalfColumns / 2) + quarter % 2 * kPieces + piece;
  std::uint32_t four[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const int word = first_word + 16 * t;
    four[t] = word < words ? load_pair(args, row, word) : 0u;
    if (args.bfloat16) four[t] = scaled_halves(four[t], scale);
  }
  pieces_of(args, quarter, m)[piece ^ (m & 7)] = make_uint4(four[0], four[1], four[2], four[3]);
}

/// Block (m, y): a part of row m. kFours: args.fours().
template <bool kFours>
__device__ __forceinline__ void make_tiles(const Args& args, std::uint32_t* of_warps) {
  ptx::launch_dependents();
#if __CUDA_ARCH__ >= 900
  const int block = static_cast<int>(blockIdx.x * gridDim.y + blockIdx.y);
  prefetch_first_codebooks(args.ahead, block * kThreads + static_cast<int>(threadIdx.x),
                           static_cast<int>(gridDim.x * gridDim.y) * kThreads);
#endif
  ptx::wait_for_predecessors();
  const int m = blockIdx.x;
  const std::uint16_t* const row = args.x + m * args.x_stride;
  const int words = m < args.x_rows ? (args.columns + 1) / 2 : 0;
  float scale = 1.0f, inverse = 1.0f;
  if (args.bfloat16) {
    std::uint32_t largest = 0;
    for (int i = threadIdx.x; i < words; i += kThreads) {
      const std::uint32_t pair = load_pair(args, row, i);
      largest = max(largest, largest_of_pair(pair));
    }
    power_of_two_scale(block_max(largest, of_warps), scale, inverse);
  }
  if (threadIdx.x == 0 && blockIdx.y == 0) args.to.scales[m] = inverse;
  const int first = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  const int step = static_cast<int>(gridDim.y) * kThreads;
  if constexpr (kFours) {
    for (int i = first; i < args.units * 2 * 8; i += step) {
      two_pieces(args, row, 2 * words, m, i / 8, i % 8, scale);
    }
  } else {
    for (int i = first; i < args.units * 4 * kPieces; i += step) {
      one_piece(args, row, words, m, i / kPieces, i % kPieces, scale);
    }
  }
}

template <bool kFours>
__global__ void __launch_bounds__(kThreads, 2048 / kThreads)
    activations_to_tiles_kernel(const __grid_constant__ Args args) {
  __shared__ std::uint32_t of_warps[kThreads / 32];
  make_tiles<kFours>(args, of_warps);
}

}  // namespace anyprec::cuda::activation_tiles_device
