#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/kernel_set.h"

/// The x86 kernels (AVX2 at least), written once over a vector type S and compiled by each source
/// of an instruction set with that set's flags.
///
/// Everything here has internal linkage, and only functions of this file and intrinsics are called:
/// code that the compiler made for a newer machine must never be merged by the linker into what the
/// baseline runs. The standard library's inline functions are out of bounds for the same reason.
///
/// S provides:
///   kUnits                    units in a step
///   kLanes                    floats in a vector
///   kScaleCopies              copies of a block's scale that `block_scale` wants
///   kTileW, kTileX            rows of W and of x that a register tile of `multiply` covers
///   Vec, Float                integer and float vectors
///   Codes<B>                  the b-bit codes of a step, in the form that `look_up` wants
///   load_codes<B>(planes, unit)
///   look_up<B, J>(codes, table, other_table, w0, w1)
///                             16-bit table entries of the step's blocks J, in the set's order; the
///                             second unit of a step, where there is one, uses other_table
///   kPairs<B>                 whether look_up_both<B, J>(codes, table, w) does blocks J and J + 4
///                             at less cost than two look_ups
///   dot(w0, w1, x)            w0 * x[first half] + w1 * x[second half] in pairs and quadruples, to
///                             float
///   block_scale(scales), group_scale(first, second), interleaving as `dot`'s lanes
///   store_halves(w0, w1, out), store_floats(h0, h1, l0, l1, out)
///                             blocks J in the order of columns; out is the step's block J of unit
///                             0
///   order(c)                  where column c of a step lies for `dot`
namespace anyprec::cpu {
namespace {

#define ANYPREC_INLINE inline __attribute__((always_inline))

constexpr float kNotANumber = __builtin_nanf("");

template <class S>
struct Order {
  std::uint16_t values[S::kUnits * kUnitColumns];
  constexpr Order() : values{} {
    for (int c = 0; c < S::kUnits * kUnitColumns; ++c)
      values[c] = static_cast<std::uint16_t>(S::order(c));
  }
};
template <class S>
constexpr Order<S> kOrder;

/// Calls body.template operator()<J>() for J = 0 .. 3: a kernel does blocks J and J + 4 together.
template <class Body>
ANYPREC_INLINE void for_each_pair(const Body& body) {
  body.template operator()<0>();
  body.template operator()<1>();
  body.template operator()<2>();
  body.template operator()<3>();
}

/// Tables of block j of the step's units.
template <class S, int kPrecision, bool kGrouped>
struct StepTables {
  const std::uint8_t* first;
  const std::uint8_t* second;
  std::int64_t first_group;
  std::int64_t second_group;

