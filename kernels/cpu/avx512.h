#pragma once

#include <immintrin.h>

#include "kernels/cpu/split_tables.h"

/// AVX-512 (F, BW, VL, DQ). A step is two units: the first in the lower 256 bits of every vector,
/// the second in the upper. Up to 4 bits, `pshufb` looks up bytes of tables that are split into 16
/// low and 16 high ones and brought in the order of nibbles (split_tables.h) in registers;
/// from 5 bits up, `vpermw` looks up words by their lowest five bits, in tables of plain 16-bit
/// entries.
namespace anyprec::cpu {
namespace {

/// Bits of b where mask has them, else of a.
ANYPREC_INLINE __m512i select(__m512i mask, __m512i a, __m512i b) {
  return _mm512_ternarylogic_epi64(mask, a, b, 0xac);
}

struct Avx512 {
  static constexpr int kUnits = 2;
  static constexpr int kLanes = 16;
  static constexpr bool kPairs = false;
  static constexpr bool kHalfTables = true;
  static constexpr int kTileW = 4;
  static constexpr int kTileX = 5;
  using Vec = __m512i;
  using Float = __m512;

  /// low[m] has a nibble of block m's codes in the lower half of every byte and of block (m + 4)'s
  /// in the upper, whose bits mean what NibbleCodes says; high[m] the same for the bits above the
  /// lowest four.
  template <int B>
  struct Codes {
    Vec low[4];
    Vec high[4];
  };

  template <int B>
  static ANYPREC_INLINE Codes<B> load_codes(const PlaneRow& planes, std::int64_t unit) {
    Codes<B> codes;
    if constexpr (B > 4) {
      load_nibbles<B - 4, 4>(planes, unit, codes.low);
      load_nibbles<0, B - 4>(planes, unit, codes.high);
    } else {
      load_nibbles<0, B>(planes, unit, codes.low);
    }
    return codes;
  }

  /// The nibbles of planes [kFirst, kFirst + kCount).
  template <int kFirst, int kCount>
  static ANYPREC_INLINE void load_nibbles(const PlaneRow& planes, std::int64_t unit,
                                          Vec (&nibbles)[4]) {
    constexpr int kPrefetchBytes = 2048;
    const __mmask8 present = unit + 1 < planes.units ? 0xff : 0x0f;
    Vec plane_of[4];  // by p % 4
    for (int i = 0; i < 4; ++i) plane_of[i] = _mm512_setzero_si512();
    for (int p = kFirst; p < kFirst + kCount; ++p) {
      const std::uint8_t* bytes = planes.data + unit * kUnitBytes + p * planes.plane_stride;
      plane_of[p & 3] = _mm512_maskz_loadu_epi64(present, bytes);
      _mm_prefetch(reinterpret_cast<const char*>(bytes) + kPrefetchBytes, _MM_HINT_T0);
    }
    const Vec odd = _mm512_set1_epi8(static_cast<char>(0xaa));
    const Vec upper = _mm512_set1_epi8(static_cast<char>(0xcc));
    const Vec even_first = select(odd, plane_of[0], plane_of[1]);
    const Vec odd_first = select(odd, plane_of[1], plane_of[0]);
    const Vec even_second = select(odd, plane_of[2], plane_of[3]);
    const Vec odd_second = select(odd, plane_of[3], plane_of[2]);
    nibbles[0] = select(upper, even_first, even_second);
    nibbles[1] = select(upper, odd_first, odd_second);
    nibbles[2] = select(upper, even_second, even_first);
    nibbles[3] = select(upper, odd_second, odd_first);
  }

  template <int J>
  static ANYPREC_INLINE Vec nibble_bytes(const Vec (&nibbles)[4]) {
    const Vec mask = _mm512_set1_epi8(0x0f);
    if constexpr (J < 4) return _mm512_and_si512(nibbles[J], mask);
    return _mm512_and_si512(_mm512_srli_epi16(nibbles[J & 3], 4), mask);
  }

