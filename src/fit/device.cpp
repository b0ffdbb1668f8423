#include "src/fit/device.h"

#include <ATen/ATen.h>

#ifdef ANYPREC_FIT_ON_CUDA
#include "src/fit/device_cuda.h"
#endif

namespace anyprec::fit {
namespace {

void check_cpu(const at::Device& device) {
  TORCH_CHECK_NOT_IMPLEMENTED(device.is_cpu(), "fit: found tensors on ", device,
                              ", and this build has kernels for the CPU only");
}

}  // namespace

void product(const at::Tensor& a, const at::Tensor& b, Accuracy accuracy, const at::Tensor& out,
             bool add) {
#ifdef ANYPREC_FIT_ON_CUDA
  if (a.is_cuda()) return gpu::product(a, b, accuracy, out, add);
#endif
  check_cpu(a.device());
  static_cast<void>(accuracy);
  at::Tensor to = out;
  if (add) {
    to.addmm_(a, b);
  } else {
    at::mm_out(to, a, b);
  }
}

SplitMatrix split_matrix(const at::Tensor& matrix) {
  if (matrix.is_cpu()) return {};
  const at::Tensor high = matrix.to(at::kBFloat16);
  return {.high = high,
          .low = (matrix - high.to(at::kFloat)).to(at::kBFloat16),
          .half = matrix.to(at::kHalf)};
}

void step_product(const at::Tensor& moved, const at::Tensor& matrix, const SplitMatrix& split,
                  const at::Tensor& out) {
#ifdef ANYPREC_FIT_ON_CUDA
  if (moved.is_cuda()) return gpu::half_product(moved, split.half, out);
#endif
  static_cast<void>(split);
  product(moved, matrix, Accuracy::kFull, out);
}

void run_sweep(const cpu::SweepBlock& block, const at::Device& device) {
#ifdef ANYPREC_FIT_ON_CUDA
  if (device.is_cuda()) return gpu::sweep(block);
#endif
  check_cpu(device);
  cpu::fit_kernels().sweep(block);
}

void run_error_product(const cpu::RefitRows& rows, const at::Tensor& hessian,
                       const SplitMatrix& split, const at::Tensor& error,
                       const at::Tensor& pulled) {
#ifdef ANYPREC_FIT_ON_CUDA
  if (hessian.is_cuda()) return gpu::error_product(rows, split, pulled);
#endif
  check_cpu(hessian.device());
  static_cast<void>(split);
  cpu::refit_kernels().error(rows);
  product(error.flatten(0, 1), hessian, Accuracy::kFull, pulled.flatten(0, 1));
}

void run_refit_begin(const cpu::RefitRows& rows, float ridge_share, float least_ridge,
                     const at::Device& device) {
#ifdef ANYPREC_FIT_ON_CUDA
  if (device.is_cuda()) return gpu::refit_begin(rows, ridge_share, least_ridge);
#endif
  check_cpu(device);
  cpu::refit_kernels().begin(rows, ridge_share, least_ridge);
}

void run_refit_step(const cpu::RefitRows& rows, bool last, const at::Device& device) {
#ifdef ANYPREC_FIT_ON_CUDA
  if (device.is_cuda()) return gpu::refit_step(rows, last);
#endif
  check_cpu(device);
  cpu::refit_kernels().step(rows, last);
}

}  // namespace anyprec::fit
