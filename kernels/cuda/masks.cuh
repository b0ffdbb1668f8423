#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/activation_planes.cuh"
#include "kernels/cuda/mask_dot_block.cuh"
#include "kernels/cuda/mask_set.h"
#include "kernels/cuda/ptx.cuh"

/// The masks of mask_set.h on the device: their coefficients from a codebook, their words from
/// planes, and their dot products.
namespace anyprec::cuda::mask_dot_device {

/// A row's coefficients (MaskSet) from its codebook, kTileRows apart.
template <class Set>
__device__ __forceinline__ void make_coefficients(const std::uint16_t* lut,
                                                  const std::uint16_t* alpha, std::int64_t row,
                                                  float* out) {
  constexpr int kCells = Set::kCells;
  constexpr int kClasses = Set::kClasses;
  float table[kCells];
#pragma unroll
  for (int cell = 0; cell < kCells; ++cell) {
    table[cell] = __half2float(__ushort_as_half(__ldg(lut + row * kCells + cell)));
  }
#pragma unroll
  for (int sign = 0; sign < Set::kSignPlanes; ++sign) {
    float a[kClasses];
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      const std::int64_t at = (row * Set::kSignPlanes + sign) * kClasses + c;
      a[c] = __half2float(__ushort_as_half(__ldg(alpha + at)));
    }
    unroll<0, kCells>([&](auto cell) {
      constexpr int kClass = Set::kForm.class_of(cell());
      table[cell()] -= a[kClass];
    });
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      const float base = c + 1 < kClasses ? a[kClasses - 1] : 0.0f;
      out[(kCells + sign * kClasses + c) * kTileRows] = 2.0f * (a[c] - base);
    }
  }
#pragma unroll
  for (int bit = 1; bit < kCells; bit *= 2) {
#pragma unroll
    for (int cell = 0; cell < kCells; ++cell) {
      if (cell & bit) table[cell] -= table[cell ^ bit];
    }
  }
#pragma unroll
  for (int cell = 0; cell < kCells; ++cell) out[cell * kTileRows] = table[cell];
}

template <class Set, int kClass>
__device__ __forceinline__ std::uint32_t indicator(std::uint32_t p0, std::uint32_t p1,
                                                   std::uint32_t p2, std::uint32_t p3) {
  constexpr int kTruth = class_truth<Set>(kClass);
  if constexpr (Set::kBits == 4) return ptx::boolean<kTruth>(p1 ^ p0, p2 ^ p0, p3 ^ p0);
  return ptx::boolean<kTruth>(p0, p1, p2);
}

/// Mask kMask of a lane's words.
template <class Set, int kMask>
__device__ __forceinline__ uint4 make_mask(const uint4* plane, const uint4* classes) {
  uint4 mask = make_uint4(~0u, ~0u, ~0u, ~0u);
  const auto and_with = [&](const uint4& w) {
    mask.x &= w.x;
    mask.y &= w.y;
    mask.z &= w.z;
    mask.w &= w.w;
  };
  unroll<0, Set::kPrecision>([&](auto p) {
    if constexpr (Set::has_factor(kMask, p())) and_with(plane[p()]);
  });
  constexpr int kClass = Set::mask(kMask).klass;
  if constexpr (kClass >= 0) and_with(classes[kClass]);
  return mask;
}

/// A warp's dot products of masks [kFirst, kFirst + kMasks) with x.
template <class Set, int kFirst, int kMasks>
class MaskSums {
 public:
  __device__ __forceinline__ void add_step(const uint8_t* stage, const uint2* x) {
    uint2 digits[kDigitGroups];
#pragma unroll
    for (int d = 0; d < kDigitGroups; ++d) digits[d] = x[d * 32];
    uint4 plane[Set::kPrecision];
    unroll<0, Set::kPrecision>([&](auto p) {
      if constexpr (Set::reads_plane(kFirst, kFirst + kMasks, p())) {
        plane[p()] = *reinterpret_cast<const uint4*>(stage + p() * kRecordBytes);
      }
    });
    uint4 classes[Set::kClasses];
    unroll<0, Set::kClasses>([&](auto c) {
      if constexpr (Set::needs_class(kFirst, kFirst + kMasks, c())) {
        constexpr int kThird = Set::kBits > 2 ? 2 : 0;
        constexpr int kFourth = Set::kBits > 3 ? 3 : 0;
        const auto of = [&](std::uint32_t uint4::* w) {
          return indicator<Set, c()>(plane[0].*w, plane[1].*w, plane[kThird].*w, plane[kFourth].*w);
        };
        classes[c()] = make_uint4(of(&uint4::x), of(&uint4::y), of(&uint4::z), of(&uint4::w));
      }
    });
    unroll<0, kMasks>([&](auto i) {
      const uint4 mask = make_mask<Set, kFirst + i()>(plane, classes);
#pragma unroll
      for (int d = 0; d < kDigitGroups; ++d) ptx::binary_mma(counts_[i()][d], mask, digits[d]);
    });
  }

  /// The sums of rows g and g + 8 over the steps since the last call, in all four lanes of g.
  __device__ __forceinline__ float2 take(const float* coefficients) {
    const int lane = threadIdx.x % 32;
    const int g = lane / 4;
    const int t = lane % 4;
    float2 sum = make_float2(0.0f, 0.0f);
    unroll<0, kMasks>([&](auto i) {
      int(&c)[kDigitGroups][4] = counts_[i()];
      // Digits 2 t and 2 t + 1 of the groups, (-2)^(8 d + 2 t) times {1, -2}. The lower two groups
      // are below 2^31 for any K that fits, and exact.
      const int low0 = (c[1][0] - 2 * c[1][1]) * 256 + (c[0][0] - 2 * c[0][1]);
      const int low1 = (c[1][2] - 2 * c[1][3]) * 256 + (c[0][2] - 2 * c[0][3]);
      const float all0 =
          fmaf(static_cast<float>(c[2][0] - 2 * c[2][1]), 65536.0f, static_cast<float>(low0));
      const float all1 =
          fmaf(static_cast<float>(c[2][2] - 2 * c[2][3]), 65536.0f, static_cast<float>(low1));
      const float* at = coefficients + Set::coefficient(kFirst + i()) * kTileRows + g;
      sum.x = fmaf(at[0], all0, sum.x);
      sum.y = fmaf(at[8], all1, sum.y);
    });
    clear();
    const float weight = static_cast<float>(1 << (2 * t));
    sum.x *= weight;
    sum.y *= weight;
#pragma unroll
    for (int other = 1; other < 4; other *= 2) {
      sum.x += __shfl_xor_sync(~0u, sum.x, other);
      sum.y += __shfl_xor_sync(~0u, sum.y, other);
    }
    return sum;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kMasks; ++i) {
#pragma unroll
      for (int d = 0; d < kDigitGroups; ++d) {
#pragma unroll
        for (int j = 0; j < 4; ++j) counts_[i][d][j] = 0;
      }
    }
  }

 private:
  int counts_[kMasks][kDigitGroups][4];
};

}  // namespace anyprec::cuda::mask_dot_device
