#pragma once

#include <bit>
#include <cstdint>

/// The arithmetic of sampling, so that one seed and step give the same token on every device:
/// integers, and single operations in fp32, each rounded by itself (sources that include this are
/// compiled with -ffp-contract=off).
namespace anyprec::sampling {

#ifdef __CUDACC__
#define ANYPREC_ANYWHERE __host__ __device__ inline
#else
#define ANYPREC_ANYWHERE inline
#endif

ANYPREC_ANYWHERE float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

ANYPREC_ANYWHERE float sum(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

ANYPREC_ANYWHERE float quotient(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

ANYPREC_ANYWHERE std::uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  return std::bit_cast<std::uint32_t>(value);
#endif
}

/// Orders as logits do; NaN first, zeros of both signs alike.
ANYPREC_ANYWHERE std::uint32_t key_of(float logit) {
  if (!(logit == logit)) return 0;
  const std::uint32_t bits = bits_of(sum(logit, 0.0f));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

ANYPREC_ANYWHERE float penalized(float logit, float penalty) {
  return logit > 0.0f ? quotient(logit, penalty) : product(logit, penalty);
}

/// What logits are multiplied by to be powers of two.
ANYPREC_ANYWHERE float exponent_scale(float temperature) {
  return quotient(1.44269504088896341f, temperature);
}

inline constexpr int kWeightBits = 40;

/// 2^40 * 2^((logit - largest) * scale), rounded to an integer: relative error 1e-6, and 0 below
/// 2^-40. Sums of up to 2^22 of them are exact in 64 bits.
ANYPREC_ANYWHERE std::uint64_t weight_of(float logit, float largest, float scale) {
  if (logit == largest) return std::uint64_t{1} << kWeightBits;
  const float t = product(sum(logit, -largest), scale);
  if (!(t > -40.0f)) return 0;
  // To the nearest integer: down from t + 0.5.
  const float above = sum(t, 0.5f);
  const int truncated = static_cast<int>(above);
  const int whole = truncated - (static_cast<float>(truncated) > above ? 1 : 0);
  const float f = sum(t, -static_cast<float>(whole));  // in [-0.5, 0.5], exact
  // Taylor's series of 2^f.
  float power = 1.54035304e-4f;
  power = sum(product(power, f), 1.33335581e-3f);
  power = sum(product(power, f), 9.61812911e-3f);
  power = sum(product(power, f), 5.55041087e-2f);
  power = sum(product(power, f), 2.40226507e-1f);
  power = sum(product(power, f), 6.93147181e-1f);
  power = sum(product(power, f), 1.0f);
  const std::uint64_t fraction =
      static_cast<std::uint32_t>(static_cast<int>(product(power, 8388608.0f)));  // 2^23
  const int shift = kWeightBits - 23 + whole;
  return shift >= 0 ? fraction << shift : fraction >> -shift;
}

/// The smallest weight that min_p keeps.
ANYPREC_ANYWHERE std::uint64_t least_weight(float min_p) {
  if (!(min_p > 0.0f)) return 0;
  const double part = min_p < 1.0f ? static_cast<double>(min_p) : 1.0;
  return static_cast<std::uint64_t>(part * static_cast<double>(std::uint64_t{1} << kWeightBits));
}

/// The sum of weights that top_p wants of `total`.
ANYPREC_ANYWHERE std::uint64_t wanted_weight(float top_p, std::uint64_t total) {
  if (!(top_p > 0.0f)) return 1;
  const std::uint64_t wanted =
      static_cast<std::uint64_t>(static_cast<double>(top_p) * static_cast<double>(total));
  return wanted < 1 ? 1 : wanted > total ? total : wanted;
}

/// The high half of a 64-bit product: a uniform number below `total` from a uniform 64-bit one.
ANYPREC_ANYWHERE std::uint64_t below(std::uint64_t random, std::uint64_t total) {
#ifdef __CUDA_ARCH__
  return __umul64hi(random, total);
#else
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::uint64_t>((static_cast<Wide>(random) * total) >> 64);
#endif
}

/// Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011): 64 random bits
/// of the counter `step` under the key `seed`.
ANYPREC_ANYWHERE std::uint64_t philox(std::uint64_t seed, std::uint64_t step) {
  std::uint32_t c0 = static_cast<std::uint32_t>(step), c1 = static_cast<std::uint32_t>(step >> 32);
  std::uint32_t c2 = 0, c3 = 0;
  std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return std::uint64_t{c1} << 32 | c0;
}

}  // namespace anyprec::sampling
