#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/cuda/activation_planes.cuh"
#include "kernels/cuda/chunk_norm.cuh"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/mask_dot_args.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/scalars.cuh"
#include "kernels/cuda/warp.cuh"

/// What the blocks of both mask-dot kernels (mask_dot.cuh, mask_dot_groups.cuh) have in common: how
/// they divide the work, what lies where in shared memory, x on the way in and y on the way out.
namespace anyprec::cuda::mask_dot_device {

inline constexpr int kWarps = 8;
inline constexpr int kThreads = 32 * kWarps;
static_assert(kThreads == kMaskDotThreads);
inline constexpr int kMaxStages = 32;
/// Shared memory that a block may have.
inline constexpr int kSharedBytes = 112 * 1024;

template <int kIndex>
using Index = std::integral_constant<int, kIndex>;

template <int kBegin, int kEnd, class Body>
__device__ __forceinline__ void unroll(const Body& body) {
  if constexpr (kBegin < kEnd) {
    body(Index<kBegin>{});
    unroll<kBegin + 1, kEnd>(body);
  }
}

/// Calls body(Index<chosen>), for a `chosen` of [kBegin, kEnd). Unlike conditions in a row it
/// leaves nothing to be kept in registers from one body to the next.
template <int kBegin, int kEnd, class Body>
__device__ __forceinline__ void choose(int chosen, const Body& body) {
  if constexpr (kBegin < kEnd) {
    if (chosen == kBegin) {
      body(Index<kBegin>{});
    } else {
      choose<kBegin + 1, kEnd>(chosen, body);
    }
  }
}

/// How many stages of a ring may be under way to a block before its predecessor has ended. All at
/// once would stand in the way of that one's last weights, for which everything waits: up to 4
/// bits, where a ring is a good part of a block's weights, 16 KB at a time (12 % faster at 3 bits).
/// At more bits the predecessor keeps the memory busy by itself.
constexpr int window_stages(int precision, int step_bytes) {
  constexpr int kWindowBytes = 16 * 1024;
  if (precision > 4) return kMaxStages;
  return step_bytes < kWindowBytes ? kWindowBytes / step_bytes : 1;
}

/// What a block has in shared memory at the front. Sizes at run time follow (Layout).
struct Shared {
  std::uint64_t full[kWarps * kMaxStages];
  std::uint64_t empty[kWarps * kMaxStages];
  std::uint32_t scratch[2 * 3 * kWarps];
  PlaneScale scale[2];
};

/// Offsets of the parts, the rings last.
struct Layout {
  int tiles, sums, coefficients, planes, group_sums, ring;
  /// block_tiles: the most tiles of a block; rows: of x.
  __host__ __device__ Layout(const MaskDotShape& shape, int rows, int units, int block_tiles,
                             int tile_bytes) {
    tiles = round(static_cast<int>(sizeof(Shared)));
    sums = tiles + round(block_tiles * tile_bytes);
    coefficients = sums + round(block_tiles * shape.partial_sums * kTileRows * rows * 4);
    planes = coefficients + round(block_tiles * shape.coefficients * kTileRows * 4);
    group_sums = planes + round(units * rows * kUnitPlaneBytes);
    ring = group_sums + round(units * rows * shape.unit_groups * 4);
  }
  static __host__ __device__ int round(int bytes) { return (bytes + 127) / 128 * 128; }
};

/// Tiles [begin, end) of a block; the first blocks have one more where they do not divide evenly.
struct TileRange {
  int begin;
  int end;
  __device__ explicit TileRange(int tiles) {
    const int blocks = static_cast<int>(gridDim.x);
    const int block = static_cast<int>(blockIdx.x);
    const int each = tiles / blocks;
    const int more = tiles % blocks;
    begin = block * each + min(block, more);
    end = begin + each + (block < more ? 1 : 0);
  }
};

__device__ __forceinline__ const MaskDotProduct& product_of(const MaskDotArgs& args, int tile) {
  int i = 0;
#pragma unroll
  for (int p = 1; p < kMaxProducts; ++p) {
    if (p < args.products && tile >= args.product[p].tile_begin) i = p;
  }
  return args.product[i];
}

/// Steps [begin, end) of a team: step s is unit s % units of the block's tile s / units.
struct Steps {
  int begin;
  int end;
};

/// A unit of a block's tiles: where a copy comes from.
struct Source {
  int tile;
  int unit;
};

/// The norm of a kernel that heeds MaskDotArgs::fused: one row of x may be normalized.
template <int kRows, bool kFuses>
using BlockNorm = std::conditional_t<kFuses && kRows == 1, ChunkNorm, NoNorm>;

template <int kRows, bool kFuses>
__device__ __forceinline__ BlockNorm<kRows, kFuses> norm_of(const MaskDotArgs& args) {
  if constexpr (BlockNorm<kRows, kFuses>::kWanted) {
    return {args.fused.norm, args.type, args.columns};
  } else {
    return {};
  }
}

/// Planes of the rows of x into shared memory, where they are in global memory.
template <int kRows>
__device__ __forceinline__ void copy_activations(const MaskDotArgs& args, char* planes,
                                                 Shared& fixed) {
  const uint4* const from = static_cast<const uint4*>(args.x_planes);
  for (int i = threadIdx.x; i < kRows * args.units * (kUnitPlaneBytes / 16); i += kThreads) {
    reinterpret_cast<uint4*>(planes)[i] = from[i];
  }
  if (threadIdx.x < kRows) {
    const int m = threadIdx.x;
    fixed.scale[m] = {args.x_scales[2 * m], args.x_scales[2 * m + 1]};
  }
}

/// Else from x, but for the sums of rows: on_chunk as in rows_to_planes.
template <int kRows, class Norm, class OnChunk>
__device__ __forceinline__ void convert_activations(const MaskDotArgs& args, const Norm& norm,
                                                    char* planes, Shared& fixed,
                                                    const OnChunk& on_chunk) {
  float to_value[kRows] = {};
  rows_to_planes<kThreads, kRows>(args.x, args.x_stride, args.type, args.columns, planes,
                                  fixed.scratch, to_value, norm, on_chunk);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int m = 0; m < kRows; ++m) fixed.scale[m] = {to_value[m], 0.0f};
  }
}

