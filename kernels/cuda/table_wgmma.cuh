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
/// A block multiplies by a run of 64 rows of W at a time, a tile of 16 to a warp. Two groups of
/// four warps take its units of K in turn; one more warp has x copied to a ring in shared memory, a
/// quarter of a unit at a time. While the tensor cores multiply a quarter, the warps look up the
/// next. Blocks share the work (runs times units) evenly: parts of a run meet in global memory and
/// are added, in the order of K, by the block that comes last.
namespace anyprec::cuda {

/// kRows: of x, at most.
template <int kBits_, int kRows_>
struct TableWgmmaShape {
  static constexpr int kBits = kBits_;
  static constexpr int kRows = kRows_;
  static constexpr int kGroups = 2;
  static constexpr int kWarps = 4 * kGroups;
  static constexpr int kThreads = 32 * kWarps;

  // Tables: two tiles side by side in the 256 bytes of an entry, a word a lane: row g's value in
  // the low half, row g + 8's in the high half.
  static constexpr int kPairBytes = 256 << kBits;
  // Sums, [row of x][row of W]: 68 words a row of x, so that no two lanes meet in a bank.
  static constexpr int kSumStride = kBlockRows + 4;
  static constexpr int kQuarterBytes = kRows * kTileRowBytes;

  // Where things lie in shared memory, in bytes; the tables at 0.
  static constexpr int kSums = kBlockTiles / 2 * kPairBytes;
  static constexpr int kTiles = kSums + kRows * kSumStride * 4;
  static constexpr int kLast = kTiles + kBlockTiles * static_cast<int>(sizeof(Tile));
  static constexpr int kBarriers = (kLast + 8 + 15) / 16 * 16;
  static constexpr int kMostSlots = 8;  ///< of a group's ring
  static constexpr int kRing = (kBarriers + kGroups * kMostSlots * 16 + 1023) / 1024 * 1024;
  static constexpr int kFitting = (227 * 1024 - kRing) / (kGroups * kQuarterBytes);
  static constexpr int kSlots = kFitting > kMostSlots ? kMostSlots : kFitting;
  static_assert(kSlots >= 2);
  static constexpr int kSharedBytes = kRing + kGroups * kSlots * kQuarterBytes;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// The part of the work that is a block's: units [begin, end) of all runs one after the other.
struct WorkShare {
  int units;  ///< of a run
  int total, blocks;
  __device__ __forceinline__ int begin(int block) const {
    return static_cast<int>(static_cast<std::int64_t>(block) * total / blocks);
  }
  __device__ __forceinline__ int block_of(int at) const {
    int block = static_cast<int>(static_cast<std::int64_t>(at) * blocks / total);
    while (begin(block + 1) <= at) ++block;
    return block;
  }
};

/// Values of codes first .. first + kGroup - 1 of a row, as fp16; zeros where there is no row.
template <int kGroup>
__device__ __forceinline__ void codebook_values(const TableForm& form, const Tile& tile, int row,
                                                int first, std::uint32_t (&values)[kGroup]) {
  if (row >= tile.rows) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) values[i] = 0;
    return;
  }
  const CodebookRow codebook{
      reinterpret_cast<const __half*>(tile.lut + row * lut_row_bytes(form)),
      reinterpret_cast<const __half*>(tile.alpha + row * alpha_row_bytes(form))};
  constexpr int kDepth = bits_of(kGroup);
  if (form.signs == 0) {
    read_values(codebook.lut + first, values);
  } else if (form.signs >= kDepth) {
    codebook.expand<kDepth>(form, first, values);
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      values[i] = __half_as_ushort(__float2half_rn(codebook.value(form, first + i, 0)));
    }
  }
}

