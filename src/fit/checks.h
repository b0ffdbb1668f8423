#pragma once

#include <ATen/core/Tensor.h>

#include "anyprec/codebook.h"

/// What the operators of this room ask of arguments that they share.
namespace anyprec::fit {

inline void check_weight(const at::Tensor& weight) {
  TORCH_CHECK_TYPE(weight.scalar_type() == at::kFloat, "weight: found dtype ", weight.scalar_type(),
                   ", wanted float32");
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(0) >= 1 && weight.size(1) >= 1,
                    "weight: found shape ", weight.sizes(), ", wanted [N, K], neither of them 0");
}

inline void check_precisions(at::IntArrayRef precisions) {
  TORCH_CHECK_VALUE(!precisions.empty(), "precisions: found none, wanted at least one");
  for (std::size_t i = 0; i < precisions.size(); ++i) {
    TORCH_CHECK_VALUE(precisions[i] >= kMinPrecision && precisions[i] <= kMaxPrecision &&
                          (i == 0 || precisions[i] > precisions[i - 1]),
                      "precisions: found ", precisions, ", wanted rising ones within 2 to 8");
  }
}

}  // namespace anyprec::fit
