#pragma once

#include "kernels/cuda/fused.h"

namespace anyprec::cuda {

/// 1 / sqrt(mean + eps) of a row with this sum of squares, to 2 ulp: a division and a square root
/// would bring code for their rare cases along.
__device__ __forceinline__ float norm_scale(const InputNorm& norm, float squares) {
  return rsqrtf(fmaf(squares, norm.per_column, norm.eps));
}

}  // namespace anyprec::cuda