/// The tables of four tiles, by all threads: thread i has rows i % 8 and i % 8 + 8 of
/// tile i / 8 % 4, and the codes of part i / 32.
template <class Shape>
__device__ __forceinline__ void build_tables(const TableForm& form, const Tile* tiles,
                                             char* tables) {
  constexpr int kEntriesOfTile = 1 << Shape::kBits;
  constexpr int kCount = kEntriesOfTile > Shape::kWarps ? kEntriesOfTile / Shape::kWarps : 1;
  constexpr int kGroup = kCount < 8 ? kCount : 8;
  const int g = threadIdx.x % 8, index = threadIdx.x / 8 % 4, part = threadIdx.x / 32;
  const Tile& tile = tiles[index];
  char* const words = tables + index / 2 * Shape::kPairBytes + index % 2 * 128 + g * 16;
#pragma unroll 1
  for (int first = part * kCount; first < min((part + 1) * kCount, kEntriesOfTile);
       first += kGroup) {
    std::uint32_t top[kGroup], low[kGroup];
    codebook_values(form, tile, g, first, top);
    codebook_values(form, tile, g + 8, first, low);
    const int entry = reversed<Shape::kBits>(first);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const std::uint32_t word = top[i] | low[i] << 16;
      *reinterpret_cast<uint4*>(words + (entry + reversed_constant(i, Shape::kBits)) * 256) =
          make_uint4(word, word, word, word);
    }
  }
}

/// The A operand of one step from a half-unit's bytes (single_code_bytes).
template <int kByte, int kStep>
__device__ __forceinline__ void look_up_step(const char* table, std::uint32_t lane_offset,
                                             const std::uint32_t (&top)[8],
                                             const std::uint32_t (&low)[8], std::uint32_t (&a)[4]) {
  const auto at = [&](std::uint32_t bytes) {
    const std::uint32_t offset = __byte_perm(bytes, lane_offset, 0x7604 | kByte << 4);
    return *reinterpret_cast<const std::uint32_t*>(table + offset);
  };
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int word = 4 * kStep + 2 * i;
    a[2 * i] = __byte_perm(at(top[word]), at(top[word + 1]), 0x5410);
    a[2 * i + 1] = __byte_perm(at(low[word]), at(low[word + 1]), 0x7632);
  }
}

template <int kBits>
__device__ __forceinline__ void load_unit(const Tile& tile, int unit, uint4 (&words)[kBits]) {
  if (tile.rows <= 0) return;
  const std::uint8_t* from =
      tile.planes + static_cast<std::int64_t>(unit) * kRecordBytes + threadIdx.x % 32 * kLaneBytes;
#pragma unroll
  for (int p = 0; p < kBits; ++p) {
    words[p] = __ldcs(reinterpret_cast<const uint4*>(from));
    from += tile.plane_stride;
  }
}

/// The sums of a part or of a whole run, [row of x][row of W], become y.
template <class Sum>
__device__ __forceinline__ void write_run(const TableWgmmaArgs& args, const Tile* tiles, Sum sum) {
  for (int i = threadIdx.x; i < args.table.x_rows * kBlockRows; i += blockDim.x) {
    const int m = i / kBlockRows, row = i % kBlockRows;
    const Tile& tile = tiles[row / kTileRows];
    if (row % kTileRows >= tile.rows) continue;
    const std::int64_t w_row = tile.first_row + row % kTileRows;
    float value = sum(m, row) * args.x_scales[m];
    if (tile.bias != nullptr) value += load_scalar(tile.bias, args.table.type, w_row);
    store_scalar(tile.y, args.table.type, m * tile.y_stride + w_row, value);
  }
}

/// Has x copied to a group's ring, in the order in which the group multiplies: units group, group +
/// 2, ... of each part of the block's share. By one thread.
template <class Shape>
struct QuarterCopies {
  const TableWgmmaArgs& args;
  std::uint32_t barriers, ring;
  int group;
  int at, end;  ///< the part's first unit, and the end of the share
  int first_unit = 0, count = 0, unit = 0, quarter = 0, slot = 0, phase = 1;

  __device__ __forceinline__ void start_part() {
    while (at < end) {
      first_unit = at % args.table.units;
      count = min(args.table.units - first_unit, end - at);
      unit = group;
      if (unit < count) return;
      at += count;
    }
  }
  /// Waits until the slot is free.
  __device__ __forceinline__ void start_next() {
    if (at >= end) return;
    const std::uint32_t full = barriers + 16 * slot;
    ptx::barrier_wait(full + 8, phase);
    ptx::barrier_arrive_and_expect(full, Shape::kQuarterBytes);
    const std::int64_t from = std::int64_t{first_unit + unit} * 4 + quarter;
    ptx::copy_bulk(ring + slot * Shape::kQuarterBytes, args.x_tiles + from * Shape::kQuarterBytes,
                   Shape::kQuarterBytes, full);
    if (++slot == Shape::kSlots) {
      slot = 0;
      phase ^= 1;
    }
    if (++quarter < 4) return;
    quarter = 0;
    unit += 2;
    if (unit < count) return;
    at += count;
    start_part();
  }
};

