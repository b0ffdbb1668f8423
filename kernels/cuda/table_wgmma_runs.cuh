#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/scalars.cuh"
#include "kernels/cuda/table_wgmma_shape.cuh"

/// From a run's sums to y.
namespace anyprec::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ __forceinline__ void describe_run(const TableWgmmaArgs& args, int run, Tile* tiles) {
  if (threadIdx.x >= kBlockTiles) return;
  const int tile = run * kBlockTiles + static_cast<int>(threadIdx.x);
  tiles[threadIdx.x].rows = 0;
  if (tile < args.table.tiles) describe_tile(args.table, tile, tiles[threadIdx.x]);
}

/// Element i of a run's sums, [row of x][row of W], becomes one of y.
__device__ __forceinline__ void write_element(const TableWgmmaArgs& args, const Tile* tiles,
                                              const float* scales, int i, float sum) {
  const int m = i / kBlockRows, row = i % kBlockRows;
  const Tile& tile = tiles[row / kTileRows];
  if (m >= args.table.x_rows || row % kTileRows >= tile.rows) return;
  const std::int64_t w_row = tile.first_row + row % kTileRows;
  float value = sum * scales[m];
  if (tile.bias != nullptr) value += load_scalar(tile.bias, args.table.type, w_row);
  store_scalar(tile.y, args.table.type, m * tile.y_stride + w_row, value);
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
  constexpr int kElements = Shape::kRows * kBlockRows;
  const auto place = [](int i) { return i / kBlockRows * Shape::kSumStride + i % kBlockRows; };
  if (args.cluster == 1) {
    for (int i = threadIdx.x; i < kElements; i += Shape::kThreads) {
      write_element(args, tiles, scales, i, sums[place(i)]);
    }
    return;
  }
  if (threadIdx.x == 0) meet_cluster(meeting, args.cluster, phase);
  meet<Shape::kThreads>();
  const int rank = static_cast<int>(blockIdx.x) % args.cluster;
  const std::uint32_t mine = ptx::shared_address(sums);
  const int end = (rank + 1) * kElements / args.cluster;
  for (int i = rank * kElements / args.cluster + static_cast<int>(threadIdx.x); i < end;
       i += Shape::kThreads) {
    float sum = 0.0f;
#pragma unroll 4
    for (int block = 0; block < args.cluster; ++block) {
      sum += ptx::load_remote(mine + 4 * place(i), block);
    }
    write_element(args, tiles, scales, i, sum);
  }
  meet<Shape::kThreads>();
  if (threadIdx.x == 0) meet_cluster(meeting + 8, args.cluster, phase);
}

#endif

}  // namespace anyprec::cuda
