#include "src/ops/checks.h"

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "anyprec/planes.h"
#include "src/ops/errors.h"

namespace anyprec::ops {
namespace {

bool is_activation_type(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}

int log2_exact(std::int64_t entries, const at::Tensor& lut) {
  int bits = 0;
  while ((std::int64_t{1} << bits) < entries && bits <= kMaxPrecision) ++bits;
  TORCH_CHECK_VALUE((std::int64_t{1} << bits) == entries,
                    "lut: the last size must be a power of two up to 256, found shape ",
                    lut.sizes());
  return bits;
}

}  // namespace

CodebookForm check_matrix(const Matrix& m) {
  TORCH_CHECK_VALUE(m.precision >= kMinPrecision && m.precision <= kMaxPrecision,
                    "precision: found ", m.precision, ", wanted 2 to 8");
  TORCH_CHECK_VALUE(m.in_features >= 1, "in_features: found ", m.in_features,
                    ", wanted at least 1");
  TORCH_CHECK_TYPE(m.lut.scalar_type() == at::kHalf, "lut: found dtype ", m.lut.scalar_type(),
                   ", wanted float16");
  TORCH_CHECK_VALUE(m.lut.dim() == 3 && m.lut.is_contiguous(),
                    "lut: wanted a contiguous tensor [N, G, entries], found shape ", m.lut.sizes());
  const int table_bits = log2_exact(m.lut.size(2), m.lut);
  const std::int64_t n = m.out_features();
  check_packed_planes(m.planes, n, m.in_features);
  TORCH_CHECK_VALUE(m.planes.size(0) >= m.precision, "planes: found ", m.planes.size(0),
                    " planes, precision ", m.precision, " needs as many");

  CodebookForm form;
  form.group_size = m.group_size;
  form.lut_bits = m.alpha.has_value() ? table_bits : kMaxPrecision;
  as_value_error([&] {
    form.cell_groups = parse_cell_groups(m.cell_groups);
    // Without signed planes the cells have no coefficients, and their grouping is irrelevant.
    if (!m.alpha.has_value()) form.cell_groups = CellGroups::kOne;
    form.validate();
  });
  const std::int64_t groups = form.groups(m.in_features);
  TORCH_CHECK_VALUE(
      m.lut.size(1) == groups && table_bits == std::min<std::int64_t>(m.precision, form.lut_bits),
      "lut: found shape ", m.lut.sizes(), ", wanted [", n, ", ", groups, ", ",
      form.lut_entries(static_cast<int>(m.precision)), "] at precision ", m.precision);
  if (m.alpha.has_value()) {
    const at::Tensor& alpha = *m.alpha;
    const int signs = form.sign_planes(static_cast<int>(m.precision));
    TORCH_CHECK_TYPE(alpha.scalar_type() == at::kHalf, "alpha: found dtype ", alpha.scalar_type(),
                     ", wanted float16");
    TORCH_CHECK_VALUE(signs > 0 && alpha.dim() == 4 && alpha.is_contiguous() &&
                          alpha.size(0) == n && alpha.size(1) == groups && alpha.size(2) == signs &&
                          alpha.size(3) == form.classes(),
                      "alpha: found shape ", alpha.sizes(), ", wanted a contiguous [", n, ", ",
                      groups, ", ", signs, ", ", form.classes(), "] at precision ", m.precision,
                      " with a table of ", m.lut.size(2));
    TORCH_CHECK_VALUE(alpha.device() == m.planes.device(), "alpha is on ", alpha.device(),
                      ", planes on ", m.planes.device());
  }
  TORCH_CHECK_VALUE(m.lut.device() == m.planes.device(), "lut is on ", m.lut.device(),
                    ", planes on ", m.planes.device());
  return form;
}

void check_linear(const Matrix& m, const at::Tensor& x, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK_TYPE(is_activation_type(x.scalar_type()), "x: found dtype ", x.scalar_type(),
                   ", wanted float32, bfloat16 or float16");
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.sym_size(-1) == m.in_features, "x: found shape ",
                    x.sym_sizes(), ", wanted [..., ", m.in_features, "]");
  TORCH_CHECK_VALUE(x.device() == m.planes.device(), "x is on ", x.device(), ", planes on ",
                    m.planes.device());
  if (bias.has_value()) {
    TORCH_CHECK_TYPE(bias->scalar_type() == x.scalar_type(), "bias: found dtype ",
                     bias->scalar_type(), ", wanted ", x.scalar_type(), " like x");
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == m.out_features(), "bias: found shape ",
                      bias->sizes(), ", wanted [", m.out_features(), "]");
    TORCH_CHECK_VALUE(bias->device() == x.device(), "bias is on ", bias->device(), ", x on ",
                      x.device());
  }
}

