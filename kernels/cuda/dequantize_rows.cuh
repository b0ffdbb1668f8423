#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/code_bytes.cuh"
#include "kernels/cuda/dequantize_values.cuh"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/table_build.cuh"

/// W_b as numbers where whole rows have one codebook. Codebooks of a tile become a table in shared
/// memory as in table_build.cuh, but of single values in the type of the output; a warp turns
/// half-units (16 rows x 128 columns) of planes into values and writes them.
namespace anyprec::cuda::dequantize_device {

/// A lane's words of a row to the warp's memory: values of 32 columns by look-ups.
template <int kBits, typename T>
__device__ __forceinline__ void look_up_row(const char* table, int half_of_tile,
                                            const std::uint32_t (&words)[kBits], uint4* values) {
  const int lane = threadIdx.x % 32;
  const int row = lane / 4 + 8 * half_of_tile;
  std::uint32_t bytes[8];
  single_code_bytes<kBits>(words, bytes);
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // columns 8 i + {0 .. 7} of the lane's
    std::uint32_t value[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const std::uint32_t offset = __byte_perm(bytes[c], 4 * lane, 0x7604 | i << 4);
      value[c] =
          *reinterpret_cast<const std::uint32_t*>(table + half_of_tile * kEntryBytes / 2 + offset);
    }
    if constexpr (sizeof(T) == 2) {
      keep_eight<T>({make_uint4(value[0] | value[1] << 16, value[2] | value[3] << 16,
                                value[4] | value[5] << 16, value[6] | value[7] << 16)},
                    row, i, values);
    } else {
      keep_eight<T>({make_uint4(value[0], value[1], value[2], value[3]),
                     make_uint4(value[4], value[5], value[6], value[7])},
                    row, i, values);
    }
  }
}

template <int kBits, typename T>
inline constexpr int kRowsSharedBytes =
    (kEntryBytes << kBits) + kStageBytes<kBits> + kWarps * kValuesBytes<T>;

/// Block (x, y): units y * block_units .. of tile x of the range. memory: kRowsSharedBytes.
template <int kBits, typename T>
__device__ __forceinline__ void write_units(const DequantizeArgs& args, char* memory) {
  char* const table = memory;
  char* const staged = memory + (kEntryBytes << kBits);
  uint4* const values = reinterpret_cast<uint4*>(staged + kStageBytes<kBits>) +
                        threadIdx.x / 32 * (kValuesBytes<T> / 16);
  const std::int64_t tile = args.row_begin / kTileRows + blockIdx.x;
  const std::int64_t first_row = tile * kTileRows;
  const int first_unit = blockIdx.y * args.block_units;
  const int end_unit = min(args.units, first_unit + args.block_units);
  int unit = first_unit + threadIdx.x / 32;
  uint4 next[kBits] = {};  // planes of the next unit, under way
  const auto load = [&](int of_unit) {
    if (of_unit >= end_unit) return;
    const std::uint8_t* from =
        args.planes + (tile * args.units + of_unit) * kRecordBytes + threadIdx.x % 32 * kLaneBytes;
#pragma unroll
    for (int p = 0; p < kBits; ++p) {
      next[p] = __ldcs(reinterpret_cast<const uint4*>(from));
      from += args.plane_stride;
    }
  };
  load(unit);

  const TableForm& form = args.form;
  stage_codebooks<kThreads>(
      form, reinterpret_cast<const char*>(args.lut) + first_row * (2 << form.table_bits),
      reinterpret_cast<const char*>(args.alpha) + first_row * 2 * form.signs * form.classes,
      static_cast<int>(min(std::int64_t{kTileRows}, args.out_features - first_row)), staged);
  ptx::commit_copies();
  ptx::wait_for_copies<0>();
  __syncthreads();
  build_singles<kBits, kThreads, T>(form, staged, table);
  __syncthreads();
  ptx::wait_for_predecessors();

  for (; unit < end_unit; unit += kWarps) {
    uint4 planes[kBits];
#pragma unroll
    for (int p = 0; p < kBits; ++p) planes[p] = next[p];
    load(unit + kWarps);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::uint32_t words[kBits];
#pragma unroll
      for (int p = 0; p < kBits; ++p) words[p] = h == 0 ? planes[p].x : planes[p].z;
      look_up_row<kBits, T>(table, 0, words, values);
#pragma unroll
      for (int p = 0; p < kBits; ++p) words[p] = h == 0 ? planes[p].y : planes[p].w;
      look_up_row<kBits, T>(table, 1, words, values);
      __syncwarp();
      write_rows<T>(args, values, first_row,
                    static_cast<std::int64_t>(unit) * kUnitColumns + h * kHalfColumns);
      __syncwarp();
    }
  }
}

template <int kBits, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    dequantize_rows(const __grid_constant__ DequantizeArgs args) {
  extern __shared__ __align__(1024) char shared[];
  ptx::launch_dependents();
  write_units<kBits, T>(args, shared);
}

}  // namespace anyprec::cuda::dequantize_device
