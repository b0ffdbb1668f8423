#pragma once

#include <cstdint>

#include "kernels/cuda/plane_books.cuh"
#include "kernels/cuda/plane_mma_x.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/scalars.cuh"
#include "kernels/cuda/warp.cuh"

/// y = x W^T for binary coding, with codebooks by groups along K:
///
///   y[m][n] = sum over groups g of ((lut_g - sum_p alpha_{g,p}) S_g + sum_p 2 alpha_{g,p} D_{g,p})
///
/// D_{g,p} = sum of x[m][k] over the columns k of g whose bit in plane p is set, S_g = sum over all
/// columns of g. A plane's bits are the A operand of mma.m16n8k16 (plane_operands.h), x in fp16 is
/// the B operand, and sums of 128 columns (or of the parts of them that have codebooks of their
/// own) leave the tensor cores to be multiplied by alpha in fp32.
///
/// A block takes a run of tiles of 16 rows of W. K is cut into chunks, of which every warp holds a
/// part of x in registers while the tiles pass by; weights and codebooks come through a ring of
/// units a warp. Warps do not wait for one another but to add up their partial sums, in the order
/// of the warps, every kSumTiles tiles.
///
/// Counted for 14336 x 4096 at 1.75 GHz, where one of 528 schedulers has 27 units of a tile, each
/// 16 mma a plane: with 8 columns a unit issues about 120 + 128 b instructions, that is 1.9 + 2.0 b
/// us (logic has half the rate of issue and takes as long); bytes with groups of 128 take 2.75 b us
/// at 3.0 TB/s and 1.9 b at 4.3. With 16 columns the mma, at 6.4 clocks, take 3.2 b us.
namespace anyprec::cuda {

/// Calls f(std::integral_constant<int, u>()) for u of 0 to kUnits - 1.
template <int kUnits, class F>
__device__ __forceinline__ void each_unit(const F& f) {
  static_assert(kUnits == 2);
  f(std::integral_constant<int, 0>());
  f(std::integral_constant<int, 1>());
}

/// Where a warp is in its work: for every kRows rows of x and every kSumTiles tiles of the run, all
/// chunks of K, and in each the tiles.
template <class Shape>
struct PlanePosition {
  int first_row = 0, first_tile = 0, chunk = 0, tile = 0;

  __device__ __forceinline__ int end_tile(int tiles) const {
    return min(tiles, first_tile + Shape::kSumTiles);
  }
  __device__ __forceinline__ void advance(int tiles, int chunks) {
    if (++tile < end_tile(tiles)) return;
    if (++chunk == chunks) {
      chunk = 0;
      first_tile += Shape::kSumTiles;
      if (first_tile >= tiles) {
        first_tile = 0;
        first_row += Shape::kRows;
      }
    }
    tile = first_tile;
  }
};

/// Starts the copies of a warp's units, in the order in which it multiplies them; a group of copies
/// each.
template <class Shape>
struct PlaneCopies {
  const PlaneMmaArgs& args;
  const PlaneTile* run;
  int tiles;
  BookCopies* plans;    ///< the thread's of each unit; kThreads apart
  std::uint32_t ring;   ///< the lane's part of the planes of the warp's first slot
  std::uint32_t books;  ///< the lane's part of the codebooks there
  int warp;
  PlanePosition<Shape> at{};
  int slot_offset = 0;

