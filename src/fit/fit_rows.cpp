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

/// Means of the table's cells and no signed planes, for some rising precisions.
Codebooks first_codebooks(const Rows& rows, const Metric& metric, const Plan& plan,
                          const std::vector<int>& precisions) {
  Codebooks codebooks;
  if (precisions.empty()) return codebooks;
  const int widest = precisions.back();
  const std::vector<at::Tensor> means =
      slot_means(rows, metric, widest - plan.form.sign_planes(widest));
  for (const int precision : precisions) {
    const int planes = plan.form.sign_planes(precision);
    const at::Tensor padded =
        at::constant_pad_nd(means[precision - planes], {0, planes * plan.form.classes()});
    codebooks.emplace(precision, make_codebook(rows, plan, precision, padded));
  }
  return codebooks;
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

/// Codes and what was fitted to them.
struct State {
  Rows rows;
  Codebooks codebooks;
  at::Tensor pulled;  ///< H (w - q), as refit returns it
};

bool has_planes(const Plan& plan) { return plan.form.sign_planes(plan.taus.rbegin()->first) > 0; }

/// Rows for which `better` holds take what another state has.
void take(State& state, const State& from, const at::Tensor& better) {
  state.rows.codes = at::where(better.unsqueeze(1), from.rows.codes, state.rows.codes);
  if (state.pulled.defined() && from.pulled.defined()) {
    state.pulled = at::where(better.view({1, -1, 1}), from.pulled, state.pulled);
  } else {
    state.pulled = at::Tensor();
  }
  for (auto& [precision, codebook] : state.codebooks) {
    const Codebook& other = from.codebooks.at(precision);
    codebook.coefficients =
        at::where(better.view({-1, 1, 1}), other.coefficients, codebook.coefficients);
    codebook.energies = at::where(better, other.energies, codebook.energies);
  }
}

/// Joint nested descent over the precisions with a tau. weights: of their energies in the sum;
/// empty for those that suit the rows. Where codebooks have signed planes they are taken anew in
/// every round. Those of the last round come back.
State descend_from(const Rows& rows, const Metric& metric, const Plan& plan,
                   std::vector<at::Tensor>& weights) {
  std::vector<int> precisions;
  for (const auto& [precision, tau] : plan.taus) precisions.push_back(precision);
  State state{
      .rows = rows, .codebooks = first_codebooks(rows, metric, plan, precisions), .pulled = {}};
  state.pulled =
      refit(rows, metric, state.codebooks, has_planes(plan) ? Effort::kThorough : Effort::kRough);
  if (weights.empty()) weights = weights_of(state.codebooks, plan);
  const auto improve = [&](Sweep kind, Effort effort) {
    State other = state;
    other.rows.codes = sweep(kind, state.rows, metric, state.codebooks, weights, state.pulled);
    other.pulled = refit(other.rows, metric, other.codebooks, effort);
    // A sweep of descent lowers the sum but for rounding.
    take(state, other, objective(other.codebooks, weights) < objective(state.codebooks, weights));
  };
  improve(Sweep::kErrorFeedback, Effort::kRough);
  for (int round = 0; round < plan.rounds; ++round) {
    if (has_planes(plan)) weights = weights_of(state.codebooks, plan);
    improve(Sweep::kDescent, round + 1 == plan.rounds ? Effort::kFinal : Effort::kRough);
  }
  state.pulled = at::Tensor();
  return state;
}

/// The best of descents from several codes, row by row, by the weights of the first.
Codebooks descend(Rows& rows, const std::vector<at::Tensor>& others, const Metric& metric,
                  const Plan& plan) {
  std::vector<at::Tensor> weights;
  State best = descend_from(rows, metric, plan, weights);
  for (const at::Tensor& codes : others) {
    std::vector<at::Tensor> own;
    if (!has_planes(plan)) own = weights;
    const State other = descend_from({rows.weight, codes}, metric, plan, own);
    take(best, other, objective(other.codebooks, weights) < objective(best.codebooks, weights));
  }
  rows.codes = best.rows.codes;
  return best.codebooks;
}

/// Adds bit `precision` to codes, a codebook for them, and fits both.
Codebook add_bit(Rows& rows, const Metric& metric, const Plan& plan, int precision,
                 const Codebook& narrower) {
  Codebooks codebooks;
  if (plan.form.sign_planes(precision) == 0) {
    rows.codes = split(rows, metric, precision - 1);
    codebooks = first_codebooks(rows, metric, plan, {precision});
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
  const int sweeps = plan.child_sweeps;
  at::Tensor pulled = refit(rows, metric, codebooks, Effort::kThorough);
  const std::vector<at::Tensor> weights{at::ones({rows.count()}, rows.weight.options())};
  // The levels of a table are where a split put them; those of a plane move with the codes.
  const bool refit_each = plan.form.sign_planes(precision) > 0;
  for (int i = 1; i <= sweeps; ++i) {
    rows.codes = sweep(Sweep::kNewestBit, rows, metric, codebooks, weights, pulled);
    pulled = at::Tensor();
    if (i == sweeps) {
      refit(rows, metric, codebooks, Effort::kThorough);
    } else if (refit_each) {
      pulled = refit(rows, metric, codebooks, Effort::kRough);
    }
  }
  return codebooks.at(precision);
}

}  // namespace

Codebooks fit_rows(Rows& rows, const std::vector<at::Tensor>& further, const Metric& metric,
                   const Plan& plan) {
  Codebooks codebooks;
  const int widest = plan.descends() ? plan.taus.rbegin()->first : plan.parent();
  const auto shortened = [&](const at::Tensor& codes) {
    return at::bitwise_and(codes, (1 << widest) - 1);
  };
  rows.codes = shortened(rows.codes);
  if (plan.descends()) {
    std::vector<at::Tensor> starts;
    for (const at::Tensor& codes : further) starts.push_back(shortened(codes));
    codebooks = descend(rows, starts, metric, plan);
  }
  std::vector<int> others;
  for (const int precision : plan.precisions) {
    if (precision <= widest && !codebooks.contains(precision)) others.push_back(precision);
  }
  Codebooks rest = first_codebooks(rows, metric, plan, others);
  refit(rows, metric, rest, Effort::kThorough);
  codebooks.merge(rest);
  for (int precision = widest + 1; precision <= plan.parent(); ++precision) {
    codebooks.emplace(precision,
                      add_bit(rows, metric, plan, precision, codebooks.at(precision - 1)));
  }
  return codebooks;
}

}  // namespace anyprec::fit
