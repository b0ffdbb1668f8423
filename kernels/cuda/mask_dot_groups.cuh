#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <utility>

#include "kernels/cuda/mask_dot_block.cuh"

/// Mask-dot for binary coding (L = 0) with a codebook for every 128 columns:
///
///   y[n] = sum over groups of (lut * S + sum over planes of alpha_p (2 D_p - S)),
///
/// D_p the dot product of plane p with the group's x and S the group's sum of x, which is the dot
/// product with a mask of ones. A unit of 256 columns is two groups, the halves of a record, so the
/// binary products are of 128 columns and leave the integers group by group.
namespace anyprec::cuda::mask_dot_device {

inline constexpr int kGroupColumns = 128;

/// A tile of rows and its codebooks.
struct GroupTile {
  const std::uint8_t* records;
  std::int64_t plane_stride;
  const std::uint32_t* lut;    ///< of the tile's first row, two groups a word
  const std::uint32_t* alpha;  ///< likewise, kPrecision words for two groups
  int rows;
};

template <int kPrecision, int kRows>
struct GroupTeams {
  using Tile = GroupTile;
  static constexpr int kRoles = kRows;
  static constexpr int kTeams = kWarps / kRows;
  /// Codebooks of a step: each row's alphas, then its offset.
  static constexpr int kBookWords = kPrecision + 1;
  static constexpr int kStageBytes = kPrecision * kRecordBytes + kTileRows * kBookWords * 4;
  static constexpr MaskDotShape shape() { return {0, kTeams, kTeams * kStageBytes}; }
  static_assert(kStageBytes % 16 == 0);
};

template <int kPrecision, int kRows>
struct GroupBlock : TeamBlock<GroupTeams<kPrecision, kRows>, kRows> {
  using Division = GroupTeams<kPrecision, kRows>;
  using Base = TeamBlock<Division, kRows>;
  using Base::args;
  using Base::next;
  using Base::range;
  using Base::stages;
  using Base::steps;
  static constexpr int kTeams = Division::kTeams;
  static constexpr int kBookWords = Division::kBookWords;

  int row;  ///< of x

  __device__ __forceinline__ GroupBlock(const MaskDotArgs& a, char* memory)
      : Base(a, memory), row(this->in_team) {}

  /// A whole warp enqueues the copies of the next step.
  __device__ __forceinline__ void copy_into(int index) {
    const int lane = threadIdx.x % 32;
    const GroupTile& tile = this->tiles()[next.tile];
    const std::uint32_t to = ptx::shared_address(this->stage(index));
    const std::uint8_t* record =
        tile.records + static_cast<std::int64_t>(next.unit) * kRecordBytes + lane * kLaneBytes;
#pragma unroll
    for (int p = 0; p < kPrecision; ++p) {
      ptx::copy_16(to + p * kRecordBytes + lane * kLaneBytes, record + p * tile.plane_stride);
    }
    const std::uint32_t books = to + kPrecision * kRecordBytes;
    for (int i = lane; i < kTileRows * kBookWords; i += 32) {
      const int r = i / kBookWords;
      const int word = i % kBookWords;
      if (r >= tile.rows) continue;
      const std::int64_t at = static_cast<std::int64_t>(r) * args.units + next.unit;
      ptx::copy_4(books + i * 4,
                  word < kPrecision ? tile.alpha + at * kPrecision + word : tile.lut + at);
    }
    ptx::barrier_arrive_after_copies(this->full(index));
    if (++next.unit == args.units) {
      next.unit = 0;
      ++next.tile;
    }
  }

  __device__ __forceinline__ void prepare() {
    this->init_barriers();
    const int count = range.end - range.begin;
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const MaskDotProduct& product = product_of(args, range.begin + i);
      const std::int64_t tile = range.begin + i - product.tile_begin;
      const std::int64_t first = tile * kTileRows * args.units;  // codebook words before the tile
      const int book = kPrecision - kMinPrecision;
      this->tiles()[i] = {
          product.planes + tile * args.units * kRecordBytes, product.plane_stride,
          reinterpret_cast<const std::uint32_t*>(product.lut[book]) + first,
          reinterpret_cast<const std::uint32_t*>(product.alpha[book]) + first * kPrecision,
          min(kTileRows, product.rows - static_cast<int>(tile) * kTileRows)};
    }
    __syncthreads();
    if (row == 0) {
      const int first = min(stages, steps.end - steps.begin);
      for (int s = 0; s < first; ++s) copy_into(s);
    }
    this->clear_sums();
  }

  /// Of the digits 2 t and 2 t + 1 of each group of eight, without the weight 4^t.
  static __device__ __forceinline__ float value_of(const int (&c)[kDigitGroups][4], int first) {
    const int low = (c[1][first] - 2 * c[1][first + 1]) * 256 + (c[0][first] - 2 * c[0][first + 1]);
    return fmaf(static_cast<float>(c[2][first] - 2 * c[2][first + 1]), 65536.0f,
                static_cast<float>(low));
  }

