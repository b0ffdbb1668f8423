#include "src/fit/fit_rows.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "src/fit/split.h"
#include "src/fit/sweep.h"

namespace anyprec::fit {
namespace {

constexpr double kLeastEnergy = 1e-20;

Codebook make_codebook(const Rows& rows, const Plan& plan, int precision, at::Tensor coefficients) {
  return {.basis = Basis(plan.form, precision, rows.weight.options()),
          .coefficients = std::move(coefficients),
          .energies = {}};
}

/// Means of the table's cells and no signed planes.
Codebook first_codebook(const Rows& rows, const Metric& metric, const Plan& plan, int precision) {
  const int planes = plan.form.sign_planes(precision);
  const at::Tensor means = slot_means(rows, metric, precision - planes);
  return make_codebook(rows, plan, precision,
                       at::constant_pad_nd(means, {0, planes * plan.form.classes()}));
}

std::vector<at::Tensor> weights_of(const Codebooks& codebooks, const Plan& plan) {
  std::vector<at::Tensor> weights;
  for (const auto& [precision, codebook] : codebooks) {
    weights.push_back(plan.taus.at(precision) / codebook.energies.clamp_min(kLeastEnergy));
  }
  return weights;
}

at::Tensor objective(const Codebooks& codebooks, const std::vector<at::Tensor>& weights) {
  at::Tensor sum;
  std::size_t w = 0;
  for (const auto& [precision, codebook] : codebooks) {
    const at::Tensor term = codebook.energies * weights[w++];
    sum = sum.defined() ? sum + term : term;
  }
  return sum;
}

/// Rows for which `better` holds take codes and codebooks of the other.
void take(Rows& rows, Codebooks& codebooks, const Rows& other_rows, const Codebooks& others,
          const at::Tensor& better) {
  rows.codes = at::where(better.unsqueeze(1), other_rows.codes, rows.codes);
  for (auto& [precision, codebook] : codebooks) {
    const Codebook& other = others.at(precision);
    codebook.coefficients =
        at::where(better.view({-1, 1, 1}), other.coefficients, codebook.coefficients);
    codebook.energies = at::where(better, other.energies, codebook.energies);
  }
}

/// The precisions with a tau.
Codebooks descend(Rows& rows, const Metric& metric, const Plan& plan) {
  Codebooks codebooks;
  for (const auto& [precision, tau] : plan.taus) {
    codebooks.emplace(precision, first_codebook(rows, metric, plan, precision));
  }
  refit(rows, metric, codebooks);
  std::vector<at::Tensor> weights = weights_of(codebooks, plan);
  const auto swept = [&](Sweep kind) {
    return Rows{rows.weight, sweep(kind, rows, metric, codebooks, weights)};
  };
  {
    const Rows other = swept(Sweep::kErrorFeedback);
    Codebooks others = codebooks;
    refit(other, metric, others);
    take(rows, codebooks, other, others,
         objective(others, weights) < objective(codebooks, weights));
  }
  const bool has_planes = plan.form.sign_planes(plan.taus.rbegin()->first) > 0;
  for (int round = 0; round < plan.rounds; ++round) {
    if (has_planes) weights = weights_of(codebooks, plan);
    const Rows other = swept(Sweep::kDescent);
    Codebooks others = codebooks;
    refit(other, metric, others);
    // A sweep lowers the sum but for rounding.
    take(rows, codebooks, other, others,
         objective(others, weights) < objective(codebooks, weights));
  }
  return codebooks;
}

/// Adds bit `precision` to codes, a codebook for them, and fits both.
Codebook add_bit(Rows& rows, const Metric& metric, const Plan& plan, int precision,
                 const Codebook& narrower) {
  Codebooks codebooks;
  if (plan.form.sign_planes(precision) == 0) {
    rows.codes = split(rows, metric, precision - 1);
    codebooks.emplace(precision, first_codebook(rows, metric, plan, precision));
  } else {
    const int classes = plan.form.classes();
    const at::Tensor slots = slots_of(rows.codes, metric, precision - 1);
    const at::Tensor error = rows.weight - gather_values(narrower.values(), slots);
    at::Tensor alpha;
    if (plan.form.sign_planes(precision - 1) > 0) {
      alpha = 0.5 * narrower.coefficients.slice(2, -classes);
    } else {
      alpha =
          error.abs().mean(1).view({-1, 1, 1}).expand({rows.count(), metric.codebooks, classes});
    }
    // A negative alpha, where least squares found one, turns the bit's meaning round.
    rows.codes = at::bitwise_or(rows.codes, (error > 0.0).to(at::kByte) * (1 << (precision - 1)));
    codebooks.emplace(precision, make_codebook(rows, plan, precision,
                                               at::cat({narrower.coefficients, alpha.abs()}, 2)));
  }
  refit(rows, metric, codebooks);
  const std::vector<at::Tensor> weights{at::ones({rows.count()}, rows.weight.options())};
  // The levels of a table are where a split put them; those of a plane move with the codes.
  const bool refit_each = plan.form.sign_planes(precision) > 0;
  for (int i = 0; i < plan.child_sweeps; ++i) {
    rows.codes = sweep(Sweep::kNewestBit, rows, metric, codebooks, weights);
    if (refit_each || i + 1 == plan.child_sweeps) refit(rows, metric, codebooks);
  }
  return codebooks.at(precision);
}

}  // namespace

Codebooks fit_rows(Rows& rows, const Metric& metric, const Plan& plan) {
  Codebooks codebooks;
  const int widest = plan.descends() ? plan.taus.rbegin()->first : plan.parent();
  rows.codes = at::bitwise_and(rows.codes, (1 << widest) - 1);
  if (plan.descends()) codebooks = descend(rows, metric, plan);
  Codebooks rest;
  for (const int precision : plan.precisions) {
    if (precision <= widest && !codebooks.contains(precision)) {
      rest.emplace(precision, first_codebook(rows, metric, plan, precision));
    }
  }
  refit(rows, metric, rest);
  codebooks.merge(rest);
  for (int precision = widest + 1; precision <= plan.parent(); ++precision) {
    codebooks.emplace(precision,
                      add_bit(rows, metric, plan, precision, codebooks.at(precision - 1)));
  }
  return codebooks;
}

}  // namespace anyprec::fit
