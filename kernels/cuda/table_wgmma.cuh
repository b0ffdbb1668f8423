#pragma once

#include <cstdint>

#include "kernels/cuda/activation_tiles.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/scalars.cuh"
#include "kernels/cuda/table_lookup.cuh"
#include "kernels/cuda/table_mma_shape.cuh"
#include "kernels/cuda/table_wgmma_args.h"
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

/// kRows: of x, at most. kGroups: of four warps.
template <int kBits_, int kRows_, int kGroups_>
struct TableWgmmaShape {
  static constexpr int kBits = kBits_;
  static constexpr int kRows = kRows_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kThreads = 128 * kGroups;  ///< that multiply
  static constexpr int kAllThreads = kThreads + 128;
  // Registers move from the warps that copy to those that multiply; the block keeps its sum.
  static constexpr int kCopyRegisters = kGroups == 2 ? 24 : 32;
  static constexpr int kRegisters = kGroups == 2 ? 240 : 160;
  static constexpr int kAtLaunch = 64 * 1024 / kAllThreads / 8 * 8;  ///< registers of a thread
  static_assert(kThreads * kRegisters + 128 * kCopyRegisters <= kAllThreads * kAtLaunch);

  // Tables: two tiles side by side in the 256 bytes of an entry, a word a lane: row g's value in
  // the low half, row g + 8's in the high half. The other two tiles' are 64 KB further, so that an
  // address is a byte of the code between bytes that stay.
  static constexpr int kPairStride = 64 * 1024;
  // Sums, [row of x][row of W]: 68 words a row of x, so that no two lanes meet in a bank (66
  // and two where room is short).
  static constexpr int kSumStride = kBlockRows + (kRows == 128 ? 2 : 4);
  static constexpr int kQuarterBytes = kRows * kTileRowBytes;

  // Where things lie in shared memory, in bytes; the tables at 0.
  static constexpr int kSums = kPairStride + (256 << kBits);
  static constexpr int kTiles = kSums + kRows * kSumStride * 4;
  static constexpr int kScales = kTiles + 2 * kBlockTiles * static_cast<int>(sizeof(Tile));
  static constexpr int kMeeting = kScales + kRows * 4;  // two barriers: sums are there, are read
  static constexpr int kBarriers = kMeeting + 16;
  static constexpr int kMostSlots = 8;  ///< of a group's ring
  static constexpr int kRing = (kBarriers + kGroups * kMostSlots * 16 + 1023) / 1024 * 1024;
  static constexpr int kFitting = (227 * 1024 - kRing) / (kGroups * kQuarterBytes);
  static constexpr int kSlots = kFitting > kMostSlots ? kMostSlots : kFitting;
  static_assert(kSlots >= 2);
  static constexpr int kSharedBytes = kRing + kGroups * kSlots * kQuarterBytes;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// What a block multiplies by: of runs cluster, cluster + clusters, ... half-units [begin, end).
struct Share {
  int first_run, step;
  int begin, end;

  __device__ __forceinline__ explicit Share(const TableWgmmaArgs& args)
      : first_run(static_cast<int>(blockIdx.x) / args.cluster),
        step(static_cast<int>(gridDim.x) / args.cluster) {
    const int rank = static_cast<int>(blockIdx.x) % args.cluster;
    begin = rank * args.run_halves / args.cluster;
    end = (rank + 1) * args.run_halves / args.cluster;
  }
};

/// By the threads that multiply.
template <int kThreads>
__device__ __forceinline__ void meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

/// Values of codes first .. first + kCount - 1 of a row of a hybrid, as fp16.
template <int kCount>
__device__ __forceinline__ void hybrid_values(const TableForm& form, const Tile& tile, int row,
                                              int first, std::uint32_t (&values)[kCount]) {
  const CodebookRow codebook{
      reinterpret_cast<const __half*>(tile.lut + row * lut_row_bytes(form)),
      reinterpret_cast<const __half*>(tile.alpha + row * alpha_row_bytes(form))};
  constexpr int kDepth = bits_of(kCount);
  if (form.signs >= kDepth) {
    codebook.expand<kDepth>(form, first, values);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = __half_as_ushort(__float2half_rn(codebook.value(form, first + i, 0)));
    }
  }
}

