#include <algorithm>
#include <cstdint>

#include "anyprec/cuda.h"
#include "kernels/cuda/scalars.cuh"

/// One block for each row and group. Every thread has a bin of its own for each code, so nothing is
/// added in an order that changes; bins of one code lie side by side, so that threads never meet in
/// a bank. Then the bins of a code are added in a fixed order.
namespace anyprec::cuda {
namespace {

constexpr int kMaxThreads = 128;
// Of a block: 32 KB of shared memory, several blocks a multiprocessor.
constexpr int kMaxBins = 8192;

template <ScalarType kType>
__global__ void __launch_bounds__(kMaxThreads)
    sum_rows(const void* values, const std::uint8_t* codes, std::int64_t columns, int entries,
             std::int64_t group_size, float* out) {
  extern __shared__ float bins[];  // [entries][threads]
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  for (int code = 0; code < entries; ++code) bins[code * threads + thread] = 0.0f;

  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * group_size;
  const std::int64_t end = min(columns, first + group_size);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * columns;
#pragma unroll 4
  for (std::int64_t k = first + thread; k < end; k += threads) {
    const int code = codes[row + k] & (entries - 1);
    bins[code * threads + thread] += load_scalar(values, kType, row + k);
  }
  __syncthreads();

  float* const to =
      out + (static_cast<std::int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * entries;
  for (int code = thread; code < entries; code += threads) {
    float sum = 0.0f;
    for (int i = 0; i < threads; ++i) {
      sum += bins[code * threads + (code + i) % threads];  // each thread begins in its own bank
    }
    to[code] = sum;
  }
}

}  // namespace

cudaError_t sum_by_code(const CodeSums& sums, float* out, cudaStream_t stream) {
  sums.validate();
  if (sums.rows <= 0 || sums.columns <= 0) return cudaSuccess;
  const int entries = 1 << sums.precision;
  const std::int64_t width = sums.group_size == 0 ? sums.columns : sums.group_size;
  const int threads = std::min(kMaxThreads, kMaxBins / entries);
  const dim3 grid(static_cast<unsigned>(sums.rows), static_cast<unsigned>(sums.groups()));
  const std::size_t shared = sizeof(float) * static_cast<std::size_t>(threads) * entries;
  const auto launch = [&](auto kernel) {
    kernel<<<grid, threads, shared, stream>>>(sums.values, sums.codes, sums.columns, entries, width,
                                              out);
    return cudaGetLastError();
  };
  switch (sums.type) {
    case ScalarType::kFloat32:
      return launch(sum_rows<ScalarType::kFloat32>);
    case ScalarType::kBFloat16:
      return launch(sum_rows<ScalarType::kBFloat16>);
    case ScalarType::kFloat16:
      return launch(sum_rows<ScalarType::kFloat16>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace anyprec::cuda
