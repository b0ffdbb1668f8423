#pragma once

#include "kernels/cpu/simd_kernels.h"

/// Tables of 16-bit entries split into their low and high bytes, for instruction sets that look up
/// bytes. From 5 bits up, bytes [0, 2^b) of a table are the low ones and [2^b, 2^(b+1)) the high
/// ones; up to 4 bits there are four tables of 16 low and 16 high bytes, one for each j % 4 of a
/// block j, indexed by nibbles as the planes' turned bits leave them (AVX-512 makes the four of one
/// in registers: avx512.h).
namespace anyprec::cpu {
namespace {

ANYPREC_INLINE __m256i repeat16(const std::uint8_t* bytes) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

/// What the nibbles of codes stand for. Bit i of one of block j comes from the
/// plane p with p % 4 = i ^ (j % 4), among the (at most four) planes of the codes' lowest bits;
/// where there is no such plane the bit is another block's. bytes[m][n]: the lowest bits of a b-bit
/// code whose nibble is n, for j % 4 = m, shifted left.
template <int B, int kShift = 0>
struct NibbleCodes {
  alignas(16) std::uint8_t bytes[4][16];
  constexpr NibbleCodes() : bytes{} {
    for (int m = 0; m < 4; ++m) {
      for (int nibble = 0; nibble < 16; ++nibble) {
        int code = 0;
        for (int bit = 0; bit < 4 && bit < B; ++bit) {
          const int plane = B - 1 - bit;
          code |= (nibble >> ((plane & 3) ^ m) & 1) << bit;
        }
        bytes[m][nibble] = static_cast<std::uint8_t>(code << kShift);
      }
    }
  }
};
template <int B, int kShift = 0>
constexpr NibbleCodes<B, kShift> kNibbleCodes;

/// Four tables of 16 low and 16 high bytes, indexed by the nibbles of blocks j % 4 = 0 .. 3.
ANYPREC_INLINE void arrange_small_table(const std::uint16_t* values, int precision,
                                        std::uint8_t* table) {
  const __m128i* from = reinterpret_cast<const __m128i*>(values);
  const __m128i a = precision == 2 ? _mm_loadl_epi64(from) : _mm_loadu_si128(from);
  const __m128i b = precision == 4 ? _mm_loadu_si128(from + 1) : _mm_setzero_si128();
  const __m128i low_bytes = _mm_set1_epi16(0x00ff);
  const __m128i low = _mm_packus_epi16(_mm_and_si128(a, low_bytes), _mm_and_si128(b, low_bytes));
  const __m128i high = _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8));
  const std::uint8_t(*codes)[16] = precision == 2   ? kNibbleCodes<2>.bytes
                                   : precision == 3 ? kNibbleCodes<3>.bytes
                                                    : kNibbleCodes<4>.bytes;
  for (int m = 0; m < 4; ++m) {
    const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i*>(codes[m]));
    __m128i* out = reinterpret_cast<__m128i*>(table + m * 32);
    _mm_storeu_si128(out, _mm_shuffle_epi8(low, order));
    _mm_storeu_si128(out + 1, _mm_shuffle_epi8(high, order));
  }
}

ANYPREC_INLINE void arrange_split_table(const std::uint16_t* values, int precision,
                                        std::uint8_t* table) {
  if (precision <= 4) return arrange_small_table(values, precision, table);
  const int entries = 1 << precision;
  const __m128i low_bytes = _mm_set1_epi16(0x00ff);
  for (int i = 0; i < entries; i += 16) {
    const __m128i* from = reinterpret_cast<const __m128i*>(values + i);
    const __m128i a = _mm_loadu_si128(from);
    const __m128i b = _mm_loadu_si128(from + 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(table + i),
                     _mm_packus_epi16(_mm_and_si128(a, low_bytes), _mm_and_si128(b, low_bytes)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(table + entries + i),
                     _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8)));
  }
}

}  // namespace
}  // namespace anyprec::cpu
