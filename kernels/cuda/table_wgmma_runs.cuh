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
  if (m >= args.table.x_rows || valid <= 0) return;
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

/// Four neighbouring sums in shared memory; 8-byte aligned.
__device__ __forceinline__ void read_four(const float* from, float (&to)[4]) {
  const float2 first = reinterpret_cast<const float2*>(from)[0];
  const float2 second = reinterpret_cast<const float2*>(from)[1];
  to[0] = first.x;
  to[1] = first.y;
  to[2] = second.x;
  to[3] = second.y;
}

/// The same thread of all blocks of a cluster: until each has come here. `barrier`: at the same
/// place in every block, for as many arrivals as blocks.
__device__ __forceinline__ void meet_cluster(std::uint32_t barrier, int blocks, int phase) {
  for (int i = 0; i < blocks; ++i) ptx::barrier_arrive_remote(barrier, i);
  ptx::barrier_wait_cluster(barrier, phase);
}

/// The sums of a run become y. Where a cluster shares it, each block adds a part of all blocks'
/// sums, in the order of K.
template <class Shape>
__device__ __forceinline__ void write_run(const TableWgmmaArgs& args, const Tile* tiles,
                                          const float* scales, const float* sums,
                                          std::uint32_t meeting, int phase) {
  constexpr int kFours = Shape::kRows * kBlockRows / 4;
  const auto row_of_x = [](int i) { return i * 4 / kBlockRows; };
  const auto row_of_w = [](int i) { return i * 4 % kBlockRows; };
  const auto place = [&](int i) { return row_of_x(i) * Shape::kSumStride + row_of_w(i); };
  if (args.cluster == 1) {
    for (int i = threadIdx.x; i < kFours; i += Shape::kThreads) {
      float four[4];
      read_four(sums + place(i), four);
      write_four(args, tiles, scales, row_of_x(i), row_of_w(i), four);
    }
    return;
  }
  if (threadIdx.x == 0) meet_cluster(meeting, args.cluster, phase);
  meet<Shape::kThreads>();
  const int rank = static_cast<int>(blockIdx.x) % args.cluster;
  const std::uint32_t mine = ptx::shared_address(sums);
  const int end = (rank + 1) * kFours / args.cluster;
  for (int i = rank * kFours / args.cluster + static_cast<int>(threadIdx.x); i < end;
       i += Shape::kThreads) {
    float four[4] = {};
#pragma unroll 4
    for (int block = 0; block < args.cluster; ++block) {
      float part[4];
      ptx::load_remote_four(mine + 4 * place(i), block, part);
#pragma unroll
      for (int k = 0; k < 4; ++k) four[k] += part[k];
    }
    write_four(args, tiles, scales, row_of_x(i), row_of_w(i), four);
  }
  meet<Shape::kThreads>();
  if (threadIdx.x == 0) meet_cluster(meeting + 8, args.cluster, phase);
}

#endif

}  // namespace anyprec::cuda
