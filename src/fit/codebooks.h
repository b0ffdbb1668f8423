#pragma once

#include <ATen/core/Tensor.h>

#include <map>

#include "src/fit/basis.h"
#include "src/fit/rows.h"

namespace anyprec::fit {

/// A codebook of each row at one precision, and the energy that its rows have with it.
struct Codebook {
  Basis basis;
  at::Tensor coefficients;  ///< fp32 [n, G, U]
  at::Tensor energies;      ///< fp64 [n], in the metric's unit

  at::Tensor values() const { return basis.expand(coefficients); }
};

/// By precision, rising.
using Codebooks = std::map<int, Codebook>;

/// The ridge of least squares: this share of the normal matrix's mean diagonal, and a little where
/// that is zero.
inline constexpr double kRidge = 1e-5;
inline constexpr double kLeastRidge = 1e-12;

}  // namespace anyprec::fit
