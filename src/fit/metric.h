#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "src/fit/device.h"

namespace anyprec::fit {

/// What an error of a row costs, (w - q)^T H (w - q), ready for sweeps. Columns are in the order of
/// falling diag(H), as in GPTQ (arXiv 2210.17323, "act order").
struct Metric {
  at::Tensor order;             ///< int64 [K], the column at each place
  at::Tensor hessian;           ///< fp32 [K, K], scaled to a mean diagonal of 1, then damped
  SplitMatrix split;            ///< of it
  at::Tensor inverse_diagonal;  ///< fp32 [K]
  at::Tensor feedback;          ///< fp32 [K, K]: row j, what an error at column j adds to targets
  at::Tensor groups;            ///< int32 [K], the codebook of each column
  at::Tensor places;            ///< int64 [K]: the places of column 0, 1, ...; G = 1: undefined
  at::Tensor diagonal;          ///< fp32 [K], of the Hessian
  std::int64_t group_size;      ///< columns of a codebook
  std::int64_t codebooks;       ///< G
  double scale;                 ///< energies times this are in the given Hessian's unit
};

/// hessian: fp32 [K, K], finite, positive semidefinite, of any scale; 0.01 of its mean diagonal is
/// added to its diagonal. An all-zero one counts as the identity, with scale 0. group_size: 0 for
/// one codebook a row. Throws c10::ValueError where the matrix is not positive semidefinite.
Metric make_metric(const at::Tensor& hessian, std::int64_t group_size, bool with_feedback);

}  // namespace anyprec::fit
