#include "src/fit/device_cuda.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Exceptions.h>
#include <c10/cuda/CUDAException.h>
#include <cublas_v2.h>

#include <cstdint>

#include "kernels/cuda/fit_refit.h"
#include "kernels/cuda/fit_sweep.h"

namespace anyprec::fit::gpu {
namespace {

/// out (+)= a @ b of matrices whose rows are contiguous: for cuBLAS, whose matrices have contiguous
/// columns, out^T (+)= b^T @ a^T.
void multiply(const at::Tensor& a, const at::Tensor& b, cudaDataType_t type,
              cublasComputeType_t compute, const at::Tensor& out, bool add) {
  TORCH_INTERNAL_ASSERT(a.stride(1) == 1 && b.stride(1) == 1 && out.stride(1) == 1);
  TORCH_INTERNAL_ASSERT(a.size(1) == b.size(0) && out.size(0) == a.size(0) &&
                        out.size(1) == b.size(1));
  if (out.numel() == 0) return;
  const float alpha = 1.0f, beta = add ? 1.0f : 0.0f;
  const cublasHandle_t handle = at::cuda::getCurrentCUDABlasHandle();
  // What a product is computed in is said here; libtorch sets its own mode when it takes the
  // handle.
  TORCH_CUDABLAS_CHECK(cublasSetMathMode(handle, CUBLAS_DEFAULT_MATH));
  const auto count = [](std::int64_t number) { return static_cast<int>(number); };
  // A stride means nothing in a single row, and cuBLAS wants it to be no less than the row.
  const auto leading = [&](const at::Tensor& matrix) {
    return count(std::max(matrix.stride(0), matrix.size(1)));
  };
  TORCH_CUDABLAS_CHECK(cublasGemmEx(
      handle, CUBLAS_OP_N, CUBLAS_OP_N, count(out.size(1)), count(out.size(0)), count(a.size(1)),
      &alpha, b.const_data_ptr(), type, leading(b), a.const_data_ptr(), type, leading(a), &beta,
      out.mutable_data_ptr(), CUDA_R_32F, leading(out), compute, CUBLAS_GEMM_DEFAULT));
}

}  // namespace

void product(const at::Tensor& a, const at::Tensor& b, Accuracy accuracy, const at::Tensor& out,
             bool add) {
  multiply(a, b, CUDA_R_32F,
           accuracy == Accuracy::kFast ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, out,
           add);
}

void half_product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  multiply(a, b, CUDA_R_16F, CUBLAS_COMPUTE_32F, out, false);
}

void sweep(const cpu::SweepBlock& block) {
  C10_CUDA_CHECK(cuda::fit_sweep(block, at::cuda::getCurrentCUDAStream()));
}

void error_product(const cpu::RefitRows& rows, const SplitMatrix& split, const at::Tensor& pulled) {
  const at::Tensor to = pulled.flatten(0, 1);
  const at::Tensor high = at::empty(to.sizes(), to.options().dtype(at::kBFloat16));
  const at::Tensor low = at::empty_like(high);
  C10_CUDA_CHECK(cuda::refit_error(rows, high.mutable_data_ptr(), low.mutable_data_ptr(),
                                   at::cuda::getCurrentCUDAStream()));
  // The small terms first.
  const auto add_product = [&](const at::Tensor& a, const at::Tensor& b, bool add) {
    multiply(a, b, CUDA_R_16BF, CUBLAS_COMPUTE_32F, to, add);
  };
  add_product(low, split.high, false);
  add_product(high, split.low, true);
  add_product(high, split.high, true);
}

void refit_begin(const cpu::RefitRows& rows, float ridge_share, float least_ridge) {
  C10_CUDA_CHECK(
      cuda::refit_begin(rows, ridge_share, least_ridge, at::cuda::getCurrentCUDAStream()));
}

void refit_step(const cpu::RefitRows& rows, bool last) {
  C10_CUDA_CHECK(cuda::refit_step(rows, last, at::cuda::getCurrentCUDAStream()));
}

void sum_by_slot(const at::Tensor& numbers, const cpu::RefitRows& rows, const at::Tensor& out) {
  C10_CUDA_CHECK(cuda::sum_by_slot(numbers.const_data_ptr<float>(), rows,
                                   out.mutable_data_ptr<float>(),
                                   at::cuda::getCurrentCUDAStream()));
}

}  // namespace anyprec::fit::gpu
