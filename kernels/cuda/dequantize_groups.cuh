#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/code_bytes.cuh"
#include "kernels/cuda/dequantize_values.cuh"
#include "kernels/cuda/ptx.cuh"

/// W_b as numbers where groups of columns have their own codebooks. A group is a multiple of 32
/// columns, so a lane's word of a row lies in one. Where all planes are signed, values are sums of
/// signed numbers; otherwise a code is made of each weight's bits and its cell is read from the
/// group's table in memory. Sums are in fp32, in the order of expand_codebook, and rounded once.
namespace anyprec::cuda::dequantize_device {

__device__ __forceinline__ void round_eight(const float (&v)[8], uint4 (&pieces)[2], float) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    pieces[j] = make_uint4(__float_as_uint(v[4 * j]), __float_as_uint(v[4 * j + 1]),
                           __float_as_uint(v[4 * j + 2]), __float_as_uint(v[4 * j + 3]));
  }
}
template <typename T>
__device__ __forceinline__ void round_eight(const float (&v)[8], uint4 (&pieces)[1], T) {
  std::uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, __half>) {
      const __half2 pair = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
      words[i] = reinterpret_cast<const std::uint32_t&>(pair);
    } else {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
      words[i] = reinterpret_cast<const std::uint32_t&>(pair);
    }
  }
  pieces[0] = make_uint4(words[0], words[1], words[2], words[3]);
}

/// The codebook of 32 columns of a row.
template <int kBits>
struct GroupCodebook {
  const __half* lut;
  const __half* alphas;
  float alpha[kBits];  ///< of signed plane s, for cells of class 0

  __device__ __forceinline__ GroupCodebook(const DequantizeArgs& args, std::int64_t row,
                                           std::int64_t column) {
    const TableForm& form = args.form;
    const std::int64_t codebook = row * args.groups + column / args.group_size;
    lut = reinterpret_cast<const __half*>(args.lut) + (codebook << form.table_bits);
    alphas = reinterpret_cast<const __half*>(args.alpha) + codebook * form.signs * form.classes;
#pragma unroll
    for (int s = 0; s < kBits; ++s) {
      alpha[s] = s < form.signs ? __half2float(__ldg(alphas + s * form.classes)) : 0.0f;
    }
  }

  __device__ __forceinline__ float value(const TableForm& form, int code) const {
    const int cell = code >> form.signs;
    const int of_class = form.classes > 1 ? form.codebook.class_of(cell) : 0;
    float sum = __half2float(__ldg(lut + cell));
#pragma unroll
    for (int s = 0; s < kBits; ++s) {
      if (s >= form.signs) continue;
      const float a =
          of_class == 0 ? alpha[s] : __half2float(__ldg(alphas + s * form.classes + of_class));
      sum += (code >> (form.signs - 1 - s) & 1) != 0 ? a : -a;
    }
    return sum;
  }
};

/// Values of 32 columns of binary coding, words[p] of plane p.
template <int kBits, typename T>
__device__ __forceinline__ void add_signed_row(const GroupCodebook<kBits>& codebook,
                                               const std::uint32_t (&words)[kBits], int row,
                                               uint4* values) {
  const float offset = __half2float(__ldg(codebook.lut));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float eight[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      eight[c] = offset;
#pragma unroll
      for (int p = 0; p < kBits; ++p) {
        const std::uint32_t minus = ~(words[p] << (31 - 8 * i - c)) & 0x80000000u;
        eight[c] += __uint_as_float(__float_as_uint(codebook.alpha[p]) ^ minus);
      }
    }
    uint4 pieces[sizeof(T) / 2];
    round_eight(eight, pieces, T{});
    keep_eight<T>(pieces, row, i, values);
  }
}

/// The same of any form.
template <int kBits, typename T>
__device__ __forceinline__ void read_row(const TableForm& form,
                                         const GroupCodebook<kBits>& codebook,
                                         const std::uint32_t (&words)[kBits], int row,
                                         uint4* values) {
  std::uint32_t last_first[kBits], bytes[8];
#pragma unroll
  for (int p = 0; p < kBits; ++p) last_first[p] = words[kBits - 1 - p];
  single_code_bytes<kBits>(last_first, bytes);
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    float eight[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      eight[c] = codebook.value(form, static_cast<int>(bytes[c] >> 8 * i & 0xff));
    }
    uint4 pieces[sizeof(T) / 2];
    round_eight(eight, pieces, T{});
    keep_eight<T>(pieces, row, i, values);
  }
}

/// Warp w of block (x, y): unit kWarps * y + w of tile x of the range. kBinary: all planes are
/// signed. memory: kWarps * kValuesBytes<T>.
template <int kBits, bool kBinary, typename T>
__device__ __forceinline__ void write_groups(const DequantizeArgs& args, char* memory) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  uint4* const values = reinterpret_cast<uint4*>(memory + warp * kValuesBytes<T>);
  const int unit = static_cast<int>(blockIdx.y) * kWarps + warp;
  if (unit >= args.units) return;
  const std::int64_t tile = args.row_begin / kTileRows + blockIdx.x;
  const std::uint8_t* from =
      args.planes + (tile * args.units + unit) * kRecordBytes + lane * kLaneBytes;
  uint4 planes[kBits];
#pragma unroll
  for (int p = 0; p < kBits; ++p) {
    planes[p] = __ldcs(reinterpret_cast<const uint4*>(from));
    from += args.plane_stride;
  }
  ptx::wait_for_predecessors();
#pragma unroll 1
  for (int h = 0; h < 2; ++h) {
    const std::int64_t first_column =
        static_cast<std::int64_t>(unit) * kUnitColumns + h * kHalfColumns;
    const std::int64_t column = min(first_column + lane % 4 * 32, args.columns - 1);
#pragma unroll 1
    for (int half_of_tile = 0; half_of_tile < 2; ++half_of_tile) {
      const int row = lane / 4 + 8 * half_of_tile;
      const GroupCodebook<kBits> codebook(args, min(tile * kTileRows + row, args.out_features - 1),
                                          column);
      std::uint32_t words[kBits];
#pragma unroll
      for (int p = 0; p < kBits; ++p) {
        words[p] = half_of_tile == 0 ? planes[p].x : planes[p].y;
      }
      if constexpr (kBinary) {
        add_signed_row<kBits, T>(codebook, words, row, values);
      } else {
        read_row<kBits, T>(args.form, codebook, words, row, values);
      }
    }
    __syncwarp();
    write_rows<T>(args, values, tile * kTileRows, first_column);
    __syncwarp();
#pragma unroll
    for (int p = 0; p < kBits; ++p) planes[p] = make_uint4(planes[p].z, planes[p].w, 0, 0);
  }
}

template <int kBits, bool kBinary, typename T>
__global__ void __launch_bounds__(kThreads, kBinary&& kBits <= 4 ? 3 : 2)
    dequantize_groups(const __grid_constant__ DequantizeArgs args) {
  extern __shared__ __align__(1024) char shared[];
  ptx::launch_dependents();
  write_groups<kBits, kBinary, T>(args, shared);
}

}  // namespace anyprec::cuda::dequantize_device
