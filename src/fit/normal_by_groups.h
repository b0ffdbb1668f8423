#pragma once

#include <ATen/core/Tensor.h>

#include "src/fit/basis.h"
#include "src/fit/rows.h"

namespace anyprec::fit {

/// The normal matrix of a codebook's coefficients, (P B)^T H (P B) with P the selection of values
/// by codes and B the basis: fp64 [n, G, U, G, U], symmetric. It never goes through slots, of which
/// there are G 2^b, and costs K^2 U / 2 products a row: the way for few coefficients, above all in
/// many groups, as binary coding has. Without the last alphas it is that of a narrower precision.
at::Tensor normal_by_groups(const Rows& rows, const Metric& metric, const Basis& basis);

/// Its blocks within groups alone, fp64 [n, G, U, U].
at::Tensor diagonal_by_groups(const Rows& rows, const Metric& metric, const Basis& basis);

}  // namespace anyprec::fit
