#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "anyprec/cuda.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/scalars.cuh"
#include "kernels/cuda/vectors.cuh"

/// Activations as bit planes, the right operand of binary products.
///
/// A row of x becomes integers of 22 bits and a sign (x over a power of two that its largest
/// magnitude chooses), and these become 24 negabinary digits: q = sum over d of digit_d * (-2)^d,
/// that is (q + 0xAAAAAA) ^ 0xAAAAAA. Small values of either sign light only low planes. A unit of
/// 256 columns is [3][32 lanes] uint2: lane 4 g + t of group j has digit 8 j + g of the columns
/// 32 t .. 32 t + 31 (bit i for column 32 t + i), first those of the unit's lower half, then the
/// upper.
namespace anyprec::cuda {

inline constexpr int kDigitGroups = 3;
inline constexpr int kUnitPlaneWords = kDigitGroups * 32 * 2;
inline constexpr int kUnitPlaneBytes = kUnitPlaneWords * 4;
/// Columns that one thread turns into planes at a time.
inline constexpr int kChunkColumns = 16;

/// What turns the integers back into values, and their sum.
struct PlaneScale {
  float step;  ///< NaN where the row has a NaN or an infinity
  float sum;   ///< of the row's values
};

/// A chunk as it lies in memory: of 16-bit types the first half of the words.
using ChunkWords = std::uint32_t[kChunkColumns];

struct AnyChunk {
  ChunkWords words;
};
/// read_chunk for any type and alignment. A call: code that is seldom run takes room in the
/// instruction cache all the same.
inline __device__ __noinline__ AnyChunk read_any_chunk(const void* row, ScalarType type,
                                                       std::int64_t first, std::int64_t columns) {
  AnyChunk chunk = {};
  const std::int64_t left = columns - first;
  if (type == ScalarType::kFloat32) {
    const std::uint32_t* const p = static_cast<const std::uint32_t*>(row) + first;
#pragma unroll
    for (int i = 0; i < kChunkColumns; ++i) chunk.words[i] = i < left ? p[i] : 0u;
    return chunk;
  }
  const std::uint16_t* const p = static_cast<const std::uint16_t*>(row) + first;
#pragma unroll
  for (int i = 0; i < kChunkColumns / 2; ++i) {
    const std::uint32_t even = 2 * i < left ? p[2 * i] : 0u;
    const std::uint32_t odd = 2 * i + 1 < left ? p[2 * i + 1] : 0u;
    chunk.words[i] = even | odd << 16;
  }
  return chunk;
}

/// Columns [first, first + 16) of a row of K values; zeros past K.
__device__ __forceinline__ void read_chunk(const void* row, ScalarType type, std::int64_t first,
                                           std::int64_t columns, ChunkWords& words) {
  const std::uint16_t* const p = static_cast<const std::uint16_t*>(row) + first;
  if (type == ScalarType::kFloat32 || columns - first < kChunkColumns || !is_aligned(p)) {
    const AnyChunk chunk = read_any_chunk(row, type, first, columns);
#pragma unroll
    for (int i = 0; i < kChunkColumns; ++i) words[i] = chunk.words[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 four = reinterpret_cast<const uint4*>(p)[i];
    words[4 * i] = four.x, words[4 * i + 1] = four.y;
    words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
  }
}

/// Their values.
__device__ __forceinline__ void unpack_chunk(const ChunkWords& words, ScalarType type,
                                             float (&v)[kChunkColumns]) {
  if (type == ScalarType::kFloat32) {
#pragma unroll
    for (int i = 0; i < kChunkColumns; ++i) v[i] = __uint_as_float(words[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kChunkColumns / 2; ++i) {
    if (type == ScalarType::kBFloat16) {
      v[2 * i] = __uint_as_float(words[i] << 16);
      v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    } else {
      const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
      v[2 * i] = f.x;
      v[2 * i + 1] = f.y;
    }
  }
}

/// Both.
__device__ inline void load_chunk(const void* row, ScalarType type, std::int64_t first,
                                  std::int64_t columns, float (&v)[kChunkColumns]) {
  ChunkWords words;
  read_chunk(row, type, first, columns, words);
  unpack_chunk(words, type, v);
}

/// Bits of the largest magnitude: they order as magnitudes do, infinity and NaN last.
__device__ inline std::uint32_t largest_bits(const float (&v)[kChunkColumns]) {
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kChunkColumns; ++i) {
    largest = max(largest, __float_as_uint(v[i]) & 0x7fffffffu);
  }
  return largest;
}

/// largest_bits of a thread's share of kRows rows, of a block's kThreads: shares are not chunks. A
/// call, for rows that are more than a chunk a thread.
template <int kRows>
struct LargestBits {
  std::uint32_t of[kRows] = {};
};
template <int kThreads, int kRows>
__device__ __noinline__ LargestBits<kRows> largest_bits_of_rows(const void* x,
                                                                std::int64_t row_bytes,
                                                                ScalarType type, int columns) {
  constexpr int kAhead = 8 / kRows;
  LargestBits<kRows> largest;
  const auto row = [&](int m) { return static_cast<const char*>(x) + m * row_bytes; };
  int done = 0;  // columns
  if (type != ScalarType::kFloat32 && is_aligned(x) && row_bytes % 16 == 0) {
    done = columns / kVector * kVector;
    std::uint32_t halves[kRows] = {};
    for (int first = threadIdx.x; first < done / kVector; first += kAhead * kThreads) {
      uint4 pieces[kRows][kAhead];
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const int piece = first + i * kThreads;
          pieces[m][i] = piece < done / kVector ? reinterpret_cast<const uint4*>(row(m))[piece]
                                                : make_uint4(0, 0, 0, 0);
        }
      }
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          constexpr std::uint32_t kMagnitudes = 0x7fff7fffu;
          const uint4& four = pieces[m][i];
          halves[m] = __vmaxu2(halves[m], __vmaxu2(four.x & kMagnitudes, four.y & kMagnitudes));
          halves[m] = __vmaxu2(halves[m], __vmaxu2(four.z & kMagnitudes, four.w & kMagnitudes));
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      const float2 pair = unpack(type, halves[m]);
      largest.of[m] = max(__float_as_uint(pair.x), __float_as_uint(pair.y));
    }
  }
  for (int i = done + static_cast<int>(threadIdx.x); i < columns; i += kThreads) {
    for (int m = 0; m < kRows; ++m) {
      const std::uint32_t bits = __float_as_uint(load_scalar(row(m), type, i)) & 0x7fffffffu;
      largest.of[m] = max(largest.of[m], bits);
    }
  }
  return largest;
}

/// The power of two between integers and values of a row with this largest magnitude. Magnitudes
/// below 2^-100 count like it.
struct RowScale {
  float to_integer;
  float to_value;
  __device__ explicit RowScale(std::uint32_t largest) {
    constexpr int kIntegerBits = 21;  // of the largest power of two in the row
    const int exponent = max(static_cast<int>(largest >> 23) - 127, -100);
    const bool finite = largest < 0x7f800000u;
    to_integer = finite ? __uint_as_float((127 + kIntegerBits - exponent) << 23) : 0.0f;
    to_value = finite ? __uint_as_float((127 - kIntegerBits + exponent) << 23)
                      : __uint_as_float(0x7fc00000u);
  }
};

/// Writes the 24 planes of chunk `chunk` of a row to its place in `planes` (kUnitPlaneBytes a unit)
/// and returns the sum of the 16 integers.
__device__ inline int write_chunk_planes(const float (&v)[kChunkColumns], float to_integer,
                                         int chunk, void* planes) {
  constexpr std::uint32_t kNegabinary = 0xAAAAAAu;
  std::uint32_t q[kChunkColumns];
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kChunkColumns; ++i) {
    // An infinity or a NaN times zero is NaN, which becomes the integer 0.
    const int integer = __float2int_rn(v[i] * to_integer);
    sum += integer;
    q[i] = (static_cast<std::uint32_t>(integer) + kNegabinary) ^ kNegabinary;
  }
  // A transposition: 16 integers of 24 bits to 24 planes of 16 bits, planes d and d + 16 of them in
  // the halves of word d.
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t a = q[i];
    const std::uint32_t b = q[i + 8];
    q[i] = __byte_perm(a, b, 0x6240);
    q[i + 8] = __byte_perm(a, b, 0x7351);
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (i & 4) continue;
    const std::uint32_t a = q[i];
    const std::uint32_t b = q[i + 4];
    q[i] = ptx::choose<0x0F0F0F0Fu>(a, b << 4);
    q[i + 4] = ptx::choose<0x0F0F0F0Fu>(a >> 4, b);
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (i & 2) continue;
    const std::uint32_t a = q[i];
    const std::uint32_t b = q[i + 2];
    q[i] = ptx::choose<0x33333333u>(a, b << 2);
    q[i + 2] = ptx::choose<0x33333333u>(a >> 2, b);
  }
