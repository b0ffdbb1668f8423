#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/table_wgmma_ahead.cuh"
#include "kernels/cuda/table_wgmma_build.cuh"
#include "kernels/cuda/table_wgmma_lookup.cuh"
#include "kernels/cuda/table_wgmma_pairs.cuh"
#include "kernels/cuda/table_wgmma_runs.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/wgmma.cuh"

/// y = x W^T by look-ups for some dozens of rows of x (compute capability 9.0): values found in
/// tables in shared memory are the A operand of wgmma, tiles of x (activation_tiles.h) are B.
///
/// A block multiplies by a run of 64 rows of W at a time, a tile of 16 to a warp. Groups of four
/// warps take its half-units of K in turn; for each group a thread of four more warps has x copied
/// to a ring in shared memory, a quarter of a unit at a time. While the tensor cores multiply a
/// quarter, the warps look up the next. A cluster of blocks takes a run, each a part of its K; sums
/// meet in their shared memories.
namespace anyprec::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// Has x copied to a group's ring, in the order in which the group multiplies: half-units group,
/// group + kGroups, ... of the block's part of each run. By one thread. scales: null, or where
/// those of x's rows go, with the first quarter.
template <class Shape>
__device__ __forceinline__ void copy_quarters(const TableWgmmaArgs& args, int group,
                                              std::uint32_t barriers, std::uint32_t ring,
                                              const float* scales) {
  constexpr int kScaleBytes = Shape::kRows * 4;
  const Share share(args);
  int slot = 0, phase = 1;
  for (int run = share.first_run; run < args.runs; run += share.step) {
    for (int half = share.begin + group; half < share.end; half += Shape::kGroups) {
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const std::uint32_t full = barriers + 16 * slot;
        ptx::barrier_wait(full + 8, phase);
        ptx::barrier_arrive_and_expect(
            full, Shape::kQuarterBytes + (scales != nullptr ? kScaleBytes : 0));
        if (scales != nullptr) {
          ptx::copy_bulk(ptx::shared_address(scales), args.x_scales, kScaleBytes, full);
          scales = nullptr;
        }
        ptx::copy_bulk(ring + slot * Shape::kQuarterBytes,
                       args.x_tiles + (std::int64_t{half} * 2 + q) * Shape::kQuarterBytes,
                       Shape::kQuarterBytes, full);
        if (++slot == Shape::kSlots) {
          slot = 0;
          phase ^= 1;
        }
      }
    }
  }
}

/// The warps that multiply: group `group` of four.
template <class Shape>
__device__ __forceinline__ void multiply_share(const TableWgmmaArgs& args, char* shared, int group,
                                               std::uint32_t barriers, std::uint32_t ring) {
  constexpr int kBits = Shape::kBits, kSlots = Shape::kSlots;
  const int index = warp_number() % 4, lane = threadIdx.x % 32;
  Tile* const tiles = reinterpret_cast<Tile*>(shared + Shape::kTiles);
  float* const sums = reinterpret_cast<float*>(shared) + group * Shape::kSumCount;
  const float* const scales = reinterpret_cast<const float*>(shared + Shape::kScales);
  const std::uint32_t place = Codes<Shape>::place(index);
  const Share share(args);
  const int first = share.begin + group;
  int slot = 0, phase = 0, turn = 0;

  std::conditional_t<Shape::kPairsOfColumns, PairTableBuilder<Shape>, TableBuilder<Shape>> builder(
      args.table.form);
  builder.load(tiles);
  uint2 next[kBits] = {};
  if (first < share.end) LanePlanes(tiles[index]).load<kBits>(first, next);
  Tile* now = tiles;
  Tile* later = tiles + kBlockTiles;
#pragma unroll 1
  for (int run = share.first_run; run < args.runs; run += share.step) {
    const bool is_last = run + share.step >= args.runs;

    builder.build(now, shared);
    if (!is_last) describe_run(args, run + share.step, later);
    meet<Shape::kThreads>();
    if (!is_last && group == 0 && lane == 0) prefetch_codebooks(args.table.form, later[index]);
    const LanePlanes planes(now[index]);

    float acc[Shape::kRows / 2];
#pragma unroll
    for (int i = 0; i < Shape::kRows / 2; ++i) acc[i] = 0.0f;
    std::uint32_t a[2][4][4];
    std::uint32_t used = 0;  // the barrier of the slot that is being multiplied by
#pragma unroll 1
    for (int half = first; half < share.end; half += Shape::kGroups) {
      std::uint32_t top[kBits], low[kBits];
#pragma unroll
      for (int p = 0; p < kBits; ++p) {
        top[p] = next[p].x;
        low[p] = next[p].y;
      }
      if (half + Shape::kGroups < share.end) planes.load<kBits>(half + Shape::kGroups, next);
      const int valid = args.table.columns - half * kHalfColumns;
      if (valid < kHalfColumns) fill_tail<kBits>(top, low, valid);
      const Codes<Shape> codes(top, low, index);
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        auto& quarter = a[q];
        if (q == 0) {
          codes.template look_up<0>(shared, place, quarter);
        } else {
          codes.template look_up<1>(shared, place, quarter);
        }
        const std::uint32_t full = barriers + 16 * slot;
        ptx::barrier_wait(full, phase);
        __syncwarp();
        const std::uint64_t b = ptx::wgmma_rows(ring + slot * Shape::kQuarterBytes);
        ptx::wgmma_fence();
#pragma unroll
        for (int s = 0; s < 4; ++s) ptx::wgmma(acc, quarter[s], b + 2 * s);
        ptx::wgmma_commit();
        // The quarter before is done: its operands may be overwritten.
        ptx::wgmma_wait<1>();
        if (used != 0 && lane == 0) ptx::barrier_arrive(used + 8);
        used = full;
        if (++slot == kSlots) {
          slot = 0;
          phase ^= 1;
        }
      }
    }
    ptx::wgmma_wait<0>();
    if (used != 0 && lane == 0) ptx::barrier_arrive(used + 8);

    if (run == share.first_run) ptx::wait_for_predecessors();  // which x's tiles imply
    meet<Shape::kThreads>();  // all look-ups are done: sums take the tables' place
    store_sums<Shape>(acc, index, sums);
    if (!is_last) {
      builder.load(later);
      if (first < share.end) LanePlanes(later[index]).load<kBits>(first, next);
    }
    meet<Shape::kThreads>();
    write_run<Shape>(args, now, scales, shared, turn);
    ++turn;
    Tile* const done = now;
    now = later;
    later = done;
    meet<Shape::kThreads>();
    if (!is_last && args.cluster > 1 && threadIdx.x < static_cast<unsigned>(args.cluster)) {
      ptx::barrier_arrive_remote(ptx::shared_address(shared + Shape::kMeeting) + 8, threadIdx.x);
    }
  }
}