/// Planes of the rows of x into shared memory. Sums of rows are there after the next barrier of the
/// block.
template <int kRows, class Norm>
__device__ __forceinline__ void take_activations(const MaskDotArgs& args, const Norm& norm,
                                                 char* planes, Shared& fixed) {
  if (args.x_planes != nullptr) {
    copy_activations<kRows>(args, planes, fixed);
    __syncthreads();
    return;
  }
  ChunkSums sums[kRows];
  convert_activations<kRows>(args, norm, planes, fixed,
                             [&](int m, int, int sum) { sums[m].add(sum); });
  std::uint32_t* const scratch = fixed.scratch + kRows * kWarps;
#pragma unroll
  for (int m = 0; m < kRows; ++m) sums[m].put(scratch + m * 2 * kWarps, kWarps);
  __syncthreads();
  if (threadIdx.x < kRows) {
    PlaneScale& scale = fixed.scale[threadIdx.x];
    const std::int64_t total = ChunkSums::total(scratch + threadIdx.x * 2 * kWarps, kWarps);
    scale.sum = value_of(total, scale.step);
  }
}

/// Where the results of a tile of rows go.
struct TileOutput {
  void* y;
  std::int64_t y_stride;
  const void* bias;
  int row;   ///< the tile's first
  int rows;  ///< of it that exist

  static __device__ __forceinline__ TileOutput of(const MaskDotProduct& product, int tile) {
    const int row = tile * kTileRows;
    return {product.y, product.y_stride, product.bias, row, min(kTileRows, product.rows - row)};
  }
};

/// A result of a block: of a row of its tiles and a row of x.
template <int kRows>
struct Result {
  int tile, m, r;

  __device__ __forceinline__ explicit Result(int index)
      : tile(index / (kTileRows * kRows)), m(index / kTileRows % kRows), r(index % kTileRows) {}
  __device__ __forceinline__ std::int64_t place(const TileOutput& out) const {
    return m * out.y_stride + out.row + r;
  }
};

/// What the thread's first result is added to, or zero: read early, since the end waits for it.
/// Tiles have a TileOutput `out`: what is needed of the arguments is at hand.
template <int kRows, bool kFuses, class Tile>
__device__ __forceinline__ float first_addend(const MaskDotArgs& args, const Tile* tiles,
                                              int count) {
  const int index = static_cast<int>(threadIdx.x);
  if (!kFuses || !args.fused.add || index >= count * kTileRows * kRows) return 0.0f;
  const Result<kRows> result(index);
  const TileOutput& out = tiles[result.tile].out;
  return result.r < out.rows ? load_scalar(out.y, args.type, result.place(out)) : 0.0f;
}

