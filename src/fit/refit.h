#pragma once

#include <ATen/core/Tensor.h>

#include "src/fit/codebooks.h"

namespace anyprec::fit {

/// How far least squares by conjugate gradients goes: steps for tables, and for codebooks with
/// signed planes, whose coefficients overlap.
enum class Effort {
  kRough,     ///< 2 or 18: between sweeps, which change the codes again
  kFinal,     ///< 8 or 36: after descent, from codebooks that were refitted in every round
  kThorough,  ///< 12 or 36: from codebooks that were not
};

/// Least squares: the coefficients of each codebook that minimize the rows' energies. On a CPU, up
/// to 64 unknowns a row by Cholesky in fp64, where the normal matrix is summed once, for the widest
/// precision, and merged for narrower ones: that takes fewer operations than the products of two
/// steps of conjugate gradients. Beyond, and on a GPU, whose tensor cores are fast at products, by
/// conjugate gradients (conjugate_gradients.h). Codebooks of few coefficients, as of binary coding,
/// go by groups (refit_by_groups.h). A row keeps what it had where its energy does not fall.
///
/// Returns H (w - q) of the result, fp32 [precisions, n, K], where it is at hand; else undefined.
at::Tensor refit(const Rows& rows, const Metric& metric, Codebooks& codebooks, Effort effort);

}  // namespace anyprec::fit