/// kCount fp16 from global memory, aligned to their size, two to a word.
template <int kCount>
__device__ __forceinline__ void load_halves(const void* from,
                                            std::uint32_t (&words)[(kCount + 1) / 2]) {
  if constexpr (kCount == 8) {
    const uint4 eight = __ldg(static_cast<const uint4*>(from));
    words[0] = eight.x;
    words[1] = eight.y;
    words[2] = eight.z;
    words[3] = eight.w;
  } else if constexpr (kCount == 2) {
    words[0] = __ldg(static_cast<const std::uint32_t*>(from));
  } else {
    static_assert(kCount == 1);
    words[0] = __ldg(static_cast<const std::uint16_t*>(from));
  }
}

/// The tables of four tiles, by all threads that multiply: thread i has rows i % 8 and i % 8 + 8 of
/// tile i / 8 % 4, warps take groups of codes in turn.
template <class Shape>
__device__ __forceinline__ void build_tables(const TableForm& form, const Tile* tiles,
                                             char* tables) {
  constexpr int kEntriesOfTile = 1 << Shape::kBits;
  constexpr int kWarps = Shape::kThreads / 32;
  constexpr int kCount = kEntriesOfTile >= 8 * kWarps ? 8 : (kEntriesOfTile >= 2 * kWarps ? 2 : 1);
  constexpr int kTurns = (kEntriesOfTile + kWarps * kCount - 1) / (kWarps * kCount);
  constexpr int kWords = (kCount + 1) / 2;
  const int g = threadIdx.x % 8, index = threadIdx.x / 8 % 4;
  const Tile& tile = tiles[index];
  const bool has_top = g < tile.rows, has_low = g + 8 < tile.rows;
  char* const words = tables + index / 2 * Shape::kPairStride + index % 2 * 128 + g * 16;
  const int first = threadIdx.x / 32 * kCount;
  const auto store = [&](int entry, std::uint32_t top, std::uint32_t low) {
    const std::uint32_t word = top | low << 16;
    *reinterpret_cast<uint4*>(words + entry * 256) = make_uint4(word, word, word, word);
  };
  if (form.signs == 0) {  // all loads first
    const char* const top_row = tile.lut + g * lut_row_bytes(form);
    const char* const low_row = top_row + 8 * lut_row_bytes(form);
    std::uint32_t top[kTurns][kWords] = {}, low[kTurns][kWords] = {};
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int code = first + turn * kWarps * kCount;
      if (code >= kEntriesOfTile) continue;
      if (has_top) load_halves<kCount>(top_row + 2 * code, top[turn]);
      if (has_low) load_halves<kCount>(low_row + 2 * code, low[turn]);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int code = first + turn * kWarps * kCount;
      if (code >= kEntriesOfTile) continue;
      const int entry = reversed<Shape::kBits>(code);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const std::uint32_t word =
            __byte_perm(top[turn][i / 2], low[turn][i / 2], i % 2 == 0 ? 0x5410 : 0x7632);
        store(entry + reversed_constant(i, Shape::kBits), word & 0xffffu, word >> 16);
      }
    }
    return;
  }
#pragma unroll 1
  for (int code = first; code < kEntriesOfTile; code += kWarps * kCount) {
    std::uint32_t top[kCount] = {}, low[kCount] = {};
    if (has_top) hybrid_values(form, tile, g, code, top);
    if (has_low) hybrid_values(form, tile, g + 8, code, low);
    const int entry = reversed<Shape::kBits>(code);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      store(entry + reversed_constant(i, Shape::kBits), top[i], low[i]);
    }
  }
}

/// The A operand of one step from a half-unit's bytes (single_code_bytes). place: where the lane's
/// words are in entry 0.
template <int kByte, int kStep>
__device__ __forceinline__ void look_up_step(const char* tables, std::uint32_t place,
                                             const std::uint32_t (&top)[8],
                                             const std::uint32_t (&low)[8], std::uint32_t (&a)[4]) {
  const auto at = [&](std::uint32_t bytes) {
    const std::uint32_t offset = __byte_perm(bytes, place, 0x7604 | kByte << 4);
    return *reinterpret_cast<const std::uint32_t*>(tables + offset);
  };
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int word = 4 * kStep + 2 * i;
    a[2 * i] = __byte_perm(at(top[word]), at(top[word + 1]), 0x5410);
    a[2 * i + 1] = __byte_perm(at(low[word]), at(low[word + 1]), 0x7632);
  }
}

/// What a lane reads of its warp's tile.
struct LanePlanes {
  const std::uint8_t* first;  ///< the lane's part of the tile's first record; or null
  std::int64_t stride;

  __device__ __forceinline__ explicit LanePlanes(const Tile& tile)
      : first(tile.rows > 0 ? tile.planes + threadIdx.x % 32 * kLaneBytes : nullptr),
        stride(tile.plane_stride) {}

