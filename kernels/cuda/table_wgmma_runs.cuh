#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/scalars.cuh"
#include "kernels/cuda/table_wgmma_shape.cuh"
#include "kernels/cuda/vectors.cuh"

/// From a run's sums to y.
namespace anyprec::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ __forceinline__ void describe_run(const TableWgmmaArgs& args, int run, Tile* tiles) {
  if (threadIdx.x >= kBlockTiles) return;
  const int tile = run * kBlockTiles + static_cast<int>(threadIdx.x);
  tiles[threadIdx.x].rows = 0;
  if (tile < args.table.tiles) describe_tile(args.table, tile, tiles[threadIdx.x]);
}

/// Sums of four rows of W from `row` of the run, with row m of x, become elements of y.
__device__ __forceinline__ void write_four(const TableWgmmaArgs& args, const Tile* tiles,
                                           const float* scales, int m, int row,
                                           const float (&sums)[4]) {
  const Tile& tile = tiles[row / kTileRows];
  const int valid = tile.rows - row % kTileRows;
  if (valid <= 0) return;
  const std::int64_t w_row = tile.first_row + row % kTileRows;
  const std::int64_t at = m * tile.y_stride + w_row;
  const ScalarType type = args.table.type;
  const float scale = scales[m];
  float values[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[i] = sums[i] * scale;
    if (tile.bias != nullptr && i < valid) values[i] += load_scalar(tile.bias, type, w_row + i);
  }
  auto* const to = static_cast<std::uint16_t*>(tile.y) + at;
  if (valid >= 4 && reinterpret_cast<std::uintptr_t>(to) % 8 == 0) {
    *reinterpret_cast<uint2*>(to) =
        make_uint2(pack(type, values[0], values[1]), pack(type, values[2], values[3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < valid) store_scalar(tile.y, type, at + i, values[i]);
  }
}

/// Where a group's sum of row m of x and row `row` of W lies, in floats: [m][row], runs of 8 rows
/// of W exchanged so that no two lanes of a warp that writes meet in a bank.
__device__ __forceinline__ int place_of_sum(int m, int row) {
  return m * kBlockRows + (row ^ m / 2 % 4 * 8);
}

/// A warp's sums (wgmma.cuh) of rows index * 16 .. + 15 of W go to its group's.
template <class Shape>
__device__ __forceinline__ void store_sums(const float (&acc)[Shape::kRows / 2], int index,
                                           float* sums) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < Shape::kRows / 2; ++i) {
    const int m = i / 4 * 8 + lane % 4 * 2 + i % 2;
    sums[place_of_sum(m, index * kTileRows + i % 4 / 2 * 8 + lane / 4)] = acc[i];
  }
}

/// Adds all groups' sums, from the last to the first.
template <class Shape>
__device__ __forceinline__ void add_groups(const float* sums, int m, int row, float (&four)[4]) {
  const float* from = sums + place_of_sum(m, row) + Shape::kGroups * Shape::kSumCount;
#pragma unroll
  for (int group = Shape::kGroups - 1; group >= 0; --group) {
    from -= Shape::kSumCount;
    const float4 of_group = *reinterpret_cast<const float4*>(from);
    const float values[4] = {of_group.x, of_group.y, of_group.z, of_group.w};
#pragma unroll
    for (int k = 0; k < 4; ++k)
      four[k] = group == Shape::kGroups - 1 ? values[k] : four[k] + values[k];
  }
}

/// The groups' sums of a run become y. Where a cluster shares it, each block takes an equal part of
/// them, in the order of [row of x][row of W]: the others send their sums of it to its shared
/// memory, and it adds them in the order of K. `turn`: which of the block's runs.
template <class Shape>
__device__ __forceinline__ void write_run(const TableWgmmaArgs& args, const Tile* tiles,
                                          const float* scales, char* shared, int turn) {
  const float* const sums = reinterpret_cast<const float*>(shared);
  const int fours = args.table.x_rows * (kBlockRows / 4);
  const auto row_of_x = [](int i) { return i / (kBlockRows / 4); };
  const auto row_of_w = [](int i) { return i % (kBlockRows / 4) * 4; };
  if (args.cluster == 1) {
    for (int i = threadIdx.x; i < fours; i += Shape::kThreads) {
      float four[4];
      add_groups<Shape>(sums, row_of_x(i), row_of_w(i), four);
      write_four(args, tiles, scales, row_of_x(i), row_of_w(i), four);
    }
    return;
  }
  const std::uint32_t arrived = ptx::shared_address(shared + Shape::kMeeting);
  const int rank = static_cast<int>(blockIdx.x) % args.cluster;
  const int part = fours / args.cluster;
  float4* const parts = reinterpret_cast<float4*>(shared + Shape::kParts);  // [block][part]
  if (threadIdx.x == 0) ptx::barrier_arrive_and_expect(arrived, (args.cluster - 1) * part * 16);
  if (turn == 0) {
    ptx::wait_for_cluster();  // has begun
  } else {
    ptx::barrier_wait_cluster(arrived + 8, turn % 2 ^ 1);
  }
  for (int i = threadIdx.x; i < fours; i += Shape::kThreads) {
    float four[4];
    add_groups<Shape>(sums, row_of_x(i), row_of_w(i), four);
    const int to = i / part;
    float4* const place = parts + rank * part + i % part;
    if (to == rank) {
      *place = make_float4(four[0], four[1], four[2], four[3]);
    } else {
      ptx::store_remote_four(ptx::shared_address(place), to, four, arrived);
    }
  }
  meet<Shape::kThreads>();
  ptx::barrier_wait_cluster(arrived, turn % 2);
  for (int i = threadIdx.x; i < part; i += Shape::kThreads) {
    float four[4] = {};
#pragma unroll 4
    for (int block = 0; block < args.cluster; ++block) {
      const float4 from = parts[block * part + i];
      const float values[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) four[k] += values[k];
    }
    write_four(args, tiles, scales, row_of_x(rank * part + i), row_of_w(rank * part + i), four);
  }
}

#endif

}  // namespace anyprec::cuda
