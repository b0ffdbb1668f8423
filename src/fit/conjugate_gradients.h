#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "src/fit/codebooks.h"
#include "src/fit/device.h"

namespace anyprec::fit {

/// Improves the coefficients of codebooks by conjugate gradients on
///
///   (P^T H P + lambda I) delta = P^T H (w - P c),  lambda = 1e-5 of the mean diagonal,
///
/// preconditioned by the diagonal: all rows and precisions at once, a product with H a step. A row
/// takes a step only where its energy falls by it. Returns H (w - q) of the result, fp32
/// [precisions, n, K].
at::Tensor refit_by_gradients(const Rows& rows, const Metric& metric,
                              const std::vector<Codebook*>& codebooks, int steps);

/// What an error w - q does.
struct Errors {
  at::Tensor pulled;                  ///< H (w - q), fp32 [precisions, n, K]
  std::vector<at::Tensor> gradients;  ///< P^T H (w - q), fp32 [n, G, U] by precision
};

/// Also sets the codebooks' energies.
Errors errors_of(const Rows& rows, const Metric& metric, const std::vector<Codebook*>& codebooks);

}  // namespace anyprec::fit
