#include "kernels/reference/linear.h"

#include <cmath>
#include <limits>

namespace anyprec::reference {
namespace {

/// Bit `plane` of the code of column k in row n; plane 0 is the most significant.
bool code_bit(const Weights& w, int plane, std::int64_t n, std::int64_t k) {
  const std::int64_t row_bytes = (w.in_features + 7) / 8;
  const std::uint8_t byte = w.planes[(plane * w.out_features + n) * row_bytes + k / 8];
  return (byte >> (k % 8)) & 1;
}

double value(const Weights& w, std::int64_t n, std::int64_t k) {
  const int lut_bits = w.form.lut_bits;
  const int top_bits = w.precision < lut_bits ? w.precision : lut_bits;
  const std::int64_t groups = w.form.groups(w.in_features);
  const std::int64_t group = w.form.group_size > 0 ? k / w.form.group_size : 0;
  const std::int64_t codebook = n * groups + group;

  std::int64_t cell = 0;
  for (int plane = 0; plane < top_bits; ++plane) cell = 2 * cell + code_bit(w, plane, n, k);
  double result = half_value(w.lut[(codebook << top_bits) + cell]);

  const int sign_planes = w.precision - top_bits;
  for (int i = 0; i < sign_planes; ++i) {
    const std::int64_t alpha =
        (codebook * sign_planes + i) * w.form.classes() + w.form.class_of(static_cast<int>(cell));
    const double coefficient = half_value(w.alpha[alpha]);
    result += code_bit(w, lut_bits + i, n, k) ? coefficient : -coefficient;
  }
  return result;
}

}  // namespace

double half_value(std::uint16_t bits) {
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  if (exponent == 31) {
    return fraction ? std::numeric_limits<double>::quiet_NaN()
                    : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

std::vector<double> dequantize(const Weights& weights) {
  std::vector<double> out;
  out.reserve(weights.out_features * weights.in_features);
  for (std::int64_t n = 0; n < weights.out_features; ++n)
    for (std::int64_t k = 0; k < weights.in_features; ++k) out.push_back(value(weights, n, k));
  return out;
}

std::vector<double> linear(const Weights& weights, const std::vector<double>& x, std::int64_t m,
                           const double* bias) {
  const std::int64_t columns = weights.in_features;
  const std::vector<double> w = dequantize(weights);
  std::vector<double> y;
  y.reserve(m * weights.out_features);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t n = 0; n < weights.out_features; ++n) {
      double sum = bias ? bias[n] : 0.0;
      for (std::int64_t k = 0; k < columns; ++k) sum += x[i * columns + k] * w[n * columns + k];
      y.push_back(sum);
    }
  }
  return y;
}

}  // namespace anyprec::reference
