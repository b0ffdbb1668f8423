#include "src/fit/refit.h"

#include <ATen/ATen.h>

#include <vector>

#include "src/fit/conjugate_gradients.h"
#include "src/fit/refit_by_groups.h"
#include "src/fit/segment_sums.h"

namespace anyprec::fit {
namespace {

constexpr std::int64_t kDirectUnknowns = 64;
constexpr std::int64_t kDirectSlots = 256;
constexpr int kRoughSteps = 6;
constexpr int kFinalSteps = 12;
// Coefficients of signed planes overlap, where those of a table do not: more steps to part them.
constexpr int kPlanesFactor = 3;

bool is_direct(const Basis& basis, const Metric& metric) {
  return metric.hessian.is_cpu() && metric.codebooks * basis.coefficients() <= kDirectUnknowns &&
         metric.codebooks * basis.values() <= kDirectSlots;
}

/// normal: [n, G, 2^b, G, 2^b]; gradient: P^T H (w - q), [n, G, U]. The codebook's energies are
/// those of its coefficients.
void refit_directly(const at::Tensor& normal, const at::Tensor& gradient, Codebook& codebook) {
  const at::Tensor matrix = codebook.basis.project_normal(normal);
  const at::Tensor ridged = matrix.clone();
  const at::Tensor diagonal = ridged.diagonal(0, 1, 2);
  diagonal.add_(diagonal.mean(1, true) * kRidge + kLeastRidge);
  const at::Tensor slope = gradient.to(at::kDouble).flatten(1);
  const auto [factor, failed] = at::linalg_cholesky_ex(ridged);
  at::Tensor delta = at::cholesky_solve(slope.unsqueeze(2), factor);
  delta = at::where((failed == 0).view({-1, 1, 1}), delta, at::zeros_like(delta));
  const at::Tensor curvature = at::matmul(matrix, delta).squeeze(2);
  // E(c + delta) = E(c) - 2 delta gradient + delta A delta.
  const at::Tensor gain = (delta.squeeze(2) * (2.0 * slope - curvature)).sum(1);
  const at::Tensor better = gain.isfinite().logical_and(gain > 0.0);
  const at::Tensor moved =
      codebook.coefficients + delta.view_as(codebook.coefficients).to(at::kFloat);
  codebook.coefficients = at::where(better.view({-1, 1, 1}), moved, codebook.coefficients);
  codebook.energies = at::where(better, codebook.energies - gain, codebook.energies).clamp_min(0.0);
}

/// From precision b + 1 to b: the children of code c are c and c + 2^b.
at::Tensor merge(const at::Tensor& normal) {
  const std::int64_t n = normal.size(0), groups = normal.size(1), half = normal.size(2) / 2;
  return normal.reshape({n, groups, 2, half, groups, 2, half}).sum({2, 5});
}

}  // namespace

at::Tensor refit(const Rows& rows, const Metric& metric, Codebooks& codebooks, Effort effort) {
  const int steps = effort == Effort::kRough ? kRoughSteps : kFinalSteps;
  std::vector<Codebook*> by_groups, directly, by_gradients;
  for (auto& [precision, codebook] : codebooks) {
    auto& way = is_by_groups(codebook.basis, metric) ? by_groups
                : is_direct(codebook.basis, metric)  ? directly
                                                     : by_gradients;
    way.push_back(&codebook);
  }
  refit_by_groups(rows, metric, by_groups, steps);
  if (!directly.empty()) {
    const std::vector<at::Tensor> gradients = errors_of(rows, metric, directly).gradients;
    at::Tensor normal = segment_sums(rows, metric, directly.back()->basis.precision());
    for (std::size_t i = directly.size(); i-- > 0;) {
      while (normal.size(2) > directly[i]->basis.values()) normal = merge(normal);
      refit_directly(normal, gradients[i], *directly[i]);
    }
  }
  if (by_gradients.empty()) return {};
  const bool has_planes = !by_gradients.back()->basis.is_identity();
  const at::Tensor pulled =
      refit_by_gradients(rows, metric, by_gradients, has_planes ? kPlanesFactor * steps : steps);
  return by_gradients.size() == codebooks.size() ? pulled : at::Tensor();
}

}  // namespace anyprec::fit
