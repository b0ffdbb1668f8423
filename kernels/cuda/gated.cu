#include <algorithm>

#include "kernels/cuda/decoder.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/planes_out.cuh"
#include "kernels/cuda/vectors.cuh"

namespace anyprec::cuda {
namespace {

using decoder::Activation;

/// Both are x / (1 + e^-s): (1 + tanh(u)) / 2 is the logistic function of 2 u, and does not cancel.
template <Activation kActivation>
__device__ __forceinline__ float activated(float x) {
  float s = x;
  if constexpr (kActivation == Activation::kGeluTanh) s = 1.5957691f * (x + 0.044715f * x * x * x);
  return x / (1.0f + expf(-s));
}

/// Vector [column, column + 8) of a row's result.
template <ScalarType kType, Activation kActivation>
__device__ __forceinline__ void gate_vector(const decoder::Gated& gated, std::int64_t row,
                                            std::int64_t column, bool wide, float (&v)[kVector]) {
  const char* const gate =
      static_cast<const char*>(gated.gate_up) + 2 * row * gated.columns * scalar_bytes(kType);
  float up[kVector];
  load_vector<kType>(gate, column, gated.columns, wide, v);
  load_vector<kType>(gate + gated.columns * scalar_bytes(kType), column, gated.columns, wide, up);
#pragma unroll
  for (int i = 0; i < kVector; ++i) v[i] = activated<kActivation>(v[i]) * up[i];
}

constexpr int kThreads = 128;

template <ScalarType kType, Activation kActivation>
__global__ void __launch_bounds__(kThreads)
    gated_kernel(const decoder::Gated gated, std::int64_t row_vectors, bool wide) {
  ptx::launch_dependents();
  ptx::wait_for_predecessors();
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= gated.rows * row_vectors) return;
  const std::int64_t row = index / row_vectors;
  const std::int64_t column = index % row_vectors * kVector;
  float v[kVector];
  gate_vector<kType, kActivation>(gated, row, column, wide, v);
  store_vector<kType>(static_cast<char*>(gated.y) + row * gated.columns * scalar_bytes(kType),
                      column, gated.columns, wide, v);
}

constexpr int kPlanesThreads = 1024;

/// One block a row.
template <ScalarType kType, Activation kActivation>
__global__ void __launch_bounds__(kPlanesThreads)
    gated_planes_kernel(const decoder::Gated gated, bool wide, const PlanesOut out) {
  extern __shared__ __align__(16) char shared_row[];
  __shared__ std::uint32_t scratch[2 * kPlanesThreads / 32];
  ptx::launch_dependents();
  ptx::wait_for_predecessors();
  const std::int64_t row = blockIdx.x;
  char* const y = static_cast<char*>(gated.y) + row * gated.columns * scalar_bytes(kType);
#pragma unroll 2
  for (std::int64_t column = static_cast<std::int64_t>(threadIdx.x) * kVector;
       column < gated.columns; column += kPlanesThreads * kVector) {
    float v[kVector];
    gate_vector<kType, kActivation>(gated, row, column, wide, v);
    store_vector<kType>(y, column, gated.columns, wide, v);
    store_vector<kType>(shared_row, column, gated.columns, wide, v);
  }
  __syncthreads();
  put_planes<kPlanesThreads>(out, row, shared_row, kType, gated.columns, scratch);
}

constexpr int kCluster = 8;
/// Of a block, so that the next launch's blocks find room beside it.
constexpr std::int64_t kMostSharedBytes = 64 * 1024;
constexpr int kClusterThreads = 256;

/// A cluster of blocks a row, each with a part of its units.
template <ScalarType kType, Activation kActivation>
__global__ void __launch_bounds__(kClusterThreads)
    gated_cluster_kernel(const decoder::Gated gated, bool wide, const PlanesOut out) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) char share[];
  __shared__ ClusterPlanes<kClusterThreads, kCluster> shared;
  ptx::launch_dependents();
  ptx::arrive_at_cluster();
  ptx::wait_for_predecessors();
  const int rank = static_cast<int>(blockIdx.x) % kCluster;
  const std::int64_t row = blockIdx.x / kCluster;
  const int all_units = static_cast<int>(unit_count(gated.columns));
  const int first_unit = all_units * rank / kCluster;
  const int units = all_units * (rank + 1) / kCluster - first_unit;
  const std::int64_t first = static_cast<std::int64_t>(first_unit) * kUnitColumns;
  const std::int64_t count =
      min(gated.columns - first, static_cast<std::int64_t>(units) * kUnitColumns);
  char* const y = static_cast<char*>(gated.y) + (row * gated.columns + first) * scalar_bytes(kType);
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * kVector; i < count;
       i += kClusterThreads * kVector) {
    float v[kVector];
    gate_vector<kType, kActivation>(gated, row, first + i, wide, v);
    store_vector<kType>(y, i, count, wide, v);
    store_vector<kType>(share, i, count, wide, v);
  }
  __syncthreads();
  put_cluster_planes<kClusterThreads, kCluster>(out, row, gated.columns, share, kType, count,
                                                first_unit, units, rank, shared);
#endif
}

template <ScalarType kType, Activation kActivation>
cudaError_t run(const decoder::Gated& gated, const PlanesOut& planes, const Device& device,
                cudaStream_t stream) {
  const bool wide =
      gated.columns % kVector == 0 && is_aligned(gated.gate_up) && is_aligned(gated.y);
  if (planes.planes == nullptr) {
    const std::int64_t row_vectors = (gated.columns + kVector - 1) / kVector;
    const std::int64_t blocks = (gated.rows * row_vectors + kThreads - 1) / kThreads;
    return launch(gated_kernel<kType, kActivation>, device, dim3(static_cast<unsigned>(blocks)),
                  kThreads, 0, stream, gated, row_vectors, wide);
  }
  if (device.major == 9) {  // which brought clusters
    const std::int64_t units = (unit_count(gated.columns) + kCluster - 1) / kCluster;
    const std::int64_t share = units * kUnitColumns * scalar_bytes(kType);
    if (share <= kMostSharedBytes) {
      return launch_clusters(gated_cluster_kernel<kType, kActivation>, device,
                             dim3(static_cast<unsigned>(gated.rows * kCluster)), kCluster,
                             kClusterThreads, static_cast<int>(share), stream, gated, wide, planes);
    }
  }
  const int bytes = row_memory("gated", gated.columns * scalar_bytes(kType), device);
  return launch(gated_planes_kernel<kType, kActivation>, device,
                dim3(static_cast<unsigned>(gated.rows)), kPlanesThreads, bytes, stream, gated, wide,
                planes);
}

}  // namespace

cudaError_t gated(const decoder::Gated& gated, const PlanesOut& planes, cudaStream_t stream) {
  if (gated.rows == 0 || gated.columns == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t status = current_device(device); status != cudaSuccess) return status;
  return with_type(gated.type, [&](auto type) {
    if (gated.activation == Activation::kSilu) {
      return run<type(), Activation::kSilu>(gated, planes, device, stream);
    }
    return run<type(), Activation::kGeluTanh>(gated, planes, device, stream);
  });
}

}  // namespace anyprec::cuda
