#pragma once

#include <ATen/core/Tensor.h>

#include "src/fit/metric.h"

namespace anyprec::fit {

/// Some rows of a weight matrix and their codes, in the metric's order of columns.
struct Rows {
  at::Tensor weight;  ///< fp32 [n, K]
  at::Tensor codes;   ///< uint8 [n, K], bit-reversed

  std::int64_t count() const { return weight.size(0); }
};

/// Where each weight's value is in a row's codebooks at a precision: int64 [n, K], group * 2^b +
/// code.
at::Tensor slots_of(const at::Tensor& codes, const Metric& metric, int precision);

/// values: [n, G, 2^b]; the value of each weight, [n, K].
at::Tensor gather_values(const at::Tensor& values, const at::Tensor& slots);
/// The adjoint: sums over the weights of each slot, [n, G, 2^precision], always in one order.
/// numbers: fp32 [n, K].
at::Tensor sum_by_slot(const at::Tensor& numbers, const Rows& rows, const Metric& metric,
                       int precision);
/// The kernels' view of rows, without codebooks.
cpu::RefitRows view_of(const Rows& rows, const Metric& metric);

}  // namespace anyprec::fit
