#pragma once

#include <immintrin.h>

#include "kernels/cpu/simd_kernels.h"

/// AVX-512 (F, BW, VL, DQ). A step is two units: the first in the lower 256 bits of every vector,
/// the second in the upper. `vpermw` looks up words by their lowest five bits, so codes are taken
/// as the even and the odd bytes of 16-bit words, and tables are plain 16-bit entries.
namespace anyprec::cpu {
namespace {

/// Swaps the bits of a under (mask << kShift) with those of b under mask.
template <int kShift>
ANYPREC_INLINE void swap_bits(__m512i& a, __m512i& b, int mask) {
  const __m512i keep = _mm512_set1_epi8(static_cast<char>(mask));
  const __m512i t = _mm512_and_si512(_mm512_xor_si512(_mm512_srli_epi16(a, kShift), b), keep);
  b = _mm512_xor_si512(b, t);
  a = _mm512_xor_si512(a, _mm512_slli_epi16(t, kShift));
}

/// Bits of a byte of plane p back from block_bit(j, p) to j.
template <int kPlane>
ANYPREC_INLINE __m512i turn_bits(__m512i v) {
  if constexpr (kPlane & 1) {
    const __m512i even = _mm512_set1_epi8(0x55);
    v = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(v, 1), even),
                        _mm512_slli_epi16(_mm512_and_si512(v, even), 1));
  }
  if constexpr (kPlane & 2) {
    const __m512i even = _mm512_set1_epi8(0x33);
    v = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(v, 2), even),
                        _mm512_slli_epi16(_mm512_and_si512(v, even), 2));
  }
  return v;
}

struct Avx512 {
  static constexpr int kUnits = 2;
  static constexpr int kLanes = 16;
  static constexpr int kScaleCopies = 8;
  static constexpr int kTileW = 4;
  static constexpr int kTileX = 5;
  using Vec = __m512i;
  using Float = __m512;

  /// Up to 4 bits, bytes[j] (j < 4) has block j's codes in its lower nibbles and block (j + 4)'s in
  /// its upper ones; from 5 bits up, bytes[j] has the codes of block j.
  template <int B>
  struct Codes {
    Vec bytes[8];
  };

  template <int B>
  static ANYPREC_INLINE Codes<B> load_codes(const PlaneRow& planes, std::int64_t unit) {
    constexpr int kPrefetchBytes = 1024;
    const std::uint8_t* data = planes.data + unit * kUnitBytes;
    const __mmask8 present = unit + 1 < planes.units ? 0xff : 0x0f;
    Codes<B> codes;
    Vec* bit = codes.bytes;  // at first, the plane of bit i, bit 0 the least significant
    for (int i = 0; i < 8; ++i) bit[i] = _mm512_setzero_si512();
    for (int p = 0; p < B; ++p) {
      const std::uint8_t* plane = data + p * planes.plane_stride;
      const Vec v = _mm512_maskz_loadu_epi64(present, plane);
      bit[B - 1 - p] = p % 4 == 0   ? v
                       : p % 4 == 1 ? turn_bits<1>(v)
                       : p % 4 == 2 ? turn_bits<2>(v)
                                    : turn_bits<3>(v);
      _mm_prefetch(reinterpret_cast<const char*>(plane) + kPrefetchBytes, _MM_HINT_T0);
    }
    // A transposition of bits, 8 x 8 in every byte position, or 4 x 4 in every nibble position.
    if constexpr (B > 4)
      for (int i = 0; i < 4; ++i) swap_bits<4>(bit[i], bit[i + 4], 0x0f);
    for (int half = 0; half < (B > 4 ? 8 : 4); half += 4) {
      swap_bits<2>(bit[half], bit[half + 2], 0x33);
      swap_bits<2>(bit[half + 1], bit[half + 3], 0x33);
      swap_bits<1>(bit[half], bit[half + 1], 0x55);
      swap_bits<1>(bit[half + 2], bit[half + 3], 0x55);
    }
    return codes;
  }

