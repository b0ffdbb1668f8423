#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "anyprec/weights.h"
#include "kernels/cuda/scalars.cuh"

/// Eight elements at a time of a type that is known when compiling, and sums over a block.
namespace anyprec::cuda {

inline constexpr int kVector = 8;

/// Whether a row that begins here can be read kVector elements at a time.
__host__ __device__ inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

/// visit(integral_constant of the type).
template <class Visit>
auto with_type(ScalarType type, const Visit& visit) {
  switch (type) {
    case ScalarType::kFloat32:
      return visit(std::integral_constant<ScalarType, ScalarType::kFloat32>{});
    case ScalarType::kBFloat16:
      return visit(std::integral_constant<ScalarType, ScalarType::kBFloat16>{});
    default:
      return visit(std::integral_constant<ScalarType, ScalarType::kFloat16>{});
  }
}

constexpr int scalar_bytes(ScalarType type) { return type == ScalarType::kFloat32 ? 4 : 2; }

template <ScalarType kType>
__device__ __forceinline__ float2 unpack(std::uint32_t word) {
  if constexpr (kType == ScalarType::kBFloat16) {
    return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&word));
  }
}

template <ScalarType kType>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  if constexpr (kType == ScalarType::kBFloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
}

/// Of a type of 16 bits.
__device__ __forceinline__ float2 unpack(ScalarType type, std::uint32_t word) {
  return type == ScalarType::kBFloat16 ? unpack<ScalarType::kBFloat16>(word)
                                       : unpack<ScalarType::kFloat16>(word);
}
__device__ __forceinline__ std::uint32_t pack(ScalarType type, float low, float high) {
  return type == ScalarType::kBFloat16 ? pack<ScalarType::kBFloat16>(low, high)
                                       : pack<ScalarType::kFloat16>(low, high);
}

/// Eight elements as they are in memory.
template <ScalarType kType>
struct Vector {
  std::uint32_t words[kType == ScalarType::kFloat32 ? 8 : 4];

  /// from: 16-byte aligned.
  __device__ __forceinline__ static Vector load(const void* from) {
    Vector v;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(Vector) / 16); ++i) {
      const uint4 part = static_cast<const uint4*>(from)[i];
      v.words[4 * i] = part.x;
      v.words[4 * i + 1] = part.y;
      v.words[4 * i + 2] = part.z;
      v.words[4 * i + 3] = part.w;
    }
    return v;
  }
  __device__ __forceinline__ void store(void* to) const {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(Vector) / 16); ++i) {
      static_cast<uint4*>(to)[i] =
          make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
  }
  __device__ __forceinline__ void to_floats(float (&v)[kVector]) const {
    if constexpr (kType == ScalarType::kFloat32) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) v[i] = __uint_as_float(words[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kVector / 2; ++i) {
        const float2 pair = unpack<kType>(words[i]);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
      }
    }
  }
  __device__ __forceinline__ static Vector of(const float (&v)[kVector]) {
    Vector vector;
    if constexpr (kType == ScalarType::kFloat32) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) vector.words[i] = __float_as_uint(v[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kVector / 2; ++i) vector.words[i] = pack<kType>(v[2 * i], v[2 * i + 1]);
    }
    return vector;
  }
};

/// Elements [first, first + 8) of an array of `count`; zeros past it. wide: the array is 16-byte
/// aligned and count a multiple of 8.
template <ScalarType kType>
__device__ __forceinline__ void load_vector(const void* array, std::int64_t first,
                                            std::int64_t count, bool wide, float (&v)[kVector]) {
  if (wide) {
    Vector<kType>::load(static_cast<const char*>(array) + first * scalar_bytes(kType)).to_floats(v);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      v[i] = first + i < count ? load_scalar(array, kType, first + i) : 0.0f;
    }
  }
}

template <ScalarType kType>
__device__ __forceinline__ void store_vector(void* array, std::int64_t first, std::int64_t count,
                                             bool wide, const float (&v)[kVector]) {
  if (wide) {
    Vector<kType>::of(v).store(static_cast<char*>(array) + first * scalar_bytes(kType));
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (first + i < count) store_scalar(array, kType, first + i, v[i]);
    }
  }
}

/// What the type keeps of a value.
template <ScalarType kType>
__device__ __forceinline__ float rounded(float value) {
  return rounded(kType, value);
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

/// The same in every thread. scratch: a float a warp, free to be written; every thread of the block
/// calls it.
template <int kThreads>
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) sum += scratch[w];
  return sum;
}

}  // namespace anyprec::cuda
