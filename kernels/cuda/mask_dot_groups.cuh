#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/mask_dot_block.cuh"
#include "kernels/cuda/mask_dot_books.cuh"

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

/// A warp is a team, for all rows of x: planes and codebooks are read once for them.
template <int kPrecision>
struct GroupTeams {
  using Tile = GroupTile;
  static constexpr int kRoles = 1;
  static constexpr int kTeams = kWarps;
  static constexpr int kStageBytes = kPrecision * kRecordBytes;  ///< codebooks: BookRing
  static constexpr MaskDotShape shape() {
    return {0, kTeams, kTeams * (kStageBytes + SpanBooks<kPrecision>::bytes(1)), kUnitGroups};
  }
};

/// A lane's sums of a tile for one row of x.
struct GroupSums {
  float upper = 0.0f;     ///< of row g of W: half of what its planes give, without the weight 4^t
  float lower = 0.0f;     ///< of row g + 8
  float constant = 0.0f;  ///< of the lane's own row and half of the units, what goes with S
};

template <int kPrecision, int kRows>
struct GroupBlock : TeamBlock<GroupTeams<kPrecision>, kRows> {
  using Books = SpanBooks<kPrecision>;
  using Base = TeamBlock<GroupTeams<kPrecision>, kRows>;
  using Base::args;
  using Base::next;
  using Base::range;
  using Base::stages;
  using Base::steps;

  int span_units;
  int spans;           ///< in the ring
  int next_span = 0;   ///< in the ring, to be copied
  bool begins = true;  ///< the next step to be copied is the first of its span

  __device__ __forceinline__ GroupBlock(const MaskDotArgs& a, char* memory) : Base(a, memory) {
    const BookRing ring =
        BookRing::of<kPrecision>(args.ring_bytes / kWarps, args.units, kMaxStages);
    span_units = ring.span_units;
    spans = ring.spans;
    stages = ring.stages;
  }

  __device__ __forceinline__ const char* books(int span) const {
    return this->shared + this->layout.ring +
           kWarps * stages * GroupTeams<kPrecision>::kStageBytes +
           (this->team * spans + span) * Books::bytes(span_units);
  }

  __device__ __forceinline__ int place_in_span(int unit) const { return unit & (span_units - 1); }

  /// A whole warp enqueues the copies of the next step.
  __device__ __forceinline__ void copy_into(int index) {
    const GroupTile& tile = this->tiles()[next.tile];
    if (begins) copy_books(tile);
    const int lane = threadIdx.x % 32;
    const std::uint32_t to = ptx::shared_address(this->stage(index)) + lane * kLaneBytes;
    const std::uint8_t* record =
        tile.records + static_cast<std::int64_t>(next.unit) * kRecordBytes + lane * kLaneBytes;
#pragma unroll
    for (int p = 0; p < kPrecision; ++p) {
      ptx::copy_16(to + p * kRecordBytes, record + p * tile.plane_stride);
    }
    ptx::barrier_arrive_after_copies(this->full(index));
    ++next.unit;
    begins = place_in_span(next.unit) == 0;
    if (next.unit == args.units) {
      next.unit = 0;
      ++next.tile;
    }
  }

  __device__ __forceinline__ void copy_books(const GroupTile& tile) {
    const int unit = next.unit - place_in_span(next.unit);
    const std::uint32_t to = ptx::shared_address(books(next_span));
    const std::uint32_t* const alpha = tile.alpha + unit * kPrecision;
    const std::uint32_t* const lut = tile.lut + unit;
    if (span_units == 4) {
      Books::template copy<4>(to, alpha, lut, args.units, tile.rows);
    } else if (span_units == 2) {
      Books::template copy<2>(to, alpha, lut, args.units, tile.rows);
    } else {
      Books::template copy<1>(to, alpha, lut, args.units, tile.rows);
    }
    next_span = next_span + 1 == spans ? 0 : next_span + 1;
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
    const int first = min(stages, steps.end - steps.begin);
    for (int s = 0; s < first; ++s) copy_into(s);
    this->clear_sums();
  }

  /// Of the digits 2 t and 2 t + 1 of each group of eight, without the weight 4^t: 26 bits for 128
  /// columns.
  static __device__ __forceinline__ int value_of(const int (&c)[kDigitGroups][4], int first) {
    int value = c[2][first] - 2 * c[2][first + 1];
    value = value * 256 + (c[1][first] - 2 * c[1][first + 1]);
    return value * 256 + (c[0][first] - 2 * c[0][first + 1]);
  }

  static __device__ __forceinline__ void count(int (&c)[kDigitGroups][4], std::uint32_t a0,
                                               std::uint32_t a1, const uint2 (&x)[kDigitGroups],
                                               int half) {
#pragma unroll
    for (int d = 0; d < kDigitGroups; ++d) {
      c[d][0] = c[d][1] = c[d][2] = c[d][3] = 0;
      ptx::binary_mma_half(c[d], a0, a1, half ? x[d].y : x[d].x);
    }
  }

  __device__ float* group_sums(int of_row) const {
    return reinterpret_cast<float*>(this->shared + this->layout.group_sums) +
           of_row * args.units * kUnitGroups;
  }