  /// Block J's codes in the lowest bits of bytes; up to 4 bits, with others' above them.
  template <int B, int J>
  static ANYPREC_INLINE Vec code_bytes(const Codes<B>& codes) {
    if constexpr (B > 4) return codes.bytes[J];
    if constexpr (J < 4) return codes.bytes[J];
    return _mm512_srli_epi16(codes.bytes[J & 3], 4);
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

  template <int B, int J, bool kGrouped>
  static ANYPREC_INLINE void look_up(const Codes<B>& codes, const std::uint8_t* table,
                                     const std::uint8_t* other, Vec& w0, Vec& w1) {
    const Vec even = code_bytes<B, J>(codes);
    const Vec odd = _mm512_srli_epi16(even, 8);
    w0 = look_up_words<B>(table, even);
    w1 = look_up_words<B>(table, odd);
    if constexpr (kGrouped) {
      if (other != table) {
        w0 = second_from(w0, look_up_words<B>(other, even));
        w1 = second_from(w1, look_up_words<B>(other, odd));
      }
    }
  }
  /// The first unit's lanes of a and the second's of b.
  static ANYPREC_INLINE Vec second_from(Vec a, Vec b) {
    return _mm512_mask_blend_epi64(0xf0, a, b);
  }

  template <int B>
  static constexpr bool kPairs = false;

  static void arrange_table(const std::uint16_t* values, int precision, std::uint8_t* table) {
    const int entries = 1 << precision;
    const int room = table_bytes(precision) / 2;
    // Below 5 bits the index has other bits above the code: repeat a table of 16.
    const int period = entries < 16 ? 16 : entries;
    std::uint16_t* out = reinterpret_cast<std::uint16_t*>(table);
    for (int i = 0; i < room; ++i) {
      const int entry = i % period;
      out[i] = entry < entries ? values[entry] : std::uint16_t{0};
    }
  }

  /// w0 has the even columns of a block, w1 the odd ones; the second unit after the first.
  static constexpr int order(int c) {
    const int unit = c / kUnitColumns;
    const int block = c % kUnitColumns / kBlockColumns;
    const int column = c % kBlockColumns;
    return block * 2 * kBlockColumns + (column % 2) * kBlockColumns + unit * 16 + column / 2;
  }

  static ANYPREC_INLINE Float dot(Vec w0, Vec w1, const std::int16_t* x) {
    return _mm512_cvtepi32_ps(
        _mm512_add_epi32(_mm512_madd_epi16(w0, _mm512_load_si512(x)),
                         _mm512_madd_epi16(w1, _mm512_load_si512(x + kBlockColumns))));
  }
  static ANYPREC_INLINE Float block_scale(const float* scale) { return _mm512_load_ps(scale); }
  static ANYPREC_INLINE Float group_scale(const float* first, const float* second) {
    return _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(*first), _mm512_set1_ps(*second));
  }

  /// Columns in order again: each 128-bit lane of `low` has 8 columns, `high` the 8 after them.
  static ANYPREC_INLINE void store_halves(Vec w0, Vec w1, float* out) {
    const Vec low = _mm512_unpacklo_epi16(w0, w1);
    const Vec high = _mm512_unpackhi_epi16(w0, w1);
    store_half_unit(_mm512_castsi512_si256(low), _mm512_castsi512_si256(high), out);
    store_half_unit(_mm512_extracti64x4_epi64(low, 1), _mm512_extracti64x4_epi64(high, 1),
                    out + kUnitColumns);
  }
  static ANYPREC_INLINE void store_half_unit(__m256i low, __m256i high, float* out) {
    _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm256_castsi256_si128(low)));
    _mm256_storeu_ps(out + 8, _mm256_cvtph_ps(_mm256_castsi256_si128(high)));
    _mm256_storeu_ps(out + 16, _mm256_cvtph_ps(_mm256_extracti128_si256(low, 1)));
    _mm256_storeu_ps(out + 24, _mm256_cvtph_ps(_mm256_extracti128_si256(high, 1)));
  }

  static ANYPREC_INLINE void store_floats(Vec h0, Vec h1, Vec l0, Vec l1, float* out) {
    // 32-bit values of even and odd columns; in lane i of 128 bits, columns 8 i + {0, 2, 4, 6} and
    // {8, 10, 12, 14} of the 16 that the lane stands for, and the odd ones beside them.
    const Vec even_low = _mm512_unpacklo_epi16(l0, h0);
    const Vec even_high = _mm512_unpackhi_epi16(l0, h0);
    const Vec odd_low = _mm512_unpacklo_epi16(l1, h1);
    const Vec odd_high = _mm512_unpackhi_epi16(l1, h1);
    store_quads(_mm512_unpacklo_epi32(even_low, odd_low), out);
    store_quads(_mm512_unpackhi_epi32(even_low, odd_low), out + 4);
    store_quads(_mm512_unpacklo_epi32(even_high, odd_high), out + 8);
    store_quads(_mm512_unpackhi_epi32(even_high, odd_high), out + 12);
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
  static ANYPREC_INLINE float sum(Float v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace
}  // namespace anyprec::cpu
