#include "src/fit/least_squares.h"

#include <ATen/ATen.h>

namespace anyprec::fit {

void accept(Codebook& codebook, const at::Tensor& gradient, const at::Tensor& delta,
            const at::Tensor& curvature) {
  const at::Tensor gain = (delta.to(at::kDouble) * (2.0 * gradient - curvature)).flatten(1).sum(1);
  const at::Tensor better = gain.isfinite().logical_and(gain > 0.0);
  codebook.coefficients = at::where(
      better.view({-1, 1, 1}), codebook.coefficients + delta.to(at::kFloat), codebook.coefficients);
  codebook.energies = at::where(better, codebook.energies - gain, codebook.energies).clamp_min(0.0);
}

void solve_directly(Codebook& codebook, const at::Tensor& gradient, const at::Tensor& matrix) {
  const at::Tensor ridged = matrix.clone();
  const at::Tensor diagonal = ridged.diagonal(0, 1, 2);
  diagonal.add_(diagonal.mean(1, true) * kRidge + kLeastRidge);
  const auto [factor, failed] = at::linalg_cholesky_ex(ridged);
  at::Tensor delta = at::cholesky_solve(gradient.to(at::kDouble).flatten(1).unsqueeze(2), factor);
  delta = at::where((failed == 0).view({-1, 1, 1}), delta, at::zeros_like(delta));
  accept(codebook, gradient, delta.view_as(gradient), at::matmul(matrix, delta).view_as(gradient));
}

}  // namespace anyprec::fit
