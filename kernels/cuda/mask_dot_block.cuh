#pragma once

#include <cstdint>
#include <utility>

#include "kernels/cuda/activation_planes.cuh"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/mask_dot_args.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/scalars.cuh"

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

/// What a block has in shared memory at the front. Sizes at run time follow (Layout).
struct Shared {
  std::uint64_t full[kWarps * kMaxStages];
  std::uint64_t empty[kWarps * kMaxStages];
  std::uint32_t scratch[2 * kWarps];
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

/// Where the next copy of a team comes from.
struct Source {
  int tile;
  int unit;
};

/// Planes of the rows of x into shared memory, from global memory or from x.
template <int kRows>
__device__ __forceinline__ void take_activations(const MaskDotArgs& args, char* planes,
                                                 Shared& fixed) {
  for (int m = 0; m < kRows; ++m) {
    char* to = planes + m * args.units * kUnitPlaneBytes;
    PlaneScale scale;
    if (args.x_planes != nullptr) {
      const uint4* from = static_cast<const uint4*>(args.x_planes) +
                          static_cast<std::int64_t>(m) * args.units * (kUnitPlaneBytes / 16);
      for (int i = threadIdx.x; i < args.units * (kUnitPlaneBytes / 16); i += kThreads) {
        reinterpret_cast<uint4*>(to)[i] = from[i];
      }
      scale = {args.x_scales[2 * m], args.x_scales[2 * m + 1]};
    } else {
      const int bytes = args.type == ScalarType::kFloat32 ? 4 : 2;
      scale = activations_to_planes<kThreads>(
          static_cast<const char*>(args.x) + m * args.x_stride * bytes, args.type, args.columns, to,
          fixed.scratch);
      __syncthreads();
    }
    if (threadIdx.x == 0) fixed.scale[m] = scale;
  }
  __syncthreads();
}

/// Adds the partial sums up in their order and writes y. constant(tile, row): what goes with the
/// sum of x.
template <int kRows, int kPartials, class Constant>
__device__ __forceinline__ void finish(const MaskDotArgs& args, const TileRange& range,
                                       const float* sums, const Shared& fixed,
                                       const Constant& constant) {
  const int count = range.end - range.begin;
  for (int i = threadIdx.x; i < count * kTileRows * kRows; i += kThreads) {
    const int r = i % kTileRows;
    const int m = i / kTileRows % kRows;
    const int tile = i / (kTileRows * kRows);
    const MaskDotProduct& product = product_of(args, range.begin + tile);
    const int n = (range.begin + tile - product.tile_begin) * kTileRows + r;
    if (n >= product.rows) continue;
    const PlaneScale scale = fixed.scale[m];
    float sum = 0.0f;
#pragma unroll 4
    for (int p = 0; p < kPartials; ++p) {
      sum += sums[((tile * kPartials + p) * kRows + m) * kTileRows + r];
    }
    float y = fmaf(constant(tile, r), scale.sum, sum * scale.step);
    if (product.bias != nullptr) y += load_scalar(product.bias, args.type, n);
    store_scalar(product.y, args.type, m * product.y_stride + n, y);
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
    const int warp = threadIdx.x / 32;
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
