#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "anyprec/weights.h"

/// Vectors of 16 floats for loops that are written once and compiled for each instruction set, and
/// the element types that they come from and go to.
namespace anyprec::cpu {
namespace {

inline constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(64), aligned(4)));
typedef std::int32_t Ints __attribute__((vector_size(64), aligned(4)));
typedef std::uint32_t Words __attribute__((vector_size(64), aligned(4)));
typedef std::uint16_t Halves __attribute__((vector_size(32), aligned(2)));

template <class To, class From>
inline To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline Vec broadcast(float value) { return Vec{} + value; }

inline Vec from_halves(const Halves& halves) {
#if defined(__AVX512F__)
  return as<Vec>(_mm512_cvtph_ps(as<__m256i>(halves)));
#elif defined(__F16C__)
  __m128i parts[2];
  std::memcpy(parts, &halves, sizeof(parts));
  const __m256 low = _mm256_cvtph_ps(parts[0]), high = _mm256_cvtph_ps(parts[1]);
  Vec v;
  std::memcpy(&v, &low, sizeof(low));
  std::memcpy(reinterpret_cast<char*>(&v) + sizeof(low), &high, sizeof(high));
  return v;
#else
  const Words bits = __builtin_convertvector(halves, Words);
  const Words sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  const Words normal = (magnitude << 13) + (112u << 23);
  const Words special = (magnitude << 13) | 0x7f800000u;
  const Words small = as<Words>(__builtin_convertvector(as<Ints>(magnitude), Vec) * 0x1p-24f);
  const Words finite = magnitude < 0x0400u ? small : normal;
  return as<Vec>(sign | (magnitude >= 0x7c00u ? special : finite));
#endif
}

inline Halves to_halves(const Vec& v) {
#if defined(__AVX512F__)
  return as<Halves>(_mm512_cvtps_ph(as<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  __m256 parts[2];
  std::memcpy(parts, &v, sizeof(parts));
  const __m128i low = _mm256_cvtps_ph(parts[0], _MM_FROUND_TO_NEAREST_INT);
  const __m128i high = _mm256_cvtps_ph(parts[1], _MM_FROUND_TO_NEAREST_INT);
  Halves halves;
  std::memcpy(&halves, &low, sizeof(low));
  std::memcpy(reinterpret_cast<char*>(&halves) + sizeof(low), &high, sizeof(high));
  return halves;
#else
  // As float_to_half in float_types.h does it.
  const Words bits = as<Words>(v);
  const Words sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const Words normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  const Words small = as<Words>(as<Vec>(magnitude) + 0.5f) - 0x3f000000u;
  const Words infinity = Words{} + 0x7c00u, nan = Words{} + 0x7e00u;
  const Words special = magnitude > 0x7f800000u ? nan : infinity;
  const Words finite = magnitude < 0x38800000u ? small : normal;
  return __builtin_convertvector(sign | (magnitude >= 0x47800000u ? special : finite), Halves);
#endif
}

/// Elements of a type that is known when compiling. Copies of 16 of them; `count` for fewer, where
/// the other lanes are zero.
template <ScalarType kType>
struct Elements {
  using Type = std::uint16_t;
  static Vec load(const Type* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof(halves));
    if constexpr (kType == ScalarType::kFloat16) return from_halves(halves);
    return as<Vec>(__builtin_convertvector(halves, Words) << 16);
  }
  static void store(Type* to, const Vec& v) {
    Halves halves;
    if constexpr (kType == ScalarType::kFloat16) {
      halves = to_halves(v);
    } else {
      const Words bits = as<Words>(v);
      const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
      const Words nan = (bits >> 16) | 0x40u;
      halves = __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded, Halves);
    }
    std::memcpy(to, &halves, sizeof(halves));
  }
};
template <>
struct Elements<ScalarType::kFloat32> {
  using Type = float;
  static Vec load(const Type* from) {
    Vec v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }
  static void store(Type* to, const Vec& v) { std::memcpy(to, &v, sizeof(v)); }
};

template <ScalarType kType>
inline Vec load(const void* from, std::int64_t first, std::int64_t count) {
  using Type = typename Elements<kType>::Type;
  const Type* const p = static_cast<const Type*>(from) + first;
  if (count >= kLanes) return Elements<kType>::load(p);
  Type lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<std::size_t>(count) * sizeof(Type));
  return Elements<kType>::load(lanes);
}

template <ScalarType kType>
inline void store(void* to, std::int64_t first, std::int64_t count, const Vec& v) {
  using Type = typename Elements<kType>::Type;
  Type* const p = static_cast<Type*>(to) + first;
  if (count >= kLanes) return Elements<kType>::store(p, v);
  Type lanes[kLanes];
  Elements<kType>::store(lanes, v);
  std::memcpy(p, lanes, static_cast<std::size_t>(count) * sizeof(Type));
}

/// The lanes kSteps further on, in a circle.
template <int kSteps>
inline Vec turned(const Vec& v) {
  const Ints from = (Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + kSteps) & 15;
  return __builtin_shuffle(v, from);
}

inline float sum_of(Vec v) {
  v += turned<8>(v);
  v += turned<4>(v);
  v += turned<2>(v);
  return v[0] + v[1];
}

inline float largest_of(Vec v) {
  const auto larger = [](const Vec& a, const Vec& b) { return a > b ? a : b; };
  v = larger(v, turned<8>(v));
  v = larger(v, turned<4>(v));
  v = larger(v, turned<2>(v));
  return v[0] > v[1] ? v[0] : v[1];
}

/// The sums of 16 vectors, in their order.
inline Vec sums_of(const Vec (&v)[kLanes]) {
  Vec a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) {
    a[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19,
                                   20, 21, 22, 23) +
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26,
                                   27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19,
                                   24, 25, 26, 27) +
           __builtin_shufflevector(a[2 * i], a[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22,
                                   23, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; ++i) {
    c[i] = __builtin_shufflevector(b[2 * i], b[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21,
                                   24, 25, 28, 29) +
           __builtin_shufflevector(b[2 * i], b[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22,
                                   23, 26, 27, 30, 31);
  }
  return __builtin_shufflevector(c[0], c[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28,
                                 30) +
         __builtin_shufflevector(c[0], c[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29,
                                 31);
}

/// e^x within two units of the last place; 0 below -87, infinity above 88.7.
inline Vec exponential(const Vec& x) {
  const Vec low = broadcast(-87.0f), high = broadcast(89.0f);
  const Vec clamped = x < low ? low : x > high ? high : x;
  // Adding 1.5 * 2^23 rounds to an integer, which lies in the low bits then.
  const Vec magic = broadcast(12582912.0f);
  const Vec shifted = clamped * 1.44269504f + magic;
  const Vec whole = shifted - magic;
  const Vec r = (clamped - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^128 is not a float: two factors.
  const Ints n = as<Ints>(shifted) - 0x4b400000;
  const Ints half = n >> 1;
  const Vec first = as<Vec>((half + 127) << 23), second = as<Vec>((n - half + 127) << 23);
  const Vec value = p * first * second;
  return x < low ? Vec{} : x == x ? value : x;
}

inline Vec hyperbolic_tangent(const Vec& x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

}  // namespace
}  // namespace anyprec::cpu
