#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/activation_fragments.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/scalars.cuh"
#include "kernels/cuda/table_lookup.cuh"
#include "kernels/cuda/table_mma_shape.cuh"
#include "kernels/cuda/warp.cuh"

/// y = x W^T by look-ups: a table of a tile's 16 rows lies in shared memory, bit planes become
/// bytes that address it (code_bytes.cuh), and the values found are the A operand of mma.m16n8k16.
///
/// A block takes a run of tiles. K is cut into chunks, of which every warp holds a part of x
/// (activation_fragments.cuh) while all tiles of the run pass by: x is read once. Per tile: build
/// the table, unless it is the only one; every warp multiplies its part; partial sums meet in
/// shared memory and are added in the order of the warps. Weights come through a ring of units a
/// warp, of which a lane reads what it copied itself: no barriers. A block alternates between
/// building and multiplying; where blocks share a multiprocessor, one fills the gaps of the other.
namespace anyprec::cuda {

/// By all threads of the block.
__device__ __forceinline__ void prefetch_lines(const char* from, int bytes, int threads) {
  for (int at = threadIdx.x * ptx::kLineBytes; at < bytes; at += threads * ptx::kLineBytes) {
    ptx::prefetch_line(from + at);
  }
}

/// Where a block is in its work: all tiles of its run for every chunk of K, for every kRows rows of
/// x.
struct Position {
  int first_row = 0, chunk = 0, tile = 0;

  template <int kRows>
  __device__ __forceinline__ void advance(int tiles, int chunks) {
    if (++tile < tiles) return;
    tile = 0;
    if (++chunk < chunks) return;
    chunk = 0;
    first_row += kRows;
  }
};

/// Starts the copies of a warp's units, in the order in which it multiplies them.
template <class Shape>
struct UnitCopies {
  const TableMmaArgs& args;
  const Tile* run;
  int tiles;
  std::uint32_t ring;  ///< the lane's part of the first slot
  int warp;
  Position at{};
  int unit = 0, slot = 0;

