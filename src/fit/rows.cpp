#include "src/fit/rows.h"

#include <ATen/ATen.h>

#ifdef ANYPREC_FIT_ON_CUDA
#include "src/fit/device_cuda.h"
#endif

namespace anyprec::fit {

at::Tensor slots_of(const at::Tensor& codes, const Metric& metric, int precision) {
  const std::int64_t values = std::int64_t{1} << precision;
  return at::bitwise_and(codes.to(at::kLong), values - 1)
      .add_(metric.groups.to(at::kLong) * values);
}

at::Tensor gather_values(const at::Tensor& values, const at::Tensor& slots) {
  return values.flatten(1).gather(1, slots);
}

at::Tensor sum_by_slot(const at::Tensor& numbers, const Rows& rows, const Metric& metric,
                       int precision) {
  const std::int64_t values = std::int64_t{1} << precision;
  at::Tensor sums = at::zeros({rows.count(), metric.codebooks, values}, numbers.options());
#ifdef ANYPREC_FIT_ON_CUDA
  // scatter_add_ adds in any order there.
  if (numbers.is_cuda()) {
    cpu::RefitRows view = view_of(rows, metric);
    view.widths = 1;
    view.width[0].precision = precision;
    gpu::sum_by_slot(numbers.contiguous(), view, sums);
    return sums;
  }
#endif
  sums.flatten(1).scatter_add_(1, slots_of(rows.codes, metric, precision), numbers);
  return sums;
}

cpu::RefitRows view_of(const Rows& rows, const Metric& metric) {
  TORCH_INTERNAL_ASSERT(rows.weight.is_contiguous() && rows.codes.is_contiguous());
  cpu::RefitRows view{};
  view.weight = rows.weight.const_data_ptr<float>();
  view.codes = rows.codes.const_data_ptr<std::uint8_t>();
  view.diagonal = metric.diagonal.const_data_ptr<float>();
  view.places = metric.places.defined() ? metric.places.const_data_ptr<std::int64_t>() : nullptr;
  view.rows = rows.count();
  view.columns = rows.weight.size(1);
  view.group_size = metric.group_size;
  view.codebooks = static_cast<int>(metric.codebooks);
  return view;
}

}  // namespace anyprec::fit
