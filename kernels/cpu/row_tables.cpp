#include "kernels/cpu/row_tables.h"

#include <bit>

namespace anyprec::cpu {
namespace {

constexpr int kMaxValues = 1 << kMaxPrecision;

/// The 2^b values of hybrid codebook `codebook` = row G + group, in fp32.
void expand(const KernelSet& kernels, const Weights& w, std::int64_t codebook, float* values) {
  const int entries = w.form.lut_entries(w.precision);
  const int coefficients = w.form.sign_planes(w.precision) * w.form.classes();
  float lut[kMaxValues];
  float alpha[kMaxValues];  // (b - L) C <= (8 - L) 2^L <= 128
  kernels.half_to_float(w.lut + codebook * entries, entries, lut);
  kernels.half_to_float(w.alpha + codebook * coefficients, coefficients, alpha);
  expand_codebook(w.form, w.precision, lut, alpha, values);
}

}  // namespace

void make_fixed_tables(const KernelSet& kernels, const Weights& weights, std::int64_t row,
                       std::int64_t count, std::uint8_t* tables, float* scales) {
  const std::int64_t first = row * group_count(weights);
  const std::int64_t codebooks = count * group_count(weights);
  if (has_half_tables(weights)) {
    return kernels.fixed_half_tables(weights.lut + (first << weights.precision), weights.precision,
                                     codebooks, tables, scales);
  }
  const int bytes = table_bytes(weights.precision);
  for (std::int64_t i = 0; i < codebooks; ++i) {
    float values[kMaxValues];
    expand(kernels, weights, first + i, values);
    scales[i] = kernels.fixed_table(values, weights.precision, tables + i * bytes);
  }
}

void make_exact_tables(const KernelSet& kernels, const Weights& weights, std::int64_t row,
                       std::uint8_t* high, std::uint8_t* low) {
  const std::int64_t groups = group_count(weights);
  const int bytes = table_bytes(weights.precision);
  const int entries = 1 << weights.precision;
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t codebook = row * groups + g;
    if (has_half_tables(weights)) {
      kernels.bit_table(weights.lut + codebook * entries, weights.precision, high + g * bytes);
      continue;
    }
    float values[kMaxValues];
    std::uint16_t upper[kMaxValues];
    std::uint16_t lower[kMaxValues];
    expand(kernels, weights, codebook, values);
    for (int i = 0; i < entries; ++i) {
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(values[i]);
      upper[i] = static_cast<std::uint16_t>(bits >> 16);
      lower[i] = static_cast<std::uint16_t>(bits);
    }
    kernels.bit_table(upper, weights.precision, high + g * bytes);
    kernels.bit_table(lower, weights.precision, low + g * bytes);
  }
}

}  // namespace anyprec::cpu
