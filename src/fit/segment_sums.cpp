#include "src/fit/segment_sums.h"

#include <ATen/ATen.h>

#include "kernels/cpu/fit_sweep.h"

namespace anyprec::fit {
at::Tensor segment_sums(const Rows& rows, const Metric& metric, int precision) {
  const std::int64_t values = std::int64_t{1} << precision;
  const std::int64_t count = metric.codebooks * values;
  const at::Tensor slots = slots_of(rows.codes, metric, precision);
  const at::Tensor narrow = slots.to(at::kInt).contiguous();
  const at::Tensor normal = at::empty({rows.count(), count, count}, metric.hessian.options());
  cpu::fit_kernels().segment_sums({.hessian = metric.hessian.const_data_ptr<float>(),
                                   .slot_of = narrow.const_data_ptr<std::int32_t>(),
                                   .normal = normal.mutable_data_ptr<float>(),
                                   .rows = rows.count(),
                                   .columns = slots.size(1),
                                   .slots = static_cast<int>(count)});
  return normal.view({rows.count(), metric.codebooks, values, metric.codebooks, values});
}

}  // namespace anyprec::fit