  /// Calls take the units of a chunk in turn.
  template <int kUnit>
  __device__ __forceinline__ void start_next() {
    const int lane_bytes = threadIdx.x % 32 * kLaneBytes;
    const int first = at.chunk * Shape::kChunkUnits + warp;
    if (kUnit == 0 && at.tile == at.first_tile) {  // a chunk begins
#pragma unroll 1
      for (int u = 0; u < Shape::kUnits; ++u) {
        plans[u * Shape::kThreads] =
            BookCopies::template of<Shape>(args, first + u * Shape::kWarps);
      }
    }
    const int unit = first + kUnit * Shape::kWarps;
    if (at.first_row < args.x_rows && unit < args.units) {
      const PlaneTile& tile = run[at.tile];
      const std::uint8_t* from =
          tile.planes + static_cast<std::uint32_t>(unit * kRecordBytes + lane_bytes);
      const std::int64_t stride = tile.plane_stride;
#pragma unroll
      for (int p = 0; p < Shape::kBits; ++p) {
        ptx::copy_16(ring + slot_offset + p * kRecordBytes, from);
        from += stride;
      }
      plans[kUnit * Shape::kThreads].template start<Shape>(args, tile, books + slot_offset);
    }
    ptx::commit_copies();
    if (kUnit == Shape::kUnits - 1) at.advance(tiles, args.chunks);
    slot_offset += Shape::kUnitBytes;
    if (slot_offset == Shape::kStages * Shape::kUnitBytes) slot_offset = 0;
  }
};

/// Sums of a lane, in units of 2^-15 and the scale of x: rows g (0, 1) and g + 8 (2, 3) of W,
/// columns 2 t and 2 t + 1 of each fragment.
template <class Shape>
using PlaneSums = float[Shape::kFragments][4];

/// kCount planes of one half-unit, from `plane` on. offsets: [row][part], from which the alphas are
/// taken away.
template <class Shape, int kCount>
__device__ __forceinline__ void multiply_planes(const uint4 (&words)[kCount], int h, int plane,
                                                const LaneBooks<Shape>& books,
                                                const std::uint32_t (&x)[4][Shape::kFragments][4],
                                                float (&offsets)[2][Shape::kLaneParts],
                                                PlaneSums<Shape>& sums) {
  constexpr int kFragments = Shape::kFragments, kLaneParts = Shape::kLaneParts;
  float dot[kCount][kFragments][4] = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int p = 0; p < kCount; ++p) {
      // Rows g and g + 8. Two steps share the shifts.
      const std::uint32_t top = shifted_word(h == 0 ? words[p].x : words[p].z, s / 2);
      const std::uint32_t low = shifted_word(h == 0 ? words[p].y : words[p].w, s / 2);
      const std::uint32_t a[4] = {plane_operand(top, 2 * s), plane_operand(low, 2 * s),
                                  plane_operand(top, 2 * s + 1), plane_operand(low, 2 * s + 1)};
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        ptx::mma_16816(dot[p][f], a, x[s / 4][f][s % 4], x[s / 4 + 2][f][s % 4]);
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kCount; ++p) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int part = c % kLaneParts;
        const float alpha = books.alpha_of(row, h, part, plane + p);
        if (c < kLaneParts) offsets[row][part] -= alpha;
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
          sums[f][2 * row + c] = fmaf(alpha, dot[p][f][2 * row + c], sums[f][2 * row + c]);
        }
      }
    }
  }
}

/// One unit of a tile. slot: of the ring; x: of the unit's two half-units; valid: columns up to K.
/// group_sums: of both, from sum_half_unit.
template <class Shape>
__device__ __forceinline__ void multiply_unit(const PlaneMmaArgs& args, const char* slot, int unit,
                                              const std::uint32_t (&x0)[4][Shape::kFragments][4],
                                              const std::uint32_t (&x1)[4][Shape::kFragments][4],
                                              const float* group_sums, PlaneSums<Shape>& sums) {
  constexpr int kBits = Shape::kBits, kLaneParts = Shape::kLaneParts;
  const int lane = threadIdx.x % 32, t = lane % 4;
  const LaneBooks<Shape> books(args, unit, slot + kBits * kRecordBytes);
  float offsets[2][2][kLaneParts];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int part = 0; part < kLaneParts; ++part) {
        offsets[h][row][part] = books.lut_of(row, h, part);
      }
    }
  }
  const char* const lane_words = slot + lane * kLaneBytes;
  const auto planes = [&](int plane, auto count) {
    constexpr int kCount = decltype(count)::value;
    uint4 words[kCount];
#pragma unroll
    for (int p = 0; p < kCount; ++p) {
      words[p] = *reinterpret_cast<const uint4*>(lane_words + (plane + p) * kRecordBytes);
    }
    multiply_planes<Shape, kCount>(words, 0, plane, books, x0, offsets[0], sums);
    multiply_planes<Shape, kCount>(words, 1, plane, books, x1, offsets[1], sums);
  };
  // Two planes at a time hide the latency of the mma, and keep code and registers few.
