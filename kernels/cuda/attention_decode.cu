#include <algorithm>
#include <cmath>
#include <string>

#include "anyprec/error.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_parts.cuh"
#include "kernels/cuda/planes_out.cuh"
#include "kernels/cuda/vectors.cuh"

/// How many parts keys are divided into, and their sum.
namespace anyprec::cuda {
namespace {

constexpr int kMaxParts = 64;
/// Positions in the cache up to which eight parts for each head keep enough of the GPU busy.
constexpr std::int64_t kClusterRoom = 16384;

std::int64_t room_of(const decoder::Attention& attention) {
  return static_cast<std::int64_t>(attention.max_blocks) * attention.cache.block_size;
}

int part_count(const decoder::Attention& attention) {
  const std::int64_t room = room_of(attention);
  if (!is_decoding(attention)) return 1;
  // About two blocks a multiprocessor of a large GPU for a single sequence.
  const int most = std::clamp(256 / attention.cache.heads, 8, kMaxParts);
  return static_cast<int>(std::clamp<std::int64_t>((room + kPartKeys - 1) / kPartKeys, 1, most));
}

constexpr int kAddThreads = 128;

/// Adds up the parts of one head of a row: element `d` of the result.
__device__ __forceinline__ float add_parts(const Parts& parts, std::int64_t head, int count,
                                           int head_size, int d) {
  const float2* const totals = parts.totals + head * parts.count;
  const float* const sums = parts.sums + head * parts.count * head_size + d;
  float most = -INFINITY;
  for (int p = 0; p < count; ++p) most = fmaxf(most, totals[p].x);
  float total = 0.0f, sum = 0.0f;
#pragma unroll 4
  for (int p = 0; p < count; ++p) {
    const float factor = exp2f(totals[p].x - most);
    total = fmaf(totals[p].y, factor, total);
    sum = fmaf(sums[static_cast<std::int64_t>(p) * head_size], factor, sum);
  }
  return total > 0.0f ? sum / total : 0.0f;
}

__device__ __forceinline__ int parts_of(const decoder::Attention& attention, const Parts& parts,
                                        std::int64_t row) {
  const KeyRange keys(attention, row);
  const int count = keys.end - keys.begin;
  const int each = part_keys(count, parts.count);
  return (count + each - 1) / each;
}

template <ScalarType kType>
__global__ void __launch_bounds__(kAddThreads)
    add_parts_kernel(const decoder::Attention attention, const Parts parts) {
  ptx::launch_dependents();
  ptx::wait_for_predecessors();
  const int size = attention.cache.head_size;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kAddThreads + threadIdx.x;
  const std::int64_t head = index / size;  // of all rows
  const std::int64_t row = head / attention.query_heads;
  if (row >= attention.rows) return;
  const int count = parts_of(attention, parts, row);
  store_scalar(attention.y, kType, index,
               add_parts(parts, head, count, size, static_cast<int>(index % size)));
}

constexpr int kPlanesThreads = 1024;

/// One block a row.
template <ScalarType kType>
__global__ void __launch_bounds__(kPlanesThreads)
    add_parts_planes_kernel(const decoder::Attention attention, const Parts parts,
                            const PlanesOut out) {
  extern __shared__ __align__(16) char shared_row[];
  __shared__ std::uint32_t scratch[2 * kPlanesThreads / 32];
  ptx::launch_dependents();
  ptx::wait_for_predecessors();
  const int size = attention.cache.head_size;
  const int columns = attention.query_heads * size;
  const std::int64_t row = blockIdx.x;
  const int count = parts_of(attention, parts, row);
  for (int i = threadIdx.x; i < columns; i += kPlanesThreads) {
    const float value =
        add_parts(parts, row * attention.query_heads + i / size, count, size, i % size);
    store_scalar(attention.y, kType, row * columns + i, value);
    store_scalar(shared_row, kType, i, value);
  }
  __syncthreads();
  put_planes<kPlanesThreads>(out, row, shared_row, kType, columns, scratch);
}

constexpr int kCluster = 8;
constexpr int kClusterThreads = 256;

/// A cluster of blocks a row, each with a part of its units of planes.
template <ScalarType kType>
__global__ void __launch_bounds__(kClusterThreads)
    add_parts_cluster_kernel(const decoder::Attention attention, const Parts parts,
                             const PlanesOut out) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) char share[];
  __shared__ ClusterPlanes<kClusterThreads, kCluster> shared;
  ptx::launch_dependents();
  ptx::arrive_at_cluster();
  ptx::wait_for_predecessors();
  const int size = attention.cache.head_size;
  const int columns = attention.query_heads * size;
  const int rank = static_cast<int>(blockIdx.x) % kCluster;
  const std::int64_t row = blockIdx.x / kCluster;
  const int all_units = static_cast<int>(unit_count(columns));
  const int first_unit = all_units * rank / kCluster;
  const int units = all_units * (rank + 1) / kCluster - first_unit;
  const int first = first_unit * kUnitColumns;
  const int count = min(columns - first, units * kUnitColumns);
  const int part_count = parts_of(attention, parts, row);
  for (int i = threadIdx.x; i < count; i += kClusterThreads) {
    const int column = first + i;
    const float value = add_parts(parts, row * attention.query_heads + column / size, part_count,
                                  size, column % size);
    store_scalar(attention.y, kType, row * columns + column, value);
    store_scalar(share, kType, i, value);
  }
  __syncthreads();
  put_cluster_planes<kClusterThreads, kCluster>(out, row, columns, share, kType, count, first_unit,
                                                units, rank, shared);
#endif
}

