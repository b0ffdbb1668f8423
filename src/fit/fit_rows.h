#pragma once

#include <map>
#include <vector>

#include "anyprec/codebook.h"
#include "src/fit/refit.h"
#include "src/fit/rows.h"

namespace anyprec::fit {

/// What to fit, for every row alike.
struct Plan {
  CodebookForm form;
  std::vector<int> precisions;  ///< rising; the last is the parent
  std::map<int, double> taus;   ///< positive, by precision; empty for a refit alone
  int rounds = 0;
  int child_sweeps = 0;

  int parent() const { return precisions.back(); }
  bool descends() const { return rounds > 0 && !taus.empty(); }
};

/// Fits codes (to begin with, at the parent precision) and codebooks of some rows, every row for
/// itself: a codebook for each precision. The steps:
///
/// 1. Without descent: refit of each precision.
/// 2. Otherwise joint nested descent on sum_b (tau_b / E_b) E_b over the precisions with a tau, m
///    being the widest: a sweep with error feedback, kept by the rows that it helps, and then
///    rounds of {a sweep of coordinate descent, refit}. E_b is the energy at the start; for
///    codebooks with signed planes, at the start of the round. With `further` codes to begin
///    with, in the order and the bits of rows.codes, a descent from each of them, and each row
///    keeps what has the least sum by the weights of the first.
/// 3. Each bit above m: a split (of the weights by value for a table, by the sign of the error for
///    a signed plane), refit, and sweeps in which only that bit is free, then refit.
Codebooks fit_rows(Rows& rows, const std::vector<at::Tensor>& further, const Metric& metric,
                   const Plan& plan);

}  // namespace anyprec::fit
