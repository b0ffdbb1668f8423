#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/cpu/fit_refit.h"
#include "kernels/cpu/fit_sweep.h"

/// What runs on the device of the tensors: kernels, and products of matrices. In none of it do
/// libtorch's global settings (TF32) or autocast count.
namespace anyprec::fit {

enum class Accuracy {
  kFast,  ///< factors rounded to TF32 where there is such an instruction, sums in fp32
  kFull,  ///< fp32
};

/// out = a @ b, or out += a @ b. fp32 matrices whose rows are contiguous.
void product(const at::Tensor& a, const at::Tensor& b, Accuracy accuracy, const at::Tensor& out,
             bool add = false);

/// What a GPU's tensor cores take of a metric's Hessian, made once; undefined on a CPU.
struct SplitMatrix {
  /// bf16 [K, K], whose sum it is: three products of such parts are a product of fp32 matrices with
  /// a relative error of 2^-16 in each term.
  at::Tensor high, low;
  at::Tensor half;  ///< fp16 [K, K]: no entry is above K, where the mean of the diagonal is 1
};
SplitMatrix split_matrix(const at::Tensor& matrix);

/// out = moved @ matrix, which is given with its parts. moved: fp16 on a GPU, else fp32.
void step_product(const at::Tensor& moved, const at::Tensor& matrix, const SplitMatrix& split,
                  const at::Tensor& out);

void run_sweep(const cpu::SweepBlock& block, const at::Device& device);

/// error and pulled = error @ hessian, for all rows and precisions. `error` may be overwritten.
void run_error_product(const cpu::RefitRows& rows, const at::Tensor& hessian,
                       const SplitMatrix& split, const at::Tensor& error, const at::Tensor& pulled);
void run_refit_begin(const cpu::RefitRows& rows, float ridge_share, float least_ridge,
                     const at::Device& device);
void run_refit_step(const cpu::RefitRows& rows, bool last, const at::Device& device);

}  // namespace anyprec::fit
