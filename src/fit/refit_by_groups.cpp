#include "src/fit/refit_by_groups.h"

#include <ATen/ATen.h>

#include "src/fit/full_precision.h"
#include "src/fit/least_squares.h"

namespace anyprec::fit {
namespace {

constexpr std::int64_t kGroupUnknowns = 16;
// Unknowns of a row that are solved for by Cholesky. A GPU factors many matrices of 64-bit numbers
// more slowly than it multiplies.
constexpr std::int64_t kDirectUnknowns = 128;
constexpr std::int64_t kDirectUnknownsOnGpu = 32;

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

/// Rows in the order of groups, padding having no weight: n rows, G groups of S columns, U
/// coefficients at the widest precision.
class Design {
 public:
  Design(const Rows& rows, const Metric& metric, const Basis& widest)
      : n_(rows.count()), groups_(metric.codebooks), u_(widest.coefficients()) {
    const std::int64_t k = rows.weight.size(1);
    const at::Tensor columns = padded_columns(metric);
    size_ = columns.size(0) / groups_;
    const at::Tensor codes =
        at::bitwise_and(rows.codes, widest.values() - 1).t().contiguous().flatten().to(at::kInt);
    hessian_ = at::constant_pad_nd(metric.hessian, {0, 1, 0, 1})
                   .index_select(0, columns)
                   .index_select(1, columns);
    basis_ = at::constant_pad_nd(widest.rows(codes).view({k, n_ * u_}), {0, 0, 0, 1})
                 .index_select(0, columns)
                 .view({groups_, size_, n_, u_});
    transposed_ = basis_.permute({0, 2, 3, 1}).contiguous();
    weight_ = at::constant_pad_nd(rows.weight, {0, 1}).index_select(1, columns);
  }

  const at::Tensor& weight() const { return weight_; }  ///< [n, G S]

  /// Values of coefficients [n, G, U'], U' <= U: [n, G S].
  at::Tensor expand(const at::Tensor& coefficients) const {
    const at::Tensor by_group = coefficients.transpose(0, 1).unsqueeze(2);  // [G, n, 1, U']
    return at::matmul(by_group, transposed_.narrow(2, 0, coefficients.size(2)))
        .permute({1, 0, 2, 3})
        .reshape({n_, groups_ * size_});
  }
  /// The adjoint: numbers [n, G S] to [n, G, U'].
  at::Tensor project(const at::Tensor& numbers, std::int64_t u) const {
    const at::Tensor by_group = numbers.view({n_, groups_, size_, 1}).transpose(0, 1);
    return at::matmul(transposed_.narrow(2, 0, u), by_group).squeeze(3).transpose(0, 1);
  }
  /// Times H: [n, G S].
  at::Tensor pull(const at::Tensor& numbers) const { return at::matmul(numbers, hessian_); }

  /// The normal matrix, fp64 [n, G, U, G, U], symmetric: K^2 U products a row.
  at::Tensor normal() const {
    at::Tensor normal =
        at::empty({n_, groups_, u_, groups_, u_}, hessian_.options().dtype(at::kDouble));
    for (std::int64_t h = 0; h < groups_; ++h) {
      const at::Tensor pulled =
          at::matmul(hessian_.narrow(0, 0, (h + 1) * size_).narrow(1, h * size_, size_),
                     basis_[h].view({size_, n_ * u_}))
              .view({h + 1, size_, n_, u_})
              .permute({0, 2, 1, 3});
      // [h + 1, n, U, U]: the blocks (g, h), g <= h.
      const at::Tensor blocks = at::matmul(transposed_.narrow(0, 0, h + 1), pulled);
      normal.narrow(1, 0, h + 1).select(3, h).copy_(blocks.transpose(0, 1));
      normal.select(1, h).narrow(2, 0, h + 1).copy_(blocks.permute({1, 3, 0, 2}));
    }
    // The block (h, h) is symmetric but for rounding.
    return (normal + normal.permute({0, 3, 4, 1, 2})) * 0.5;
  }

  /// Its blocks within groups alone, fp64 [n, G, U, U].
  at::Tensor diagonal_blocks() const {
    const at::Tensor within =
        hessian_.view({groups_, size_, groups_, size_}).diagonal(0, 0, 2).permute({2, 0, 1});
    const at::Tensor pulled = at::matmul(within, basis_.view({groups_, size_, n_ * u_}))
                                  .view({groups_, size_, n_, u_})
                                  .permute({0, 2, 1, 3});
    const at::Tensor blocks = at::matmul(transposed_, pulled).transpose(0, 1).to(at::kDouble);
    return (blocks + blocks.mT()) * 0.5;
  }