  __device__ __forceinline__ void take_digits(int of_row, int unit,
                                              uint2 (&digits)[kDigitGroups]) const {
    const uint2* const x =
        this->planes() + (of_row * args.units + unit) * (kDigitGroups * 32) + threadIdx.x % 32;
#pragma unroll
    for (int d = 0; d < kDigitGroups; ++d) digits[d] = x[d * 32];
  }

  /// The sums of x in every group, of all rows of x: integers that 32 bits hold.
  __device__ __forceinline__ void sum_groups() const {
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < kRows * args.units; i += kWarps) {
      uint2 digits[kDigitGroups];
      take_digits(0, i, digits);
#pragma unroll
      for (int half = 0; half < kUnitGroups; ++half) {
        int c[kDigitGroups][4];
        count(c, ~0u, ~0u, digits, half);
        int sum = value_of(c, 0) * (1 << (2 * (lane % 4)));
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane == 0) group_sums(0)[i * kUnitGroups + half] = static_cast<float>(sum);
      }
    }
    __syncthreads();
  }

  /// What goes with S in the lane's own row, g or g + 8 for even and odd t, and half, t / 2. place:
  /// the unit's in its span.
  __device__ __forceinline__ float constant_of(const char* span, int place) const {
    const int lane = threadIdx.x % 32;
    const int half = lane % 4 / 2;
    const char* const row = span + (lane / 4 + lane % 2 * 8) * Books::row_bytes(span_units);
    const __half* const alpha =
        reinterpret_cast<const __half*>(row) + (place * kUnitGroups + half) * kPrecision;
    const __half* const lut = reinterpret_cast<const __half*>(row + kPrecision * 4 * span_units);
    float sum = __half2float(lut[place * kUnitGroups + half]);
#pragma unroll
    for (int p = 0; p < kPrecision; ++p) sum -= __half2float(alpha[p]);
    return sum;
  }

  __device__ __forceinline__ void add_step(const char* stage, const char* span, int unit,
                                           GroupSums (&sums)[kRows]) const {
    const int lane = threadIdx.x % 32;
    const int place = place_in_span(unit);
    const float constant = constant_of(span, place);
    uint2 digits[kRows][kDigitGroups];
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      take_digits(m, unit, digits[m]);
      const float sum_of_x = group_sums(m)[unit * kUnitGroups + lane % 4 / 2];
      sums[m].constant = fmaf(constant, sum_of_x, sums[m].constant);
    }
    const int row_bytes = Books::row_bytes(span_units);
    const __half2* const upper =
        reinterpret_cast<const __half2*>(span + lane / 4 * row_bytes + place * kPrecision * 4);
    const __half2* const lower = upper + 2 * row_bytes;
    float alpha[2][kUnitGroups * kPrecision];
#pragma unroll
    for (int i = 0; i < kPrecision; ++i) {
      const float2 above = __half22float2(upper[i]), below = __half22float2(lower[i]);
      alpha[0][2 * i] = above.x, alpha[0][2 * i + 1] = above.y;
      alpha[1][2 * i] = below.x, alpha[1][2 * i + 1] = below.y;
    }
#pragma unroll
    for (int p = 0; p < kPrecision; ++p) {
      const uint4 w = *reinterpret_cast<const uint4*>(stage + p * kRecordBytes + lane * kLaneBytes);
#pragma unroll
      for (int half = 0; half < kUnitGroups; ++half) {
        const int at = half * kPrecision + p;
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          int c[kDigitGroups][4];
          count(c, half ? w.z : w.x, half ? w.w : w.y, digits[m], half);
          sums[m].upper = fmaf(alpha[0][at], static_cast<float>(value_of(c, 0)), sums[m].upper);
          sums[m].lower = fmaf(alpha[1][at], static_cast<float>(value_of(c, 2)), sums[m].lower);
        }
      }
    }
  }

  /// Joins the lanes' sums of a tile and clears them.
  __device__ __forceinline__ void put_sums(int tile, GroupSums (&sums)[kRows]) const {
    const int t = threadIdx.x % 4;
    const float weight = static_cast<float>(2 << (2 * t));
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      float2 sum = {sums[m].upper * weight, sums[m].lower * weight};
      (t % 2 == 0 ? sum.x : sum.y) += sums[m].constant;
#pragma unroll
      for (int other = 1; other < 4; other *= 2) {
        sum.x += __shfl_xor_sync(~0u, sum.x, other);
        sum.y += __shfl_xor_sync(~0u, sum.y, other);
      }
      this->put_sum(tile, this->team, m, sum);
      sums[m] = {};
    }
  }

  __device__ __forceinline__ void walk() {
    int tile = steps.begin / args.units;
    int unit = steps.begin % args.units;
    int index = 0;
    int span = 0;
    std::uint32_t parity = 0;
    GroupSums sums[kRows];
#pragma unroll 1
    for (int s = steps.begin; s < steps.end; ++s) {
      ptx::barrier_wait(this->full(index), parity);
      __syncwarp();
      add_step(this->stage(index), books(span), unit, sums);
      __syncwarp();
      if (s + stages < steps.end) copy_into(index);
      if (++index == stages) {
        index = 0;
        parity ^= 1;
      }
      if (place_in_span(++unit) == 0 && ++span == spans) span = 0;
      if (unit == args.units || s + 1 == steps.end) {
        put_sums(tile, sums);
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
    finish<kRows, kWarps>(args, range, this->sums(), this->fixed(), [](int, int) { return 0.0f; });
  }
};

}  // namespace anyprec::cuda::mask_dot_device