  ANYPREC_INLINE StepTables(const Tables& tables, std::int64_t unit, std::int64_t units, int j)
      : first(tables.data), second(tables.data), first_group(0), second_group(0) {
    if constexpr (kGrouped) {
      constexpr int kBytes = table_bytes(kPrecision);
      // The last group may be short of the padding of the row; so may the last step of a unit.
      const std::int64_t last = tables.groups - 1;
      first_group = (unit * kUnitBlocks + j) / tables.blocks_per_group;
      first_group = first_group < last ? first_group : last;
      second_group = first_group;
      if (S::kUnits > 1 && unit + 1 < units) {
        second_group = ((unit + 1) * kUnitBlocks + j) / tables.blocks_per_group;
        second_group = second_group < last ? second_group : last;
      }
      first = tables.data + first_group * kBytes;
      second = tables.data + second_group * kBytes;
    }
  }
};

/// The entries of blocks J and J + 4: w[0] and w[1].
template <class S, int kPrecision, int J, bool kGrouped>
ANYPREC_INLINE void look_up_pair(const typename S::template Codes<kPrecision>& codes,
                                 const StepTables<S, kPrecision, kGrouped> (&tables)[2],
                                 typename S::Vec (&w)[2][2]) {
  if constexpr (!kGrouped && S::template kPairs<kPrecision>) {
    S::template look_up_both<kPrecision, J>(codes, tables[0].first, w);
  } else {
    S::template look_up<kPrecision, J, kGrouped>(codes, tables[0].first, tables[0].second, w[0][0],
                                                 w[0][1]);
    S::template look_up<kPrecision, J + 4, kGrouped>(codes, tables[1].first, tables[1].second,
                                                     w[1][0], w[1][1]);
  }
}

template <class S, int kPrecision, int kRows, bool kGrouped>
void matvec(const PlaneRow& planes, const Tables& tables, const FixedRows& x, float* out) {
  constexpr int kStepColumns = S::kUnits * kUnitColumns;
  constexpr int kStepScales = S::kUnits * kUnitBlocks * S::kScaleCopies;
  // Two sums a row of x: a chain of one would wait for its additions.
  typename S::Float sums[kRows][2];
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = S::zero();
  const std::int16_t* values = x.values;
  const float* scales = x.scales;
  for (std::int64_t u = 0; u < planes.units; u += S::kUnits) {
    const auto codes = S::template load_codes<kPrecision>(planes, u);
    for_each_pair([&]<int J>() __attribute__((always_inline)) {
      const StepTables<S, kPrecision, kGrouped> of[2] = {{tables, u, planes.units, J},
                                                         {tables, u, planes.units, J + 4}};
      typename S::Vec w[2][2];
      look_up_pair<S, kPrecision, J, kGrouped>(codes, of, w);
      for (int i = 0; i < 2; ++i) {
        const int block = (J + 4 * i) * S::kUnits;
        for (int r = 0; r < kRows; ++r) {
          typename S::Float scale =
              S::block_scale(scales + r * x.scale_stride + block * S::kScaleCopies);
          if constexpr (kGrouped) {
            scale = S::mul(scale, S::group_scale(tables.scales + of[i].first_group,
                                                 tables.scales + of[i].second_group));
          }
          const typename S::Float dot =
              S::dot(w[i][0], w[i][1], values + r * x.stride + block * kBlockColumns);
          sums[r][i] = S::fma(dot, scale, sums[r][i]);
        }
      }
    });
    values += kStepColumns;
    scales += kStepScales;
  }
  for (int r = 0; r < kRows; ++r) {
    const float sum = S::sum(S::add(sums[r][0], sums[r][1]));
    out[r] = kGrouped ? sum : sum * tables.scales[0];
  }
}

template <class S, int kPrecision, bool kHalves, bool kGrouped>
void decode(const PlaneRow& planes, std::int64_t unit, const Tables& high, const Tables& low,
            float* out) {
  const auto codes = S::template load_codes<kPrecision>(planes, unit);
  for_each_pair([&]<int J>() __attribute__((always_inline)) {
    const StepTables<S, kPrecision, kGrouped> upper[2] = {{high, unit, planes.units, J},
                                                          {high, unit, planes.units, J + 4}};
    typename S::Vec h[2][2];
    look_up_pair<S, kPrecision, J, kGrouped>(codes, upper, h);
    float* first = out + J * kBlockColumns;
    float* second = first + 4 * kBlockColumns;
    if constexpr (kHalves) {
      S::store_halves(h[0][0], h[0][1], first);
      S::store_halves(h[1][0], h[1][1], second);
    } else {
      const StepTables<S, kPrecision, kGrouped> lower[2] = {{low, unit, planes.units, J},
                                                            {low, unit, planes.units, J + 4}};
      typename S::Vec l[2][2];
      look_up_pair<S, kPrecision, J, kGrouped>(codes, lower, l);
      S::store_floats(h[0][0], h[0][1], l[0][0], l[0][1], first);
      S::store_floats(h[1][0], h[1][1], l[1][0], l[1][1], second);
    }
  });
}

/// A register tile: kW rows of W times kX rows of x over one step of columns.
template <class S, int kW, int kX>
void multiply_tile(const float* w, const float* x, float* acc) {
  constexpr int kColumns = S::kUnits * kUnitColumns;
  typename S::Float sums[kX][kW];
  for (int i = 0; i < kX; ++i)
    for (int n = 0; n < kW; ++n) sums[i][n] = S::load(acc + (i * kTileRows + n) * S::kLanes);
  for (int c = 0; c < kColumns; c += S::kLanes) {
    typename S::Float wv[kW];
    for (int n = 0; n < kW; ++n) wv[n] = S::load(w + n * kColumns + c);
    for (int i = 0; i < kX; ++i) {
      const typename S::Float xv = S::load(x + i * kColumns + c);
      for (int n = 0; n < kW; ++n) sums[i][n] = S::fma(wv[n], xv, sums[i][n]);
    }
  }
  for (int i = 0; i < kX; ++i)
    for (int n = 0; n < kW; ++n) S::store(acc + (i * kTileRows + n) * S::kLanes, sums[i][n]);
}

/// Tiles of kX rows of x over all rows of W, then the rows that are left with a smaller kX.
template <class S, int kX>
void multiply_rows(const float* w, int w_rows, const float* x, std::int64_t x_rows, float* acc) {
  constexpr int kColumns = S::kUnits * kUnitColumns;
  for (; x_rows >= kX; x_rows -= kX) {
    int n = 0;
    for (; n + S::kTileW <= w_rows; n += S::kTileW)
      multiply_tile<S, S::kTileW, kX>(w + n * kColumns, x, acc + n * S::kLanes);
    for (; n < w_rows; ++n) multiply_tile<S, 1, kX>(w + n * kColumns, x, acc + n * S::kLanes);
    x += kX * kColumns;
    acc += kX * kTileRows * S::kLanes;
  }
  if constexpr (kX > 1) {
    if (x_rows > 0) multiply_rows<S, kX - 1>(w, w_rows, x, x_rows, acc);
  }
}

template <class S>
void multiply(const float* w, int w_rows, const float* x, std::int64_t x_rows, float* acc) {
  multiply_rows<S, S::kTileX>(w, w_rows, x, x_rows, acc);
}

template <class S>
void reduce(const float* acc, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = S::sum(S::load(acc + i * S::kLanes));
}

/// Makes `count` fp32 values (a multiple of 8) multiples of their largest magnitude / kTableSteps
/// and returns that magnitude, or NaN where one of them is not finite.
ANYPREC_INLINE float fix_values(const float* values, int count, std::uint16_t* fixed) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i bits = _mm256_setzero_si256();  // of magnitudes order as the numbers do, NaN last
  for (int i = 0; i < count; i += 8) {
    const __m256i v = _mm256_castps_si256(_mm256_loadu_ps(values + i));
    bits = _mm256_max_epi32(bits, _mm256_and_si256(v, magnitude));
  }
  __m128i most = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
  most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
  if (_mm_cvtsi128_si32(most) >= 0x7f800000) return kNotANumber;
  const float largest = _mm_cvtss_f32(_mm_castsi128_ps(most));
  const __m256 inverse = _mm256_set1_ps(largest > 0 ? kTableSteps / largest : 0.0f);
  for (int i = 0; i < count; i += 8) {
    const __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + i), inverse));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(fixed + i),
                     _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
  }
  return largest;
}

