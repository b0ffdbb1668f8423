#include <cmath>
#include <cstdint>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/copy_groups.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tile_mma.cuh"
#include "kernels/cuda/vectors.cuh"

/// Attention of many rows (FlashAttention-2, https://arxiv.org/abs/2307.08691): a block has 64 rows
/// of one sequence and one head, a warp 16 of them. Tiles of keys and values come through two
/// stages of shared memory; scores and sums stay in registers.
namespace anyprec::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;

template <int kHeadSize>
struct Shape {
  static constexpr int kKeys = kHeadSize <= 128 ? 64 : 32;
  static constexpr int kChunks = kHeadSize / 8;  // of 16 bytes, in a row
  // 16 bytes more than a row, so that eight rows of a matrix lie in different banks.
  static constexpr int kStride = kHeadSize * 2 + 16;
  static constexpr int kTileBytes = kKeys * kStride;
  static constexpr int kStages = kRows * kStride;  // where they begin: queries come first
  static constexpr int kBytes = kStages + 2 * 2 * kTileBytes;
};

/// Up to kRows rows of a sequence.
struct QueryTile {
  int sequence;  ///< -1: none
  int first;     ///< row
  int rows;
  int position;  ///< of the first row
};

/// Tiles are counted from the first sequence on; what is left of M are rows of no sequence. Called
/// by whole warps.
__device__ __forceinline__ QueryTile tile_of(const decoder::Attention& attention, int tile) {
  const int lane = threadIdx.x % 32;
  for (int base = 0; base < attention.sequences; base += 32) {
    const int sequence = base + lane;
    int start = 0, count = 0, length = 0;
    if (sequence < attention.sequences) {
      start = attention.sequence_start[sequence];
      count = attention.sequence_start[sequence + 1] - start;
      length = attention.lengths[sequence];
    }
    const int tiles = (count + kRows - 1) / kRows;
    int until = tiles;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, until, step);
      if (lane >= step) until += other;
    }
    const unsigned later = __ballot_sync(~0u, until > tile);
    if (later != 0) {
      const int source = __ffs(static_cast<int>(later)) - 1;
      const int skipped = (tile - __shfl_sync(~0u, until - tiles, source)) * kRows;
      start = __shfl_sync(~0u, start, source);
      count = __shfl_sync(~0u, count, source);
      length = __shfl_sync(~0u, length, source);
      return {base + source, start + skipped, min(kRows, count - skipped),
              length - count + skipped};
    }
    tile -= __shfl_sync(~0u, until, 31);
  }
  const int first = attention.sequence_start[attention.sequences] + tile * kRows;
  return {-1, first, min(kRows, static_cast<int>(attention.rows) - first), 0};
}

/// Keys and values of positions [first, first + kKeys) into a stage; zeros from `end` on.
template <int kHeadSize>
__device__ __forceinline__ void copy_keys(const decoder::Attention& attention, int sequence,
                                          int kv_head, int first, int end, char* stage) {
  using S = Shape<kHeadSize>;
  for (int i = threadIdx.x; i < S::kKeys * S::kChunks; i += kThreads) {
    const int key = i / S::kChunks;
    const int chunk = i % S::kChunks;
    char* const to = stage + key * S::kStride + chunk * 16;
    if (first + key < end) {
      const std::int64_t at =
          cache_offset(attention, sequence, first + key, kv_head) * 2 + chunk * 16;
      ptx::copy_16(ptx::shared_address(to), static_cast<const char*>(attention.key_cache) + at);
      ptx::copy_16(ptx::shared_address(to + S::kTileBytes),
                   static_cast<const char*>(attention.value_cache) + at);
    } else {
      *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4*>(to + S::kTileBytes) = make_uint4(0, 0, 0, 0);
    }
  }
  ptx::commit_copies();
}

