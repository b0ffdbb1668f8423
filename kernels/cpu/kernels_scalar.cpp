#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/cpu/float_types.h"
#include "kernels/cpu/kernel_set.h"

/// Plain C++ for any machine, and the pattern that the SIMD kernels follow.
namespace anyprec::cpu {
namespace {

constexpr int kLanes = 8;
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();

/// A step of activations: values, then the scale of each fixed_block, with kTableSteps folded in so
/// that sums stay in the range of the result.
struct FixedStep {
  std::int16_t values[kUnitColumns];
  float scales[kUnitBlocks];
  std::uint8_t padding[32];
};
static_assert(sizeof(FixedStep) % 64 == 0);

void fix_step(const float* x, std::uint8_t* record) {
  FixedStep& step = *reinterpret_cast<FixedStep*>(record);
  float largest[kUnitBlocks] = {};
  for (int c = 0; c < kUnitColumns; ++c) {
    float& most = largest[fixed_block(c)];
    if (!std::isfinite(x[c])) most = kNotANumber;
    if (std::fabs(x[c]) > most) most = std::fabs(x[c]);  // never of a NaN
  }
  float inverse[kUnitBlocks];
  for (int b = 0; b < kUnitBlocks; ++b) {
    const bool nonzero = largest[b] >= kSmallestMagnitude;
    inverse[b] = nonzero ? kActivationSteps / largest[b] : 0.0f;
    step.scales[b] =
        largest[b] < kSmallestMagnitude ? 0.0f : largest[b] / kActivationSteps / kTableSteps;
  }
  for (int c = 0; c < kUnitColumns; ++c) {
    const float factor = inverse[fixed_block(c)];
    step.values[c] =
        factor > 0 ? static_cast<std::int16_t>(std::lrint(x[c] * factor)) : std::int16_t{0};
  }
}

void half_to_float_array(const std::uint16_t* in, int count, float* out) {
  for (int i = 0; i < count; ++i) out[i] = half_to_float(in[i]);
}

void bit_table(const std::uint16_t* values, int precision, std::uint8_t* table) {
  std::uint16_t* entries = reinterpret_cast<std::uint16_t*>(table);
  for (int i = 0; i < 1 << precision; ++i) entries[i] = values[i];
}

float fixed_table(const float* values, int precision, std::uint8_t* table) {
  float largest = 0;
  for (int i = 0; i < 1 << precision; ++i) {
    if (!std::isfinite(values[i])) return std::numeric_limits<float>::quiet_NaN();
    largest = std::max(largest, std::fabs(values[i]));
  }
  const float inverse = largest > 0 ? kTableSteps / largest : 0.0f;
  std::int16_t* entries = reinterpret_cast<std::int16_t*>(table);
  for (int i = 0; i < 1 << precision; ++i)
    entries[i] = static_cast<std::int16_t>(std::lrint(values[i] * inverse));
  return largest;
}

void fixed_half_tables(const std::uint16_t* halves, int precision, std::int64_t count,
                       std::uint8_t* tables, float* magnitudes) {
  for (std::int64_t i = 0; i < count; ++i) {
    float values[1 << kMaxPrecision];
    half_to_float_array(halves + (i << precision), 1 << precision, values);
    magnitudes[i] = fixed_table(values, precision, tables + i * table_bytes(precision));
  }
}

/// The b-bit codes of one unit.
void unit_codes(const PlaneRow& planes, std::int64_t unit, int precision, std::uint8_t* codes) {
  for (int c = 0; c < kUnitColumns; ++c) codes[c] = 0;
  for (int p = 0; p < precision; ++p) {
    const std::uint8_t* bytes = planes.data + p * planes.plane_stride + unit * kUnitBytes;
    for (int j = 0; j < kUnitBlocks; ++j) {
      for (int i = 0; i < kBlockColumns; ++i) {
        std::uint8_t& code = codes[j * kBlockColumns + i];
        code = static_cast<std::uint8_t>(code << 1 | ((bytes[i] >> block_bit(j, p)) & 1));
      }
    }
  }
}

std::int64_t group_of(const Tables& tables, std::int64_t unit, int block, bool grouped) {
  if (!grouped) return 0;
  // The padding of a row may lie past its last group.
  return std::min((unit * kUnitBlocks + block) / tables.blocks_per_group, tables.groups - 1);
}

template <class T>
const T* table_of(const Tables& tables, std::int64_t group, int precision) {
  return reinterpret_cast<const T*>(tables.data + group * table_bytes(precision));
}

template <int kPrecision, int kRows, bool kGrouped>
void matvec_row(const PlaneRow& planes, const Tables& tables, const FixedRows& x, float* out) {
  float sums[kRows][kUnitBlocks] = {};
  std::uint8_t codes[kUnitColumns];
  for (std::int64_t u = 0; u < planes.units; ++u) {
    unit_codes(planes, u, kPrecision, codes);
    for (int j = 0; j < kUnitBlocks; ++j) {
      const std::int64_t group = group_of(tables, u, j, kGrouped);
      const std::int16_t* table = table_of<std::int16_t>(tables, group, kPrecision);
      const float group_scale = kGrouped ? tables.scales[group] : 1.0f;
      for (int r = 0; r < kRows; ++r) {
        const FixedStep& step = reinterpret_cast<const FixedStep*>(x.data + r * x.stride)[u];
        std::int64_t dots[kUnitBlocks] = {};
        for (int c = j * kBlockColumns; c < (j + 1) * kBlockColumns; ++c)
          dots[fixed_block(c)] += std::int32_t{table[codes[c]]} * step.values[c];
        for (int b = 0; b < kUnitBlocks; ++b)
          sums[r][b] += static_cast<float>(dots[b]) * (step.scales[b] * group_scale);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float sum = 0;
    for (int b = 0; b < kUnitBlocks; ++b) sum += sums[r][b];
    out[r * kRowBatch] = kGrouped ? sum : sum * tables.scales[0];
  }
}

template <int kPrecision, int kRows, bool kGrouped>
void matvec(const PlaneRow& planes, const Tables& tables, const FixedRows& x, int count,
            float* out) {
  PlaneRow row = planes;
  Tables of_row = tables;
  for (int n = 0; n < count; ++n) {
    matvec_row<kPrecision, kRows, kGrouped>(row, of_row, x, out + n);
    row.data += planes.units * kUnitBytes;
    of_row.data += tables.groups * table_bytes(kPrecision);
    of_row.scales += tables.groups;
  }
}

template <int kPrecision, bool kHalves, bool kGrouped>
void decode(const PlaneRow& planes, std::int64_t unit, const Tables& high, const Tables& low,
            float* out) {
  std::uint8_t codes[kUnitColumns];
  unit_codes(planes, unit, kPrecision, codes);
  for (int j = 0; j < kUnitBlocks; ++j) {
    const std::int64_t group = group_of(high, unit, j, kGrouped);
    const std::uint16_t* upper = table_of<std::uint16_t>(high, group, kPrecision);
    const std::uint16_t* lower = table_of<std::uint16_t>(low, group, kPrecision);
    for (int i = j * kBlockColumns; i < (j + 1) * kBlockColumns; ++i) {
      out[i] = kHalves
                   ? half_to_float(upper[codes[i]])
                   : std::bit_cast<float>(std::uint32_t{upper[codes[i]]} << 16 | lower[codes[i]]);
    }
  }
}

void multiply(const float* w, int w_rows, const float* x, std::int64_t x_rows, int columns,
              float* acc) {
  for (std::int64_t i = 0; i < x_rows; ++i) {
    for (int n = 0; n < w_rows; ++n) {
      float* sum = acc + (i * kTileRows + n) * kLanes;
      float partial[kLanes] = {};
      for (int c = 0; c < columns; c += kLanes)
        for (int l = 0; l < kLanes; ++l)
          partial[l] += w[n * kUnitColumns + c + l] * x[i * kUnitColumns + c + l];
      for (int l = 0; l < kLanes; ++l) sum[l] += partial[l];
    }
  }
}

void reduce(const float* acc, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    float sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += acc[i * kLanes + l];
    out[i] = sum;
  }
}

template <int kPrecision>
MatvecKernel matvec_for(int rows, bool grouped) {
  switch (rows) {
    case 1:
      return grouped ? matvec<kPrecision, 1, true> : matvec<kPrecision, 1, false>;
    case 2:
      return grouped ? matvec<kPrecision, 2, true> : matvec<kPrecision, 2, false>;
    case 3:
      return grouped ? matvec<kPrecision, 3, true> : matvec<kPrecision, 3, false>;
    default:
      return grouped ? matvec<kPrecision, 4, true> : matvec<kPrecision, 4, false>;
  }
}

template <int kPrecision>
DecodeKernel decode_for(bool halves, bool grouped) {
  if (halves) return grouped ? decode<kPrecision, true, true> : decode<kPrecision, true, false>;
  return grouped ? decode<kPrecision, false, true> : decode<kPrecision, false, false>;
}

MatvecKernel choose_matvec(int precision, int rows, bool grouped) {
  constexpr MatvecKernel (*kChoices[])(int, bool) = {matvec_for<2>, matvec_for<3>, matvec_for<4>,
                                                     matvec_for<5>, matvec_for<6>, matvec_for<7>,
                                                     matvec_for<8>};
  return kChoices[precision - kMinPrecision](rows, grouped);
}

DecodeKernel choose_decode(int precision, bool halves, bool grouped) {
  constexpr DecodeKernel (*kChoices[])(bool, bool) = {decode_for<2>, decode_for<3>, decode_for<4>,
                                                      decode_for<5>, decode_for<6>, decode_for<7>,
                                                      decode_for<8>};
  return kChoices[precision - kMinPrecision](halves, grouped);
}

}  // namespace

const KernelSet& scalar_kernels() {
  static constexpr KernelSet kKernels{.step_units = 1,
                                      .lanes = kLanes,
                                      .fixed_step_bytes = sizeof(FixedStep),
                                      .fix_step = fix_step,
                                      .half_to_float = half_to_float_array,
                                      .fixed_table = fixed_table,
                                      .fixed_half_tables = fixed_half_tables,
                                      .bit_table = bit_table,
                                      .matvec = choose_matvec,
                                      .decode = choose_decode,
                                      .multiply = multiply,
                                      .reduce = reduce};
  return kKernels;
}

}  // namespace anyprec::cpu