#pragma unroll
  for (int i = 0; i < 16; i += 2) {
    const std::uint32_t a = q[i];
    const std::uint32_t b = q[i + 1];
    q[i] = ptx::choose<0x55555555u>(a, b << 1);
    q[i + 1] = ptx::choose<0x55555555u>(a >> 1, b);
  }
  const int unit = chunk >> 4;
  const int half = (chunk >> 3) & 1;
  const int t = (chunk >> 1) & 3;
  std::uint16_t* out = static_cast<std::uint16_t*>(planes) +
                       ((unit * kDigitGroups * 32 + t) * 2 + half) * 2 + (chunk & 1);
#pragma unroll
  for (int d = 0; d < 8 * kDigitGroups; ++d) {
    const std::uint32_t word = d < 16 ? q[d] : q[d - 16] >> 16;
    out[(d / 8 * 32 + d % 8 * 4) * 4] = static_cast<std::uint16_t>(word);
  }
  return sum;
}

/// Rows are taken as they are.
struct NoNorm {
  static constexpr bool kWanted = false;
};

/// A block turns kRows rows of x into planes and calls on_chunk(row, chunk, sum of its integers)
/// in whole warps, for chunks past the last too (sum 0). `scratch` holds kRows * warps words of
/// shared memory, with a norm 2 * warps; `planes`, kUnitPlaneBytes a unit, may be shared or global.
/// to_value: RowScale's. norm: NoNorm, or ChunkNorm of one row, which is one chunk a thread at
/// most.
///
/// Rows of one chunk a thread stay in registers. Others are read twice, since the largest magnitude
/// comes first: then a chunk is on its way while the one before it is written.
template <int kThreads, int kRows, class Norm, class OnChunk>
__device__ __forceinline__ void rows_to_planes(const void* x, std::int64_t stride, ScalarType type,
                                               std::int64_t columns, void* planes,
                                               std::uint32_t* scratch, float (&to_value)[kRows],
                                               Norm norm, const OnChunk& on_chunk) {
  static_assert(!Norm::kWanted || kRows == 1);
  constexpr int kWarps = kThreads / 32;
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int units = static_cast<int>(unit_count(columns));
  const int chunks = units * (kUnitColumns / kChunkColumns);
  const bool once = chunks <= kThreads;
  const std::int64_t row_bytes = stride * scalar_bytes(type);

  ChunkWords ahead[kRows] = {};
  float v[kRows][kChunkColumns];
  const auto read = [&](int chunk) {
    if (chunk >= chunks) return;
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      read_chunk(static_cast<const char*>(x) + m * row_bytes, type,
                 static_cast<std::int64_t>(chunk) * kChunkColumns, columns, ahead[m]);
    }
  };
  const auto take = [&] {
#pragma unroll
    for (int m = 0; m < kRows; ++m) unpack_chunk(ahead[m], type, v[m]);
  };

  LargestBits<kRows> largest;
  read(thread);
  if (once) {
    take();
    if constexpr (Norm::kWanted) {
      if (norm.wanted()) {
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < kChunkColumns; ++i) squares = fmaf(v[0][i], v[0][i], squares);
        norm.template set<kThreads>(squares, reinterpret_cast<float*>(scratch + kWarps));
        norm.apply(v[0]);
      }
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) largest.of[m] = largest_bits(v[m]);
  } else {
    largest = largest_bits_of_rows<kThreads, kRows>(x, row_bytes, type, static_cast<int>(columns));
  }
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    const std::uint32_t of_warp = __reduce_max_sync(~0u, largest.of[m]);
    if (lane == 0) scratch[m * kWarps + thread / 32] = of_warp;
  }
  __syncthreads();
  float to_integer[kRows];
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    std::uint32_t of_row = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) of_row = max(of_row, scratch[m * kWarps + w]);
    const RowScale scale(of_row);
    to_integer[m] = scale.to_integer;
    to_value[m] = scale.to_value;
  }
