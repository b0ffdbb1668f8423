#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/fused.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/norm_scale.cuh"
#include "kernels/cuda/vectors.cuh"

/// x as the B operand of mma.m16n8k16, in fp16, in the registers of the warp that multiplies by it.
///
/// Lane 4 g + t holds row 8 f + g of x (fragment f) in the columns whose weights it holds by
/// layout.h: of half-unit h, columns 32 t + 8 j + {0 .. 7} are the four words [h][j][f], two steps
/// of the mma. Half-units come in pairs, a unit each, `stride` columns apart; the first starts at
/// first_column. Columns from end_column on are zeros.
namespace anyprec::cuda {

template <int kHalves, int kFragments>
using ActivationFragments = std::uint32_t[kHalves][4][kFragments][4];

__device__ __forceinline__ int half_unit_column(int first_column, int half, int stride) {
  return first_column + half / 2 * stride + half % 2 * kHalfColumns;
}

struct ActivationRows {
  const std::uint16_t* x;  ///< of the first row
  std::int64_t stride;     ///< elements
  int rows;                ///< those past it are zeros
  int columns;             ///< K; columns past it are zeros
  bool vector;             ///< runs of 8 elements are aligned to 16 bytes and whole
};

/// scratch: 16 bytes of shared memory for the lane. With kParts > 1 the kParts equal parts of a
/// half-unit have rows of fragments of their own: row kParts m + s is row m of x in part s, and
/// zeros elsewhere.
template <int kHalves, int kFragments, int kParts = 1>
__device__ __forceinline__ void load_activations(const ActivationRows& from, int first_column,
                                                 int stride, int end_column, uint4* scratch,
                                                 ActivationFragments<kHalves, kFragments>& x) {
  const int lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const auto each_run = [&](auto load) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const int row = (8 * f + g) / kParts;
      const bool mine = t * kParts / 4 == g % kParts;
      const std::uint16_t* const x_row = from.x + row * from.stride;
#pragma unroll
      for (int i = 0; i < 4 * kHalves; ++i) {
        const int h = i / 4, j = i % 4;
        const int column = half_unit_column(first_column, h, stride) + 32 * t + 8 * j;
        const int valid = mine && row < from.rows ? min(from.columns, end_column) - column : 0;
        const uint4 eight = load(x_row + column, valid);
        x[h][j][f][0] = eight.x;
        x[h][j][f][1] = eight.y;
        x[h][j][f][2] = eight.z;
        x[h][j][f][3] = eight.w;
      }
    }
  };
  if (from.vector) {
    each_run([](const std::uint16_t* run, int valid) {
      return valid > 0 ? *reinterpret_cast<const uint4*>(run) : make_uint4(0, 0, 0, 0);
    });
  } else {
    each_run([&](const std::uint16_t* run, int valid) {
      volatile std::uint16_t* const values = reinterpret_cast<std::uint16_t*>(scratch);
#pragma unroll 1
      for (int e = 0; e < 8; ++e) values[e] = e < valid ? run[e] : std::uint16_t{0};
      const volatile std::uint32_t* const words = reinterpret_cast<std::uint32_t*>(scratch);
      return make_uint4(words[0], words[1], words[2], words[3]);
    });
  }
}

/// A power of two that brings magnitudes up to `largest` (bits of a float) to at most 2^15, nearly.
__device__ __forceinline__ void power_of_two_scale(std::uint32_t largest, float& scale,
                                                   float& inverse) {
  const int exponent = max(-112, static_cast<int>(largest >> 23) - 127);
  scale = __uint_as_float(static_cast<std::uint32_t>(127 + 14 - exponent) << 23);
  inverse = __uint_as_float(static_cast<std::uint32_t>(127 - 14 + exponent) << 23);
}

/// Bits of the larger magnitude of two bf16, as of a float.
__device__ __forceinline__ std::uint32_t largest_of_pair(std::uint32_t pair) {
  return max(pair & 0x7fff0000u, (pair << 16) & 0x7fff0000u);
}

/// Two bf16 to two fp16.
__device__ __forceinline__ std::uint32_t scaled_halves(std::uint32_t pair, float scale) {
  const __half2 halves = __floats2half2_rn(__uint_as_float(pair << 16) * scale,
                                           __uint_as_float(pair & 0xffff0000u) * scale);
  return reinterpret_cast<const std::uint32_t&>(halves);
}

/// Turns bf16 into fp16, every row of the fragments times a power of two that brings its largest
/// magnitude to [2^14, 2^15): exact but for values 2^-32 below it, whose error is under 2^-39 of
/// it. inverse[f] undoes the scale of row 8 f + g.
template <int kHalves, int kFragments>
__device__ __forceinline__ void bfloat16_to_half(ActivationFragments<kHalves, kFragments>& x,
                                                 float (&inverse)[kFragments]) {
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    std::uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 16 * kHalves; ++i) {
      const std::uint32_t pair = x[i / 16][i / 4 % 4][f][i % 4];
      largest = max(largest, largest_of_pair(pair));
    }
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    float scale;
    power_of_two_scale(largest, scale, inverse[f]);