  __device__ __forceinline__ void start_next() {
    const int lane = threadIdx.x % 32;
    const int in_chunk = unit * Shape::kWarps + warp;
    const int of_k = at.chunk * args.chunk_units + in_chunk;
    if (at.first_row < args.x_rows && in_chunk < args.chunk_units && of_k < args.units) {
      const Tile& tile = run[at.tile];
      const std::uint8_t* from = tile.planes + of_k * kRecordBytes + lane * kLaneBytes;
      const std::int64_t stride = tile.plane_stride;
      const std::uint32_t to = ring + slot * Shape::kUnitBytes;
#pragma unroll
      for (int p = 0; p < Shape::kBits; ++p) {
        ptx::copy_16(to + p * kRecordBytes, from);
        from += stride;
      }
    }
    ptx::commit_copies();
    if (++unit == Shape::kUnits) {
      unit = 0;
      at.advance<Shape::kRows>(tiles, args.chunks);
    }
    if (++slot == Shape::kStages) slot = 0;
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    table_mma(const __grid_constant__ TableMmaArgs args) {
  constexpr int kBits = Shape::kBits, kFragments = Shape::kFragments;
  constexpr int kUnits = Shape::kUnits, kStages = Shape::kStages;
  extern __shared__ __align__(1024) char shared[];
  ptx::launch_dependents();

  const bool bfloat16 = args.type == ScalarType::kBFloat16;
  const int lane = threadIdx.x % 32;
  const int warp = warp_number();
  const int g = lane / 4, t = lane % 4;
  const auto [first_tile, tiles] = run_of_block(args.tiles);
  const int passes = args.chunks * ((args.x_rows + Shape::kRows - 1) / Shape::kRows);
  const int items = passes * tiles;

  Tile* const run = reinterpret_cast<Tile*>(shared + Shape::kTiles);
  if (threadIdx.x < tiles) describe_tile(args, first_tile + threadIdx.x, run[threadIdx.x]);
  __syncthreads();

  char* const staged = shared + Shape::kStaged;
  char* const expanded = shared + Shape::kExpanded;
  float* const partials = reinterpret_cast<float*>(shared + Shape::kPartials);
  float* const my_partials = partials + warp * Shape::kWarpPartials;
  float* const scales = reinterpret_cast<float*>(shared + Shape::kScales) + warp * Shape::kRows;
  uint4* const shared_x =
      reinterpret_cast<uint4*>(shared + Shape::kX + warp * kUnits * kRecordBytes);
  float* const sums = reinterpret_cast<float*>(shared + Shape::kSums);
  const char* const ring =
      shared + Shape::kRing + warp * kStages * Shape::kUnitBytes + lane * kLaneBytes;
  UnitCopies<Shape> copies{args, run, tiles, ptx::shared_address(ring), warp};

  // Copies go in groups, one a unit and one a tile's codebooks, so that a number of groups says
  // what has landed. Before the first item the order is as if items had gone before.
  int stage_tile = 0;
  const auto stage = [&](bool any) {
    if (any) {
      stage_codebooks<Shape::kThreads>(args.form, run[stage_tile].lut, run[stage_tile].alpha,
                                       run[stage_tile].rows, staged);
      if (++stage_tile == tiles) stage_tile = 0;
    }
    ptx::commit_copies();
  };
  stage(true);
#pragma unroll
  for (int i = -kStages; i < 0; ++i) {
    if (i % kUnits == 0) ptx::commit_copies();
    copies.start_next();
  }
  // The codebooks of later tiles come early enough from the L2 cache, too late from memory.
  for (int i = 1; i < tiles; ++i) {
    prefetch_lines(run[i].lut, run[i].rows * lut_row_bytes(args.form), Shape::kThreads);
    prefetch_lines(run[i].alpha, run[i].rows * alpha_row_bytes(args.form), Shape::kThreads);
  }
  ptx::wait_for_copies<kStages + kStages / kUnits>();
  __syncthreads();

  ActivationFragments<Shape::kSharedX ? 1 : 2 * kUnits, kFragments> x = {};
  int read_slot = 0;
  Position at;
#pragma unroll 1
  for (int item = 0; item < items; ++item) {
    if (tiles > 1 || item == 0) {
      if constexpr (kPairs<kBits>) {
        if (args.form.signs > 0) {
          expand_pairs<kBits, Shape::kThreads>(args.form, staged, expanded);
          __syncthreads();
        }
      }
      build_table<kBits, Shape::kThreads>(args.form, staged, expanded, shared);
    }
    __syncthreads();
    stage(tiles > 1 && item + 1 < items);

    const int first_unit = at.chunk * args.chunk_units + warp;
    const int first_column = first_unit * kUnitColumns;
    constexpr int kStride = Shape::kWarps * kUnitColumns;
    const int end_unit = min(args.units, (at.chunk + 1) * args.chunk_units);
    if (at.tile == 0) {
      const LaneRuns<kUnits> weights(Shape::kSharedX ? args.fused.norm.weight : nullptr,
                                     first_column, kStride, args.columns);
      if (item == 0) ptx::wait_for_predecessors();
      const ActivationRows rows{
          static_cast<const std::uint16_t*>(args.x) + at.first_row * args.x_stride, args.x_stride,
          args.x_rows - at.first_row, args.columns, args.x_is_vector};
      if constexpr (Shape::kSharedX) {
        if (args.fused.norm.weight != nullptr) {
          LaneRuns<kUnits> runs(args.x, first_column, kStride, args.columns);
          // In a word of each warp's partial sums that has no sum.
          runs.template normalize<Shape::kWarps, Shape::kWarpPartials>(
              args.fused.norm, weights, args.type, partials + kTileRows);
          share_runs<kUnits>(runs.eight, bfloat16, lane, shared_x, scales[0]);
        } else {
          share_activations<kUnits>(rows, bfloat16, first_column, kStride, end_unit * kUnitColumns,
                                    shared_x, scales[0]);
        }
      } else {
        // The lane's scratch is in the warp's partial sums, which nobody reads now.
        load_activations<2 * kUnits, kFragments>(rows, first_column, kStride,
                                                 end_unit * kUnitColumns,
                                                 reinterpret_cast<uint4*>(my_partials) + lane, x);
        float inverse[kFragments];
#pragma unroll
        for (int f = 0; f < kFragments; ++f) inverse[f] = 1.0f;
        if (bfloat16) bfloat16_to_half<2 * kUnits, kFragments>(x, inverse);
        if (t == 0) {
#pragma unroll
          for (int f = 0; f < kFragments; ++f) scales[8 * f + g] = inverse[f];
        }
      }
      __syncwarp();
    }

    const Tile& tile = run[at.tile];
    const bool ends = at.chunk == args.chunks - 1;
    const std::uint32_t lane_offset = 4 * lane;
    constexpr int kChains = kFragments == 1 ? 2 : 1;  // independent sums, for the mma's latency
    float acc[kChains][kFragments][4] = {};
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      // Groups after this unit's: of the units in flight after it, and of codebooks between.
      if (u == 0) {
        ptx::wait_for_copies<kStages - 1 + (kStages + kUnits - 1) / kUnits>();
      } else {
        ptx::wait_for_copies<kStages - 1 + kStages / 2>();
      }
      HalfWords<kBits> words[2];
      const char* const slot = ring + read_slot * Shape::kUnitBytes;
#pragma unroll
      for (int p = 0; p < kBits; ++p) {
        const uint4 four = *reinterpret_cast<const uint4*>(slot + p * kRecordBytes);
        words[0].top[p] = four.x;
        words[0].low[p] = four.y;
        words[1].top[p] = four.z;
        words[1].low[p] = four.w;
      }
      if (++read_slot == kStages) read_slot = 0;
      copies.start_next();
      if (first_unit + u * Shape::kWarps >= end_unit) continue;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int half = u * 2 + h;
        const int valid = args.columns - half_unit_column(first_column, half, kStride);
        if (valid <= 0) continue;
        if (valid < kHalfColumns) {
          if constexpr (Shape::kSharedX) {
            words[h] = with_tail_filled<kBits>(words[h], valid);
          } else {
            fill_tail<kBits>(words[h].top, words[h].low, valid);
          }
        }
        std::uint32_t top_bytes[kCodeWords<kBits>], low_bytes[kCodeWords<kBits>];
        code_bytes<kBits>(words[h].top, top_bytes);
        code_bytes<kBits>(words[h].low, low_bytes);
        const auto multiply = [&](auto byte) {
          constexpr int kByte = decltype(byte)::value;
          auto& fragments = x[Shape::kSharedX ? 0 : half][kByte];
          if constexpr (Shape::kSharedX) {
            read_if(g == 0, shared_x + (half * 4 + kByte) * 4 + t, fragments[0]);
          }
          multiply_eight<kBits, kByte, kChains>(shared, lane_offset, args.one_shl_16, top_bytes,
                                                low_bytes, fragments, acc);
        };
        multiply(std::integral_constant<int, 0>{});
        multiply(std::integral_constant<int, 1>{});
        multiply(std::integral_constant<int, 2>{});
        multiply(std::integral_constant<int, 3>{});
      }
    }

#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int x_row = 8 * f + 2 * t + c;
        if (x_row >= Shape::kRows) continue;
        float top_sum = acc[0][f][c], low_sum = acc[0][f][c + 2];
        if constexpr (kChains == 2) {
          top_sum += acc[1][f][c];
          low_sum += acc[1][f][c + 2];
        }
        my_partials[x_row * Shape::kPartialStride + g] = top_sum * scales[x_row];
        my_partials[x_row * Shape::kPartialStride + g + 8] = low_sum * scales[x_row];
      }
    }
    ptx::wait_for_copies<kUnits>();  // the codebooks staged above have landed
    __syncthreads();

