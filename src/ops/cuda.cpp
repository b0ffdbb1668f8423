#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "anyprec/planes.h"
#include "src/ops/checks.h"
#include "src/ops/errors.h"
#include "src/ops/linear_cuda.h"

namespace anyprec::ops {

void run_linear(const cuda::Input& input, std::span<const cuda::Product> products,
                const at::Tensor& like) {
  cuda::Workspace workspace;
  at::Tensor memory;
  const std::size_t bytes = cuda::linear_workspace_bytes(input, products);
  if (bytes > 0) {
    memory = at::empty({static_cast<std::int64_t>(bytes)}, like.options().dtype(at::kByte));
    workspace = {.data = memory.mutable_data_ptr(),
                 .bytes = bytes,
                 .cublas = at::cuda::getCurrentCUDABlasHandle()};
  }
  C10_CUDA_CHECK(cuda::linear(input, products, workspace, at::cuda::getCurrentCUDAStream()));
}

namespace {

at::Tensor linear(const at::Tensor& x, const at::Tensor& planes, const at::Tensor& lut,
                  const std::optional<at::Tensor>& alpha, const std::optional<at::Tensor>& bias,
                  std::int64_t precision, std::int64_t in_features, std::int64_t group_size,
                  std::string_view cell_groups) {
  const Matrix matrix{planes, lut, alpha, precision, in_features, group_size, cell_groups};
  const CodebookForm form = check_matrix(matrix);
  check_linear(matrix, x, bias);
  const c10::cuda::CUDAGuard guard(x.device());
  // Rows may be strided, but not overlap; columns must be dense.
  at::Tensor rows = x.reshape({-1, in_features});
  const bool dense = in_features == 1 || rows.stride(1) == 1;
  const bool apart = rows.size(0) <= 1 || rows.stride(0) >= in_features;
  if (!dense || !apart) rows = rows.contiguous();
  const at::Tensor dense_bias = bias.has_value() ? bias->contiguous() : at::Tensor();
  auto sizes = x.sizes().vec();
  sizes.back() = matrix.out_features();
  at::Tensor y = at::empty(sizes, x.options().memory_format(at::MemoryFormat::Contiguous));
  const std::int64_t m = rows.size(0);
  if (m == 0 || matrix.out_features() == 0) return y;

  const cuda::Input input{.x = rows.const_data_ptr(),
                          .x_stride = m > 1 ? rows.stride(0) : in_features,
                          .rows = m,
                          .type = to_scalar_type(x.scalar_type())};
  const cuda::Product product{.weights = weights_of(matrix, form),
                              .bias = dense_bias.defined() ? dense_bias.const_data_ptr() : nullptr,
                              .y = y.mutable_data_ptr(),
                              .y_stride = matrix.out_features()};
  as_value_error([&] { run_linear(input, {&product, 1}, x); });
  return y;
}

at::Tensor dequantize(const at::Tensor& planes, const at::Tensor& lut,
                      const std::optional<at::Tensor>& alpha, std::int64_t precision,
                      std::int64_t in_features, std::int64_t group_size,
                      std::string_view cell_groups, at::ScalarType dtype) {
  const Matrix matrix{planes, lut, alpha, precision, in_features, group_size, cell_groups};
  const CodebookForm form = check_matrix(matrix);
  const c10::cuda::CUDAGuard guard(planes.device());
  const ScalarType type = to_scalar_type(dtype);
  at::Tensor out = at::empty({matrix.out_features(), in_features}, lut.options().dtype(dtype));
  C10_CUDA_CHECK(cuda::dequantize(weights_of(matrix, form), 0, matrix.out_features(),
                                  out.mutable_data_ptr(), type, at::cuda::getCurrentCUDAStream()));
  return out;
}

at::Tensor pack_planes(const at::Tensor& planes, std::int64_t in_features) {
  check_canonical_planes(planes, in_features);
  const c10::cuda::CUDAGuard guard(planes.device());
  at::Tensor packed =
      at::empty({planes.size(0), packed_rows(planes.size(1)), packed_row_bytes(in_features)},
                planes.options());
  C10_CUDA_CHECK(cuda::pack_planes(
      planes.const_data_ptr<std::uint8_t>(), static_cast<int>(planes.size(0)), planes.size(1),
      in_features, packed.mutable_data_ptr<std::uint8_t>(), at::cuda::getCurrentCUDAStream()));
  return packed;
}

at::Tensor unpack_planes(const at::Tensor& packed, std::int64_t out_features,
                         std::int64_t in_features) {
  check_packed_planes(packed, out_features, in_features);
  const c10::cuda::CUDAGuard guard(packed.device());
  at::Tensor planes =
      at::empty({packed.size(0), out_features, plane_row_bytes(in_features)}, packed.options());
  C10_CUDA_CHECK(cuda::unpack_planes(
      packed.const_data_ptr<std::uint8_t>(), static_cast<int>(packed.size(0)), out_features,
      in_features, planes.mutable_data_ptr<std::uint8_t>(), at::cuda::getCurrentCUDAStream()));
  return planes;
}

at::Tensor sum_by_code(const at::Tensor& values, const at::Tensor& codes, std::int64_t precision,
                       std::int64_t group_size) {
  CodeSums sums = check_code_sums(values, codes, precision, group_size);
  const c10::cuda::CUDAGuard guard(values.device());
  at::Tensor out = at::empty({sums.rows, sums.groups(), std::int64_t{1} << precision},
                             values.options().dtype(at::kFloat));
  if (sums.columns == 0) return out.zero_();
  sums.values = values.const_data_ptr();
  sums.codes = codes.const_data_ptr<std::uint8_t>();
  C10_CUDA_CHECK(
      cuda::sum_by_code(sums, out.mutable_data_ptr<float>(), at::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace
}  // namespace anyprec::ops

TORCH_LIBRARY_IMPL(anyprec, CUDA, m) {
  m.impl("linear", &anyprec::ops::linear);
  m.impl("dequantize", &anyprec::ops::dequantize);
  m.impl("pack_planes", &anyprec::ops::pack_planes);
  m.impl("unpack_planes", &anyprec::ops::unpack_planes);
  m.impl("sum_by_code", &anyprec::ops::sum_by_code);
}
