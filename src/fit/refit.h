#pragma once

#include <ATen/core/Tensor.h>

#include <map>

#include "src/fit/basis.h"
#include "src/fit/rows.h"

namespace anyprec::fit {

/// A codebook of each row at one precision, and the energy that its rows have with it.
struct Codebook {
  Basis basis;
  at::Tensor coefficients;  ///< fp32 [n, G, U]
  at::Tensor energies;      ///< fp64 [n], in the metric's unit

  at::Tensor values() const { return basis.expand(coefficients); }
};

/// By precision, rising.
using Codebooks = std::map<int, Codebook>;

/// Least squares: the coefficients of each codebook that minimize the rows' energies,
///
///   (P^T H P + lambda I) delta = P^T H (w - P c),  lambda = 1e-5 of the mean diagonal,
///
/// with P the selection of values by codes times the basis. Up to 64 unknowns a row by Cholesky in
/// fp64, where the normal matrix is summed once, for the widest precision, and merged for narrower
/// ones; beyond, by 12 steps of conjugate gradients preconditioned by the diagonal. Codebooks of
/// few coefficients, as of binary coding, go by groups (refit_by_groups.h). A row keeps what it had
/// where its energy does not fall.
void refit(const Rows& rows, const Metric& metric, Codebooks& codebooks);

}  // namespace anyprec::fit