template <ScalarType kType, int kHeadSize>
__global__ void __launch_bounds__(kThreads) prefill_kernel(const decoder::Attention attention) {
  using S = Shape<kHeadSize>;
  constexpr int kSteps = kHeadSize / 16;
  extern __shared__ __align__(16) char shared[];
  ptx::launch_dependents();
  ptx::wait_for_predecessors();

  const int head = static_cast<int>(blockIdx.y);
  const QueryTile tile = tile_of(attention, static_cast<int>(blockIdx.x));
  if (tile.rows <= 0) return;
  const auto row_at = [&](int row) {  // its first element
    return (static_cast<std::int64_t>(tile.first + row) * attention.query_heads + head) * kHeadSize;
  };
  char* const y = static_cast<char*>(attention.y);
  if (tile.sequence < 0) {
    for (int i = threadIdx.x; i < tile.rows * S::kChunks; i += kThreads) {
      *reinterpret_cast<uint4*>(y + row_at(i / S::kChunks) * 2 + i % S::kChunks * 16) =
          make_uint4(0, 0, 0, 0);
    }
    return;
  }
  const int kv_head = head / (attention.query_heads / attention.cache.heads);
  const int end = tile.position + tile.rows;
  int base = 0;
  if (attention.window > 0) base = max(0, tile.position - attention.window + 1);
  base = base / S::kKeys * S::kKeys;

  const auto stage = [&](int index) { return shared + S::kStages + index * 2 * S::kTileBytes; };
  copy_keys<kHeadSize>(attention, tile.sequence, kv_head, base, end, stage(0));
  for (int i = threadIdx.x; i < kRows * S::kChunks; i += kThreads) {
    const int row = i / S::kChunks;
    uint4 chunk = make_uint4(0, 0, 0, 0);
    if (row < tile.rows) {
      chunk = *reinterpret_cast<const uint4*>(static_cast<const char*>(attention.q) +
                                              row_at(row) * 2 + i % S::kChunks * 16);
    }
    *reinterpret_cast<uint4*>(shared + row * S::kStride + i % S::kChunks * 16) = chunk;
  }
  __syncthreads();

  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  // Where a lane's row of a matrix is: queries and values go down rows first, keys along columns.
  const std::uint32_t by_rows = lane % 16 * S::kStride + lane / 16 * 16;
  const std::uint32_t by_columns = (lane / 16 * 8 + lane % 8) * S::kStride + lane / 8 % 2 * 16;
  const std::uint32_t queries = ptx::shared_address(shared) + warp * 16 * S::kStride + by_rows;
  // Queries of long heads would take too many registers.
  constexpr bool kHeld = kHeadSize <= 128;
  std::uint32_t q[kHeld ? kSteps : 1][4];
  if constexpr (kHeld) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) load_matrices(q[k], queries + k * 32);
  }

  float sums[kHeadSize / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {};
  const int positions[2] = {tile.position + warp * 16 + g, tile.position + warp * 16 + g + 8};
  int index = 0;
#pragma unroll 1
  for (; base < end; base += S::kKeys) {
    if (base + S::kKeys < end) {
      copy_keys<kHeadSize>(attention, tile.sequence, kv_head, base + S::kKeys, end,
                           stage(index ^ 1));
      ptx::wait_for_copies<1>();
    } else {
      ptx::wait_for_copies<0>();
    }
    __syncthreads();
    const std::uint32_t keys = ptx::shared_address(stage(index)) + by_columns;
    const std::uint32_t values = ptx::shared_address(stage(index)) + S::kTileBytes + by_rows;

    float scores[S::kKeys / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if constexpr (!kHeld) load_matrices(q[0], queries + k * 32);
#pragma unroll
      for (int n = 0; n < S::kKeys / 16; ++n) {
        std::uint32_t b[4];
        load_matrices(b, keys + n * 16 * S::kStride + k * 32);
        tile_mma<kType>(scores[2 * n], q[kHeld ? k : 0], b[0], b[1]);
        tile_mma<kType>(scores[2 * n + 1], q[kHeld ? k : 0], b[2], b[3]);
      }
    }

    const bool hides =
        base + S::kKeys - 1 > tile.position ||
        (attention.window > 0 && base <= tile.position + kRows - 1 - attention.window);
    float most[2] = {largest[0], largest[1]};
#pragma unroll
    for (int n = 0; n < S::kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float score = scored(attention, scores[n][i]);
        if (hides) {
          const int key = base + n * 8 + 2 * t + i % 2;
          const int position = positions[i / 2];
          const bool seen =
              key <= position && (attention.window == 0 || key > position - attention.window);
          score = seen ? score : -INFINITY;
        }
        scores[n][i] = score;
        most[i / 2] = fmaxf(most[i / 2], score);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(~0u, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(~0u, most[r], 2));
      // A row may have seen no key yet.
      const float reference = most[r] == -INFINITY ? 0.0f : most[r];
      const float correction = exp2f(largest[r] - reference);
      largest[r] = most[r];
      most[r] = reference;
      total[r] *= correction;
#pragma unroll
      for (int n = 0; n < kHeadSize / 8; ++n) {
        sums[n][2 * r] *= correction;
        sums[n][2 * r + 1] *= correction;
      }
    }
#pragma unroll
    for (int k = 0; k < S::kKeys / 16; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& score = scores[2 * k + half][i];
          score = exp2f(score - most[i / 2]);
          total[i / 2] += score;
        }
      }
      const std::uint32_t p[4] = {pack<kType>(scores[2 * k][0], scores[2 * k][1]),
                                  pack<kType>(scores[2 * k][2], scores[2 * k][3]),
                                  pack<kType>(scores[2 * k + 1][0], scores[2 * k + 1][1]),
                                  pack<kType>(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kHeadSize / 16; ++n) {
        std::uint32_t b[4];
        load_transposed(b, values + k * 16 * S::kStride + n * 32);
        tile_mma<kType>(sums[2 * n], p, b[0], b[1]);
        tile_mma<kType>(sums[2 * n + 1], p, b[2], b[3]);
      }
    }
    __syncthreads();
    index ^= 1;
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] += __shfl_xor_sync(~0u, total[r], 1);
    total[r] += __shfl_xor_sync(~0u, total[r], 2);
    const int row = warp * 16 + g + 8 * r;
    if (row >= tile.rows) continue;
    const float inverse = total[r] > 0.0f ? 1.0f / total[r] : 0.0f;