  /// 16 bytes in every 128-bit lane.
  static ANYPREC_INLINE Vec repeat(const std::uint8_t* bytes) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  }

  /// The 16 bytes of a table of B <= 4 bits in the order of the nibbles of blocks j % 4 = m, in
  /// every 128-bit lane.
  template <int B>
  static ANYPREC_INLINE Vec by_nibble(const std::uint8_t* bytes, int m) {
    return _mm512_shuffle_epi8(repeat(bytes), repeat(kNibbleCodes<B>.bytes[m]));
  }

  /// Block J's codes of more than four bits, as bytes.
  template <int B, int J>
  static ANYPREC_INLINE Vec code_bytes(const Codes<B>& codes) {
    // Planes B - 4 .. B - 1 are those of the lowest bits, 0 .. B - 5 those above.
    const Vec low =
        _mm512_shuffle_epi8(repeat(kNibbleCodes<B>.bytes[J & 3]), nibble_bytes<J>(codes.low));
    const Vec high = _mm512_shuffle_epi8(repeat(kNibbleCodes<B - 4, 4>.bytes[J & 3]),
                                         nibble_bytes<J>(codes.high));
    return _mm512_or_si512(low, high);
  }

  /// Looks up entries by the lowest B (at least 5) bits of the words of `index`.
  template <int B>
  static ANYPREC_INLINE Vec look_up_words(const std::uint8_t* table, Vec index) {
    const Vec low = _mm512_loadu_si512(table);
    if constexpr (B <= 5) {
      return _mm512_permutexvar_epi16(index, low);
    } else if constexpr (B == 6) {
      return _mm512_permutex2var_epi16(low, index, _mm512_loadu_si512(table + 64));
    } else {
      constexpr int kHalf = 1 << B;  // bytes of half a table
      const __mmask32 upper = _mm512_test_epi16_mask(index, _mm512_set1_epi16(1 << (B - 1)));
      return _mm512_mask_blend_epi16(upper, look_up_words<B - 1>(table, index),
                                     look_up_words<B - 1>(table + kHalf, index));
    }
  }

  /// Up to 4 bits a table is held in registers, by block j % 4: its bytes in the order of nibbles.
  template <int B>
  struct Table {
    static constexpr int kCount = B > 4 ? 0 : 4;
    const std::uint8_t* bytes;
    Vec low[4];
    Vec high[4];

    explicit ANYPREC_INLINE Table(const std::uint8_t* table) : bytes(table) {
      for (int i = 0; i < kCount; ++i) {
        low[i] = by_nibble<B>(table, i);
        high[i] = by_nibble<B>(table + 16, i);
      }
    }
  };

  template <int B, int J>
  static ANYPREC_INLINE void look_up(const Codes<B>& codes, const Table<B>& table, Vec& w0,
                                     Vec& w1) {
    if constexpr (B > 4) {
      const Vec index = code_bytes<B, J>(codes);
      w0 = look_up_words<B>(table.bytes, _mm512_unpacklo_epi8(index, _mm512_setzero_si512()));
      w1 = look_up_words<B>(table.bytes, _mm512_unpackhi_epi8(index, _mm512_setzero_si512()));
    } else {
      const Vec index = nibble_bytes<J>(codes.low);
      const Vec low = _mm512_shuffle_epi8(table.low[J & 3], index);
      const Vec high = _mm512_shuffle_epi8(table.high[J & 3], index);
      w0 = _mm512_unpacklo_epi8(low, high);
      w1 = _mm512_unpackhi_epi8(low, high);
    }
  }
  /// The first unit's lanes of a and the second's of b.
  static ANYPREC_INLINE Vec second_from(Vec a, Vec b) {
    return _mm512_mask_blend_epi64(0xf0, a, b);
  }

