#include <algorithm>
#include <string>

#include "anyprec/error.h"
#include "kernels/cuda/decoder.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/planes_out.cuh"
#include "kernels/cuda/vectors.cuh"

namespace anyprec::cuda {
namespace {

using decoder::Activation;

template <Activation kActivation>
__device__ __forceinline__ float activated(float x) {
  if constexpr (kActivation == Activation::kSilu) return x / (1.0f + expf(-x));
  return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
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

template <ScalarType kType, Activation kActivation>
cudaError_t run(const decoder::Gated& gated, const PlanesOut& planes, const Device& device,
                cudaStream_t stream) {
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
  };
  const bool wide = gated.columns % kVector == 0 && aligned(gated.gate_up) && aligned(gated.y);
  if (planes.planes == nullptr) {
    const std::int64_t row_vectors = (gated.columns + kVector - 1) / kVector;
    const std::int64_t blocks = (gated.rows * row_vectors + kThreads - 1) / kThreads;
    return launch(gated_kernel<kType, kActivation>, device, dim3(static_cast<unsigned>(blocks)),
                  kThreads, 0, stream, gated, row_vectors, wide);
  }
  const std::int64_t bytes = gated.columns * scalar_bytes(kType);
  constexpr std::int64_t kStatic = 1024;
  if (bytes > device.block_shared_bytes - kStatic) {
    throw InvalidArgument("gated: planes of rows of " + std::to_string(bytes) +
                          " bytes, wanted at most " +
                          std::to_string(device.block_shared_bytes - kStatic));
  }
  return launch(gated_planes_kernel<kType, kActivation>, device,
                dim3(static_cast<unsigned>(gated.rows)), kPlanesThreads, static_cast<int>(bytes),
                stream, gated, wide, planes);
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