ANYPREC_INLINE void convert_eight_halves(const std::uint16_t* in, float* out) {
  _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))));
}

void half_to_float(const std::uint16_t* in, int count, float* out) {
  int i = 0;
  for (; i + 8 <= count; i += 8) convert_eight_halves(in + i, out + i);
  if (i == count) return;
  std::uint16_t padded[8] = {};
  float converted[8];
  for (int k = 0; k < count - i; ++k) padded[k] = in[i + k];
  convert_eight_halves(padded, converted);
  for (int k = 0; k < count - i; ++k) out[i + k] = converted[k];
}

/// values: [max(2^precision, 8)], those past the table zero.
template <class S>
ANYPREC_INLINE float fixed_padded_table(const float* values, int precision, std::uint8_t* table) {
  std::uint16_t fixed[1 << kMaxPrecision];
  const float largest = fix_values(values, precision < 3 ? 8 : 1 << precision, fixed);
  S::arrange_table(fixed, precision, table);
  return largest;
}

template <class S>
float fixed_table(const float* values, int precision, std::uint8_t* table) {
  if (precision > 2) return fixed_padded_table<S>(values, precision, table);
  const float padded[8] = {values[0], values[1], values[2], values[3]};
  return fixed_padded_table<S>(padded, precision, table);
}

template <class S>
float fixed_half_table(const std::uint16_t* halves, int precision, std::uint8_t* table) {
  float values[1 << kMaxPrecision];
  if (precision == 2) {
    const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(halves));
    _mm256_storeu_ps(values, _mm256_cvtph_ps(four));
  } else {
    half_to_float(halves, 1 << precision, values);
  }
  return fixed_padded_table<S>(values, precision, table);
}

template <class S, int kPrecision>
MatvecKernel matvec_for(int rows, bool grouped) {
  switch (rows) {
    case 1:
      return grouped ? matvec<S, kPrecision, 1, true> : matvec<S, kPrecision, 1, false>;
    case 2:
      return grouped ? matvec<S, kPrecision, 2, true> : matvec<S, kPrecision, 2, false>;
    case 3:
      return grouped ? matvec<S, kPrecision, 3, true> : matvec<S, kPrecision, 3, false>;
    default:
      return grouped ? matvec<S, kPrecision, 4, true> : matvec<S, kPrecision, 4, false>;
  }
}

template <class S, int kPrecision>
DecodeKernel decode_for(bool halves, bool grouped) {
  if (halves) {
    return grouped ? decode<S, kPrecision, true, true> : decode<S, kPrecision, true, false>;
  }
  return grouped ? decode<S, kPrecision, false, true> : decode<S, kPrecision, false, false>;
}

template <class S>
MatvecKernel choose_matvec(int precision, int rows, bool grouped) {
  constexpr MatvecKernel (*kChoices[])(int, bool) = {
      matvec_for<S, 2>, matvec_for<S, 3>, matvec_for<S, 4>, matvec_for<S, 5>,
      matvec_for<S, 6>, matvec_for<S, 7>, matvec_for<S, 8>};
  return kChoices[precision - kMinPrecision](rows, grouped);
}

template <class S>
DecodeKernel choose_decode(int precision, bool halves, bool grouped) {
  constexpr DecodeKernel (*kChoices[])(bool, bool) = {
      decode_for<S, 2>, decode_for<S, 3>, decode_for<S, 4>, decode_for<S, 5>,
      decode_for<S, 6>, decode_for<S, 7>, decode_for<S, 8>};
  return kChoices[precision - kMinPrecision](halves, grouped);
}

template <class S>
constexpr KernelSet kKernelSet{.step_units = S::kUnits,
                               .lanes = S::kLanes,
                               .scale_copies = S::kScaleCopies,
                               .order = kOrder<S>.values,
                               .half_to_float = half_to_float,
                               .fixed_table = fixed_table<S>,
                               .fixed_half_table = fixed_half_table<S>,
                               .bit_table = S::arrange_table,
                               .matvec = choose_matvec<S>,
                               .decode = choose_decode<S>,
                               .multiply = multiply<S>,
                               .reduce = reduce<S>};

}  // namespace
}  // namespace anyprec::cpu