#pragma unroll 1
  for (int plane = 0; plane + 2 <= kBits; plane += 2) {
    planes(plane, std::integral_constant<int, 2>{});
  }
  if constexpr (kBits % 2 == 1) planes(kBits - 1, std::integral_constant<int, 1>{});
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int f = 0; f < Shape::kFragments; ++f) {
      const float2 of_x =
          *reinterpret_cast<const float2*>(group_sums + h * Shape::kColumns + 8 * f + 2 * t);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        sums[f][2 * row] = fmaf(offsets[h][row][0], of_x.x, sums[f][2 * row]);
        sums[f][2 * row + 1] = fmaf(offsets[h][row][kLaneParts - 1], of_x.y, sums[f][2 * row + 1]);
      }
    }
  }
}

/// A warp's sums of a tile, undoing the scale of x and joining the parts; added to those of earlier
/// chunks.
template <class Shape>
__device__ __forceinline__ void keep_sums(const PlaneSums<Shape>& sums, const float* scales,
                                          bool first_chunk, float* partials) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int f = 0; f < Shape::kFragments; ++f) {
    const float2 scale = *reinterpret_cast<const float2*>(scales + 8 * f + 2 * t);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      // In two steps: the scale alone may be near the end of what a float holds.
      constexpr float kUnit = 2.0f * kOperandUnit;
      float value[2] = {sums[f][2 * row] * kUnit * scale.x, sums[f][2 * row + 1] * kUnit * scale.y};
      if constexpr (Shape::kParts > 1) value[0] += value[1];
      if constexpr (Shape::kParts == 4) value[0] += __shfl_xor_sync(0xffffffffu, value[0], 1);
#pragma unroll
      for (int c = 0; c < (Shape::kParts == 1 ? 2 : 1); ++c) {
        const int x_row = (8 * f + 2 * t + c) / Shape::kParts;
        if (Shape::kParts == 4 && t % 2 == 1) continue;
        float& partial = partials[x_row * Shape::kPartialStride + g + 8 * row];
        partial = first_chunk ? value[c] : partial + value[c];
      }
    }
  }
}

