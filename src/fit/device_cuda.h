#pragma once

#include <ATen/core/Tensor.h>

#include "src/fit/device.h"

/// The GPU's part of device.h, on the current stream.
namespace anyprec::fit::gpu {

void product(const at::Tensor& a, const at::Tensor& b, Accuracy accuracy, const at::Tensor& out,
             bool add);
/// out = a @ b, of fp16 matrices, in fp32.
void half_product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out);
void sweep(const cpu::SweepBlock& block);
void error_product(const cpu::RefitRows& rows, const SplitMatrix& split, const at::Tensor& pulled);
void refit_begin(const cpu::RefitRows& rows, float ridge_share, float least_ridge);
void refit_step(const cpu::RefitRows& rows, bool last);
/// numbers: fp32 [rows, K]; to out, fp32 [rows, G, 2^b].
void sum_by_slot(const at::Tensor& numbers, const cpu::RefitRows& rows, const at::Tensor& out);

}  // namespace anyprec::fit::gpu
