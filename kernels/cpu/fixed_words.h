#pragma once

#include "kernels/cpu/simd_kernels.h"

/// M <= kMatvecRows: table entries times activations, both in fixed point, as 16-bit words.
///
/// `unpack` of the low and the high bytes of 32 entries leaves words 8 L + 0 .. 7 of a block in
/// 128-bit lane L / 2 of one vector and words 8 L + 8 .. 15 in another, so that a 32-bit lane of
/// w0 x0 + w1 x1 has four products of the same fixed_block for every block of codes. A step's sums
/// of eight blocks of codes stay integers, without their lowest bits so as to fit; then a lane has
/// one scale.
///
/// S (simd_kernels.h) also provides:
///   dot(w0, w1, x0, x1)       w0 x0 + w1 x1, added up in 32-bit lanes
///   set_words, add_words, drop_bits<kBits>, to_float
///                             of 32-bit lanes
///   set, mul, sums_of         of floats: sums_of(v) has the sum of v[i]'s lanes in lane i
///   group_scale(first, second)
///                             `first` in the first unit's lanes, `second` in the second's
///   kHalfTables               whether fixed_small_table and fixed_large_table(halves, precision,
///                             table) make tables of up to 4 bits and of more from fp16 values
namespace anyprec::cpu {
namespace {

/// Four products fill 32 bits, so eight such sums without their lowest three bits do; half a bit is
/// lost each on average.
constexpr int kDroppedBits = 3;
constexpr int kDroppedMean = kUnitBlocks / 2;

/// The largest magnitude of `count` values (a multiple of 8), or NaN where one is not finite.
ANYPREC_INLINE float largest_magnitude(const float* values, int count) {
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
  return _mm_cvtss_f32(_mm_castsi128_ps(most));
}

/// Eight values times factors, rounded to words.
ANYPREC_INLINE __m128i fix_eight(const float* values, __m256 factors) {
  const __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values), factors));
  return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

template <class S>
struct FixedWords {
  static constexpr int kHalf = 16 * S::kUnits;  ///< words of a vector
  static constexpr int kLanes = 8 * S::kUnits;

  struct alignas(64) Step {
    std::int16_t values[kUnitBlocks][2][kHalf];  ///< x0 and x1
    float scales[kLanes];  ///< kTableSteps folded in: sums stay in the range of the result
  };
  static constexpr int kStepBytes = sizeof(Step);

  static void fix_step(const float* x, std::uint8_t* record) {
    Step& step = *reinterpret_cast<Step*>(record);
    for (int u = 0; u < S::kUnits; ++u) {
      fix_sixteen(x + u * kUnitColumns, 2 * u, step);
      fix_sixteen(x + u * kUnitColumns + 16, 2 * u + 1, step);
    }
  }

