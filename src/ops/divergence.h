#pragma once

#include <ATen/core/Tensor.h>

namespace anyprec::ops {

/// Checks the arguments of kl_gradient_: two contiguous matrices of logits of one dtype and device.
void check_logits(const at::Tensor& wanted, const at::Tensor& found);

}  // namespace anyprec::ops