#pragma unroll
    for (int i = 0; i < 16 * kHalves; ++i) {
      std::uint32_t& pair = x[i / 16][i / 4 % 4][f][i % 4];
      pair = scaled_halves(pair, scale);
    }
  }
}

/// Eight values of the type.
__device__ __forceinline__ void unpack_eight(const uint4& eight, ScalarType type, float (&v)[8]) {
  const std::uint32_t words[] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack(type, words[i]);
    v[2 * i] = pair.x;
    v[2 * i + 1] = pair.y;
  }
}
__device__ __forceinline__ uint4 pack_eight(const float (&v)[8], ScalarType type) {
  return make_uint4(pack(type, v[0], v[1]), pack(type, v[2], v[3]), pack(type, v[4], v[5]),
                    pack(type, v[6], v[7]));
}

/// The lane's runs of 8 elements, one of each unit, of a row that is a vector (ActivationRows);
/// zeros past its end.
template <int kUnits>
struct LaneRuns {
  uint4 eight[kUnits];

  /// row: null for zeros.
  __device__ __forceinline__ LaneRuns(const void* row, int first_column, int stride, int columns) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int column = first_column + u * stride + 8 * (static_cast<int>(threadIdx.x) % 32);
      eight[u] = make_uint4(0, 0, 0, 0);
      if (row != nullptr && column < columns) {
        eight[u] = *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(row) + column);
      }
    }
  }

  /// The norm of the row that the kWarps warps of a block hold together. scratch: a float of each
  /// warp, kScratchStride apart. Every thread of the block calls it.
  template <int kWarps, int kScratchStride>
  __device__ __forceinline__ void normalize(const InputNorm& norm, const LaneRuns& weights,
                                            ScalarType type, float* scratch) {
    float squares = 0.0f;
    float v[kUnits][8];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      unpack_eight(eight[u], type, v[u]);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares = fmaf(v[u][i], v[u][i], squares);
    }
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32 * kScratchStride] = squares;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += scratch[w * kScratchStride];
    const float scale = norm_scale(norm, sum);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      float weight[8];
      unpack_eight(weights.eight[u], type, weight);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[u][i] = v[u][i] * scale * (weight[i] + norm.offset);
      eight[u] = pack_eight(v[u], type);
    }
  }
};

/// Where a lane's run of 8 columns, from 8 lane on, lies in a unit of a warp's part of shared
/// memory: lane 16 h + 4 t + j at [half h][j][t].
__device__ __forceinline__ int place_of_run(int lane) {
  return lane / 16 * 16 + lane % 4 * 4 + lane / 4 % 4;
}

/// The fragments of one row in shared memory: a warp's part is [half h][j][t] runs of 8 columns, so
/// that the lanes of row 0 read a contiguous piece. Written and read by the same warp. eight: the
/// lane's runs.
template <int kUnits>
__device__ __forceinline__ void share_runs(uint4 (&eight)[kUnits], bool bfloat16, int lane,
                                           uint4* part, float& inverse) {
  const int place = place_of_run(lane);
  std::uint32_t largest = 0;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    for (const std::uint32_t pair : {eight[u].x, eight[u].y, eight[u].z, eight[u].w}) {
      largest = max(largest, largest_of_pair(pair));
    }
  }
  float scale = 1.0f, undo = 1.0f;
  if (bfloat16) power_of_two_scale(__reduce_max_sync(0xffffffffu, largest), scale, undo);
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    if (bfloat16) {
      eight[u].x = scaled_halves(eight[u].x, scale);
      eight[u].y = scaled_halves(eight[u].y, scale);
      eight[u].z = scaled_halves(eight[u].z, scale);
      eight[u].w = scaled_halves(eight[u].w, scale);
    }
    part[u * 32 + place] = eight[u];
  }
  if (lane == 0) inverse = undo;
}

/// The same of a row in memory.
template <int kUnits>
__device__ __forceinline__ void share_activations(const ActivationRows& from, bool bfloat16,
                                                  int first_column, int stride, int end_column,
                                                  uint4* part, float& inverse) {
  const int lane = threadIdx.x % 32;
  const int place = place_of_run(lane);
  uint4 eight[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int column = first_column + u * stride + 8 * lane;
    const int valid = min(from.columns, end_column) - column;
    eight[u] = make_uint4(0, 0, 0, 0);
    if (from.vector) {
      if (valid > 0) eight[u] = *reinterpret_cast<const uint4*>(from.x + column);
    } else {
      uint4& slot = part[u * 32 + place];
      volatile std::uint16_t* const values = reinterpret_cast<std::uint16_t*>(&slot);
#pragma unroll 1
      for (int e = 0; e < 8; ++e) values[e] = e < valid ? from.x[column + e] : std::uint16_t{0};
      const volatile std::uint32_t* const words = reinterpret_cast<std::uint32_t*>(&slot);
      eight[u] = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
  share_runs<kUnits>(eight, bfloat16, lane, part, inverse);
}

}  // namespace anyprec::cuda
