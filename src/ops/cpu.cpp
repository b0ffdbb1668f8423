#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "anyprec/linear.h"
#include "anyprec/planes.h"
#include "src/ops/checks.h"
#include "src/ops/executor.h"

namespace anyprec::ops {
namespace {

at::Tensor linear(const at::Tensor& x, const at::Tensor& planes, const at::Tensor& lut,
                  const std::optional<at::Tensor>& alpha, const std::optional<at::Tensor>& bias,
                  std::int64_t precision, std::int64_t in_features, std::int64_t group_size,
                  std::string_view cell_groups) {
  const Matrix matrix{planes, lut, alpha, precision, in_features, group_size, cell_groups};
  const CodebookForm form = check_matrix(matrix);
  check_linear(matrix, x, bias);
  // Rows may be strided; columns must be dense.
  at::Tensor rows = x.reshape({-1, in_features});
  if (in_features > 1 && rows.stride(1) != 1) rows = rows.contiguous();
  const at::Tensor dense_bias = bias.has_value() ? bias->contiguous() : at::Tensor();
  auto sizes = x.sizes().vec();
  sizes.back() = matrix.out_features();
  at::Tensor y = at::empty(sizes, x.options().memory_format(at::MemoryFormat::Contiguous));
  const std::int64_t m = rows.size(0);
  if (m == 0 || matrix.out_features() == 0) return y;
  cpu::linear(weights_of(matrix, form), rows.const_data_ptr(), m > 1 ? rows.stride(0) : in_features,
              m, dense_bias.defined() ? dense_bias.const_data_ptr() : nullptr, y.mutable_data_ptr(),
              matrix.out_features(), to_scalar_type(x.scalar_type()), TorchExecutor());
  return y;
}

at::Tensor dequantize(const at::Tensor& planes, const at::Tensor& lut,
                      const std::optional<at::Tensor>& alpha, std::int64_t precision,
                      std::int64_t in_features, std::int64_t group_size,
                      std::string_view cell_groups, at::ScalarType dtype) {
  const Matrix matrix{planes, lut, alpha, precision, in_features, group_size, cell_groups};
  const CodebookForm form = check_matrix(matrix);
  const ScalarType type = to_scalar_type(dtype);
  const std::int64_t n = matrix.out_features();
  at::Tensor out = at::empty({n, in_features}, lut.options().dtype(dtype));
  auto* const bytes = static_cast<std::byte*>(out.mutable_data_ptr());
  const std::int64_t row_bytes = in_features * static_cast<std::int64_t>(out.element_size());
  const Weights weights = weights_of(matrix, form);
  TorchExecutor().parallel_for(n, 16, [&](std::int64_t begin, std::int64_t end) {
    cpu::dequantize(weights, begin, end, bytes + begin * row_bytes, type);
  });
  return out;
}

at::Tensor pack_planes(const at::Tensor& planes, std::int64_t in_features) {
  check_canonical_planes(planes, in_features);
  at::Tensor packed =
      at::empty({planes.size(0), packed_rows(planes.size(1)), packed_row_bytes(in_features)},
                planes.options());
  cpu::pack_planes(planes.const_data_ptr<std::uint8_t>(), planes.size(0), planes.size(1),
                   in_features, packed.mutable_data_ptr<std::uint8_t>());
  return packed;
}

at::Tensor unpack_planes(const at::Tensor& packed, std::int64_t out_features,
                         std::int64_t in_features) {
  check_packed_planes(packed, out_features, in_features);
  at::Tensor planes =
      at::empty({packed.size(0), out_features, plane_row_bytes(in_features)}, packed.options());
  cpu::unpack_planes(packed.const_data_ptr<std::uint8_t>(), packed.size(0), out_features,
                     in_features, planes.mutable_data_ptr<std::uint8_t>());
  return planes;
}

at::Tensor sum_by_code(const at::Tensor& values, const at::Tensor& codes, std::int64_t precision,
                       std::int64_t group_size) {
  CodeSums sums = check_code_sums(values, codes, precision, group_size);
  at::Tensor out = at::empty({sums.rows, sums.groups(), std::int64_t{1} << precision},
                             values.options().dtype(at::kFloat));
  if (out.numel() == 0) return out;
  sums.values = values.const_data_ptr();
  sums.codes = codes.const_data_ptr<std::uint8_t>();
  float* const to = out.mutable_data_ptr<float>();
  const std::int64_t row_entries = out.stride(0);
  TorchExecutor().parallel_for(sums.rows, 16, [&](std::int64_t begin, std::int64_t end) {
    cpu::sum_by_code(sums, begin, end, to + begin * row_entries);
  });
  return out;
}

}  // namespace
}  // namespace anyprec::ops

TORCH_LIBRARY_IMPL(anyprec, CPU, m) {
  m.impl("linear", &anyprec::ops::linear);
  m.impl("dequantize", &anyprec::ops::dequantize);
  m.impl("pack_planes", &anyprec::ops::pack_planes);
  m.impl("unpack_planes", &anyprec::ops::unpack_planes);
  m.impl("sum_by_code", &anyprec::ops::sum_by_code);
}
