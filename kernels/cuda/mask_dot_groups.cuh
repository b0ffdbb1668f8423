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
  TileOutput out;
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

/// With fewer stages in a warp's ring than this, warps take turns at pairs of units, so that what
/// is read at a time lies together (2 to 5 % faster), instead of each a run of its own, which has
/// fewer sums to put.
inline constexpr int kFewStages = 4;

/// A lane's sums of a tile for one row of x.
struct GroupSums {
  float upper = 0.0f;     ///< of row g of W: half of what its planes give, without the weight 4^t
  float lower = 0.0f;     ///< of row g + 8
  float constant = 0.0f;  ///< of the lane's own row and half of the units, what goes with S
};

/// kFuses: MaskDotArgs::fused is heeded.
template <int kPrecision, int kRows, bool kFuses = true>
struct GroupBlock : TeamBlock<GroupTeams<kPrecision>, kRows> {
  using Teams = GroupTeams<kPrecision>;
  using Books = SpanBooks<kPrecision>;
  using Base = TeamBlock<Teams, kRows>;
  using Base::args;
  using Base::next;
  using Base::range;
  using Base::stages;

  int span_units;
  int spans;           ///< in the ring
  int turn_mask = ~0;  ///< a turn ends where a unit has none of these bits
  Source jump = {};    ///< from the end of a turn to the next
  Source place;        ///< the unit that the warp takes next
  int units;           ///< that the warp has yet to take

  // Of copies, beside Source next.
  int left;            ///< units to be copied
  int next_span = 0;   ///< in the ring
  bool begins = true;  ///< the next unit is the first of its span
  const std::uint8_t* record;
  std::int64_t plane_stride;

  __device__ __forceinline__ GroupBlock(const MaskDotArgs& a, char* memory) : Base(a, memory) {
    const int room = args.ring_bytes / kWarps;
    BookRing ring = BookRing::of<kPrecision, 4>(room, args.units, kMaxStages);
    int first = this->steps.begin;
    units = this->steps.end - first;
    if (ring.stages < kFewStages) {
      ring = BookRing::of<kPrecision, 2>(room, args.units, kMaxStages);
      const int turn_units = args.units % 2 == 0 ? 2 : 1;
      const int turns = (range.end - range.begin) * args.units / turn_units;
      first = this->team * turn_units;
      units = (turns - this->team + kWarps - 1) / kWarps * turn_units;
      turn_mask = turn_units - 1;
      const int others = (kWarps - 1) * turn_units;
      jump = {others / args.units, others % args.units};
    }
    span_units = ring.span_units;
    spans = ring.spans;
    stages = ring.stages;
    place = next = {first / args.units, first % args.units};
    left = units;
  }

  /// To the warp's unit after it.
  __device__ __forceinline__ void advance(Source& p) const {
    ++p.unit;
    if ((p.unit & turn_mask) == 0) {
      p.unit += jump.unit;
      p.tile += jump.tile;
    }
    if (p.unit >= args.units) {
      p.unit -= args.units;
      ++p.tile;
    }
  }

  __device__ __forceinline__ const char* books(int span) const {
    return this->shared + this->layout.ring + kWarps * stages * Teams::kStageBytes +
           (this->team * spans + span) * Books::bytes(span_units);
  }

  __device__ __forceinline__ int place_in_span(int unit) const { return unit & (span_units - 1); }

  /// A whole warp enqueues the copies of its next unit.
  __device__ __forceinline__ void copy_into(int index) {
    const int lane = threadIdx.x % 32;
    if (begins) {
      const GroupTile& tile = this->tiles()[next.tile];
      record =
          tile.records + static_cast<std::int64_t>(next.unit) * kRecordBytes + lane * kLaneBytes;
      plane_stride = tile.plane_stride;
      copy_books(tile);
    }
    const std::uint32_t to = ptx::shared_address(this->stage(index)) + lane * kLaneBytes;
    const std::uint8_t* from = record;
#pragma unroll
    for (int p = 0; p < kPrecision; ++p) {
      ptx::copy_16(to + p * kRecordBytes, from);
      from += plane_stride;
    }
    ptx::barrier_arrive_after_copies(this->full(index));
    record += kRecordBytes;
    --left;
    advance(next);
    begins = place_in_span(next.unit) == 0;
  }

  __device__ __forceinline__ void copy_books(const GroupTile& tile) {
    const int unit = next.unit - place_in_span(next.unit);
    const std::uint32_t to = ptx::shared_address(books(next_span));
    const std::uint32_t* const alpha = tile.alpha + unit * kPrecision;
    const std::uint32_t* const lut = tile.lut + unit;
    if (span_units == 4) {
      Books::template copy<4>(to, alpha, lut, args.units, tile.out.rows);
    } else if (span_units == 2) {
      Books::template copy<2>(to, alpha, lut, args.units, tile.out.rows);
    } else {
      Books::template copy<1>(to, alpha, lut, args.units, tile.out.rows);
    }
    next_span = next_span + 1 == spans ? 0 : next_span + 1;
  }