/// A block of the kernel. shared: of Shape::kSharedBytes, aligned to 1024 bytes.
template <class Shape>
__device__ __forceinline__ void multiply_runs(const TableWgmmaArgs& args, char* shared) {
  ptx::launch_dependents();
  const int warp = warp_number();
  const bool copies = warp >= Shape::kThreads / 32;
  const int group = copies ? warp % 4 : warp / 4;
  describe_run(args, Share(args).first_run, reinterpret_cast<Tile*>(shared + Shape::kTiles));
  if (threadIdx.x == Shape::kThreads) {
    const std::uint32_t barriers = ptx::shared_address(shared + Shape::kBarriers);
    for (int i = 0; i < Shape::kGroups * Shape::kSlots; ++i) {
      ptx::barrier_init(barriers + 16 * i, 1);      // full
      ptx::barrier_init(barriers + 16 * i + 8, 4);  // empty: the warps of the group
    }
    const std::uint32_t meeting = ptx::shared_address(shared + Shape::kMeeting);
    ptx::barrier_init(meeting, 1);
    ptx::barrier_init(meeting + 8, args.cluster);
    ptx::fence_barrier_inits();
  }
  __syncthreads();
  if (args.cluster > 1) ptx::arrive_at_cluster_relaxed();  // write_run waits
  const std::uint32_t barriers =
      ptx::shared_address(shared + Shape::kBarriers) + group * Shape::kSlots * 16;
  const std::uint32_t ring =
      ptx::shared_address(shared + Shape::kRing) + group * Shape::kSlots * Shape::kQuarterBytes;
  if (copies) {
    ptx::fewer_registers<Shape::kCopyRegisters>();
    if (args.cluster > 1) ptx::wait_for_cluster();
    if (threadIdx.x % 32 == 0 && group < Shape::kGroups) {
      ptx::wait_for_predecessors();
      const float* const scales = reinterpret_cast<const float*>(shared + Shape::kScales);
      copy_quarters<Shape>(args, group, barriers, ring, group == 0 ? scales : nullptr);
    }
  } else {
    ptx::more_registers<Shape::kRegisters>();
    multiply_share<Shape>(args, shared, group, barriers, ring);
  }
}

#endif

template <class Shape>
__global__ void __maxnreg__(Shape::kAtLaunch)
    table_wgmma(const __grid_constant__ TableWgmmaArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char shared[];
  multiply_runs<Shape>(args, shared);
#endif
}

template <class Shape>
TableWgmmaKernel describe_table_wgmma() {
  return {table_wgmma<Shape>, Shape::kAllThreads, Shape::kRows, Shape::kSharedBytes};
}

template <int kBits>
TableWgmmaKernel table_wgmma_kernel(std::int64_t rows) {
  if (rows <= 8) return describe_table_wgmma<TableWgmmaShape<kBits, 8, 3>>();
  if (rows <= 16) return describe_table_wgmma<TableWgmmaShape<kBits, 16, 3>>();
  if (rows <= 32) return describe_table_wgmma<TableWgmmaShape<kBits, 32, 3>>();
  if (rows <= 64) return describe_table_wgmma<TableWgmmaShape<kBits, 64, 3>>();
  return describe_table_wgmma<TableWgmmaShape<kBits, 128, 2>>();
}

}  // namespace anyprec::cuda
