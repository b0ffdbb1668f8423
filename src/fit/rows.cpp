#include "src/fit/rows.h"

#include <ATen/ATen.h>

namespace anyprec::fit {

at::Tensor slots_of(const at::Tensor& codes, const Metric& metric, int precision) {
  const std::int64_t values = std::int64_t{1} << precision;
  return at::bitwise_and(codes.to(at::kLong), values - 1)
      .add_(metric.groups.to(at::kLong) * values);
}

at::Tensor gather_values(const at::Tensor& values, const at::Tensor& slots) {
  return values.flatten(1).gather(1, slots);
}

at::Tensor sum_by_slot(const at::Tensor& numbers, const at::Tensor& slots, std::int64_t codebooks,
                       std::int64_t values) {
  at::Tensor sums = at::zeros({numbers.size(0), codebooks * values}, numbers.options());
  sums.scatter_add_(1, slots, numbers);
  return sums.view({numbers.size(0), codebooks, values});
}

at::Tensor energy(const at::Tensor& error, const Metric& metric) {
  return (at::matmul(error, metric.hessian) * error).sum(1, false, at::kDouble);
}

}  // namespace anyprec::fit
