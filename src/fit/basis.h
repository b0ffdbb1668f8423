#pragma once

#include <ATen/core/Tensor.h>

#include "anyprec/codebook.h"

namespace anyprec::fit {

/// A codebook form at one precision as a constant matrix: values = matrix @ coefficients, for each
/// row and group of columns. Values are in the order of bit-reversed codes (bit i of an index is
/// plane i), so that the code at a lower precision is the low bits of it.
class Basis {
 public:
  Basis(const CodebookForm& form, int precision, const at::TensorOptions& options);

  int precision() const { return precision_; }
  std::int64_t values() const { return std::int64_t{1} << precision_; }
  std::int64_t entries() const { return form_.lut_entries(precision_); }
  /// U: 2^min(b, L) entries of the table, then C alphas for each of the max(b - L, 0) planes.
  std::int64_t coefficients() const { return matrix_.size(1); }

  /// Of a full table: coefficients are the values.
  bool is_identity() const { return full_table_; }
  const at::Tensor& matrix() const { return matrix_; }

  /// What each coefficient gives to the value of each of some codes: int32 or int64 [m] -> [m, U].
  at::Tensor rows(const at::Tensor& codes) const;
  /// [n, G, U] -> [n, G, 2^b]
  at::Tensor expand(const at::Tensor& coefficients) const;
  /// The adjoint, [n, G, 2^b] -> [n, G, U].
  at::Tensor project(const at::Tensor& values) const;
  /// basis^T A basis, symmetric. [n, G, 2^b, G, 2^b] -> fp64 [n, G U, G U].
  at::Tensor project_normal(const at::Tensor& normal) const;

  /// The checkpoint's tensors out of coefficients, rounded to fp16: fp32 [n, G, 2^min(b, L)] in the
  /// order of codes, and [n, G, max(b - L, 0), C].
  at::Tensor table(const at::Tensor& coefficients) const;
  at::Tensor alphas(const at::Tensor& coefficients) const;

 private:
  CodebookForm form_;
  int precision_;
  bool full_table_;
  at::Tensor matrix_;       ///< [2^b, U]
  at::Tensor transposed_;   ///< [U, 2^b]
  at::Tensor table_order_;  ///< int64 [2^min(b, L)], the coefficient of each cell
};

/// The bits of each number below 2^bits in reverse: int64 [2^bits].
at::Tensor bit_reversal(int bits, at::Device device);

}  // namespace anyprec::fit
