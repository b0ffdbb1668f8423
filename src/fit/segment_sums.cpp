#include "src/fit/segment_sums.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "kernels/cpu/fit_sweep.h"

namespace anyprec::fit {
namespace {

// Floats of the selections that are there at once, on a GPU.
constexpr std::int64_t kSelectionFloats = std::int64_t{1} << 28;

at::Tensor by_products(const at::Tensor& slots, const Metric& metric, std::int64_t count) {
  const std::int64_t n = slots.size(0), k = slots.size(1);
  at::Tensor normal = at::empty({n, count, count}, metric.hessian.options());
  const std::int64_t step = std::max<std::int64_t>(1, kSelectionFloats / (k * count));
  for (std::int64_t at = 0; at < n; at += step) {
    const std::int64_t rows = std::min(step, n - at);
    const at::Tensor chosen = slots.narrow(0, at, rows);
    at::Tensor selection = at::zeros({rows, k, count}, metric.hessian.options());
    selection.scatter_(2, chosen.unsqueeze(2), 1.0);
    const at::Tensor pulled = at::matmul(metric.hessian, selection);
    normal.narrow(0, at, rows).copy_(at::bmm(selection.mT(), pulled));
  }
  return normal;
}

}  // namespace

at::Tensor segment_sums(const Rows& rows, const Metric& metric, int precision) {
  const std::int64_t values = std::int64_t{1} << precision;
  const std::int64_t count = metric.codebooks * values;
  const at::Tensor slots = slots_of(rows.codes, metric, precision);
  at::Tensor normal;
  if (slots.is_cpu()) {
    const at::Tensor narrow = slots.to(at::kInt).contiguous();
    normal = at::empty({rows.count(), count, count}, metric.hessian.options());
    cpu::fit_kernels().segment_sums({.hessian = metric.hessian.const_data_ptr<float>(),
                                     .slot_of = narrow.const_data_ptr<std::int32_t>(),
                                     .normal = normal.mutable_data_ptr<float>(),
                                     .rows = rows.count(),
                                     .columns = slots.size(1),
                                     .slots = static_cast<int>(count)});
  } else {
    normal = by_products(slots, metric, count);
  }
  return normal.view({rows.count(), metric.codebooks, values, metric.codebooks, values});
}

}  // namespace anyprec::fit
