#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <utility>

#include "kernels/cuda/mask_dot_block.cuh"

/// Mask-dot for binary coding (L = 0) with a codebook for every 128 columns:
///
///   y[n] = sum over groups of ((lut - sum over planes of alpha_p) S + 2 sum of alpha_p D_p),
///
/// D_p the dot product of plane p with the group's x and S the group's sum of x, which a block
/// takes once for all its rows of W: the dot product with a mask of ones. A unit of 256 columns is
/// two groups, the halves of a record, so the binary products are of 128 columns and leave the
/// integers group by group.
namespace anyprec::cuda::mask_dot_device {

inline constexpr int kGroupColumns = 128;
inline constexpr int kUnitGroups = kUnitColumns / kGroupColumns;

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
  static constexpr MaskDotShape shape() { return {0, kTeams, kTeams * kStageBytes, kUnitGroups}; }
  /// Codebook words that a lane copies, the last round perhaps half of the lanes.
  static constexpr int kBookRounds = (kTileRows * kBookWords + 31) / 32;
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

  /// Of the words that this lane copies: their row, and how far they are from the start of the
  /// tile's alphas or, where the number is the row's last word, of its offsets.
  int book_row[Division::kBookRounds];
  int book_word[Division::kBookRounds];
  std::int64_t book_at[Division::kBookRounds];

  __device__ __forceinline__ GroupBlock(const MaskDotArgs& a, char* memory)
      : Base(a, memory), row(this->in_team) {
#pragma unroll
    for (int i = 0; i < Division::kBookRounds; ++i) {
      const int at = static_cast<int>(threadIdx.x) % 32 + 32 * i;
      book_row[i] = at / kBookWords;
      book_word[i] = at % kBookWords;
      const std::int64_t units_before = static_cast<std::int64_t>(book_row[i]) * a.units;
      book_at[i] =
          book_word[i] < kPrecision ? units_before * kPrecision + book_word[i] : units_before;
    }
  }

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
    const std::uint32_t books = to + kPrecision * kRecordBytes + lane * 4;
    const std::uint32_t* const alpha = tile.alpha + next.unit * kPrecision;
    const std::uint32_t* const lut = tile.lut + next.unit;
#pragma unroll
    for (int i = 0; i < Division::kBookRounds; ++i) {
      if (book_row[i] >= tile.rows) continue;
      ptx::copy_4(books + 128 * i, (book_word[i] < kPrecision ? alpha : lut) + book_at[i]);
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

  static __device__ __forceinline__ void half_of(const uint2 (&digits)[kDigitGroups], int half,
                                                 std::uint32_t (&part)[kDigitGroups]) {
#pragma unroll
    for (int d = 0; d < kDigitGroups; ++d) part[d] = half ? digits[d].y : digits[d].x;
  }

  __device__ float* group_sums(int of_row) const {
    return reinterpret_cast<float*>(this->shared + this->layout.group_sums) +
           of_row * args.units * kUnitGroups;
  }

  /// The sums of x in every group, of all rows of x.
  __device__ __forceinline__ void sum_groups() const {
    const int lane = threadIdx.x % 32;
    const float weight = static_cast<float>(1 << (2 * (lane % 4)));
    for (int i = threadIdx.x / 32; i < kRows * args.units; i += kWarps) {
      const uint2* const x = this->planes() + i * (kDigitGroups * 32) + lane;
      uint2 digits[kDigitGroups];
#pragma unroll
      for (int d = 0; d < kDigitGroups; ++d) digits[d] = x[d * 32];
#pragma unroll
      for (int half = 0; half < kUnitGroups; ++half) {
        std::uint32_t part[kDigitGroups];
        half_of(digits, half, part);
        int c[kDigitGroups][4];
        count(c, ~0u, ~0u, part);
        float sum = value_of(c, 0) * weight;
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane == 0) group_sums(0)[i * kUnitGroups + half] = sum;
      }
    }
    __syncthreads();
  }

  /// sums_of_x: of the unit's groups; the first of four lanes adds what goes with them.
  static __device__ __forceinline__ void add_step(const char* stage, const uint2* x,
                                                  const float2& sums_of_x, float2& sum) {
    const int lane = threadIdx.x % 32;
    const int g = lane / 4;
    uint2 digits[kDigitGroups];
#pragma unroll
    for (int d = 0; d < kDigitGroups; ++d) digits[d] = x[d * 32];
    const __half* books = reinterpret_cast<const __half*>(stage + kPrecision * kRecordBytes);
    const __half* upper = books + g * kBookWords * 2;
    const __half* lower = books + (g + 8) * kBookWords * 2;
    float2 constant[kUnitGroups];  // lut - sum of alphas
#pragma unroll
    for (int half = 0; half < kUnitGroups; ++half) {
      constant[half] = {__half2float(upper[2 * kPrecision + half]),
                        __half2float(lower[2 * kPrecision + half])};
    }
    float2 part_sums[kUnitGroups] = {};  // independent of each other
#pragma unroll
    for (int p = 0; p < kPrecision; ++p) {
      const uint4 w = *reinterpret_cast<const uint4*>(stage + p * kRecordBytes + lane * kLaneBytes);
#pragma unroll
      for (int half = 0; half < kUnitGroups; ++half) {
        std::uint32_t part[kDigitGroups];
        half_of(digits, half, part);
        int c[kDigitGroups][4];
        count(c, half ? w.z : w.x, half ? w.w : w.y, part);
        const float above = __half2float(upper[half * kPrecision + p]);
        const float below = __half2float(lower[half * kPrecision + p]);
        part_sums[half].x = fmaf(above, value_of(c, 0), part_sums[half].x);
        part_sums[half].y = fmaf(below, value_of(c, 2), part_sums[half].y);
        constant[half].x -= above;
        constant[half].y -= below;
      }
    }
    sum.x = fmaf(2.0f, part_sums[0].x + part_sums[1].x, sum.x);
    sum.y = fmaf(2.0f, part_sums[0].y + part_sums[1].y, sum.y);
    sum.x = fmaf(constant[0].x, sums_of_x.x, fmaf(constant[1].x, sums_of_x.y, sum.x));
    sum.y = fmaf(constant[0].y, sums_of_x.x, fmaf(constant[1].y, sums_of_x.y, sum.y));
  }

  __device__ __forceinline__ void walk() {
    const int lane = threadIdx.x % 32;
    int tile = steps.begin / args.units;
    int unit = steps.begin % args.units;
    int index = 0;
    std::uint32_t parity = 0;
    float2 sum = make_float2(0.0f, 0.0f);
    const uint2* x = this->planes() + row * args.units * (kDigitGroups * 32) + lane;
    const float2* const sums_of_x = reinterpret_cast<const float2*>(group_sums(row));
    const float first_of_four = lane % 4 == 0 ? 1.0f : 0.0f;
#pragma unroll 1
    for (int s = steps.begin; s < steps.end; ++s) {
      ptx::barrier_wait(this->full(index), parity);
      __syncwarp();
      const float2 unit_sums = sums_of_x[unit];
      add_step(this->stage(index), x + unit * (kDigitGroups * 32),
               {first_of_four * unit_sums.x, first_of_four * unit_sums.y}, sum);
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
    sum_groups();
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
