#include <algorithm>

#include "kernels/cuda/divergence.h"
#include "kernels/cuda/vectors.cuh"

/// One block a row, which it reads twice: for the sums of exponentials, then for differences.
namespace anyprec::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr float kLowest = -3.4e38f;

/// The sum of exponentials, relative to the largest exponent.
struct ExpSum {
  float largest = kLowest;
  float sum = 0.0f;

  __device__ __forceinline__ void add(const ExpSum& other) {
    const float top = fmaxf(largest, other.largest);
    sum = sum * __expf(largest - top) + other.sum * __expf(other.largest - top);
    largest = top;
  }
  /// The first `count` of v.
  __device__ __forceinline__ void add(const float (&v)[kVector], int count) {
    float top = largest;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < count) top = fmaxf(top, v[i]);
    }
    sum *= __expf(largest - top);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < count) sum += __expf(v[i] - top);
    }
    largest = top;
  }
};

/// What logits become logarithms of probabilities by: v - largest - log_sum, in this order, since
/// the largest logit may be far beyond the logarithm.
struct Normalizer {
  float largest;
  float log_sum;
  __device__ __forceinline__ float operator()(float v) const { return v - largest - log_sum; }
};

/// Of a row, the same in every thread. Every thread of the block calls it.
__device__ __forceinline__ Normalizer normalizer(ExpSum mine, ExpSum* scratch) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    mine.add(
        ExpSum{__shfl_xor_sync(~0u, mine.largest, step), __shfl_xor_sync(~0u, mine.sum, step)});
  }
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = mine;
  __syncthreads();
  ExpSum all = scratch[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) all.add(scratch[w]);
  return {all.largest, logf(all.sum)};
}

template <ScalarType kType>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(const Logits logits, bool wide, float scale, float* divergences) {
  __shared__ ExpSum wanted_sums[kWarps], found_sums[kWarps];
  __shared__ float sums[kWarps];
  const std::int64_t row = blockIdx.x;
  const char* const wanted =
      static_cast<const char*>(logits.wanted) + row * logits.wanted_columns * scalar_bytes(kType);
  char* const found =
      static_cast<char*>(logits.found) + row * logits.found_columns * scalar_bytes(kType);
  const std::int64_t columns = min(logits.wanted_columns, logits.found_columns);
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kVector;
  constexpr std::int64_t kStep = static_cast<std::int64_t>(kThreads) * kVector;

  ExpSum of_wanted, of_found;
  for (std::int64_t column = first; column < columns; column += kStep) {
    const int count = static_cast<int>(min(columns - column, static_cast<std::int64_t>(kVector)));
    float v[kVector];
    load_vector<kType>(wanted, column, columns, wide, v);
    of_wanted.add(v, count);
    load_vector<kType>(found, column, columns, wide, v);
    of_found.add(v, count);
  }
  const Normalizer log_wanted = normalizer(of_wanted, wanted_sums);
  const Normalizer log_found = normalizer(of_found, found_sums);

  float divergence = 0.0f;
  for (std::int64_t column = first; column < columns; column += kStep) {
    float p[kVector], q[kVector];
    load_vector<kType>(wanted, column, columns, wide, p);
    load_vector<kType>(found, column, columns, wide, q);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float log_p = log_wanted(p[i]);
      const float log_q = log_found(q[i]);
      const float probability = __expf(log_p);
      if (column + i < columns && probability > 0.0f) divergence += probability * (log_p - log_q);
      q[i] = scale * (__expf(log_q) - probability);
    }
    store_vector<kType>(found, column, columns, wide, q);
  }
  for (std::int64_t column = columns + threadIdx.x; column < logits.found_columns;
       column += kThreads) {
    store_scalar(found, kType, column, 0.0f);
  }
  const float sum = block_sum<kThreads>(divergence, sums);
  if (threadIdx.x == 0) divergences[row] = sum;
}

}  // namespace

cudaError_t kl_gradient(const Logits& logits, float scale, float* divergences,
                        cudaStream_t stream) {
  if (logits.rows <= 0) return cudaSuccess;
  const std::int64_t bytes = scalar_bytes(logits.type);
  const bool wide = is_aligned(logits.wanted) && is_aligned(logits.found) &&
                    logits.wanted_columns * bytes % 16 == 0 &&
                    logits.found_columns * bytes % 16 == 0 &&
                    std::min(logits.wanted_columns, logits.found_columns) % kVector == 0;
  return with_type(logits.type, [&](auto type) {
    gradient_kernel<decltype(type)::value>
        <<<static_cast<unsigned>(logits.rows), kThreads, 0, stream>>>(logits, wide, scale,
                                                                      divergences);
    return cudaGetLastError();
  });
}

}  // namespace anyprec::cuda
