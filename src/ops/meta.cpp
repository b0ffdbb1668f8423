// Fake kernels: shapes and dtypes without data, for torch.compile, export and the meta device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "anyprec/planes.h"
#include "src/ops/checks.h"

namespace anyprec::ops {
namespace {

at::Tensor linear(const at::Tensor& x, const at::Tensor& planes, const at::Tensor& lut,
                  const std::optional<at::Tensor>& alpha, const std::optional<at::Tensor>& bias,
                  std::int64_t precision, std::int64_t in_features, std::int64_t group_size,
                  std::string_view cell_groups) {
  const Matrix matrix{planes, lut, alpha, precision, in_features, group_size, cell_groups};
  check_matrix(matrix);
  check_linear(matrix, x, bias);
  return at::empty_symint(linear_result_sizes(x, lut), x.options());
}

at::Tensor dequantize(const at::Tensor& planes, const at::Tensor& lut,
                      const std::optional<at::Tensor>& alpha, std::int64_t precision,
                      std::int64_t in_features, std::int64_t group_size,
                      std::string_view cell_groups, at::ScalarType dtype) {
  const Matrix matrix{planes, lut, alpha, precision, in_features, group_size, cell_groups};
  check_matrix(matrix);
  return at::empty({matrix.out_features(), in_features}, lut.options().dtype(dtype));
}

at::Tensor pack_planes(const at::Tensor& planes, std::int64_t in_features) {
  check_canonical_planes(planes, in_features);
  return at::empty({planes.size(0), packed_rows(planes.size(1)), packed_row_bytes(in_features)},
                   planes.options());
}

at::Tensor unpack_planes(const at::Tensor& planes, std::int64_t out_features,
                         std::int64_t in_features) {
  check_packed_planes(planes, out_features, in_features);
  return at::empty({planes.size(0), out_features, plane_row_bytes(in_features)}, planes.options());
}

at::Tensor sum_by_code(const at::Tensor& values, const at::Tensor& codes, std::int64_t precision,
                       std::int64_t group_size) {
  const CodeSums sums = check_code_sums(values, codes, precision, group_size);
  return at::empty({sums.rows, sums.groups(), std::int64_t{1} << precision},
                   values.options().dtype(at::kFloat));
}

}  // namespace
}  // namespace anyprec::ops

TORCH_LIBRARY_IMPL(anyprec, Meta, m) {
  m.impl("linear", &anyprec::ops::linear);
  m.impl("dequantize", &anyprec::ops::dequantize);
  m.impl("pack_planes", &anyprec::ops::pack_planes);
  m.impl("unpack_planes", &anyprec::ops::unpack_planes);
  m.impl("sum_by_code", &anyprec::ops::sum_by_code);
}
