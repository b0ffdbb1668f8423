#include "src/engine/rope.h"

#include <ATen/ATen.h>

#include <numbers>

namespace anyprec::engine {
namespace {

// Llama 3.1: long wavelengths are stretched by the factor, short ones kept, those between blended.
at::Tensor stretched(const at::Tensor& inverse, const RopeConfig& rope) {
  const double length = static_cast<double>(rope.original_positions);
  const at::Tensor wavelength = 2 * std::numbers::pi / inverse;
  const at::Tensor smooth =
      (length / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor longest = wavelength > length / rope.low_freq_factor;
  const at::Tensor shortest = wavelength < length / rope.high_freq_factor;
  const at::Tensor base = at::where(longest, inverse / rope.factor, inverse);
  const at::Tensor blend = (1 - smooth) * base / rope.factor + smooth * base;
  return at::where(longest.logical_or(shortest), base, blend);
}

}  // namespace

RotaryTable make_rotary_table(const RopeConfig& rope, std::int64_t positions, at::Device device) {
  const at::Tensor exponents =
      at::arange(0, rope.dims, 2, at::kFloat) / static_cast<double>(rope.dims);
  at::Tensor inverse = 1.0 / at::pow(rope.theta, exponents);
  if (rope.type == RopeConfig::Type::kLinear) inverse = inverse / rope.factor;
  if (rope.type == RopeConfig::Type::kLlama3) inverse = stretched(inverse, rope);
  const at::Tensor angles = at::outer(at::arange(positions, at::kFloat), inverse);
  return {angles.cos().to(device), angles.sin().to(device)};
}

}  // namespace anyprec::engine
