#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/table_mma_args.h"

/// What both kernels that write W_b as numbers have in common: a warp keeps the values of a half-
/// unit (16 rows x 128 columns) in its own piece of shared memory, as its lanes make them, and
/// writes runs of whole rows.
namespace anyprec::cuda::dequantize_device {

inline constexpr int kWarps = 8;
inline constexpr int kThreads = kWarps * 32;

struct DequantizeArgs {
  const std::uint8_t* planes;
  std::int64_t plane_stride;
  const std::uint16_t* lut;
  const std::uint16_t* alpha;
  void* out;
  std::int64_t columns;    ///< K
  std::int64_t row_begin;  ///< of W
  std::int64_t row_end;
  std::int64_t out_features;
  int units;
  int block_units;  ///< of a tile, by one block
  int group_size;   ///< columns; 0: the whole row
  int groups;
  bool vector;  ///< runs of 16 bytes of the output are aligned and whole
  TableForm form;
};

/// Where 16-byte piece `piece` of a row of 128 values lies in its row's memory: neither the lanes
/// that write (two rows, four runs of 32 columns) nor those that read (a row) meet in a bank.
template <typename T>
__device__ __forceinline__ int swizzled(int row, int piece) {
  return sizeof(T) == 2 ? piece ^ (piece >> 3 & 1) ^ (row & 1) << 1
                        : piece ^ (piece >> 3 & 3) ^ (row & 1) << 2;
}

template <typename T>
inline constexpr int kRowPieces = kHalfColumns * sizeof(T) / 16;

/// Room of a warp for the values of 16 rows x 128 columns.
template <typename T>
inline constexpr int kValuesBytes = kTileRows * kRowPieces<T> * 16;

/// Columns 8 i .. 8 i + 7 of the 32 that lane 4 g + t has of a row.
template <typename T>
__device__ __forceinline__ void keep_eight(const uint4 (&pieces)[sizeof(T) / 2], int row, int i,
                                           uint4* values) {
  constexpr int kEight = sizeof(T) / 2;
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < kEight; ++j) {
    values[row * kRowPieces<T> + swizzled<T>(row, (4 * t + i) * kEight + j)] = pieces[j];
  }
}

/// The values of 16 rows x 128 columns, from the warp's memory to the output.
template <typename T>
__device__ __forceinline__ void write_rows(const DequantizeArgs& args, const uint4* values,
                                           std::int64_t first_row, std::int64_t first_column) {
  constexpr int kPerPiece = 16 / sizeof(T);
  constexpr int kPieces = kRowPieces<T>;
#pragma unroll
  for (int i = threadIdx.x % 32; i < kTileRows * kPieces; i += 32) {
    const int row = i / kPieces, piece = i % kPieces;
    const std::int64_t w_row = first_row + row;
    const std::int64_t column = first_column + piece * kPerPiece;
    if (w_row < args.row_begin || w_row >= args.row_end || column >= args.columns) continue;
    const uint4 four = values[row * kPieces + swizzled<T>(row, piece)];
    T* const out = static_cast<T*>(args.out) + (w_row - args.row_begin) * args.columns + column;
    if (args.vector) {
      *reinterpret_cast<uint4*>(out) = four;
    } else {
      const T* const elements = reinterpret_cast<const T*>(&four);
#pragma unroll
      for (int e = 0; e < kPerPiece; ++e) {
        if (column + e < args.columns) out[e] = elements[e];
      }
    }
  }
}

}  // namespace anyprec::cuda::dequantize_device