  static void arrange_table(const std::uint16_t* values, int precision, std::uint8_t* table) {
    if (precision <= 4) return split_words(small_table(values, precision), table);
    for (int i = 0; i < 1 << precision; i += 32)
      _mm512_storeu_si512(table + 2 * i, _mm512_loadu_si512(values + i));
  }

  /// The entries of a table of up to 4 bits, those past it zero.
  static ANYPREC_INLINE __m256i small_table(const std::uint16_t* values, int precision) {
    const __mmask16 entries = static_cast<__mmask16>((1u << (1 << precision)) - 1);
    return _mm256_maskz_loadu_epi16(entries, values);
  }

  /// The 16 entries of a table of up to 4 bits: their low bytes, then their high ones.
  static ANYPREC_INLINE void split_words(__m256i words, std::uint8_t* table) {
    const __m256i by_byte = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14,  //
                                                                      1, 3, 5, 7, 9, 11, 13, 15));
    const __m256i split = _mm256_shuffle_epi8(words, by_byte);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(table), _mm256_permute4x64_epi64(split, 0xd8));
  }

  /// The fixed-point table of up to 4 bits.
  static ANYPREC_INLINE float fixed_small_table(const std::uint16_t* halves, int precision,
                                                std::uint8_t* table) {
    const __m256i values = small_table(halves, precision);
    const float largest = largest_of_sixteen(_mm256_and_si256(values, _mm256_set1_epi16(0x7fff)));
    const __m512 factor = _mm512_set1_ps(largest > 0 ? kTableSteps / largest : 0.0f);
    const Vec fixed = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtph_ps(values), factor));
    split_words(_mm512_cvtepi32_epi16(fixed), table);
    return largest;
  }

  /// The largest of 16 magnitudes in fp16, or NaN where one is not finite.
  static ANYPREC_INLINE float largest_of_sixteen(__m256i magnitudes) {
    const __m128i eight =
        _mm_max_epu16(_mm256_castsi256_si128(magnitudes), _mm256_extracti128_si256(magnitudes, 1));
    // There is an instruction for the least of eight words.
    const __m128i ones = _mm_set1_epi16(-1);
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight, ones));
    const __m128i greatest = _mm_xor_si128(least, ones);
    if (_mm_extract_epi16(greatest, 0) >= 0x7c00) return kNotANumber;
    return _mm_cvtss_f32(_mm_cvtph_ps(greatest));
  }

  /// The largest magnitude of `count` halves (a multiple of 32), or NaN where one is not finite.
  static ANYPREC_INLINE float largest_half(const std::uint16_t* halves, int count) {
    Vec most = _mm512_setzero_si512();
    for (int i = 0; i < count; i += 32) {
      const Vec v = _mm512_loadu_si512(halves + i);
      most = _mm512_max_epu16(most, _mm512_and_si512(v, _mm512_set1_epi16(0x7fff)));
    }
    return largest_of_sixteen(
        _mm256_max_epu16(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1)));
  }
  static ANYPREC_INLINE Vec fix_sixteen(const std::uint16_t* halves, __m512 factor) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtph_ps(v), factor));
  }

  /// The fixed-point table of more than 4 bits.
  static float fixed_large_table(const std::uint16_t* halves, int precision, std::uint8_t* table) {
    const int count = 1 << precision;
    const float largest = largest_half(halves, count);
    if (largest != largest) return largest;
    const __m512 factor = _mm512_set1_ps(largest > 0 ? kTableSteps / largest : 0.0f);
    for (int i = 0; i < count; i += 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(table + 2 * i),
                          _mm512_cvtepi32_epi16(fix_sixteen(halves + i, factor)));
    }
    return largest;
  }

  static ANYPREC_INLINE Vec dot(Vec w0, Vec w1, const std::int16_t* x0, const std::int16_t* x1) {
    return _mm512_add_epi32(_mm512_madd_epi16(w0, _mm512_load_si512(x0)),
                            _mm512_madd_epi16(w1, _mm512_load_si512(x1)));
  }
  static ANYPREC_INLINE Vec set_words(int v) { return _mm512_set1_epi32(v); }
  static ANYPREC_INLINE Vec add_words(Vec a, Vec b) { return _mm512_add_epi32(a, b); }
  template <int kBits>
  static ANYPREC_INLINE Vec drop_bits(Vec v) {
    return _mm512_srai_epi32(v, kBits);
  }
  static ANYPREC_INLINE Float to_float(Vec v) { return _mm512_cvtepi32_ps(v); }
  static ANYPREC_INLINE Float group_scale(const float* first, const float* second) {
    return _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(*first), _mm512_set1_ps(*second));
  }

  static ANYPREC_INLINE void store_halves(Vec w0, Vec w1, float* out) {
    const Vec first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const Vec second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    store_half_unit(_mm512_permutex2var_epi64(w0, first, w1), out);
    store_half_unit(_mm512_permutex2var_epi64(w0, second, w1), out + kUnitColumns);
  }
  static ANYPREC_INLINE void store_half_unit(Vec halves, float* out) {
    _mm512_storeu_ps(out, _mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
    _mm512_storeu_ps(out + 16, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)));
  }

  static ANYPREC_INLINE void store_floats(Vec h0, Vec h1, Vec l0, Vec l1, float* out) {
    store_quads(_mm512_unpacklo_epi16(l0, h0), out);
    store_quads(_mm512_unpackhi_epi16(l0, h0), out + 4);
    store_quads(_mm512_unpacklo_epi16(l1, h1), out + 8);
    store_quads(_mm512_unpackhi_epi16(l1, h1), out + 12);
  }
  /// Lanes 0 and 1 are of the first unit, 16 columns apart, 2 and 3 of the second.
  static ANYPREC_INLINE void store_quads(Vec v, float* out) {
    const __m512 f = _mm512_castsi512_ps(v);
    _mm_storeu_ps(out, _mm512_extractf32x4_ps(f, 0));
    _mm_storeu_ps(out + 16, _mm512_extractf32x4_ps(f, 1));
    _mm_storeu_ps(out + kUnitColumns, _mm512_extractf32x4_ps(f, 2));
    _mm_storeu_ps(out + kUnitColumns + 16, _mm512_extractf32x4_ps(f, 3));
  }
  static ANYPREC_INLINE Float zero() { return _mm512_setzero_ps(); }
  static ANYPREC_INLINE Float load(const float* p) { return _mm512_loadu_ps(p); }
  static ANYPREC_INLINE void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static ANYPREC_INLINE Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static ANYPREC_INLINE Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static ANYPREC_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static ANYPREC_INLINE Float set(float v) { return _mm512_set1_ps(v); }
  static ANYPREC_INLINE Float sums_of(const Float* v) {
    Float pairs[8], fours[4], eights[2];
    for (int i = 0; i < 8; ++i) {
      pairs[i] = add(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44),
                     _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
    }
    for (int i = 0; i < 4; ++i) {
      fours[i] = add(_mm512_shuffle_f32x4(pairs[2 * i], pairs[2 * i + 1], 0x88),
                     _mm512_shuffle_f32x4(pairs[2 * i], pairs[2 * i + 1], 0xdd));
    }
    for (int i = 0; i < 2; ++i) {
      eights[i] = add(_mm512_unpacklo_ps(fours[2 * i], fours[2 * i + 1]),
                      _mm512_unpackhi_ps(fours[2 * i], fours[2 * i + 1]));
    }
    // Lane 4 k + j has the sum of v[4 j + k].
    const Float sums = add(_mm512_shuffle_ps(eights[0], eights[1], 0x44),
                           _mm512_shuffle_ps(eights[0], eights[1], 0xee));
    return _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), sums);
  }
  static ANYPREC_INLINE float sum(Float v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace
}  // namespace anyprec::cpu
