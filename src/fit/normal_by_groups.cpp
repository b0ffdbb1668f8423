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

struct Design {
  at::Tensor hessian;     ///< fp32 [G S, G S]
  at::Tensor basis;       ///< fp32 [G, S, n, U], what each coefficient gives to each weight
  at::Tensor transposed;  ///< the same as [G, n, U, S]
};

Design design_of(const Rows& rows, const Metric& metric, const Basis& basis) {
  const std::int64_t n = rows.count(), k = rows.weight.size(1), u = basis.coefficients();
  const at::Tensor columns = padded_columns(metric);
  const at::Tensor codes =
      at::bitwise_and(rows.codes, basis.values() - 1).t().contiguous().flatten().to(at::kInt);
  Design design;
  // Padding has no weight: a row of zeros behind the Hessian's, and one of the basis.
  design.hessian = at::constant_pad_nd(metric.hessian, {0, 1, 0, 1})
                       .index_select(0, columns)
                       .index_select(1, columns);
  design.basis = at::constant_pad_nd(basis.rows(codes).view({k, n * u}), {0, 0, 0, 1})
                     .index_select(0, columns)
                     .view({metric.codebooks, -1, n, u});
  design.transposed = design.basis.permute({0, 2, 3, 1}).contiguous();
  return design;
}

}  // namespace

at::Tensor normal_by_groups(const Rows& rows, const Metric& metric, const Basis& basis) {
  const Design design = design_of(rows, metric, basis);
  const std::int64_t n = rows.count(), u = basis.coefficients(), groups = metric.codebooks;
  const std::int64_t size = design.basis.size(1);
  at::Tensor normal =
      at::empty({n, groups, u, groups, u}, design.hessian.options().dtype(at::kDouble));
  for (std::int64_t h = 0; h < groups; ++h) {
    const at::Tensor pulled =
        at::matmul(design.hessian.narrow(0, 0, (h + 1) * size).narrow(1, h * size, size),
                   design.basis[h].view({size, n * u}))
            .view({h + 1, size, n, u})
            .permute({0, 2, 1, 3});
    // [h + 1, n, U, U]: the blocks (g, h), g <= h.
    const at::Tensor blocks = at::matmul(design.transposed.narrow(0, 0, h + 1), pulled);
    normal.narrow(1, 0, h + 1).select(3, h).copy_(blocks.transpose(0, 1));
    normal.select(1, h).narrow(2, 0, h + 1).copy_(blocks.permute({1, 3, 0, 2}));
  }
  // The block (h, h) is symmetric but for rounding.
  return (normal + normal.permute({0, 3, 4, 1, 2})) * 0.5;
}

at::Tensor diagonal_by_groups(const Rows& rows, const Metric& metric, const Basis& basis) {
  const Design design = design_of(rows, metric, basis);
  const std::int64_t n = rows.count(), u = basis.coefficients(), groups = metric.codebooks;
  const std::int64_t size = design.basis.size(1);
  const at::Tensor within =
      design.hessian.view({groups, size, groups, size}).diagonal(0, 0, 2).permute({2, 0, 1});
  const at::Tensor pulled = at::matmul(within, design.basis.view({groups, size, n * u}))
                                .view({groups, size, n, u})
                                .permute({0, 2, 1, 3});
  const at::Tensor blocks = at::matmul(design.transposed, pulled).transpose(0, 1).to(at::kDouble);
  return (blocks + blocks.mT()) * 0.5;
}

}  // namespace anyprec::fit
