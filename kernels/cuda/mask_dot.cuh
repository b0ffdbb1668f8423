#pragma once

#include <cstdint>
#include <utility>

#include "kernels/cuda/mask_dot_block.cuh"
#include "kernels/cuda/masks.cuh"

/// Mask-dot: y[n] = c[0] * sum(x) + sum over masks of c[1 + i] * dot(mask_i(planes of row n), x),
/// with x as negabinary bit planes, by binary tensor cores. Planes of W are their left operand as
/// they lie in memory, so a weight costs no instruction of its own: a kernel's cost is its masks.
///
/// A block owns a run of whole tiles of 16 rows and walks their units of 256 columns. Its eight
/// warps form teams; each team takes an equal run of (tile, unit) steps through its own ring of
/// copies, and where a form has more masks than a warp has registers for, the warps of a team share
/// the ring and divide the masks. Partial sums meet in shared memory in a fixed order.
///
/// Registers (128) and shared memory (half an SM) are bounded so that the next launch's blocks are
/// resident beside these: it fills its rings while this one drains.
namespace anyprec::cuda::mask_dot_device {

/// Accumulators of a mask are 12 registers: more masks are divided among warps.
inline constexpr int kWarpMasks = 7;

/// A tile of rows in memory.
struct Tile {
  const std::uint8_t* records;  ///< plane 0, unit 0
  std::int64_t plane_stride;
  TileOutput out;
};

/// How the warps of a block divide the work on M rows of x.
template <class Set, int kRows>
struct Teams {
  using Tile = mask_dot_device::Tile;
  static constexpr int kMaskRoles = Set::kMasks <= kWarpMasks       ? 1
                                    : Set::kMasks <= 2 * kWarpMasks ? 2
                                                                    : 4;
  static constexpr int kRoles = kMaskRoles * kRows;
  static constexpr int kTeams = kWarps / kRoles;
  static_assert(kTeams >= 1 && Set::kMasks <= 4 * (kWarpMasks + 1));
  static constexpr int first_mask(int role) { return Set::kMasks * role / kMaskRoles; }
  static constexpr int kStageBytes = Set::kPrecision * kRecordBytes;
  static constexpr MaskDotShape shape() {
    return {Set::kCoefficients, kTeams * kMaskRoles, kTeams * kStageBytes, 0};
  }
};

/// A whole warp enqueues the copies of one step.
template <class Set>
__device__ __forceinline__ void copy_step(const Tile* tiles, Source& from, int units,
                                          std::uint32_t stage, std::uint32_t full) {
  const int lane = threadIdx.x % 32;
  const std::int64_t plane_stride = tiles[from.tile].plane_stride;
  const std::uint8_t* record = tiles[from.tile].records +
                               static_cast<std::int64_t>(from.unit) * kRecordBytes +
                               lane * kLaneBytes;
#pragma unroll
  for (int p = 0; p < Set::kPrecision; ++p) {
    ptx::copy_16(stage + p * kRecordBytes + lane * kLaneBytes, record + p * plane_stride);
  }
  ptx::barrier_arrive_after_copies(full);
  if (++from.unit == units) {
    from.unit = 0;
    ++from.tile;
  }
}

/// kFuses: MaskDotArgs::fused is heeded.
template <class Set, int kRows, bool kFuses = true>
struct Block : TeamBlock<Teams<Set, kRows>, kRows> {
  using Division = Teams<Set, kRows>;
  using Base = TeamBlock<Division, kRows>;
  using Base::args;
  using Base::next;
  using Base::range;
  using Base::shared;
  using Base::stages;
  using Base::steps;
  static constexpr int kPartials = Division::shape().partial_sums;

  int role;  ///< among masks
  int row;   ///< of x

  __device__ __forceinline__ Block(const MaskDotArgs& a, char* memory)
      : Base(a, memory),
        role(this->in_team % Division::kMaskRoles),
        row(this->in_team / Division::kMaskRoles) {}

  __device__ float* coefficients() const {
    return reinterpret_cast<float*>(shared + this->layout.coefficients);
  }

  __device__ __forceinline__ void copy_into(int index) {
    copy_step<Set>(this->tiles(), next, args.units, ptx::shared_address(this->stage(index)),
                   this->full(index));
  }

  /// All that does not depend on x.
  __device__ __forceinline__ void prepare() {
    this->init_barriers();
    const int count = range.end - range.begin;
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const MaskDotProduct& product = product_of(args, range.begin + i);
      const int tile = range.begin + i - product.tile_begin;
      this->tiles()[i] = {
          product.planes + static_cast<std::int64_t>(tile) * args.units * kRecordBytes,
          product.plane_stride, TileOutput::of(product, tile)};
    }
    __syncthreads();
    if (role == 0 && row == 0) {
      constexpr int kWindow =
          window_stages(Set::kPrecision, Division::kTeams * Division::kStageBytes);
      this->template fill_ring<kWindow>(min(stages, steps.end - steps.begin),
                                        [&](int s) { copy_into(s); });
    }
    this->clear_sums();
    for (int i = threadIdx.x; i < count * kTileRows; i += kThreads) {
      const int tile = range.begin + i / kTileRows;
      const MaskDotProduct& product = product_of(args, tile);
      const int n = (tile - product.tile_begin) * kTileRows + i % kTileRows;
      float* out = coefficients() + i / kTileRows * Set::kCoefficients * kTileRows + i % kTileRows;
      if (n < product.rows) {
        make_coefficients<Set>(product.lut[Set::kPrecision - kMinPrecision],
                               product.alpha[Set::kPrecision - kMinPrecision], n, out);
      } else {
        for (int c = 0; c < Set::kCoefficients; ++c) out[c * kTileRows] = 0.0f;
      }
    }
  }

