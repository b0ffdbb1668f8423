#include "src/fit/normal_by_groups.h"

#include <ATen/ATen.h>

namespace anyprec::fit {
namespace {

/// Columns by group, every group padded to the length of the longest: int64 [G S], K for padding.
at::Tensor padded_columns(const Metric& metric) {
  const at::Tensor by_group = at::argsort(metric.groups, /*stable=*/true, 0, false);
  const at::Tensor group = metric.groups.to(at::kLong).index_select(0, by_group);
  const at::Tensor every = at::arange(metric.codebooks, group.options());
  const at::Tensor sizes = (group.unsqueeze(0) == every.unsqueeze(1)).sum(1);
  const std::int64_t longest = sizes.max().item<std::int64_t>();
  const at::Tensor begin = sizes.cumsum(0) - sizes;
  const at::Tensor place =
      at::arange(group.size(0), group.options()) - begin.index_select(0, group);
  return at::full({metric.codebooks * longest}, group.size(0), group.options())
      .index_copy_(0, group * longest + place, by_group);
}

}  // namespace

at::Tensor normal_by_groups(const Rows& rows, const Metric& metric, const Basis& basis) {
  const std::int64_t n = rows.count(), u = basis.coefficients(), groups = metric.codebooks;
  const at::Tensor columns = padded_columns(metric);
  const std::int64_t size = columns.size(0) / groups;
  // Padding has no weight: a row of zeros behind the Hessian's, and one of the design.
  const at::Tensor hessian = at::constant_pad_nd(metric.hessian, {0, 1, 0, 1})
                                 .index_select(0, columns)
                                 .index_select(1, columns);
  const at::Tensor codes =
      at::bitwise_and(rows.codes, basis.values() - 1).t().contiguous().flatten().to(at::kInt);
  const at::Tensor design =
      at::constant_pad_nd(basis.rows(codes).view({rows.weight.size(1), n * u}), {0, 0, 0, 1})
          .index_select(0, columns)
          .view({groups, size, n, u});
  const at::Tensor transposed = design.permute({0, 2, 3, 1}).contiguous();  // [G, n, U, S]
  at::Tensor normal = at::empty({n, groups, u, groups, u}, hessian.options().dtype(at::kDouble));
  for (std::int64_t h = 0; h < groups; ++h) {
    const at::Tensor pulled =
        at::matmul(hessian.narrow(0, 0, (h + 1) * size).narrow(1, h * size, size),
                   design[h].view({size, n * u}))
            .view({h + 1, size, n, u})
            .permute({0, 2, 1, 3});
    // [h + 1, n, U, U]: the blocks (g, h), g <= h.
    const at::Tensor blocks = at::matmul(transposed.narrow(0, 0, h + 1), pulled);
    normal.narrow(1, 0, h + 1).select(3, h).copy_(blocks.transpose(0, 1));
    normal.select(1, h).narrow(2, 0, h + 1).copy_(blocks.permute({1, 3, 0, 2}));
  }
  // The block (h, h) is symmetric but for rounding.
  return (normal + normal.permute({0, 3, 4, 1, 2})) * 0.5;
}

}  // namespace anyprec::fit
