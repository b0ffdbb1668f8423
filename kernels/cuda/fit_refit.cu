#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstddef>

#include "kernels/cpu/fit_refit_row.h"
#include "kernels/cuda/fit_refit.h"

namespace anyprec::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kMaxWarps = 4;
constexpr std::size_t kSharedBytes = 34 << 10;  // as much as one warp takes at 8 bits, or four at 6

struct Warp {
  static constexpr int kLanes = cuda::kLanes;
  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x) % kLanes; }
  __device__ __forceinline__ void sync() const { __syncwarp(); }
  __device__ __forceinline__ double sum(double number) const {
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      number += __shfl_xor_sync(0xffffffffu, number, offset);
    }
    return number;
  }
  using Moved = __half;
  /// So that the largest is 256 to 512: a value is that of at most nine coefficients.
  __device__ __forceinline__ float unit(float largest) const {
    unsigned bits = __float_as_uint(largest);
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, offset));
    }
    const int exponent = static_cast<int>(bits >> 23);  // that of a number below 2^8, with a bias
    return exponent > 8 && exponent < 255
               ? __uint_as_float(static_cast<unsigned>(exponent - 8) << 23)
               : 1.0f;
  }
};

using Row = cpu::RefitRow<Warp>;

struct Begin {
  float ridge_share, least_ridge;
  __device__ __forceinline__ void operator()(Row& row) const {
    row.begin(ridge_share, least_ridge);
  }
};

struct Step {
  bool last;
  __device__ __forceinline__ void operator()(Row& row) const { row.step(last); }
};

struct Error {
  __nv_bfloat16* high;
  __nv_bfloat16* low;
  __device__ __forceinline__ void operator()(Row& row) const {
    row.error([&](std::int64_t at, float error) {
      const __nv_bfloat16 most = __float2bfloat16(error);
      high[at] = most;
      low[at] = __float2bfloat16(error - __bfloat162float(most));
    });
  }
};

struct Sums {
  const float* numbers;
  float* out;
  __device__ __forceinline__ void operator()(Row& row) const { row.sums(numbers, out); }
};

/// A warp a row; blockIdx.y is the precision, counted from the first.
template <class Body>
__global__ void __launch_bounds__(kLanes* kMaxWarps)
    each_row(const cpu::RefitRows rows, const Body body, int floats) {
  extern __shared__ float scratch[];
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / kLanes) + warp;
  if (row >= rows.rows) return;
  Row one(Warp{}, rows, rows.first + static_cast<int>(blockIdx.y), row, scratch + warp * floats);
  body(one);
}

template <class Body>
cudaError_t launch(const cpu::RefitRows& rows, const Body& body, cudaStream_t stream) {
  if (rows.rows <= 0 || rows.first >= rows.widths) return cudaSuccess;
  int floats = 0;
  for (int w = rows.first; w < rows.widths; ++w) {
    floats = std::max(floats, cpu::refit_scratch(rows.width[w].precision, kLanes));
  }
  const std::size_t bytes = sizeof(float) * static_cast<std::size_t>(floats);
  const int warps = std::clamp(static_cast<int>(kSharedBytes / bytes), 1, kMaxWarps);
  const dim3 grid(static_cast<unsigned>((rows.rows + warps - 1) / warps),
                  static_cast<unsigned>(rows.widths - rows.first));
  each_row<<<grid, static_cast<unsigned>(warps * kLanes), bytes* static_cast<std::size_t>(warps),
             stream>>>(rows, body, floats);
  return cudaGetLastError();
}

}  // namespace

cudaError_t refit_begin(const cpu::RefitRows& rows, float ridge_share, float least_ridge,
                        cudaStream_t stream) {
  return launch(rows, Begin{ridge_share, least_ridge}, stream);
}

cudaError_t refit_step(const cpu::RefitRows& rows, bool last, cudaStream_t stream) {
  return launch(rows, Step{last}, stream);
}

cudaError_t refit_error(const cpu::RefitRows& rows, void* high, void* low, cudaStream_t stream) {
  return launch(rows, Error{static_cast<__nv_bfloat16*>(high), static_cast<__nv_bfloat16*>(low)},
                stream);
}

cudaError_t sum_by_slot(const float* numbers, const cpu::RefitRows& rows, float* out,
                        cudaStream_t stream) {
  return launch(rows, Sums{numbers, out}, stream);
}

}  // namespace anyprec::cuda