  /// Words of rows g and g + 8 in a half-unit.
  template <int kBits>
  __device__ __forceinline__ void load(int half, uint2 (&words)[kBits]) const {
    if (first == nullptr) return;
    const std::uint8_t* from =
        first + static_cast<std::int64_t>(half / 2) * kRecordBytes + half % 2 * (kLaneBytes / 2);
#pragma unroll
    for (int p = 0; p < kBits; ++p) {
      words[p] = __ldg(reinterpret_cast<const uint2*>(from));
      from += stride;
    }
  }
};

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

/// Has x copied to a group's ring, in the order in which the group multiplies: half-units group,
/// group + kGroups, ... of the block's part of each run. By one thread.
template <class Shape>
__device__ __forceinline__ void copy_quarters(const TableWgmmaArgs& args, int group,
                                              std::uint32_t barriers, std::uint32_t ring) {
  const Share share(args);
  int slot = 0, phase = 1;
  for (int run = share.first_run; run < args.runs; run += share.step) {
    for (int half = share.begin + group; half < share.end; half += Shape::kGroups) {
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const std::uint32_t full = barriers + 16 * slot;
        ptx::barrier_wait(full + 8, phase);
        ptx::barrier_arrive_and_expect(full, Shape::kQuarterBytes);
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
  constexpr int kBits = Shape::kBits, kRows = Shape::kRows, kSlots = Shape::kSlots;
  constexpr int kSumCount = kRows / 2;
  const int index = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  Tile* const tiles = reinterpret_cast<Tile*>(shared + Shape::kTiles);
  float* const sums = reinterpret_cast<float*>(shared + Shape::kSums);
  float* const scales = reinterpret_cast<float*>(shared + Shape::kScales);
  const std::uint32_t place = index / 2 * Shape::kPairStride + index % 2 * 128 + 4 * lane;
  const std::uint32_t meeting = ptx::shared_address(shared + Shape::kMeeting);
  const Share share(args);
  const int first = share.begin + group;
  int slot = 0, phase = 0, turn_phase = 0;

  describe_run(args, share.first_run, tiles);
  meet<Shape::kThreads>();
  uint2 next[kBits] = {};
  if (first < share.end) LanePlanes(tiles[index]).load<kBits>(first, next);
  Tile* now = tiles;
  Tile* later = tiles + kBlockTiles;
#pragma unroll 1
  for (int run = share.first_run; run < args.runs; run += share.step) {
    const bool is_first = run == share.first_run, is_last = run + share.step >= args.runs;

    build_tables<Shape>(args.table.form, now, shared);
    if (!is_last) describe_run(args, run + share.step, later);
    if (is_first) {
      ptx::wait_for_predecessors();
      if (threadIdx.x < kRows) scales[threadIdx.x] = args.x_scales[threadIdx.x];
    }
    meet<Shape::kThreads>();
    if (!is_last) {  // from memory to the L2 cache
      const Tile& tile = later[index];
      const int from = (group * 32 + lane) * ptx::kLineBytes;
      constexpr int kStep = Shape::kGroups * 32 * ptx::kLineBytes;
      const int lut_bytes = tile.rows * lut_row_bytes(args.table.form);
      const int alpha_bytes = tile.rows * alpha_row_bytes(args.table.form);
      for (int i = from; i < lut_bytes; i += kStep) ptx::prefetch_line(tile.lut + i);
      for (int i = from; i < alpha_bytes; i += kStep) ptx::prefetch_line(tile.alpha + i);
    }
    const LanePlanes planes(now[index]);

    float acc[kSumCount];
#pragma unroll
    for (int i = 0; i < kSumCount; ++i) acc[i] = 0.0f;
    std::uint32_t a[2][4][4];
    std::uint32_t used = 0;  // the barrier of the slot that is being multiplied by
#pragma unroll 1
    for (int half = first; half < share.end; half += Shape::kGroups) {
      std::uint32_t top_bytes[8], low_bytes[8];
      {
        std::uint32_t top[kBits], low[kBits];
#pragma unroll
        for (int p = 0; p < kBits; ++p) {
          top[p] = next[p].x;
          low[p] = next[p].y;
        }
        if (half + Shape::kGroups < share.end) planes.load<kBits>(half + Shape::kGroups, next);
        const int valid = args.table.columns - half * kHalfColumns;
        if (valid < kHalfColumns) fill_tail<kBits>(top, low, valid);
        single_code_bytes<kBits>(top, top_bytes);
        single_code_bytes<kBits>(low, low_bytes);
      }
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        auto& quarter = a[q];
        if (q == 0) {
          look_up_step<0, 0>(shared, place, top_bytes, low_bytes, quarter[0]);
          look_up_step<0, 1>(shared, place, top_bytes, low_bytes, quarter[1]);
          look_up_step<1, 0>(shared, place, top_bytes, low_bytes, quarter[2]);
          look_up_step<1, 1>(shared, place, top_bytes, low_bytes, quarter[3]);
        } else {
          look_up_step<2, 0>(shared, place, top_bytes, low_bytes, quarter[0]);
          look_up_step<2, 1>(shared, place, top_bytes, low_bytes, quarter[1]);
          look_up_step<3, 0>(shared, place, top_bytes, low_bytes, quarter[2]);
          look_up_step<3, 1>(shared, place, top_bytes, low_bytes, quarter[3]);
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

    // The groups' sums, from the last to the first.
    float* const my_sums = sums + index * kTileRows + g;
    const auto each_sum = [&](auto use) {
#pragma unroll
      for (int i = 0; i < kSumCount; ++i) {
        const int m = i / 4 * 8 + 2 * t + i % 2;
        use(my_sums[m * Shape::kSumStride + i % 4 / 2 * 8], acc[i]);
      }
    };
#pragma unroll
    for (int turn = Shape::kGroups - 1; turn >= 0; --turn) {
      if (group == turn) {
        if (turn == Shape::kGroups - 1) {
          each_sum([](float& sum, float value) { sum = value; });
        } else {
          each_sum([](float& sum, float value) { sum += value; });
        }
      }
      meet<Shape::kThreads>();
    }

    if (!is_last && first < share.end) LanePlanes(later[index]).load<kBits>(first, next);
    write_run<Shape>(args, now, scales, sums, meeting, turn_phase);
    turn_phase ^= 1;
    Tile* const done = now;
    now = later;
    later = done;
    meet<Shape::kThreads>();
  }
}

#endif

template <class Shape>
__global__ void __launch_bounds__(Shape::kAllThreads, 1)
    table_wgmma(const __grid_constant__ TableWgmmaArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char shared[];
  ptx::launch_dependents();
  if (threadIdx.x == 0) {
    const std::uint32_t barriers = ptx::shared_address(shared + Shape::kBarriers);
    for (int i = 0; i < Shape::kGroups * Shape::kSlots; ++i) {
      ptx::barrier_init(barriers + 16 * i, 1);      // full
      ptx::barrier_init(barriers + 16 * i + 8, 4);  // empty: the warps of the group
    }
    const std::uint32_t meeting = ptx::shared_address(shared + Shape::kMeeting);
    ptx::barrier_init(meeting, args.cluster);
    ptx::barrier_init(meeting + 8, args.cluster);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (args.cluster > 1) {
    ptx::meet_all_of_cluster();
  } else {
    __syncthreads();
  }
  const bool copies = threadIdx.x >= Shape::kThreads;
  const int warp = threadIdx.x / 32;
  const int group = copies ? warp % 4 : warp / 4;
  const std::uint32_t barriers =
      ptx::shared_address(shared + Shape::kBarriers) + group * Shape::kSlots * 16;
  const std::uint32_t ring =
      ptx::shared_address(shared + Shape::kRing) + group * Shape::kSlots * Shape::kQuarterBytes;
  if (copies) {
    ptx::fewer_registers<Shape::kCopyRegisters>();
    if (threadIdx.x % 32 == 0 && group < Shape::kGroups) {
      ptx::wait_for_predecessors();
      copy_quarters<Shape>(args, group, barriers, ring);
    }
  } else {
    ptx::more_registers<Shape::kRegisters>();
    multiply_share<Shape>(args, shared, group, barriers, ring);
  }
#endif
}

template <class Shape>
TableWgmmaKernel describe_table_wgmma() {
  return {table_wgmma<Shape>, Shape::kAllThreads, Shape::kGroups, Shape::kRows,
          Shape::kSharedBytes};
}

template <int kBits>
TableWgmmaKernel table_wgmma_kernel(std::int64_t rows) {
  if (rows <= 16) return describe_table_wgmma<TableWgmmaShape<kBits, 16, 3>>();
  if (rows <= 32) return describe_table_wgmma<TableWgmmaShape<kBits, 32, 3>>();
  if (rows <= 64) return describe_table_wgmma<TableWgmmaShape<kBits, 64, 3>>();
  return describe_table_wgmma<TableWgmmaShape<kBits, 128, 2>>();
}

}  // namespace anyprec::cuda