  __device__ __forceinline__ void prepare() {
    this->init_barriers();
    const int count = range.end - range.begin;
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const MaskDotProduct& product = product_of(args, range.begin + i);
      const int tile = range.begin + i - product.tile_begin;
      const std::int64_t unit = static_cast<std::int64_t>(tile) * args.units;
      const std::int64_t first = unit * kTileRows;  // codebook words before the tile
      const int book = kPrecision - kMinPrecision;
      this->tiles()[i] = {
          product.planes + unit * kRecordBytes, product.plane_stride,
          reinterpret_cast<const std::uint32_t*>(product.lut[book]) + first,
          reinterpret_cast<const std::uint32_t*>(product.alpha[book]) + first * kPrecision,
          TileOutput::of(product, tile)};
    }
    __syncthreads();
    constexpr int kWindow = window_stages(kPrecision, kWarps * Teams::kStageBytes);
    this->template fill_ring<kWindow>(min(stages, left), [&](int s) { copy_into(s); });
    this->clear_sums();
  }

  /// Of the digits 2 t and 2 t + 1 of each group of eight, without the weight 4^t: 26 bits for 128
  /// columns.
  static __device__ __forceinline__ int value_of(const int (&c)[kDigitGroups][4], int first) {
    const auto pair = [&](int d) { return c[d][first] - c[d][first + 1] - c[d][first + 1]; };
    return (pair(2) * 256 + pair(1)) * 256 + pair(0);
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

  /// Planes of the rows of x, and the sums of their groups: where x is converted here, of its
  /// chunks' sums.
  __device__ __forceinline__ void take_x(const BlockNorm<kRows, kFuses>& norm) const {
    char* const planes = this->shared + this->layout.planes;
    if (args.x_planes != nullptr) {
      copy_activations<kRows>(args, planes, this->fixed());
      __syncthreads();
      sum_groups();
      return;
    }
    constexpr int kGroupChunks = kGroupColumns / kChunkColumns;
    convert_activations<kRows>(args, norm, planes, this->fixed(), [&](int m, int chunk, int sum) {
#pragma unroll
      for (int other = 1; other < kGroupChunks; other *= 2) {
        sum += __shfl_xor_sync(~0u, sum, other);
      }
      const int group = chunk / kGroupChunks;
      if (chunk % kGroupChunks == 0 && group < args.units * kUnitGroups) {
        group_sums(m)[group] = static_cast<float>(sum);
      }
    });
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

  __device__ __forceinline__ void add_unit(const char* stage, const char* span, int unit,
                                           GroupSums (&sums)[kRows]) const {
    const int lane = threadIdx.x % 32;
    const int in_span = place_in_span(unit);
    const float constant = constant_of(span, in_span);
    uint2 digits[kRows][kDigitGroups];
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      take_digits(m, unit, digits[m]);
      const float sum_of_x = group_sums(m)[unit * kUnitGroups + lane % 4 / 2];
      sums[m].constant = fmaf(constant, sum_of_x, sums[m].constant);
    }
    const int row_bytes = Books::row_bytes(span_units);
    const __half2* const upper =
        reinterpret_cast<const __half2*>(span + lane / 4 * row_bytes + in_span * kPrecision * 4);
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
    int index = 0;
    std::uint32_t parity = 0;
    const char* const first_span = books(0);
    const char* const end_of_spans = books(spans);
    const char* span = first_span;
    GroupSums sums[kRows];
#pragma unroll 1
    for (; units > 0; --units) {
      ptx::barrier_wait(this->full(index), parity);
      __syncwarp();
      add_unit(this->stage(index), span, place.unit, sums);
      __syncwarp();
      if (left > 0) copy_into(index);
      if (++index == stages) {
        index = 0;
        parity ^= 1;
      }
      const int tile = place.tile;
      advance(place);
      if (place_in_span(place.unit) == 0) {
        span += Books::bytes(span_units);
        if (span == end_of_spans) span = first_span;
      }
      if (place.tile != tile || units == 1) put_sums(tile, sums);
    }
  }

  __device__ __forceinline__ void run() {
    const BlockNorm<kRows, kFuses> norm = norm_of<kRows, kFuses>(args);
    prepare();
    ptx::wait_for_predecessors();
    const int count = range.end - range.begin;
    const float addend = first_addend<kRows, kFuses>(args, this->tiles(), count);
    take_x(norm);
    walk();
    __syncthreads();
    finish<kRows, kFuses, kWarps>(args, this->tiles(), count, this->sums(), this->fixed(), addend,
                                  [](int, int) { return 0.0f; });
  }
};

}  // namespace anyprec::cuda::mask_dot_device