#endif

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    table_wgmma(const __grid_constant__ TableWgmmaArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kBits = Shape::kBits, kRows = Shape::kRows, kSlots = Shape::kSlots;
  constexpr int kSumCount = kRows / 2;
  extern __shared__ __align__(1024) char shared[];
  ptx::launch_dependents();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int group = warp / 4, index = warp % 4;
  const std::uint32_t barriers =
      ptx::shared_address(shared + Shape::kBarriers) + group * kSlots * 16;
  const std::uint32_t ring =
      ptx::shared_address(shared + Shape::kRing) + group * kSlots * Shape::kQuarterBytes;
  const bool copies_x = index == 0 && lane == 0;
  if (copies_x) {
    for (int i = 0; i < kSlots; ++i) {
      ptx::barrier_init(barriers + 16 * i, 1);      // full
      ptx::barrier_init(barriers + 16 * i + 8, 4);  // empty: the warps of the group
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  const WorkShare work{args.table.units, args.runs * args.table.units, static_cast<int>(gridDim.x)};
  Tile* const tiles = reinterpret_cast<Tile*>(shared + Shape::kTiles);
  float* const sums = reinterpret_cast<float*>(shared + Shape::kSums);
  bool* const is_last = reinterpret_cast<bool*>(shared + Shape::kLast);
  const char* const table = shared + index / 2 * Shape::kPairBytes + index % 2 * 128;
  const std::uint32_t lane_offset = 4 * lane;
  const int begin = work.begin(blockIdx.x), end = work.begin(blockIdx.x + 1);
  QuarterCopies<Shape> copies{args, barriers, ring, group, begin, end};
  copies.start_part();
  bool waited = false;
  int slot = 0, phase = 0;
  const auto release = [&](int used) {
    if (lane == 0) ptx::barrier_arrive(barriers + 16 * used + 8);
    if (copies_x) copies.start_next();
  };

#pragma unroll 1
  for (int at = begin; at < end;) {
    const int run = at / work.units;
    const int first_unit = at % work.units;
    const int count = min(work.units - first_unit, end - at);
    at += count;

    if (threadIdx.x < kBlockTiles) {
      const int tile = run * kBlockTiles + threadIdx.x;
      tiles[threadIdx.x].rows = 0;
      if (tile < args.table.tiles) describe_tile(args.table, tile, tiles[threadIdx.x]);
    }
    __syncthreads();
    uint4 next[kBits] = {};
    if (group < count) load_unit<kBits>(tiles[index], first_unit + group, next);
    build_tables<Shape>(args.table.form, tiles, shared);
    __syncthreads();
    if (!waited) {
      ptx::wait_for_predecessors();
      waited = true;
      if (copies_x) {
        for (int i = 0; i < kSlots; ++i) copies.start_next();
      }
    }

    float acc[kSumCount];
#pragma unroll
    for (int i = 0; i < kSumCount; ++i) acc[i] = 0.0f;
    std::uint32_t a[2][4][4];
    int last_slot = -1;
#pragma unroll 1
    for (int i = 0; i < count; i += 2) {
      if (i + group < count) {
        uint4 words[kBits];
#pragma unroll
        for (int p = 0; p < kBits; ++p) words[p] = next[p];
        const int unit = first_unit + i + group;
        if (i + 2 + group < count) load_unit<kBits>(tiles[index], unit + 2, next);
        std::uint32_t top_bytes[8], low_bytes[8];
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          if (q % 2 == 0) {
            std::uint32_t top[kBits], low[kBits];
#pragma unroll
            for (int p = 0; p < kBits; ++p) {
              top[p] = q == 0 ? words[p].x : words[p].z;
              low[p] = q == 0 ? words[p].y : words[p].w;
            }
            const int valid = args.table.columns - unit * kUnitColumns - q / 2 * kHalfColumns;
            if (valid < kHalfColumns) {
              if (valid <= 0) {  // as the first half-unit's first column
#pragma unroll
                for (int p = 0; p < kBits; ++p) {
                  top[p] = words[p].x;
                  low[p] = words[p].y;
                }
              }
              fill_tail<kBits>(top, low, max(valid, 0));
            }
            single_code_bytes<kBits>(top, top_bytes);
            single_code_bytes<kBits>(low, low_bytes);
          }
          auto& quarter = a[q % 2];
          if (q % 2 == 0) {
            look_up_step<0, 0>(table, lane_offset, top_bytes, low_bytes, quarter[0]);
            look_up_step<0, 1>(table, lane_offset, top_bytes, low_bytes, quarter[1]);
            look_up_step<1, 0>(table, lane_offset, top_bytes, low_bytes, quarter[2]);
            look_up_step<1, 1>(table, lane_offset, top_bytes, low_bytes, quarter[3]);
          } else {
            look_up_step<2, 0>(table, lane_offset, top_bytes, low_bytes, quarter[0]);
            look_up_step<2, 1>(table, lane_offset, top_bytes, low_bytes, quarter[1]);
            look_up_step<3, 0>(table, lane_offset, top_bytes, low_bytes, quarter[2]);
            look_up_step<3, 1>(table, lane_offset, top_bytes, low_bytes, quarter[3]);
          }
          ptx::barrier_wait(barriers + 16 * slot, phase);
          __syncwarp();
          const std::uint64_t b = ptx::wgmma_rows(ring + slot * Shape::kQuarterBytes);
          ptx::wgmma_fence();
#pragma unroll
          for (int s = 0; s < 4; ++s) ptx::wgmma(acc, quarter[s], b + 2 * s);
          ptx::wgmma_commit();
          // The quarter before is done: its operands may be overwritten.
          ptx::wgmma_wait<1>();
          if (last_slot >= 0) release(last_slot);
          last_slot = slot;
          if (++slot == kSlots) {
            slot = 0;
            phase ^= 1;
          }
        }
      }
    }
    ptx::wgmma_wait<0>();
    if (last_slot >= 0) release(last_slot);

    // The second group's sums, then the first's added to them.
    float* const my_sums = sums + index * kTileRows + g;
    const auto each_sum = [&](auto use) {
#pragma unroll
      for (int i = 0; i < kSumCount; ++i) {
        const int m = i / 4 * 8 + 2 * t + i % 2;
        use(my_sums[m * Shape::kSumStride + i % 4 / 2 * 8], acc[i]);
      }
    };
    if (group == 1) each_sum([](float& sum, float value) { sum = value; });
    __syncthreads();
    if (group == 0) each_sum([](float& sum, float value) { sum += value; });
    __syncthreads();

    if (count == work.units) {
      write_run(args, tiles, [&](int m, int row) { return sums[m * Shape::kSumStride + row]; });
      __syncthreads();
      continue;
    }
    constexpr int kPart = kRows * kBlockRows;
    const int run_begin = run * work.units;
    const auto part_of = [&](int block) {
      return args.parts +
             (2 * std::int64_t{block} + (work.begin(block) < run_begin ? 1 : 0)) * kPart;
    };
    float* const part = part_of(blockIdx.x);
    for (int i = threadIdx.x; i < kPart; i += Shape::kThreads) {
      __stcg(part + i, sums[i / kBlockRows * Shape::kSumStride + i % kBlockRows]);
    }
    __threadfence();
    __syncthreads();
    const int first_block = work.block_of(run_begin);
    const int last_block = work.block_of(run_begin + work.units - 1);
    if (threadIdx.x == 0) {
      const std::uint32_t before = atomicAdd(args.arrivals + run, 1u);
      *is_last = before == static_cast<std::uint32_t>(last_block - first_block);
      __threadfence();
    }
    __syncthreads();
    if (*is_last) {
      write_run(args, tiles, [&](int m, int row) {
        float sum = 0.0f;
        for (int block = first_block; block <= last_block; ++block) {
          sum += __ldcg(part_of(block) + m * kBlockRows + row);
        }
        return sum;
      });
    }
    __syncthreads();
  }
#endif
}

template <class Shape>
TableWgmmaKernel describe_table_wgmma() {
  return {table_wgmma<Shape>, Shape::kThreads, Shape::kRows, Shape::kSharedBytes};
}

template <int kBits>
TableWgmmaKernel table_wgmma_kernel(std::int64_t rows) {
  if (rows <= 16) return describe_table_wgmma<TableWgmmaShape<kBits, 16>>();
  if (rows <= 32) return describe_table_wgmma<TableWgmmaShape<kBits, 32>>();
  if (rows <= 64) return describe_table_wgmma<TableWgmmaShape<kBits, 64>>();
  return describe_table_wgmma<TableWgmmaShape<kBits, 128>>();
}

}  // namespace anyprec::cuda
