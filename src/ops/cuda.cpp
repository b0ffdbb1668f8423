// The operators on CUDA: weights are dequantized a tile of rows at a time and multiplied by cuBLAS,
// so the whole matrix is never resident in floating point.
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>

#include "anyprec/planes.h"
#include "kernels/cuda/dequantize.h"
#include "src/ops/checks.h"

namespace anyprec::ops {
namespace {

// Weights of a tile in floating point: 32 MiB in half precision, a fraction of a large matrix and
// enough rows to fill the GPU.
constexpr std::int64_t kTileElements = std::int64_t{16} << 20;

cuda::ScalarType to_scalar_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return cuda::ScalarType::kFloat32;
    case at::kBFloat16:
      return cuda::ScalarType::kBFloat16;
    case at::kHalf:
      return cuda::ScalarType::kFloat16;
    default:
      TORCH_CHECK_TYPE(false, "dtype: found ", type, ", wanted float32, bfloat16 or float16");
  }
}

const std::uint16_t* half_data(const at::Tensor& tensor) {
  return reinterpret_cast<const std::uint16_t*>(tensor.const_data_ptr<at::Half>());
}

at::Tensor dequantize_rows(const Matrix& m, const CodebookForm& form, std::int64_t begin,
                           std::int64_t end, at::ScalarType dtype) {
  const cuda::Weights weights{.out_features = m.out_features(),
                              .in_features = m.in_features,
                              .form = form,
                              .precision = static_cast<int>(m.precision),
                              .planes = m.planes.const_data_ptr<std::uint8_t>(),
                              .lut = half_data(m.lut),
                              .alpha = m.alpha.has_value() ? half_data(*m.alpha) : nullptr};
  const cuda::ScalarType type = to_scalar_type(dtype);
  at::Tensor out = at::empty({end - begin, m.in_features}, m.lut.options().dtype(dtype));
  C10_CUDA_CHECK(cuda::dequantize(weights, begin, end, out.mutable_data_ptr(), type,
                                  at::cuda::getCurrentCUDAStream()));
  return out;
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& planes, const at::Tensor& lut,
                  const std::optional<at::Tensor>& alpha, const std::optional<at::Tensor>& bias,
                  std::int64_t precision, std::int64_t in_features, std::int64_t group_size,
                  std::string_view cell_groups) {
  const Matrix matrix{planes, lut, alpha, precision, in_features, group_size, cell_groups};
  const CodebookForm form = check_matrix(matrix);
  check_linear(matrix, x, bias);
  const c10::cuda::CUDAGuard guard(x.device());
  const std::int64_t n = matrix.out_features();
  const std::int64_t tile = std::max<std::int64_t>(256, kTileElements / in_features);
  const auto slice = [&](std::int64_t begin, std::int64_t end) {
    const at::Tensor w = dequantize_rows(matrix, form, begin, end, x.scalar_type());
    return bias.has_value() ? at::linear(x, w, bias->slice(0, begin, end)) : at::linear(x, w);
  };
  if (n <= tile) return slice(0, n);
  auto sizes = x.sizes().vec();
  sizes.back() = n;
  at::Tensor y = at::empty(sizes, x.options().memory_format(at::MemoryFormat::Contiguous));
  for (std::int64_t begin = 0; begin < n; begin += tile) {
    const std::int64_t end = std::min(n, begin + tile);
    y.slice(-1, begin, end).copy_(slice(begin, end));
  }
  return y;
}

at::Tensor dequantize(const at::Tensor& planes, const at::Tensor& lut,
                      const std::optional<at::Tensor>& alpha, std::int64_t precision,
                      std::int64_t in_features, std::int64_t group_size,
                      std::string_view cell_groups, at::ScalarType dtype) {
  const Matrix matrix{planes, lut, alpha, precision, in_features, group_size, cell_groups};
  const CodebookForm form = check_matrix(matrix);
  const c10::cuda::CUDAGuard guard(planes.device());
  return dequantize_rows(matrix, form, 0, matrix.out_features(), dtype);
}

at::Tensor pack_planes(const at::Tensor& planes, std::int64_t in_features) {
  check_planes(planes, in_features, plane_row_bytes(in_features));
  return at::constant_pad_nd(planes, {0, packed_row_bytes(in_features) - planes.size(2)})
      .contiguous();
}

at::Tensor unpack_planes(const at::Tensor& packed, std::int64_t in_features) {
  check_planes(packed, in_features, packed_row_bytes(in_features));
  return packed.slice(2, 0, plane_row_bytes(in_features)).contiguous();
}

}  // namespace
}  // namespace anyprec::ops

TORCH_LIBRARY_IMPL(anyprec, CUDA, m) {
  m.impl("linear", &anyprec::ops::linear);
  m.impl("dequantize", &anyprec::ops::dequantize);
  m.impl("pack_planes", &anyprec::ops::pack_planes);
  m.impl("unpack_planes", &anyprec::ops::unpack_planes);
}
