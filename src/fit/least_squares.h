#pragma once

#include <ATen/core/Tensor.h>

#include "src/fit/codebooks.h"

namespace anyprec::fit {

/// Takes the step `delta` in the rows whose energy falls by it, with
///
///   E(c + delta) = E(c) - 2 delta gradient + delta A delta.
///
/// gradient: P^T H (w - q), fp32 [n, G, U]; curvature: A delta. Both and delta have one shape. The
/// codebook's energies are those of its coefficients, before and after.
void accept(Codebook& codebook, const at::Tensor& gradient, const at::Tensor& delta,
            const at::Tensor& curvature);

/// The same with the step that A asks for, by Cholesky in fp64 with the ridge (codebooks.h).
/// matrix: A, fp64 [n, G U, G U]. A row without a factor keeps what it had.
void solve_directly(Codebook& codebook, const at::Tensor& gradient, const at::Tensor& matrix);

}  // namespace anyprec::fit