 private:
  std::int64_t n_, groups_, u_, size_;
  at::Tensor hessian_;     ///< fp32 [G S, G S]
  at::Tensor basis_;       ///< fp32 [G, S, n, U], what each coefficient gives to each weight
  at::Tensor transposed_;  ///< the same as [G, n, U, S]
  at::Tensor weight_;
};

/// P^T H (w - q), fp32 [n, G, U']; sets the codebook's energies.
at::Tensor gradient_of(const Design& design, Codebook& codebook) {
  const at::Tensor error = design.weight() - design.expand(codebook.coefficients);
  const at::Tensor pulled = design.pull(error);
  codebook.energies = (error * pulled).sum(1, false, at::kDouble);
  return design.project(pulled, codebook.coefficients.size(2)).contiguous();
}

/// The inverse of each block with the ridge, fp32 [n, G, U', U']; of its diagonal alone where it
/// has none. blocks: fp64 [n, G, U', U']; ridge: [n, 1, 1].
at::Tensor inverse_of(const at::Tensor& blocks, const at::Tensor& ridge) {
  const at::Tensor ridged = blocks.clone();
  const at::Tensor diagonal = ridged.diagonal(0, 2, 3);
  diagonal.add_(ridge);
  const auto [factor, failed] = at::linalg_cholesky_ex(ridged);
  // For so many small matrices a triangular solve is one launch, cholesky_inverse one for each.
  const at::Tensor unit = at::eye(blocks.size(3), blocks.options()).expand_as(blocks);
  const at::Tensor root = at::linalg_solve_triangular(factor, unit, /*upper=*/false);
  const at::Tensor inverse =
      at::where((failed == 0).unsqueeze(2).unsqueeze(3), at::matmul(root.mT(), root),
                at::diag_embed(diagonal.reciprocal()));
  return inverse.to(at::kFloat);
}

/// blocks: fp64 [n, G, U', U'], of the normal matrix.
void solve_by_gradients(const Design& design, const at::Tensor& blocks, Codebook& codebook,
                        int steps) {
  const at::Tensor gradient = gradient_of(design, codebook);
  const at::Tensor ridge =
      (blocks.diagonal(0, 2, 3).mean({1, 2}, true) * kRidge + kLeastRidge).to(at::kFloat);
  const at::Tensor inverse = inverse_of(blocks, ridge);
  const auto preconditioned = [&](const at::Tensor& vector) {
    return at::matmul(inverse, vector.unsqueeze(3)).squeeze(3);
  };
  const auto dot = [](const at::Tensor& a, const at::Tensor& b) {
    return (a * b).sum({1, 2}, true);
  };
  const at::Tensor left = gradient.clone();
  const at::Tensor delta = at::zeros_like(left);
  const at::Tensor curvature = at::zeros_like(left);
  at::Tensor direction = preconditioned(left);
  at::Tensor size = dot(left, direction);
  for (int i = 0; i < steps; ++i) {
    const at::Tensor turned =
        design.project(design.pull(design.expand(direction)), direction.size(2));
    const at::Tensor ridged = turned + ridge * direction;
    const at::Tensor length = size / dot(direction, ridged).clamp_min(1e-30);
    delta.add_(length * direction);
    curvature.add_(length * turned);
    left.sub_(length * ridged);
    const at::Tensor next = preconditioned(left);
    const at::Tensor next_size = dot(left, next);
    direction = next + next_size / size.clamp_min(1e-30) * direction;
    size = next_size;
  }
  accept(codebook, gradient, delta, curvature);
}

/// Codebooks whose tables are as large as the widest one's.
void solve_alike(const Rows& rows, const Metric& metric, const std::vector<Codebook*>& codebooks,
                 int steps) {
  const Design design(rows, metric, codebooks.back()->basis);
  const std::int64_t direct = rows.weight.is_cpu() ? kDirectUnknowns : kDirectUnknownsOnGpu;
  at::Tensor normal, blocks;
  for (auto it = codebooks.rbegin(); it != codebooks.rend(); ++it) {
    const std::int64_t u = (*it)->basis.coefficients(), unknowns = metric.codebooks * u;
    if (unknowns > direct) {
      if (!blocks.defined()) blocks = design.diagonal_blocks();
      solve_by_gradients(design, blocks.narrow(2, 0, u).narrow(3, 0, u), **it, steps);
      continue;
    }
    if (!normal.defined()) {
      normal = (it == codebooks.rbegin() ? design : Design(rows, metric, (*it)->basis)).normal();
    }
    normal = normal.narrow(2, 0, u).narrow(4, 0, u);
    const at::Tensor gradient = gradient_of(design, **it);
    solve_directly(**it, gradient, normal.reshape({rows.count(), unknowns, unknowns}));
  }
}

}  // namespace

bool is_by_groups(const Basis& basis, const Metric& metric) {
  return basis.entries() == 1 || (metric.codebooks > 1 && basis.coefficients() <= kGroupUnknowns);
}

void refit_by_groups(const Rows& rows, const Metric& metric,
                     const std::vector<Codebook*>& codebooks, int steps) {
  const FullPrecision full_precision(rows.weight);
  std::vector<Codebook*> alike;
  for (Codebook* codebook : codebooks) {
    if (!alike.empty() && alike.back()->basis.entries() != codebook->basis.entries()) {
      solve_alike(rows, metric, alike, steps);
      alike.clear();
    }
    alike.push_back(codebook);
  }
  if (!alike.empty()) solve_alike(rows, metric, alike, steps);
}

}  // namespace anyprec::fit
