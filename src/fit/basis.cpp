#include "src/fit/basis.h"

#include <ATen/ATen.h>

#include "src/fit/device.h"

namespace anyprec::fit {
namespace {

std::int64_t reversed(std::int64_t number, int bits) {
  std::int64_t result = 0;
  for (int i = 0; i < bits; ++i) result |= ((number >> i) & 1) << (bits - 1 - i);
  return result;
}

}  // namespace

at::Tensor bit_reversal(int bits, at::Device device) {
  at::Tensor result = at::empty({std::int64_t{1} << bits}, at::kLong);
  auto* to = result.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < result.numel(); ++i) to[i] = reversed(i, bits);
  return result.to(device);
}

Basis::Basis(const CodebookForm& form, int precision, const at::TensorOptions& options)
    : form_(form), precision_(precision), full_table_(form.sign_planes(precision) == 0) {
  const int planes = form.sign_planes(precision);
  const int table_bits = precision - planes;
  const std::int64_t entries = form.lut_entries(precision);
  const std::int64_t classes = form.classes();
  at::Tensor matrix = at::zeros({values(), entries + planes * classes}, at::kFloat);
  auto rows = matrix.accessor<float, 2>();
  for (std::int64_t code = 0; code < values(); ++code) {
    const std::int64_t low = code & (entries - 1);
    rows[code][low] = 1.0f;
    const int group = form.class_of(static_cast<int>(reversed(low, table_bits)));
    for (int i = 0; i < planes; ++i) {
      rows[code][entries + i * classes + group] = (code >> (table_bits + i)) & 1 ? 1.0f : -1.0f;
    }
  }
  matrix_ = matrix.to(options.dtype(at::kFloat));
  transposed_ = matrix_.t().contiguous();
  table_order_ = bit_reversal(table_bits, matrix_.device());
}

at::Tensor Basis::rows(const at::Tensor& codes) const { return matrix_.index_select(0, codes); }

at::Tensor Basis::expand(const at::Tensor& coefficients) const {
  if (full_table_) return coefficients;
  const at::Tensor from = coefficients.reshape({-1, coefficients.size(2)});
  const at::Tensor values = at::empty({from.size(0), this->values()}, from.options());
  product(from, transposed_, Accuracy::kFull, values);
  return values.view({coefficients.size(0), coefficients.size(1), this->values()});
}

at::Tensor Basis::project(const at::Tensor& values) const {
  return full_table_ ? values : at::matmul(values, matrix_);
}

at::Tensor Basis::project_normal(const at::Tensor& normal) const {
  const std::int64_t n = normal.size(0), unknowns = normal.size(1) * coefficients();
  at::Tensor projected = normal;
  if (!full_table_) {
    projected = at::matmul(projected, matrix_);                           // [n, G, 2^b, G, U]
    projected = at::matmul(projected.permute({0, 3, 4, 1, 2}), matrix_);  // [n, G, U, G, U]
  }
  projected = projected.reshape({n, unknowns, unknowns}).to(at::kDouble);
  return (projected + projected.mT()) * 0.5;
}

at::Tensor Basis::table(const at::Tensor& coefficients) const {
  return coefficients.index_select(2, table_order_).to(at::kHalf).to(at::kFloat);
}

at::Tensor Basis::alphas(const at::Tensor& coefficients) const {
  return coefficients.slice(2, form_.lut_entries(precision_))
      .reshape({coefficients.size(0), coefficients.size(1), form_.sign_planes(precision_),
                form_.classes()})
      .to(at::kHalf)
      .to(at::kFloat);
}

}  // namespace anyprec::fit