namespace {

void check_planes(const at::Tensor& planes, std::int64_t in_features, std::int64_t row_bytes) {
  TORCH_CHECK_TYPE(planes.scalar_type() == at::kByte, "planes: found dtype ", planes.scalar_type(),
                   ", wanted uint8");
  TORCH_CHECK_VALUE(planes.dim() == 3 && planes.is_contiguous(),
                    "planes: wanted a contiguous tensor [P, N, row bytes], found shape ",
                    planes.sizes());
  TORCH_CHECK_VALUE(planes.size(0) >= 1 && planes.size(0) <= kMaxPrecision, "planes: found ",
                    planes.size(0), " planes, wanted 1 to 8");
  TORCH_CHECK_VALUE(in_features >= 1 && planes.size(2) == row_bytes, "planes: found rows of ",
                    planes.size(2), " bytes, wanted ", row_bytes, " for in_features ", in_features);
}

}  // namespace

void check_canonical_planes(const at::Tensor& planes, std::int64_t in_features) {
  check_planes(planes, in_features, plane_row_bytes(in_features));
}

void check_packed_planes(const at::Tensor& planes, std::int64_t out_features,
                         std::int64_t in_features) {
  check_planes(planes, in_features, packed_row_bytes(in_features));
  TORCH_CHECK_VALUE(planes.size(1) == packed_rows(out_features), "planes: found ", planes.size(1),
                    " rows, wanted ", packed_rows(out_features), " for ", out_features,
                    " output features");
}

CodeSums check_code_sums(const at::Tensor& values, const at::Tensor& codes, std::int64_t precision,
                         std::int64_t group_size) {
  TORCH_CHECK_VALUE(values.dim() == 2 && values.is_contiguous(),
                    "values: wanted a contiguous matrix [N, K], found shape ", values.sizes());
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kByte, "codes: found dtype ", codes.scalar_type(),
                   ", wanted uint8");
  TORCH_CHECK_VALUE(codes.is_contiguous() && codes.sizes() == values.sizes(), "codes: found shape ",
                    codes.sizes(), ", wanted a contiguous ", values.sizes(), " like values");
  TORCH_CHECK_VALUE(codes.device() == values.device(), "codes are on ", codes.device(),
                    ", values on ", values.device());
  CodeSums sums;
  sums.type = to_scalar_type(values.scalar_type());
  sums.rows = values.size(0);
  sums.columns = values.size(1);
  sums.precision = static_cast<int>(precision);
  sums.group_size = group_size;
  as_value_error([&] { sums.validate(); });
  return sums;
}

ScalarType to_scalar_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return ScalarType::kFloat32;
    case at::kBFloat16:
      return ScalarType::kBFloat16;
    case at::kHalf:
      return ScalarType::kFloat16;
    default:
      TORCH_CHECK_TYPE(false, "dtype: found ", type, ", wanted float32, bfloat16 or float16");
  }
}

Weights weights_of(const Matrix& m, const CodebookForm& form) {
  const auto halves = [](const at::Tensor& tensor) {
    return reinterpret_cast<const std::uint16_t*>(tensor.const_data_ptr<at::Half>());
  };
  return {.out_features = m.out_features(),
          .in_features = m.in_features,
          .form = form,
          .precision = static_cast<int>(m.precision),
          .planes = m.planes.const_data_ptr<std::uint8_t>(),
          .lut = halves(m.lut),
          .alpha = m.alpha.has_value() ? halves(*m.alpha) : nullptr};
}

c10::SymDimVector linear_result_sizes(const at::Tensor& x, const at::Tensor& lut) {
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = lut.sym_size(0);
  return sizes;
}

}  // namespace anyprec::ops
