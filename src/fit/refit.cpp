#include "src/fit/refit.h"

#include <ATen/ATen.h>

#include <vector>

#include "src/fit/refit_by_groups.h"
#include "src/fit/segment_sums.h"

namespace anyprec::fit {
namespace {

constexpr double kRidge = 1e-5;  // of the mean diagonal
constexpr double kTiny = 1e-12;  // where that is zero
constexpr std::int64_t kDirectUnknowns = 64;
constexpr std::int64_t kDirectSlots = 256;
constexpr int kGradientSteps = 12;

bool is_direct(const Basis& basis, const Metric& metric) {
  return metric.codebooks * basis.coefficients() <= kDirectUnknowns &&
         metric.codebooks * basis.values() <= kDirectSlots;
}

/// The energy about a codebook: E(c + delta) = energies - 2 delta gradient + delta A delta.
struct Residual {
  at::Tensor slots;
  at::Tensor gradient;  ///< P^T H (w - q), [n, G, U]
  at::Tensor energies;  ///< [n]

  Residual(const Rows& rows, const Metric& metric, const Codebook& codebook)
      : slots(slots_of(rows.codes, metric, codebook.basis.precision())) {
    const at::Tensor error = rows.weight - gather_values(codebook.values(), slots);
    const at::Tensor pulled = at::matmul(error, metric.hessian);
    gradient =
        codebook.basis.project(sum_by_slot(pulled, slots, metric, codebook.basis.precision()));
    energies = (error * pulled).sum(1, false, at::kDouble);
  }
};

/// Takes a step in the rows that it helps; `curvature` is A delta.
void accept(Codebook& codebook, const Residual& residual, const at::Tensor& delta,
            const at::Tensor& curvature) {
  const at::Tensor gain =
      (delta.to(at::kDouble) * (2.0 * residual.gradient - curvature)).flatten(1).sum(1);
  const at::Tensor better = gain.isfinite().logical_and(gain > 0.0);
  codebook.coefficients = at::where(
      better.view({-1, 1, 1}), codebook.coefficients + delta.to(at::kFloat), codebook.coefficients);
  codebook.energies = at::where(better, residual.energies - gain, residual.energies).clamp_min(0.0);
}

/// normal: [n, G, 2^b, G, 2^b].
void refit_directly(const Rows& rows, const Metric& metric, const at::Tensor& normal,
                    Codebook& codebook) {
  const Residual residual(rows, metric, codebook);
  const at::Tensor matrix = codebook.basis.project_normal(normal);
  const at::Tensor ridged = matrix.clone();
  const at::Tensor diagonal = ridged.diagonal(0, 1, 2);
  diagonal.add_(diagonal.mean(1, true) * kRidge + kTiny);
  const auto [factor, failed] = at::linalg_cholesky_ex(ridged);
  at::Tensor delta =
      at::cholesky_solve(residual.gradient.to(at::kDouble).flatten(1).unsqueeze(2), factor);
  delta = at::where((failed == 0).view({-1, 1, 1}), delta, at::zeros_like(delta));
  accept(codebook, residual, delta.view_as(residual.gradient),
         at::matmul(matrix, delta).view_as(residual.gradient));
}

void refit_by_gradients(const Rows& rows, const Metric& metric, Codebook& codebook) {
  const Basis& basis = codebook.basis;
  const Residual residual(rows, metric, codebook);
  const auto pull = [&](const at::Tensor& numbers) {
    return basis.project(sum_by_slot(numbers, residual.slots, metric, basis.precision()));
  };
  const auto dot = [](const at::Tensor& a, const at::Tensor& b) {
    return (a * b).sum({1, 2}, true);
  };
  const at::Tensor diagonal = basis.project_squared(
      sum_by_slot(metric.hessian.diagonal().expand_as(rows.weight).contiguous(), residual.slots,
                  metric, basis.precision()));
  const at::Tensor ridge = diagonal.mean({1, 2}, true) * kRidge + kTiny;
  const at::Tensor scale = (diagonal + ridge).reciprocal();
  const at::Tensor left = residual.gradient.clone();
  const at::Tensor delta = at::zeros_like(left);
  const at::Tensor curvature = at::zeros_like(left);
  at::Tensor direction = scale * left;
  at::Tensor size = dot(left, direction);
  for (int i = 0; i < kGradientSteps; ++i) {
    const at::Tensor moved = gather_values(basis.expand(direction), residual.slots);
    const at::Tensor turned = pull(at::matmul(moved, metric.hessian));
    const at::Tensor ridged = turned + ridge * direction;
    const at::Tensor length = size / dot(direction, ridged).clamp_min(1e-30);
    delta.add_(length * direction);
    curvature.add_(length * turned);
    left.sub_(length * ridged);
    const at::Tensor next = scale * left;
    const at::Tensor next_size = dot(left, next);
    direction = next + next_size / size.clamp_min(1e-30) * direction;
    size = next_size;
  }
  accept(codebook, residual, delta, curvature);
}

/// From precision b + 1 to b: the children of code c are c and c + 2^b.
at::Tensor merge(const at::Tensor& normal) {
  const std::int64_t n = normal.size(0), groups = normal.size(1), half = normal.size(2) / 2;
  return normal.reshape({n, groups, 2, half, groups, 2, half}).sum({2, 5});
}

}  // namespace

void refit(const Rows& rows, const Metric& metric, Codebooks& codebooks) {
  std::vector<Codebook*> by_groups;
  for (auto& [precision, codebook] : codebooks) {
    if (is_by_groups(codebook.basis, metric)) by_groups.push_back(&codebook);
  }
  refit_by_groups(rows, metric, by_groups);
  at::Tensor normal;
  for (auto it = codebooks.rbegin(); it != codebooks.rend(); ++it) {
    auto& [precision, codebook] = *it;
    if (is_by_groups(codebook.basis, metric)) continue;
    if (!is_direct(codebook.basis, metric)) {
      refit_by_gradients(rows, metric, codebook);
      continue;
    }
    if (!normal.defined()) normal = segment_sums(rows, metric, precision);
    while (normal.size(2) > codebook.basis.values()) normal = merge(normal);
    refit_directly(rows, metric, normal, codebook);
  }
}

}  // namespace anyprec::fit