std::int64_t head_parts(const decoder::Attention& attention) {
  return attention.rows * attention.query_heads * part_count(attention);
}

}  // namespace

std::size_t attention_decode_bytes(const decoder::Attention& attention) {
  return static_cast<std::size_t>(head_parts(attention) * (attention.cache.head_size + 2)) *
         sizeof(float);
}

cudaError_t attention_decode(const decoder::Attention& attention, const PlanesOut& planes,
                             void* workspace, const Device& device, cudaStream_t stream) {
  float* const sums = static_cast<float*>(workspace);
  const Parts parts{
      sums, reinterpret_cast<float2*>(sums + head_parts(attention) * attention.cache.head_size),
      part_count(attention)};
  // A grid has at most 65535 rows.
  if (attention.rows > 65535) {
    throw InvalidArgument("attention: " + std::to_string(attention.rows) +
                          " rows of this type at once, wanted at most 65535");
  }
  return with_type(attention.type, [&](auto type) {
    constexpr ScalarType kType = type();
    // Clusters came with compute capability 9.0. Planes need a whole row in one block.
    if (device.major == 9 && planes.planes == nullptr && is_decoding(attention) &&
        room_of(attention) <= kClusterRoom) {
      return decode_parts<kType>(attention, nullptr, device, stream);
    }
    const cudaError_t status = decode_parts<kType>(attention, &parts, device, stream);
    if (status != cudaSuccess) return status;
    const std::int64_t columns =
        static_cast<std::int64_t>(attention.query_heads) * attention.cache.head_size;
    if (planes.planes == nullptr) {
      const std::int64_t blocks = (attention.rows * columns + kAddThreads - 1) / kAddThreads;
      return launch(add_parts_kernel<kType>, device, dim3(static_cast<unsigned>(blocks)),
                    kAddThreads, 0, stream, attention, parts);
    }
    if (device.major == 9) {
      const std::int64_t units = (unit_count(columns) + kCluster - 1) / kCluster;
      return launch_clusters(add_parts_cluster_kernel<kType>, device,
                             dim3(static_cast<unsigned>(attention.rows * kCluster)), kCluster,
                             kClusterThreads,
                             static_cast<int>(units * kUnitColumns * scalar_bytes(kType)), stream,
                             attention, parts, planes);
    }
    return launch(add_parts_planes_kernel<kType>, device,
                  dim3(static_cast<unsigned>(attention.rows)), kPlanesThreads,
                  static_cast<int>(columns * scalar_bytes(kType)), stream, attention, parts,
                  planes);
  });
}

}  // namespace anyprec::cuda
