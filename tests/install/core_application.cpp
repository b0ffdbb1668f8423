// Quantizes a small matrix and multiplies by it at every precision, with anyprec::core alone.
#include <anyprec/linear.h>
#include <anyprec/planes.h>
#include <anyprec/quantize.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace {

// IEEE half precision, for magnitudes below 65504.
std::uint16_t to_half(float value) {
  const int sign = std::signbit(value) ? 0x8000 : 0;
  int exponent = 0;
  const float mantissa = std::frexp(std::fabs(value), &exponent);
  if (mantissa == 0 || exponent < -13) {  // subnormal: a multiple of 2^-24
    return static_cast<std::uint16_t>(sign + std::lround(std::ldexp(std::fabs(value), 24)));
  }
  return static_cast<std::uint16_t>(sign + ((exponent + 14) << 10) +
                                    static_cast<int>(std::lround((mantissa * 2 - 1) * 1024)));
}

}  // namespace

int main() {
  constexpr std::int64_t kRows = 16;
  constexpr std::int64_t kColumns = 300;
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> weights(kRows * kColumns);
  std::vector<float> x(kColumns);
  for (float& value : weights) value = normal(rng);
  for (float& value : x) value = normal(rng);

  const anyprec::ThreadPool pool(2);
  const auto q =
      anyprec::quantize_matrix("example", weights.data(), nullptr, kRows, kColumns, {}, pool);
  std::vector<std::uint8_t> planes(8 * kRows * anyprec::plane_row_bytes(kColumns));
  std::vector<std::uint8_t> packed(8 * anyprec::packed_plane_bytes(kRows, kColumns));
  anyprec::codes_to_planes(q.codes.data(), kRows, kColumns, 8, planes.data());
  anyprec::cpu::pack_planes(planes.data(), 8, kRows, kColumns, packed.data());

  double last_error = INFINITY;
  for (int b = 2; b <= 8; ++b) {
    std::vector<std::uint16_t> lut;
    for (const float value : q.luts[b - 2]) lut.push_back(to_half(value));
    const anyprec::Weights w{.out_features = kRows,
                             .in_features = kColumns,
                             .form = {},
                             .precision = b,
                             .planes = packed.data(),
                             .lut = lut.data(),
                             .alpha = nullptr};
    std::vector<float> y(kRows);
    anyprec::cpu::linear(w, x.data(), kColumns, 1, nullptr, y.data(), kRows,
                         anyprec::ScalarType::kFloat32, pool);
    double error = 0;
    for (std::int64_t n = 0; n < kRows; ++n) {
      double want = 0;
      for (std::int64_t k = 0; k < kColumns; ++k) want += weights[n * kColumns + k] * x[k];
      error += (y[n] - want) * (y[n] - want);
    }
    std::printf("%d bits: squared error %g\n", b, error);
    if (!(error < last_error)) return 1;
    last_error = error;
  }
  return last_error < 0.1 ? 0 : 1;
}