#pragma unroll 1
  for (int chunk = thread; chunk - lane < chunks; chunk += kThreads) {
    if (!once) {
      take();
      read(chunk + kThreads);
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      char* const to = static_cast<char*>(planes) + m * units * kUnitPlaneBytes;
      int sum = 0;
      if (chunk < chunks) sum = write_chunk_planes(v[m], to_integer[m], chunk, to);
      on_chunk(m, chunk, sum);
    }
  }
}

/// The sum of a row's integers, of 23 bits and a sign, in two parts that 32 bits hold however many
/// chunks there are.
struct ChunkSums {
  int low = 0;
  int high = 0;
  __device__ __forceinline__ void add(int sum) {
    low += sum & 0xffff;
    high += sum >> 16;
  }
  /// Of a warp, to its place among `warps` in scratch, which holds 2 * warps words.
  __device__ __forceinline__ void put(std::uint32_t* scratch, int warps) {
    low = __reduce_add_sync(~0u, low);
    high = __reduce_add_sync(~0u, high);
    if (threadIdx.x % 32 != 0) return;
    scratch[threadIdx.x / 32] = static_cast<std::uint32_t>(low);
    scratch[warps + threadIdx.x / 32] = static_cast<std::uint32_t>(high);
  }
  /// Of all warps.
  static __device__ __forceinline__ std::int64_t total(const std::uint32_t* scratch, int warps) {
    std::int64_t total = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) {
      total += static_cast<int>(scratch[w]) +
               (static_cast<std::int64_t>(static_cast<int>(scratch[warps + w])) << 16);
    }
    return total;
  }
};

__device__ __forceinline__ float value_of(std::int64_t integers, float to_value) {
  return static_cast<float>(static_cast<double>(integers) * to_value);
}

/// A block turns one row of x into planes. `scratch` holds 2 * warps words of shared memory;
/// `planes` may be shared or global. Every thread of the block calls it; the result is the same in
/// all, and planes in shared memory are visible after it.
template <int kThreads>
__device__ inline PlaneScale activations_to_planes(const void* row, ScalarType type,
                                                   std::int64_t columns, void* planes,
                                                   std::uint32_t* scratch) {
  float to_value[1] = {};
  ChunkSums sums;
  rows_to_planes<kThreads, 1>(row, 0, type, columns, planes, scratch, to_value, NoNorm{},
                              [&](int, int, int sum) { sums.add(sum); });
  __syncthreads();
  sums.put(scratch, kThreads / 32);
  __syncthreads();
  return {to_value[0], value_of(ChunkSums::total(scratch, kThreads / 32), to_value[0])};
}

}  // namespace anyprec::cuda