/// By all threads of the block: tiles [at.first_tile, at.end_tile) are done.
template <class Shape>
__device__ __forceinline__ void write_results(const PlaneMmaArgs& args,
                                              const PlanePosition<Shape>& at, int first_tile,
                                              int tiles, const float* partials) {
  const int rows = min(Shape::kRows, args.x_rows - at.first_row);
  const int count = (at.end_tile(tiles) - at.first_tile) * rows * kTileRows;
  for (int i = threadIdx.x; i < count; i += Shape::kThreads) {
    const int row = i % kTileRows, x_row = i / kTileRows % rows, tile = i / kTileRows / rows;
    const int index = first_tile + at.first_tile + tile;
    const TableMmaProduct& product = product_of_tile(args, index);
    const int w_row = (index - product.tile_begin) * kTileRows + row;
    if (w_row >= product.rows) continue;
    const float* const from =
        partials + tile * Shape::kTilePartials + x_row * Shape::kPartialStride + row;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < Shape::kWarps; ++w) sum += from[w * Shape::kWarpPartials];
    if (product.bias != nullptr) sum += load_scalar(product.bias, args.type, w_row);
    store_scalar(product.y, args.type, (at.first_row + x_row) * product.y_stride + w_row, sum);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    plane_mma(const __grid_constant__ PlaneMmaArgs args) {
  constexpr int kUnits = Shape::kUnits, kFragments = Shape::kFragments;
  constexpr int kHalves = Shape::kHalves, kStages = Shape::kStages;
  extern __shared__ __align__(128) char shared[];
  ptx::launch_dependents();

  const int lane = threadIdx.x % 32, warp = warp_number();
  const int g = lane / 4, t = lane % 4;
  const auto [first_tile, tiles] = run_of_block(args.tiles);

  PlaneTile* const run = reinterpret_cast<PlaneTile*>(shared + Shape::kTiles);
  if (const int i = threadIdx.x; i < tiles) {
    run[i] = describe_plane_tile<Shape::kBits>(args, first_tile + i);
  }
  __syncthreads();

  float* const partials = reinterpret_cast<float*>(shared + Shape::kPartials);
  float* const group_sums =
      reinterpret_cast<float*>(shared + Shape::kGroupSums) + warp * Shape::kWarpGroupSums;
  float* const scales = reinterpret_cast<float*>(shared + Shape::kScales) + warp * Shape::kColumns;
  uint4* const scratch = reinterpret_cast<uint4*>(shared + Shape::kScratch) + threadIdx.x;
  const char* const ring = shared + Shape::kRing + warp * kStages * Shape::kUnitBytes;
  const std::uint32_t first_slot = ptx::shared_address(ring);
  PlaneCopies<Shape> copies{
      args,
      run,
      tiles,
      reinterpret_cast<BookCopies*>(shared + Shape::kPlans) + threadIdx.x,
      first_slot + lane * kLaneBytes,
      first_slot + Shape::kBits * kRecordBytes + BookCopies::template lane_offset<Shape>(),
      warp};
#pragma unroll 1
  for (int i = 0; i < kStages; i += kUnits) {
    each_unit<kUnits>([&](auto u) { copies.template start_next<u()>(); });
  }
  ptx::wait_for_predecessors();

  ActivationFragments<kHalves, kFragments> x = {};
  int slot_offset = 0;
  PlanePosition<Shape> at;
#pragma unroll 1
  while (at.first_row < args.x_rows) {
    constexpr int kStride = Shape::kWarps * kUnitColumns;
    const int first_unit = at.chunk * Shape::kChunkUnits + warp;
    const int end_unit = min(args.units, (at.chunk + 1) * Shape::kChunkUnits);
    if (at.tile == at.first_tile && (args.chunks > 1 || at.first_tile == 0)) {
      const ActivationRows rows{
          static_cast<const std::uint16_t*>(args.x) + at.first_row * args.x_stride, args.x_stride,
          args.x_rows - at.first_row, args.columns, args.x_is_vector};
      load_activations<kHalves, kFragments, Shape::kParts>(rows, first_unit * kUnitColumns, kStride,
                                                           end_unit * kUnitColumns, scratch, x);
      float inverse[kFragments];
      if (args.type == ScalarType::kBFloat16) {
        bfloat16_to_half<kHalves, kFragments>(x, inverse);
      } else {
        scale_halves<kHalves, kFragments>(x, inverse);
      }
      order_as_operands<kHalves, kFragments>(x);
      if (t == 0) {
#pragma unroll
        for (int f = 0; f < kFragments; ++f) scales[8 * f + g] = inverse[f];
      }
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        sum_half_unit<kHalves, kFragments>(x, h, group_sums + h * Shape::kColumns);
      }
      __syncwarp();
    }

    PlaneSums<Shape> sums = {};
    each_unit<kUnits>([&](auto u) {
      const int unit = first_unit + u * Shape::kWarps;
      ptx::wait_for_copies<kStages - 1>();
      __syncwarp();
      if (unit < end_unit) {
        multiply_unit<Shape>(args, ring + slot_offset, unit, x[2 * u], x[2 * u + 1],
                             group_sums + 2 * u * Shape::kColumns, sums);
      }
      __syncwarp();
      copies.template start_next<u()>();
      slot_offset += Shape::kUnitBytes;
      if (slot_offset == kStages * Shape::kUnitBytes) slot_offset = 0;
    });
    keep_sums<Shape>(
        sums, scales, at.chunk == 0,
        partials + (at.tile - at.first_tile) * Shape::kTilePartials + warp * Shape::kWarpPartials);
    __syncwarp();  // scales are read
    if (at.chunk == args.chunks - 1 && at.tile == at.end_tile(tiles) - 1) {
      __syncthreads();
      write_results<Shape>(args, at, first_tile, tiles, partials);
      __syncthreads();
    }
    at.advance(tiles, args.chunks);
  }
}

template <class Shape>
PlaneMmaKernel describe_plane_mma() {
  return {plane_mma<Shape>, Shape::kThreads, Shape::kChunkUnits, Shape::kSharedBytes};
}

/// See plane_mma_args.h. Few columns leave room for the next launch's block beside this one's; many
/// take the registers of a whole multiprocessor.
template <int kBits>
PlaneMmaKernel plane_mma_kernel(std::int64_t rows, int parts) {
  switch (parts) {
    case 1:
      if (rows <= 8) return describe_plane_mma<PlaneMmaShape<kBits, 1, 1, 2, 8, 2>>();
      return describe_plane_mma<PlaneMmaShape<kBits, 1, 2, 2, 8, 1>>();
    case 2:
      if (rows <= 4) return describe_plane_mma<PlaneMmaShape<kBits, 2, 1, 2, 8, 2>>();
      return describe_plane_mma<PlaneMmaShape<kBits, 2, 2, 2, 8, 1>>();
    default:
      return describe_plane_mma<PlaneMmaShape<kBits, 4, 2, 2, 8, 1>>();
  }
}

}  // namespace anyprec::cuda
