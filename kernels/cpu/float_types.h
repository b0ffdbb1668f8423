#pragma once

#include <bit>
#include <cstdint>

#include "anyprec/error.h"
#include "anyprec/linear.h"

/// Conversions between the element types and fp32, without branches so that loops over them
/// vectorize. Only for sources that are compiled for the baseline: the linker may merge these
/// inline functions.
namespace anyprec::cpu {

inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t magnitude = half & 0x7fff;
  const std::uint32_t normal = (magnitude << 13) + (112u << 23);
  const std::uint32_t special = (magnitude << 13) | 0x7f800000u;
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<int>(magnitude)) * 0x1p-24f);
  const std::uint32_t finite = magnitude < 0x0400 ? subnormal : normal;
  return std::bit_cast<float>(sign | (magnitude >= 0x7c00 ? special : finite));
}

/// Round to nearest, ties to even; NaN stays NaN.
inline std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000;
  const std::uint32_t magnitude = bits & 0x7fffffff;
  // Normal halves: rebias the exponent by -112 and round off 13 bits; a carry into the exponent
  // gives the next binade, or infinity.
  const std::uint32_t normal = (magnitude - (112u << 23) + 0x0fff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal halves: adding 0.5 leaves value * 2^24 in the low bits, rounded by the FPU.
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const std::uint32_t nan = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return static_cast<std::uint16_t>(sign | (magnitude >= 0x47800000u ? nan : finite));
}

inline float bfloat_to_float(std::uint16_t value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

/// Round to nearest, ties to even; NaN stays NaN.
inline std::uint16_t float_to_bfloat(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const bool nan = (bits & 0x7fffffff) > 0x7f800000u;
  return static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40 : rounded);
}

inline std::int64_t scalar_bytes(ScalarType type) { return type == ScalarType::kFloat32 ? 4 : 2; }

/// out[i] = in[i], from element `first` of an array of `type`.
inline void load_floats(const void* in, std::int64_t first, std::int64_t count, ScalarType type,
                        float* out) {
  if (type == ScalarType::kFloat32) {
    const float* from = static_cast<const float*>(in) + first;
    for (std::int64_t i = 0; i < count; ++i) out[i] = from[i];
  } else if (type == ScalarType::kBFloat16) {
    const std::uint16_t* from = static_cast<const std::uint16_t*>(in) + first;
    for (std::int64_t i = 0; i < count; ++i) out[i] = bfloat_to_float(from[i]);
  } else {
    const std::uint16_t* from = static_cast<const std::uint16_t*>(in) + first;
    for (std::int64_t i = 0; i < count; ++i) out[i] = half_to_float(from[i]);
  }
}

inline void store_floats(const float* in, std::int64_t count, ScalarType type, void* out,
                         std::int64_t first) {
  if (type == ScalarType::kFloat32) {
    float* to = static_cast<float*>(out) + first;
    for (std::int64_t i = 0; i < count; ++i) to[i] = in[i];
  } else if (type == ScalarType::kBFloat16) {
    std::uint16_t* to = static_cast<std::uint16_t*>(out) + first;
    for (std::int64_t i = 0; i < count; ++i) to[i] = float_to_bfloat(in[i]);
  } else {
    std::uint16_t* to = static_cast<std::uint16_t*>(out) + first;
    for (std::int64_t i = 0; i < count; ++i) to[i] = float_to_half(in[i]);
  }
}

}  // namespace anyprec::cpu
