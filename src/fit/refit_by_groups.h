#pragma once

#include <vector>

#include "src/fit/codebooks.h"

namespace anyprec::fit {

/// Whether a codebook is of few coefficients: of binary coding, or others in groups of columns.
bool is_by_groups(const Basis& basis, const Metric& metric);

/// Least squares (refit.h) for codebooks of few coefficients, of rising precisions and the same
/// form, without going through slots, of which there are G 2^b. Columns are put in the order of
/// groups, and values are a dense matrix (the design) times coefficients. Up to 128 unknowns a row
/// (on a GPU 32) by Cholesky in fp64, where the normal matrix of the widest precision has those of
/// narrower ones in it, as their planes are its first ones; beyond, by `steps` conjugate gradients
/// preconditioned by the blocks within groups. A row keeps what it had where its energy does not
/// fall.
void refit_by_groups(const Rows& rows, const Metric& metric,
                     const std::vector<Codebook*>& codebooks, int steps);

}  // namespace anyprec::fit
