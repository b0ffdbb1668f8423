#include "kernels/cuda/decoder.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/planes_out.cuh"
#include "kernels/cuda/vectors.cuh"

/// One block a row. A thread has the same vectors in both passes: the first ones stay in registers,
/// the others it reads again.
namespace anyprec::cuda {
namespace {

constexpr int kKept = 2;  // vectors of a thread in registers

template <ScalarType kType, int kThreads, bool kPlanes>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const decoder::RmsNorm norm, bool wide, const PlanesOut out) {
  extern __shared__ __align__(16) char shared_row[];
  __shared__ float sums[kThreads / 32];
  ptx::launch_dependents();
  const std::int64_t columns = norm.columns;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * columns * scalar_bytes(kType);
  const char* const x = static_cast<const char*>(norm.x) + at;
  char* const residual =
      norm.residual != nullptr ? static_cast<char*>(norm.residual) + at : nullptr;
  char* const y = static_cast<char*>(norm.y) + at;
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kVector;
  constexpr std::int64_t kStep = static_cast<std::int64_t>(kThreads) * kVector;

  float weights[kKept][kVector];
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (first + i * kStep < columns) {
      load_vector<kType>(norm.weight, first + i * kStep, columns, wide, weights[i]);
    }
  }
  ptx::wait_for_predecessors();

  const auto take = [&](std::int64_t column, float(&v)[kVector]) {
    load_vector<kType>(x, column, columns, wide, v);
    if (residual == nullptr) return;
    float sum[kVector];
    load_vector<kType>(residual, column, columns, wide, sum);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = rounded<kType>(v[j] + sum[j]);
    store_vector<kType>(residual, column, columns, wide, v);
  };
  float kept[kKept][kVector];
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (first + i * kStep >= columns) break;
    take(first + i * kStep, kept[i]);
#pragma unroll
    for (int j = 0; j < kVector; ++j) squares = fmaf(kept[i][j], kept[i][j], squares);
  }
  for (std::int64_t column = first + kKept * kStep; column < columns; column += kStep) {
    float v[kVector];
    take(column, v);
#pragma unroll
    for (int j = 0; j < kVector; ++j) squares = fmaf(v[j], v[j], squares);
  }
  const float mean = block_sum<kThreads>(squares, sums) / static_cast<float>(columns);
  const float scale = 1.0f / sqrtf(mean + norm.eps);

  const auto put = [&](std::int64_t column, const float(&v)[kVector],
                       const float(&weight)[kVector]) {
    float result[kVector];
#pragma unroll
    for (int j = 0; j < kVector; ++j) result[j] = v[j] * scale * (weight[j] + norm.offset);
    store_vector<kType>(y, column, columns, wide, result);
    if constexpr (kPlanes) store_vector<kType>(shared_row, column, columns, wide, result);
  };
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (first + i * kStep >= columns) break;
    put(first + i * kStep, kept[i], weights[i]);
  }
  const char* const summed = residual != nullptr ? residual : x;
  for (std::int64_t column = first + kKept * kStep; column < columns; column += kStep) {
    float v[kVector], weight[kVector];
    load_vector<kType>(summed, column, columns, wide, v);
    load_vector<kType>(norm.weight, column, columns, wide, weight);
    put(column, v, weight);
  }
  if constexpr (kPlanes) {
    __shared__ std::uint32_t scratch[2 * kThreads / 32];
    __syncthreads();
    put_planes<kThreads>(out, blockIdx.x, shared_row, kType, columns, scratch);
  }
}

}  // namespace

cudaError_t rms_norm(const decoder::RmsNorm& norm, const PlanesOut& planes, cudaStream_t stream) {
  if (norm.rows == 0 || norm.columns == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t status = current_device(device); status != cudaSuccess) return status;
  const bool wide = norm.columns % kVector == 0 && is_aligned(norm.x) &&
                    is_aligned(norm.residual) && is_aligned(norm.weight) && is_aligned(norm.y);
  const dim3 grid(static_cast<unsigned>(norm.rows));
  return with_type(norm.type, [&](auto type) {
    constexpr ScalarType kType = type();
    if (planes.planes == nullptr) {
      // Short rows have no work for more threads, and long ones need more for their loads.
      if (norm.columns <= 128 * kVector * kKept) {
        return launch(norm_kernel<kType, 128, false>, device, grid, 128, 0, stream, norm, wide,
                      planes);
      }
      return launch(norm_kernel<kType, 512, false>, device, grid, 512, 0, stream, norm, wide,
                    planes);
    }
    const int bytes = row_memory("rms_norm", norm.columns * scalar_bytes(kType), device);
    return launch(norm_kernel<kType, 512, true>, device, grid, 512, bytes, stream, norm, wide,
                  planes);
  });
}

}  // namespace anyprec::cuda