    // Results: the same thread takes the same element in every chunk.
    const int rows = min(Shape::kRows, args.x_rows - at.first_row);
    for (int i = threadIdx.x; i < rows * kTileRows; i += Shape::kThreads) {
      const int x_row = i / kTileRows, row = i % kTileRows;
      const float* const from = partials + x_row * Shape::kPartialStride + row;
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < Shape::kWarps; ++w) sum += from[w * Shape::kWarpPartials];
      if (args.chunks > 1) {
        float& so_far = sums[at.tile * Shape::kRows * kTileRows + i];
        if (at.chunk > 0) sum += so_far;
        so_far = sum;
      }
      if (ends && row < tile.rows) {
        const std::int64_t w_row = tile.first_row + row;
        if (tile.bias != nullptr) sum += load_scalar(tile.bias, args.type, w_row);
        if constexpr (Shape::kSharedX) {
          if (args.fused.add) sum = rounded(args.type, sum) + load_scalar(tile.y, args.type, w_row);
        }
        store_scalar(tile.y, args.type, (at.first_row + x_row) * tile.y_stride + w_row, sum);
      }
    }
    at.advance<Shape::kRows>(tiles, args.chunks);
  }
}

template <class Shape>
TableMmaKernel describe_table_mma() {
  return {table_mma<Shape>,
          Shape::kThreads,
          Shape::kBlocks,
          Shape::kChunkUnits,
          Shape::kRows,
          Shape::kSums,
          Shape::kRows * kTileRows * 4,
          Shape::kSharedX};
}

/// See table_mma_args.h. Two blocks, of which one fills the gaps of the other; a large table is
/// better shared by many warps. Three blocks for one row of x are a tenth faster where launches of
/// one kernel follow each other, and slower between others, since fewer of their units are on their
/// way when the launch before ends.
template <int kBits>
TableMmaKernel table_mma_kernel(std::int64_t rows) {
  constexpr bool kLarge = kTableBytes<kBits> >= 32 * 1024;
  if constexpr (kBits < 8) {
    if (rows == 1) return describe_table_mma<TableMmaShape<kBits, 1, 2, 8, 2, true>>();
  }
  if (rows <= 8) return describe_table_mma<TableMmaShape<kBits, 1, 2, 8, 2>>();
  if (rows <= 16) {
    return describe_table_mma<TableMmaShape<kBits, 2, kLarge ? 1 : 2, kLarge ? 16 : 8, 1>>();
  }
  return describe_table_mma<TableMmaShape<kBits, 4, 1, 8, 1>>();
}

}  // namespace anyprec::cuda
