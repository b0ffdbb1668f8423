#pragma once

#include <cstdint>
#include <string>

#include "anyprec/error.h"
#include "kernels/cuda/activation_planes.cuh"
#include "kernels/cuda/decoder.h"
#include "kernels/cuda/device.h"

/// How a kernel that has a whole row of its result in a block leaves the row's bit planes.
namespace anyprec::cuda {

/// Shared memory for a whole row of a result whose planes are wanted. Throws InvalidArgument where
/// a block cannot have as much beside `kStatic` of its own.
inline int row_memory(const char* what, std::int64_t row_bytes, const Device& device) {
  constexpr int kStatic = 1024;
  const int most = device.block_shared_bytes - kStatic;
  if (row_bytes > most) {
    throw InvalidArgument(std::string(what) + ": planes of rows of " + std::to_string(row_bytes) +
                          " bytes, wanted at most " + std::to_string(most));
  }
  return static_cast<int>(row_bytes);
}

/// row: `columns` elements in shared memory, 16-byte aligned and visible to the block. Every thread
/// calls it.
template <int kThreads>
__device__ __forceinline__ void put_planes(const PlanesOut& out, std::int64_t row_index,
                                           const void* row, ScalarType type, std::int64_t columns,
                                           std::uint32_t (&scratch)[2 * kThreads / 32]) {
  std::uint8_t* const planes =
      static_cast<std::uint8_t*>(out.planes) + row_index * unit_count(columns) * kUnitPlaneBytes;
  const PlaneScale scale = activations_to_planes<kThreads>(row, type, columns, planes, scratch);
  if (threadIdx.x == 0) {
    out.scales[2 * row_index] = scale.step;
    out.scales[2 * row_index + 1] = scale.sum;
  }
}

#if __CUDA_ARCH__ >= 900

/// What the blocks of a cluster tell each other when each has a part of a row: each writes what the
/// others want to know into their memory.
template <int kThreads, int kCluster>
struct ClusterPlanes {
  std::uint32_t scratch[2 * kThreads / 32];
  float largest[kCluster];  ///< bits of largest magnitudes
  float sums[kCluster][2];  ///< the sums of integers (ptx::stored); in the first block
};

/// share: this block's `count` elements of the row, those from unit `first_unit` on, in shared
/// memory, 16-byte aligned and visible to the block; `units` of them, perhaps none. rank: the
/// block's in the cluster. Every thread of the cluster calls it, having arrived at the cluster
/// (ptx::arrive_at_cluster) when its block began.
template <int kThreads, int kCluster>
__device__ __forceinline__ void put_cluster_planes(const PlanesOut& out, std::int64_t row_index,
                                                   std::int64_t columns, const void* share,
                                                   ScalarType type, std::int64_t count,
                                                   int first_unit, int units, int rank,
                                                   ClusterPlanes<kThreads, kCluster>& shared) {
  constexpr int kWarps = kThreads / 32;
  const int thread = static_cast<int>(threadIdx.x);
  const int chunks = units * (kUnitColumns / kChunkColumns);
  std::uint32_t largest = 0;
  for (int chunk = thread; chunk < chunks; chunk += kThreads) {
    float v[kChunkColumns];
    load_chunk(share, type, static_cast<std::int64_t>(chunk) * kChunkColumns, count, v);
    largest = max(largest, largest_bits(v));
  }
  largest = __reduce_max_sync(~0u, largest);
  if (thread % 32 == 0) shared.scratch[thread / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) largest = max(largest, shared.scratch[w]);
  ptx::wait_for_cluster();  // all have begun
  if (thread < kCluster) {
    ptx::store_remote(ptx::shared_address(&shared.largest[rank]), thread, __uint_as_float(largest));
  }
  ptx::meet_all_of_cluster();
#pragma unroll
  for (int p = 0; p < kCluster; ++p) largest = max(largest, __float_as_uint(shared.largest[p]));

  const RowScale scale(largest);
  std::uint8_t* const planes = static_cast<std::uint8_t*>(out.planes) +
                               (row_index * unit_count(columns) + first_unit) * kUnitPlaneBytes;
  ChunkSums sums;
  for (int chunk = thread; chunk < chunks; chunk += kThreads) {
    float v[kChunkColumns];
    load_chunk(share, type, static_cast<std::int64_t>(chunk) * kChunkColumns, count, v);
    sums.add(write_chunk_planes(v, scale.to_integer, chunk, planes));
  }
  sums.put(shared.scratch, kWarps);
  __syncthreads();
  if (thread == 0) {
    ptx::store_remote(ptx::shared_address(shared.sums[rank]), 0,
                      static_cast<std::uint64_t>(ChunkSums::total(shared.scratch, kWarps)));
  }
  __syncwarp();
  ptx::meet_all_of_cluster();
  if (rank == 0 && thread == 0) {
    std::int64_t total = 0;
#pragma unroll
    for (int p = 0; p < kCluster; ++p) {
      total += static_cast<std::int64_t>(ptx::stored(shared.sums[p]));
    }
    out.scales[2 * row_index] = scale.to_value;
    out.scales[2 * row_index + 1] = value_of(total, scale.to_value);
  }
}

#endif

}  // namespace anyprec::cuda
