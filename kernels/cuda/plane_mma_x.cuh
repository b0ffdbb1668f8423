#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/activation_fragments.cuh"
#include "kernels/cuda/plane_operands.h"
#include "kernels/cuda/table_lookup.cuh"

/// x for the plane kernel: fragments of activation_fragments.cuh, in the order and at the scale
/// that operands of planes (plane_operands.h) ask for.
namespace anyprec::cuda {

__device__ __forceinline__ std::uint32_t times(std::uint32_t pair, std::uint32_t factor) {
  const __half2 product =
      __hmul2(reinterpret_cast<const __half2&>(pair), reinterpret_cast<const __half2&>(factor));
  return reinterpret_cast<const std::uint32_t&>(product);
}

/// Multiplies every column of the fragments (fp16) by a power of two that brings its largest
/// magnitude to [2^14, 2^15), or by 2^30 where that is less. inverse[f] undoes it.
template <int kHalves, int kFragments>
__device__ __forceinline__ void scale_halves(ActivationFragments<kHalves, kFragments>& x,
                                             float (&inverse)[kFragments]) {
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    std::uint32_t largest = 0;  // bits of the magnitude
#pragma unroll
    for (int i = 0; i < 16 * kHalves; ++i) {
      const std::uint32_t pair = x[i / 16][i / 4 % 4][f][i % 4];
      largest = __vmaxu2(largest, pair & 0x7fff7fffu);
    }
    largest = max(largest & 0xffffu, largest >> 16);
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    const float magnitude = __half2float(__ushort_as_half(static_cast<unsigned short>(largest)));
    const int exponent = static_cast<int>(__float_as_uint(magnitude) >> 23) - 127;
    const int up = max(-2, min(30, 14 - exponent));
    const int first = min(15, up);
    inverse[f] = __uint_as_float(static_cast<std::uint32_t>(127 - up) << 23);
    const auto scale_by = [&](int power) {
      const std::uint32_t half = static_cast<std::uint32_t>(15 + power) << 10;
#pragma unroll
      for (int i = 0; i < 16 * kHalves; ++i) {
        std::uint32_t& pair = x[i / 16][i / 4 % 4][f][i % 4];
        pair = times(pair, half | half << 16);
      }
    };
    scale_by(first);
    // 2^30 is no fp16 number; few x are so small.
    if (__any_sync(0xffffffffu, up > first)) scale_by(up - first);
  }
}

/// From pairs of neighbouring columns to pairs of columns c and c + 16: word s of a lane's sixteen
/// becomes that of operand 2 s, word s + 8 that of operand 2 s + 1.
template <int kHalves, int kFragments>
__device__ __forceinline__ void order_as_operands(ActivationFragments<kHalves, kFragments>& x) {
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        std::uint32_t& low = x[h][s / 4][f][s % 4];
        std::uint32_t& high = x[h][s / 4 + 2][f][s % 4];
        const std::uint32_t even = __byte_perm(low, high, 0x5410);
        const std::uint32_t odd = __byte_perm(low, high, 0x7632);
        low = operand_exponent(2 * s) == 0 ? even : times(even, activation_factor(2 * s));
        high = times(odd, activation_factor(2 * s + 1));
      }
    }
  }
}

/// Sums over the 128 columns of a half-unit: the product with a plane of ones, in units of half of
/// what the products with planes are in. to: [column of the mma] floats.
template <int kHalves, int kFragments>
__device__ __forceinline__ void sum_half_unit(const ActivationFragments<kHalves, kFragments>& x,
                                              int h, float* to) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    float sums[4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const std::uint32_t even = operand_mask(2 * s), odd = operand_mask(2 * s + 1);
      const std::uint32_t ones[4] = {even, even, odd, odd};
      ptx::mma_16816(sums, ones, x[h][s / 4][f][s % 4], x[h][s / 4 + 2][f][s % 4]);
    }
    if (lane < 4) {  // all rows are equal
      to[8 * f + 2 * lane] = 0.5f * sums[0];
      to[8 * f + 2 * lane + 1] = 0.5f * sums[1];
    }
  }
}

}  // namespace anyprec::cuda
