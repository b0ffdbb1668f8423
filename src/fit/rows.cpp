#include "src/fit/rows.h"

#include <ATen/ATen.h>

#include "anyprec/codebook.h"
#include "anyprec/torch.h"

namespace anyprec::fit {

at::Tensor slots_of(const at::Tensor& codes, const Metric& metric, int precision) {
  const std::int64_t values = std::int64_t{1} << precision;
  return at::bitwise_and(codes.to(at::kLong), values - 1)
      .add_(metric.groups.to(at::kLong) * values);
}

at::Tensor gather_values(const at::Tensor& values, const at::Tensor& slots) {
  return values.flatten(1).gather(1, slots);
}

at::Tensor slot_sizes(const at::Tensor& slots, std::int64_t count) {
  return at::zeros({slots.size(0), count}, slots.options())
      .scatter_add_(1, slots, at::ones_like(slots));
}

namespace {

/// Sums in the order of the columns within a slot: the slots sorted, and differences of prefix
/// sums.
at::Tensor sorted_sums(const at::Tensor& numbers, const at::Tensor& slots, std::int64_t count) {
  const at::Tensor order = std::get<1>(at::sort(slots, /*stable=*/true, 1, false));
  const at::Tensor prefix =
      at::constant_pad_nd(at::cumsum(numbers.gather(1, order), 1, at::kDouble), {1, 0});
  const at::Tensor sizes = slot_sizes(slots, count);
  const at::Tensor ends = sizes.cumsum(1);
  return (prefix.gather(1, ends) - prefix.gather(1, ends - sizes)).to(numbers.scalar_type());
}

}  // namespace

at::Tensor sum_by_slot(const at::Tensor& numbers, const at::Tensor& slots, const Metric& metric,
                       int precision) {
  const std::int64_t rows = numbers.size(0), values = std::int64_t{1} << precision;
  const std::int64_t count = metric.codebooks * values;
  // On a GPU scatter_add_ adds in any order.
  if (numbers.is_cuda()) {
    const bool has_kernel =
        metric.codebooks == 1 && precision >= kMinPrecision && numbers.scalar_type() == at::kFloat;
    if (has_kernel) {
      return anyprec::torch::sum_by_code(numbers.contiguous(), slots.to(at::kByte), precision, 0);
    }
    return sorted_sums(numbers, slots, count).view({rows, metric.codebooks, values});
  }
  at::Tensor sums = at::zeros({rows, count}, numbers.options());
  sums.scatter_add_(1, slots, numbers);
  return sums.view({rows, metric.codebooks, values});
}

at::Tensor energy(const at::Tensor& error, const Metric& metric) {
  return (at::matmul(error, metric.hessian) * error).sum(1, false, at::kDouble);
}

}  // namespace anyprec::fit
