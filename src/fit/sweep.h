#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "src/fit/refit.h"

namespace anyprec::fit {

enum class Sweep {
  kErrorFeedback,  ///< GPTQ: each width's error moves the targets of the columns that follow
  kDescent,        ///< cyclic coordinate descent
  kNewestBit,      ///< the same, with only the last bit of a code free; for a single width
};

/// Goes over all columns once and gives each weight the code (of the widest precision of
/// `codebooks`) that minimizes the sum over these precisions of weight * (target - value)^2, where
/// targets take in what the other columns' errors do. weights: fp64 [n] by precision, rising.
/// pulled: H (w - q) [precisions, n, K], of no use to error feedback; undefined: computed here.
/// Columns go in blocks of 64: a kernel inside of a block, products of matrices between blocks and
/// between panels of blocks.
at::Tensor sweep(Sweep kind, const Rows& rows, const Metric& metric, const Codebooks& codebooks,
                 const std::vector<at::Tensor>& weights, const at::Tensor& pulled);

}  // namespace anyprec::fit
