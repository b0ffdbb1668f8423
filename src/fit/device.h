#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/cpu/fit_refit.h"
#include "kernels/cpu/fit_sweep.h"

/// What runs on the device of the tensors: kernels, and products of matrices. In none of it do
/// libtorch's global settings (TF32) or autocast count.
namespace anyprec::fit {

enum class Accuracy {
  kCoarse,  ///< factors rounded to bf16 on a GPU, sums in fp32
  kFast,    ///< factors rounded to TF32 where there is such an instruction, sums in fp32
  kFull,    ///< fp32
};

/// out = a @ b, or out += a @ b. fp32 matrices whose rows are contiguous.
void product(const at::Tensor& a, const at::Tensor& b, Accuracy accuracy, const at::Tensor& out,
             bool add = false);

/// A matrix as the sum of two of bf16, made once: on a GPU three products of such parts, on tensor
/// cores, are a product of fp32 matrices with a relative error of 2^-16 in each term.
struct SplitMatrix {
  at::Tensor high, low;  ///< bf16 [K, K]; undefined on a CPU
};
SplitMatrix split_matrix(const at::Tensor& matrix);

/// out = a @ matrix, given with its parts.
void step_product(const at::Tensor& a, const at::Tensor& matrix, const SplitMatrix& split,
                  Accuracy accuracy, const at::Tensor& out);

void run_sweep(const cpu::SweepBlock& block, const at::Device& device);

/// error and pulled = error @ hessian, for all rows and precisions. `error` may be overwritten.
void run_error_product(const cpu::RefitRows& rows, const at::Tensor& hessian,
                       const SplitMatrix& split, const at::Tensor& error, const at::Tensor& pulled);
void run_refit_begin(const cpu::RefitRows& rows, float ridge_share, float least_ridge,
                     const at::Device& device);
void run_refit_step(const cpu::RefitRows& rows, bool last, const at::Device& device);

}  // namespace anyprec::fit
