#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "anyprec/cuda.h"

namespace anyprec::ops {

/// cuda::linear on the current stream, with the workspace that it asks for beside `like`.
void run_linear(const cuda::Input& input, std::span<const cuda::Product> products,
                const at::Tensor& like);

}  // namespace anyprec::ops