  static __device__ __forceinline__ void count(int (&c)[kDigitGroups][4], std::uint32_t a0,
                                               std::uint32_t a1,
                                               const std::uint32_t (&x)[kDigitGroups]) {
#pragma unroll
    for (int d = 0; d < kDigitGroups; ++d) {
      c[d][0] = c[d][1] = c[d][2] = c[d][3] = 0;
      ptx::binary_mma_half(c[d], a0, a1, x[d]);
    }
  }

  static __device__ __forceinline__ void add_step(const char* stage, const uint2* x, float2& sum) {
    const int lane = threadIdx.x % 32;
    const int g = lane / 4;
    uint2 digits[kDigitGroups];
#pragma unroll
    for (int d = 0; d < kDigitGroups; ++d) digits[d] = x[d * 32];
    const __half* books = reinterpret_cast<const __half*>(stage + kPrecision * kRecordBytes);
    const __half* upper = books + g * kBookWords * 2;
    const __half* lower = books + (g + 8) * kBookWords * 2;
    float ones[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t part[kDigitGroups] = {half ? digits[0].y : digits[0].x,
                                                half ? digits[1].y : digits[1].x,
                                                half ? digits[2].y : digits[2].x};
      int c[kDigitGroups][4];
      count(c, ~0u, ~0u, part);
      ones[half] = value_of(c, 0);
      sum.x = fmaf(__half2float(upper[2 * kPrecision + half]), ones[half], sum.x);
      sum.y = fmaf(__half2float(lower[2 * kPrecision + half]), ones[half], sum.y);
    }
#pragma unroll
    for (int p = 0; p < kPrecision; ++p) {
      const uint4 w = *reinterpret_cast<const uint4*>(stage + p * kRecordBytes + lane * kLaneBytes);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t part[kDigitGroups] = {half ? digits[0].y : digits[0].x,
                                                  half ? digits[1].y : digits[1].x,
                                                  half ? digits[2].y : digits[2].x};
        int c[kDigitGroups][4];
        count(c, half ? w.z : w.x, half ? w.w : w.y, part);
        const int at = half * kPrecision + p;
        sum.x = fmaf(__half2float(upper[at]), fmaf(2.0f, value_of(c, 0), -ones[half]), sum.x);
        sum.y = fmaf(__half2float(lower[at]), fmaf(2.0f, value_of(c, 2), -ones[half]), sum.y);
      }
    }
  }

  __device__ __forceinline__ void walk() {
    const int lane = threadIdx.x % 32;
    int tile = steps.begin / args.units;
    int unit = steps.begin % args.units;
    int index = 0;
    std::uint32_t parity = 0;
    float2 sum = make_float2(0.0f, 0.0f);
    const uint2* x = this->planes() + row * args.units * (kDigitGroups * 32) + lane;
#pragma unroll 1
    for (int s = steps.begin; s < steps.end; ++s) {
      ptx::barrier_wait(this->full(index), parity);
      __syncwarp();
      add_step(this->stage(index), x + unit * (kDigitGroups * 32), sum);
      __syncwarp();
      if (kRows > 1) ptx::barrier_arrive(this->empty(index));
      if (row == 0 && s + stages < steps.end) {
        if (kRows > 1) {
          ptx::barrier_wait(this->empty(index), parity);
          __syncwarp();
        }
        copy_into(index);
      }
      if (++index == stages) {
        index = 0;
        parity ^= 1;
      }
      if (++unit == args.units || s + 1 == steps.end) {
        const float weight = static_cast<float>(1 << (2 * (lane % 4)));
        sum.x *= weight;
        sum.y *= weight;
#pragma unroll
        for (int other = 1; other < 4; other *= 2) {
          sum.x += __shfl_xor_sync(~0u, sum.x, other);
          sum.y += __shfl_xor_sync(~0u, sum.y, other);
        }
        this->put_sum(tile, this->team, row, sum);
        sum = make_float2(0.0f, 0.0f);
        unit = 0;
        ++tile;
      }
    }
  }

  __device__ __forceinline__ void run() {
    prepare();
    ptx::wait_for_predecessors();
    take_activations<kRows>(args, this->shared + this->layout.planes, this->fixed());
    walk();
    __syncthreads();
    finish<kRows, kTeams>(args, range, this->sums(), this->fixed(), [](int, int) { return 0.0f; });
  }
};

template <int kPrecision, int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    group_kernel(const __grid_constant__ MaskDotArgs args) {
  extern __shared__ __align__(128) char memory[];
  ptx::launch_dependents();
  GroupBlock<kPrecision, kRows>(args, memory).run();
}

template <int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    any_precision_group_kernel(const __grid_constant__ MaskDotArgs args) {
  extern __shared__ __align__(128) char memory[];
  ptx::launch_dependents();
  const int precision = *args.precision_at;
  unroll<kMinPrecision, kMaxPrecision + 1>([&](auto b) {
    if (precision == b()) GroupBlock<b(), kRows>(args, memory).run();
  });
}

template <int kRows, int... kIndex>
MaskDotKernels describe_groups(std::integer_sequence<int, kIndex...>) {
  return {{group_kernel<kMinPrecision + kIndex, kRows>...},
          any_precision_group_kernel<kRows>,
          {GroupTeams<kMinPrecision + kIndex, kRows>::shape()...},
          static_cast<int>(sizeof(GroupTile))};
}

}  // namespace anyprec::cuda::mask_dot_device