  /// 16 columns of every 32 of a unit, for a 128-bit lane.
  static ANYPREC_INLINE void fix_sixteen(const float* x, int lane, Step& step) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i bits = _mm256_setzero_si256();  // of magnitudes order as the numbers do, NaN last
    for (int j = 0; j < kUnitBlocks; ++j) {
      for (int i = 0; i < 16; i += 8) {
        const __m256i v = _mm256_castps_si256(_mm256_loadu_ps(x + j * kBlockColumns + i));
        bits = _mm256_max_epi32(bits, _mm256_and_si256(v, magnitude));
      }
    }
    bits = _mm256_max_epi32(bits, _mm256_shuffle_epi32(bits, 0xb1));  // of both words of a pair
    const __m256 largest = _mm256_castsi256_ps(bits);
    const __m256 special =
        _mm256_castsi256_ps(_mm256_cmpgt_epi32(bits, _mm256_set1_epi32(0x7f7fffff)));
    const __m256 zero = _mm256_or_ps(
        special, _mm256_cmp_ps(largest, _mm256_set1_ps(kSmallestMagnitude), _CMP_LT_OQ));
    const __m256 steps = _mm256_set1_ps(kActivationSteps);
    const __m256 inverse = _mm256_andnot_ps(zero, _mm256_div_ps(steps, largest));
    for (int j = 0; j < kUnitBlocks; ++j) {
      for (int i = 0; i < 2; ++i) {
        _mm_store_si128(reinterpret_cast<__m128i*>(step.values[j][i] + 8 * lane),
                        fix_eight(x + j * kBlockColumns + 8 * i, inverse));
      }
    }
    __m256 scale = _mm256_div_ps(_mm256_div_ps(largest, steps),
                                 _mm256_set1_ps(float{kTableSteps} / (1 << kDroppedBits)));
    scale = _mm256_andnot_ps(zero, scale);
    scale = _mm256_or_ps(scale, _mm256_and_ps(special, _mm256_set1_ps(kNotANumber)));
    const __m256i one_of_pairs = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    _mm_store_ps(step.scales + 4 * lane,
                 _mm256_castps256_ps128(_mm256_permutevar8x32_ps(scale, one_of_pairs)));
  }

  /// values: [max(2^precision, 8)], those past the table zero.
  static ANYPREC_INLINE float fixed_padded_table(const float* values, int precision,
                                                 std::uint8_t* table) {
    std::uint16_t fixed[1 << kMaxPrecision];
    const int count = precision < 3 ? 8 : 1 << precision;
    const float largest = largest_magnitude(values, count);
    if (largest != largest) return largest;
    const __m256 factor = _mm256_set1_ps(largest > 0 ? kTableSteps / largest : 0.0f);
    for (int i = 0; i < count; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(fixed + i), fix_eight(values + i, factor));
    S::arrange_table(fixed, precision, table);
    return largest;
  }

  static float fixed_table(const float* values, int precision, std::uint8_t* table) {
    if (precision > 2) return fixed_padded_table(values, precision, table);
    const float padded[8] = {values[0], values[1], values[2], values[3]};
    return fixed_padded_table(padded, precision, table);
  }

  static void fixed_half_tables(const std::uint16_t* halves, int precision, std::int64_t count,
                                std::uint8_t* tables, float* magnitudes) {
    const int bytes = 2 << precision;
    for (std::int64_t i = 0; i < count; ++i) {
      // Values of the tables that are wanted next time: they come from memory.
      const char* next = reinterpret_cast<const char*>(halves) + (i + count) * bytes;
      for (int b = 0; b < bytes; b += 64) _mm_prefetch(next + b, _MM_HINT_T0);
      magnitudes[i] = fixed_half_table(halves + (i << precision), precision,
                                       tables + i * table_bytes(precision));
    }
  }

  static ANYPREC_INLINE float fixed_half_table(const std::uint16_t* halves, int precision,
                                               std::uint8_t* table) {
    if constexpr (S::kHalfTables) {
      return precision > 4 ? S::fixed_large_table(halves, precision, table)
                           : S::fixed_small_table(halves, precision, table);
    } else {
      float values[1 << kMaxPrecision];
      if (precision == 2) {
        const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(halves));
        _mm256_storeu_ps(values, _mm256_cvtph_ps(four));
      } else {
        half_to_float(halves, 1 << precision, values);
      }
      return fixed_padded_table(values, precision, table);
    }
  }

  template <int kPrecision, int kRows, bool kGrouped>
  static void matvec(const PlaneRow& planes, const Tables& tables, const FixedRows& x, int count,
                     float* out) {
    typename S::Float totals[kRows][kRowBatch];
    PlaneRow row = planes;
    Tables of_row = tables;
    for (int n = 0; n < count; ++n) {
      matvec_row<kPrecision, kRows, kGrouped>(row, of_row, x, totals[0] + n);
      row.data += planes.units * kUnitBytes;
      of_row.data += tables.groups * table_bytes(kPrecision);
      of_row.scales += tables.groups;
    }
    for (int n = count; n < kRowBatch; ++n) {
      for (int r = 0; r < kRows; ++r) totals[r][n] = S::zero();
    }
    for (int r = 0; r < kRows; ++r) {
      for (int n = 0; n < kRowBatch; n += kLanes) {
        const typename S::Float scales =
            kGrouped ? S::set(1.0f / (1 << kDroppedBits)) : S::load(tables.scales + n);
        S::store(out + r * kRowBatch + n, S::mul(S::sums_of(totals[r] + n), scales));
      }
    }
  }

  template <int kPrecision, int kRows, bool kGrouped>
  static ANYPREC_INLINE void matvec_row(const PlaneRow& planes, const Tables& tables,
                                        const FixedRows& x, typename S::Float* out) {
    typename S::Float totals[kRows];
    for (int r = 0; r < kRows; ++r) totals[r] = S::zero();
    const typename S::template Table<kPrecision> table(tables.data);
    const std::uint8_t* record = x.data;
    std::int64_t u = 0;
    for (; planes.blocks - u * kUnitBlocks > kUnitBlocks / 2; u += S::kUnits) {
      add_step<kPrecision, kRows, kGrouped, false>(planes, u, tables, table, record, x.stride,
                                                   totals);
      record += kStepBytes;
    }
    if (planes.blocks > u * kUnitBlocks) {
      add_step<kPrecision, kRows, kGrouped, true>(planes, u, tables, table, record, x.stride,
                                                  totals);
    }
    for (int r = 0; r < kRows; ++r) out[r * kRowBatch] = totals[r];
  }

  /// One step, from unit u on. kShort: of no more than four blocks, those that there are.
  template <int kPrecision, int kRows, bool kGrouped, bool kShort>
  static ANYPREC_INLINE void add_step(const PlaneRow& planes, std::int64_t u, const Tables& tables,
                                      const typename S::template Table<kPrecision>& table,
                                      const std::uint8_t* record, std::int64_t stride,
                                      typename S::Float (&totals)[kRows]) {
    const auto codes = S::template load_codes<kPrecision>(planes, u);
    const auto step_of = [&](int r) __attribute__((always_inline)) -> const Step& {
      return *reinterpret_cast<const Step*>(record + r * stride);
    };
    typename S::Vec sums[kRows];
    typename S::Float group_sums[kRows];
    for (int r = 0; r < kRows; ++r) {
      sums[r] = S::set_words(kDroppedMean);
      group_sums[r] = S::zero();
    }
    const auto add = [&]<int J>(const StepTables<S, kPrecision, kGrouped>& of,
                                const typename S::Vec(&w)[2]) __attribute__((always_inline)) {
      for (int r = 0; r < kRows; ++r) {
        const Step& step = step_of(r);
        const typename S::Vec dot = S::dot(w[0], w[1], step.values[J][0], step.values[J][1]);
        if constexpr (kGrouped) {
          const typename S::Float scale =
              S::group_scale(tables.scales + of.first_group, tables.scales + of.second_group);
          group_sums[r] = S::fma(S::to_float(dot), scale, group_sums[r]);
        } else {
          sums[r] = S::add_words(sums[r], S::template drop_bits<kDroppedBits>(dot));
        }
      }
    };
    const std::int64_t left = planes.blocks - u * kUnitBlocks;
    for_each_pair([&]<int J>() __attribute__((always_inline)) {
      if (kShort && J >= left) return;
      const StepTables<S, kPrecision, kGrouped> of[2] = {{tables, u, planes.units, J},
                                                         {tables, u, planes.units, J + 4}};
      typename S::Vec w[2][2];
      look_up_pair<S, kPrecision, J, kGrouped>(codes, table, of, w);
      add.template operator()<J>(of[0], w[0]);
      if constexpr (!kShort) add.template operator()<J + 4>(of[1], w[1]);
    });
    for (int r = 0; r < kRows; ++r) {
      const typename S::Float sum = kGrouped ? group_sums[r] : S::to_float(sums[r]);
      totals[r] = S::fma(sum, S::load(step_of(r).scales), totals[r]);
    }
  }
};

}  // namespace
}  // namespace anyprec::cpu
