#include "src/fit/metric.h"

#include <ATen/ATen.h>

#include <tuple>

namespace anyprec::fit {
namespace {

constexpr double kDamping = 0.01;  // of the mean diagonal

constexpr std::int64_t kDirectInverse = 256;

/// In place, of a lower triangular matrix whose other half is zero: [[A, 0], [B, C]] has the
/// inverse [[A^-1, 0], [-C^-1 B A^-1, C^-1]].
void invert_triangle(const at::Tensor& lower) {
  const std::int64_t n = lower.size(0);
  if (n <= kDirectInverse) {
    lower.copy_(at::linalg_solve_triangular(lower, at::eye(n, lower.options()), /*upper=*/false));
    return;
  }
  const std::int64_t half = n / 2;
  const at::Tensor first = lower.narrow(0, 0, half).narrow(1, 0, half);
  const at::Tensor last = lower.narrow(0, half, n - half).narrow(1, half, n - half);
  const at::Tensor below = lower.narrow(0, half, n - half).narrow(1, 0, half);
  invert_triangle(first);
  invert_triangle(last);
  below.copy_(at::mm(last, at::mm(below, first)).neg_());
}

/// GPTQ's factor: H^-1 = U^T U with U upper; an error at column j moves the target of column i
/// after it by -U[j, i] / U[j, j]. With columns in reverse H = L L^T, whose L^-1 is U in reverse.
at::Tensor feedback_of(const at::Tensor& damped) {
  const auto [factor, failed] = at::linalg_cholesky_ex(damped.flip({0, 1}).to(at::kDouble));
  TORCH_CHECK_VALUE(failed.item<int>() == 0, "hessian: found that its trailing minor of order ",
                    failed.item<int>(),
                    " is not positive (columns by falling diagonal, damped), wanted a positive "
                    "semidefinite matrix");
  invert_triangle(factor);
  factor.div_(factor.diagonal().neg().unsqueeze(1));
  return factor.to(at::kFloat).flip({0, 1}).contiguous();
}

}  // namespace

Metric make_metric(const at::Tensor& hessian, std::int64_t group_size, bool with_feedback) {
  const std::int64_t k = hessian.size(0);
  Metric metric;
  metric.scale = hessian.diagonal().mean(at::kDouble).item<double>();
  TORCH_CHECK_VALUE(metric.scale >= 0.0 && hessian.diagonal().min().item<float>() >= 0.0f,
                    "hessian: found a negative number on its diagonal, wanted a positive "
                    "semidefinite matrix");
  at::Tensor damped = metric.scale > 0.0 ? hessian / metric.scale : at::eye(k, hessian.options());
  damped = (damped + damped.t()) * 0.5;
  metric.order = at::argsort(damped.diagonal(), /*stable=*/true, /*dim=*/0, /*descending=*/true);
  damped = damped.index_select(0, metric.order).index_select(1, metric.order).contiguous();
  damped.diagonal().add_(kDamping);
  metric.hessian = damped;
  metric.diagonal = damped.diagonal().contiguous();
  metric.inverse_diagonal = damped.diagonal().reciprocal();
  metric.codebooks = group_size == 0 ? 1 : (k + group_size - 1) / group_size;
  metric.groups =
      (group_size == 0 ? at::zeros_like(metric.order) : at::div(metric.order, group_size, "floor"))
          .to(at::kInt);
  metric.group_size = group_size == 0 ? k : group_size;
  if (metric.codebooks > 1) metric.places = at::argsort(metric.order);
  if (with_feedback) metric.feedback = feedback_of(damped);
  metric.split = split_matrix(damped);
  return metric;
}

}  // namespace anyprec::fit