  __device__ int team_partial(int mask_role) const {
    return this->team * Division::kMaskRoles + mask_role;
  }

  template <int kRole>
  __device__ __forceinline__ void walk() {
    const int lane = threadIdx.x % 32;
    constexpr int kFirst = Division::first_mask(kRole);
    MaskSums<Set, kFirst, Division::first_mask(kRole + 1) - kFirst> masks;
    masks.clear();
    int tile = steps.begin / args.units;
    int unit = steps.begin % args.units;
    int index = 0;
    std::uint32_t parity = 0;
    int previous = 0;
    std::uint32_t previous_parity = 0;
    const uint2* x = this->planes() + row * args.units * (kDigitGroups * 32) + lane;
#pragma unroll 1
    for (int s = steps.begin; s < steps.end; ++s) {
      ptx::barrier_wait(this->full(index), parity);
      __syncwarp();
      masks.add_step(reinterpret_cast<const std::uint8_t*>(this->stage(index)) + lane * kLaneBytes,
                     x + unit * (kDigitGroups * 32));
      __syncwarp();
      if constexpr (Division::kRoles == 1) {
        if (s + stages < steps.end) copy_into(index);
      } else {
        // The first warp of a team refills the stage before this one: the others are most likely
        // done with it.
        ptx::barrier_arrive(this->empty(index));
        if (kRole == 0 && row == 0 && s > steps.begin && s - 1 + stages < steps.end) {
          ptx::barrier_wait(this->empty(previous), previous_parity);
          __syncwarp();
          copy_into(previous);
        }
        previous = index;
        previous_parity = parity;
      }
      if (++index == stages) {
        index = 0;
        parity ^= 1;
      }
      if (++unit == args.units || s + 1 == steps.end) {
        const float2 sum = masks.take(coefficients() + tile * Set::kCoefficients * kTileRows);
        this->put_sum(tile, team_partial(kRole), row, sum);
        unit = 0;
        ++tile;
      }
    }
  }

  __device__ __forceinline__ void run() {
    const BlockNorm<kRows, kFuses> norm = norm_of<kRows, kFuses>(args);
    prepare();
    ptx::wait_for_predecessors();
    const int count = range.end - range.begin;
    const float addend = first_addend<kRows, kFuses>(args, this->tiles(), count);
    take_activations<kRows>(args, norm, shared + this->layout.planes, this->fixed());
    unroll<0, Division::kMaskRoles>([&](auto r) {
      if (Division::kMaskRoles == 1 || role == r()) walk<r()>();
    });
    __syncthreads();
    const float* first = coefficients();
    finish<kRows, kFuses, kPartials>(
        args, this->tiles(), count, this->sums(), this->fixed(), addend,
        [&](int tile, int r) { return first[tile * Set::kCoefficients * kTileRows + r]; });
  }
};

/// Precisions that the mask-dot kernel of a form serves: full tables have too many masks beyond 4.
constexpr int last_precision(int lut_bits) { return lut_bits == kMaxPrecision ? 4 : kMaxPrecision; }

template <int kLutBits, CellGroups kGroups, int kPrecision>
using SetOf = MaskSet<(kPrecision < kLutBits ? kPrecision : kLutBits),
                      (kPrecision < kLutBits ? 0 : kPrecision - kLutBits),
                      (kPrecision > kLutBits ? kGroups : CellGroups::kOne)>;

template <class Set, int kRows>
__global__ void __launch_bounds__(kThreads, 2) kernel(const __grid_constant__ MaskDotArgs args) {
  extern __shared__ __align__(128) char memory[];
  ptx::launch_dependents();
  Block<Set, kRows>(args, memory).run();
}

/// The precision is read from device memory, so that a captured graph can change it.
template <int kLutBits, CellGroups kGroups, int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    any_precision_kernel(const __grid_constant__ MaskDotArgs args) {
  extern __shared__ __align__(128) char memory[];
  ptx::launch_dependents();
  const int precision = *args.precision_at;
  choose<kMinPrecision, last_precision(kLutBits) + 1>(precision, [&](auto b) {
    Block<SetOf<kLutBits, kGroups, b()>, kRows, false>(args, memory).run();
  });
}

template <int kLutBits, CellGroups kGroups, int kRows, int... kIndex>
MaskDotKernels describe(std::integer_sequence<int, kIndex...>) {
  return {{kernel<SetOf<kLutBits, kGroups, kMinPrecision + kIndex>, kRows>...},
          any_precision_kernel<kLutBits, kGroups, kRows>,
          {Teams<SetOf<kLutBits, kGroups, kMinPrecision + kIndex>, kRows>::shape()...},
          static_cast<int>(sizeof(Tile))};
}

/// The kernels of a form for `rows` (1 or 2) rows of x.
template <int kLutBits, CellGroups kGroups>
MaskDotKernels describe(int rows) {
  constexpr std::make_integer_sequence<int, last_precision(kLutBits) - kMinPrecision + 1> kAll{};
  return rows == 1 ? describe<kLutBits, kGroups, 1>(kAll) : describe<kLutBits, kGroups, 2>(kAll);
}

}  // namespace anyprec::cuda::mask_dot_device
