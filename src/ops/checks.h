#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "anyprec/codebook.h"
#include "anyprec/sum_by_code.h"
#include "anyprec/weights.h"

namespace anyprec::ops {

/// The tensors and numbers that describe one quantized matrix at one precision.
struct Matrix {
  const at::Tensor& planes;
  const at::Tensor& lut;
  const std::optional<at::Tensor>& alpha;
  std::int64_t precision;
  std::int64_t in_features;
  std::int64_t group_size;
  std::string_view cell_groups;

  std::int64_t out_features() const { return lut.size(0); }
};

/// Checks dtypes, ranks, sizes and devices of a matrix (messages name what was found and wanted)
/// and returns its codebook form. L is the table's bits where there are signed planes; a full
/// table has none, and its form is L = 8.
CodebookForm check_matrix(const Matrix& matrix);

/// Checks activations and bias against a matrix that has been checked.
void check_linear(const Matrix& matrix, const at::Tensor& x, const std::optional<at::Tensor>& bias);

/// Checks the argument of pack_planes.
void check_canonical_planes(const at::Tensor& planes, std::int64_t in_features);
/// Checks packed planes of a matrix with these sizes.
void check_packed_planes(const at::Tensor& planes, std::int64_t out_features,
                         std::int64_t in_features);

/// Checks the arguments of sum_by_code and returns what kernels take of them, without the pointers.
CodeSums check_code_sums(const at::Tensor& values, const at::Tensor& codes, std::int64_t precision,
                         std::int64_t group_size);

/// The element type of a tensor of activations. Throws where kernels have none.
ScalarType to_scalar_type(at::ScalarType type);
/// What kernels take of a matrix that has been checked.
Weights weights_of(const Matrix& matrix, const CodebookForm& form);

/// Shape of linear's result: x's with the last size replaced by N.
c10::SymDimVector linear_result_sizes(const at::Tensor& x, const at::Tensor& lut);

}  // namespace anyprec::ops