/// Adds the partial sums up in their order and writes y. addend: of first_addend. constant(tile,
/// row): what goes with the sum of x.
template <int kRows, bool kFuses, int kPartials, class Tile, class Constant>
__device__ __forceinline__ void finish(const MaskDotArgs& args, const Tile* tiles, int count,
                                       const float* sums, const Shared& fixed, float addend,
                                       const Constant& constant) {
  for (int i = threadIdx.x; i < count * kTileRows * kRows; i += kThreads) {
    const Result<kRows> result(i);
    const TileOutput& out = tiles[result.tile].out;
    if (result.r >= out.rows) continue;
    const PlaneScale scale = fixed.scale[result.m];
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < kPartials; ++p) {
      sum += sums[((result.tile * kPartials + p) * kRows + result.m) * kTileRows + result.r];
    }
    float y = fmaf(constant(result.tile, result.r), scale.sum, sum * scale.step);
    if (out.bias != nullptr) y += load_scalar(out.bias, args.type, out.row + result.r);
    if (kFuses && args.fused.add) {
      const bool first = i == static_cast<int>(threadIdx.x);
      y = rounded(args.type, y) +
          (first ? addend : load_scalar(out.y, args.type, result.place(out)));
    }
    store_scalar(out.y, args.type, result.place(out), y);
  }
}

/// A block whose warps form teams; each takes an equal run of (tile, unit) steps through its own
/// ring of copies. Division gives kRoles warps a team, kTeams, kStageBytes (a step in the ring),
/// the type Tile, and shape().
template <class Division, int kRows>
struct TeamBlock {
  using Tile = typename Division::Tile;

  const MaskDotArgs& args;
  char* shared;
  Layout layout;
  TileRange range;
  int stages;
  int team;
  int in_team;  ///< the warp's number there
  Steps steps;
  Source next;

  __device__ __forceinline__ TeamBlock(const MaskDotArgs& a, char* memory)
      : args(a),
        shared(memory),
        layout(Division::shape(), kRows, a.units, (a.tiles + gridDim.x - 1) / gridDim.x,
               sizeof(Tile)),
        range(a.tiles) {
    const int warp = warp_number();
    team = warp / Division::kRoles;
    in_team = warp % Division::kRoles;
    stages = min(kMaxStages, args.ring_bytes / (Division::kTeams * Division::kStageBytes));
    const int all = (range.end - range.begin) * args.units;
    steps = {all * team / Division::kTeams, all * (team + 1) / Division::kTeams};
    next = {steps.begin / args.units, steps.begin % args.units};
  }

  __device__ Shared& fixed() const { return *reinterpret_cast<Shared*>(shared); }
  __device__ Tile* tiles() const { return reinterpret_cast<Tile*>(shared + layout.tiles); }
  __device__ float* sums() const { return reinterpret_cast<float*>(shared + layout.sums); }
  __device__ uint2* planes() const { return reinterpret_cast<uint2*>(shared + layout.planes); }
  __device__ std::uint32_t full(int stage) const {
    return ptx::shared_address(&fixed().full[team * kMaxStages + stage]);
  }
  __device__ std::uint32_t empty(int stage) const {
    return ptx::shared_address(&fixed().empty[team * kMaxStages + stage]);
  }
  __device__ const char* stage(int index) const {
    return shared + layout.ring + (team * stages + index) * Division::kStageBytes;
  }

  __device__ __forceinline__ void init_barriers() const {
    for (int i = threadIdx.x; i < kWarps * kMaxStages; i += kThreads) {
      ptx::barrier_init(ptx::shared_address(&fixed().full[i]), 32);
      ptx::barrier_init(ptx::shared_address(&fixed().empty[i]), 32 * Division::kRoles);
    }
  }

  /// copy(index) for the first `count` stages of a ring, kWindow of them under way at a time
  /// (window_stages).
  template <int kWindow, class Copy>
  __device__ __forceinline__ void fill_ring(int count, const Copy& copy) const {
    for (int s = 0; s < count; ++s) {
      if (s >= kWindow) ptx::barrier_wait(full(s - kWindow), 0);
      __syncwarp();
      copy(s);
    }
  }

  __device__ __forceinline__ void clear_sums() const {
    const int count = (range.end - range.begin) * Division::shape().partial_sums;
    for (int i = threadIdx.x; i < count * kTileRows * kRows; i += kThreads) sums()[i] = 0.0f;
  }

  /// sum: of rows g and g + 8 of the tile, in all four lanes of g.
  __device__ __forceinline__ void put_sum(int tile, int partial, int row, const float2& sum) const {
    const int lane = threadIdx.x % 32;
    if (lane % 4 != 0) return;
    float* to =
        sums() + ((tile * Division::shape().partial_sums + partial) * kRows + row) * kTileRows;
    to[lane / 4] = sum.x;
    to[lane / 4 + 8] = sum.y;
  }
};

}  // namespace anyprec::cuda::mask_dot_device