#pragma unroll
    for (int n = 0; n < kHeadSize / 8; ++n) {
      *reinterpret_cast<std::uint32_t*>(y + (row_at(row) + n * 8 + 2 * t) * 2) =
          pack<kType>(sums[n][2 * r] * inverse, sums[n][2 * r + 1] * inverse);
    }
  }
}

template <ScalarType kType, int kHeadSize>
cudaError_t prefill(const decoder::Attention& attention, const Device& device,
                    cudaStream_t stream) {
  // Each sequence may have a tile that is not full, and so may the rows of none.
  const std::int64_t tiles = (attention.rows + kRows - 1) / kRows + attention.sequences + 1;
  return launch(prefill_kernel<kType, kHeadSize>, device,
                dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(attention.query_heads)),
                kThreads, Shape<kHeadSize>::kBytes, stream, attention);
}

template <ScalarType kType>
cudaError_t prefill(const decoder::Attention& attention, const Device& device,
                    cudaStream_t stream) {
  switch (attention.cache.head_size) {
    case 64:
      return prefill<kType, 64>(attention, device, stream);
    case 96:
      return prefill<kType, 96>(attention, device, stream);
    case 128:
      return prefill<kType, 128>(attention, device, stream);
    default:
      return prefill<kType, 256>(attention, device, stream);
  }
}

}  // namespace

cudaError_t attention_prefill(const decoder::Attention& attention, const Device& device,
                              cudaStream_t stream) {
  return attention.type == ScalarType::kBFloat16
             ? prefill<ScalarType::kBFloat16>(attention, device, stream)
             : prefill<ScalarType::kFloat16>(attention, device, stream);
}

}  // namespace anyprec::cuda
