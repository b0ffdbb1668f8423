#include <immintrin.h>

#include "kernels/cpu/simd_kernels.h"

/// AVX2 with FMA and F16C. Tables of 16-bit entries are split into their low and high bytes,
/// because `pshufb` looks up bytes: bytes [0, 2^b) of a table are the low ones, [2^b, 2^(b+1)) the
/// high ones (below 4 bits, rows of 16 bytes each).
namespace anyprec::cpu {
namespace {

ANYPREC_INLINE __m256i both_lanes(const std::uint8_t* bytes) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

/// Swaps the bits of a under (mask << kShift) with those of b under mask.
template <int kShift>
ANYPREC_INLINE void swap_bits(__m256i& a, __m256i& b, __m256i mask) {
  const __m256i t = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi16(a, kShift), b), mask);
  b = _mm256_xor_si256(b, t);
  a = _mm256_xor_si256(a, _mm256_slli_epi16(t, kShift));
}

struct Avx2 {
  static constexpr int kUnits = 1;
  static constexpr int kLanes = 8;
  static constexpr int kScaleCopies = 1;
  static constexpr int kTileW = 3;
  static constexpr int kTileX = 4;
  using Vec = __m256i;
  using Float = __m256;

  /// Low nibbles of the codes: low[j] has block j's in its lower four bits and block (j + 4)'s in
  /// its upper ones (at 2 bits, low[j] has blocks j, j + 2, .. in pairs of bits). high[i] is the
  /// plane of bit 4 + i of the codes as it is.
  template <int B>
  struct Codes {
    Vec low[4];
    Vec high[4];
  };

  template <int B>
  static ANYPREC_INLINE Codes<B> load_codes(const PlaneRow& planes, std::int64_t unit) {
    constexpr int kPrefetchBytes = 1024;
    const std::uint8_t* data = planes.data + unit * kUnitBytes;
    Vec bit[8];  // the plane of bit i of the codes, bit 0 the least significant
    for (int i = 0; i < 8; ++i) bit[i] = _mm256_setzero_si256();
    for (int p = 0; p < B; ++p) {
      const std::uint8_t* plane = data + p * planes.plane_stride;
      bit[B - 1 - p] = _mm256_loadu_si256(reinterpret_cast<const Vec*>(plane));
      _mm_prefetch(reinterpret_cast<const char*>(plane) + kPrefetchBytes, _MM_HINT_T0);
    }
    Codes<B> codes;
    for (int i = 0; i < 4; ++i) {
      codes.low[i] = bit[i];
      codes.high[i] = bit[4 + i];
    }
    // A 4 x 4 transposition of bits within each nibble position.
    if constexpr (B > 2) {
      const Vec pairs = _mm256_set1_epi8(0x33);
      swap_bits<2>(codes.low[0], codes.low[2], pairs);
      swap_bits<2>(codes.low[1], codes.low[3], pairs);
    }
    const Vec singles = _mm256_set1_epi8(0x55);
    swap_bits<1>(codes.low[0], codes.low[1], singles);
    if constexpr (B > 2) swap_bits<1>(codes.low[2], codes.low[3], singles);
    return codes;
  }

  /// The low four bits of block J's codes, as bytes.
  template <int B, int J>
  static ANYPREC_INLINE Vec nibbles(const Codes<B>& codes) {
    if constexpr (B == 2) {
      const Vec pairs = codes.low[J & 1];
      const Vec mask = _mm256_set1_epi8(0x03);
      if constexpr (J < 2) return _mm256_and_si256(pairs, mask);
      return _mm256_and_si256(_mm256_srli_epi16(pairs, J & 6), mask);
    } else {
      const Vec nibbles = codes.low[J & 3];
      const Vec mask = _mm256_set1_epi8(0x0f);
      if constexpr (J < 4) return _mm256_and_si256(nibbles, mask);
      return _mm256_and_si256(_mm256_srli_epi16(nibbles, 4), mask);
    }
  }

  /// Looks up bytes in 2^kBits rows of 16: `masks[i]` has bit i of the row in the top bit of a
  /// byte.
  template <int kBits>
  static ANYPREC_INLINE Vec look_up_bytes(const std::uint8_t* rows, Vec nibbles, const Vec* masks) {
    if constexpr (kBits == 0) {
      return _mm256_shuffle_epi8(both_lanes(rows), nibbles);
    } else {
      return _mm256_blendv_epi8(look_up_bytes<kBits - 1>(rows, nibbles, masks),
                                look_up_bytes<kBits - 1>(rows + (8 << kBits), nibbles, masks),
                                masks[kBits - 1]);
    }
  }

  template <int B, int J, bool kGrouped>
  static ANYPREC_INLINE void look_up(const Codes<B>& codes, const std::uint8_t* table,
                                     const std::uint8_t*, Vec& w0, Vec& w1) {
    constexpr int kRowBits = B > 4 ? B - 4 : 0;
    const Vec index = nibbles<B, J>(codes);
    Vec masks[4];
    for (int i = 0; i < kRowBits; ++i) masks[i] = _mm256_slli_epi16(codes.high[i], 7 - J);
    const Vec low = look_up_bytes<kRowBits>(table, index, masks);
    const Vec high = look_up_bytes<kRowBits>(table + (16 << kRowBits), index, masks);
    w0 = _mm256_unpacklo_epi8(low, high);
    w1 = _mm256_unpackhi_epi8(low, high);
  }

  /// Rows of 16 entries are looked up in turn, and masks choose among them: from 6 bits up, loading
  /// a row for two blocks at once saves a load in every `pshufb`.
  template <int B>
  static constexpr bool kPairs = B > 5;

  template <int kBits>
  static ANYPREC_INLINE void look_up_bytes_of_both(const std::uint8_t* rows,
                                                   const Vec (&nibbles)[2],
                                                   const Vec (&masks)[4][2], Vec (&bytes)[2]) {
    if constexpr (kBits == 0) {
      const Vec row = both_lanes(rows);
      bytes[0] = _mm256_shuffle_epi8(row, nibbles[0]);
      bytes[1] = _mm256_shuffle_epi8(row, nibbles[1]);
    } else {
      Vec clear[2], set[2];
      look_up_bytes_of_both<kBits - 1>(rows, nibbles, masks, clear);
      look_up_bytes_of_both<kBits - 1>(rows + (8 << kBits), nibbles, masks, set);
      bytes[0] = _mm256_blendv_epi8(clear[0], set[0], masks[kBits - 1][0]);
      bytes[1] = _mm256_blendv_epi8(clear[1], set[1], masks[kBits - 1][1]);
    }
  }

  template <int B, int J>
  static ANYPREC_INLINE void look_up_both(const Codes<B>& codes, const std::uint8_t* table,
                                          Vec (&w)[2][2]) {
    constexpr int kRowBits = B - 4;
    const Vec index[2] = {nibbles<B, J>(codes), nibbles<B, J + 4>(codes)};
    Vec masks[4][2];
    for (int i = 0; i < kRowBits; ++i) {
      masks[i][0] = _mm256_slli_epi16(codes.high[i], 7 - J);
      masks[i][1] = _mm256_slli_epi16(codes.high[i], 3 - J);
    }
    Vec low[2], high[2];
    look_up_bytes_of_both<kRowBits>(table, index, masks, low);
    look_up_bytes_of_both<kRowBits>(table + (16 << kRowBits), index, masks, high);
    for (int i = 0; i < 2; ++i) {
      w[i][0] = _mm256_unpacklo_epi8(low[i], high[i]);
      w[i][1] = _mm256_unpackhi_epi8(low[i], high[i]);
    }
  }

  static void arrange_table(const std::uint16_t* values, int precision, std::uint8_t* table) {
    const int entries = 1 << precision;
    if (entries < 16) {
      for (int i = 0; i < 16; ++i) {
        const std::uint16_t value = i < entries ? values[i] : std::uint16_t{0};
        table[i] = static_cast<std::uint8_t>(value);
        table[16 + i] = static_cast<std::uint8_t>(value >> 8);
      }
      return;
    }
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

  /// `unpack` leaves columns 0-7 and 16-23 of a block in w0, 8-15 and 24-31 in w1.
  static constexpr int order(int c) { return (c & ~31) + (c & 7) + 2 * (c & 8) + (c & 16) / 2; }

  static ANYPREC_INLINE Float dot(Vec w0, Vec w1, const std::int16_t* x) {
    const Vec* values = reinterpret_cast<const Vec*>(x);
    return _mm256_cvtepi32_ps(
        _mm256_add_epi32(_mm256_madd_epi16(w0, _mm256_load_si256(values)),
                         _mm256_madd_epi16(w1, _mm256_load_si256(values + 1))));
  }
  static ANYPREC_INLINE Float block_scale(const float* scale) { return _mm256_broadcast_ss(scale); }
  static ANYPREC_INLINE Float group_scale(const float* first, const float*) {
    return _mm256_broadcast_ss(first);
  }

  static ANYPREC_INLINE void store_halves(Vec w0, Vec w1, float* out) {
    store(out, _mm256_cvtph_ps(_mm256_castsi256_si128(w0)));
    store(out + 8, _mm256_cvtph_ps(_mm256_castsi256_si128(w1)));
    store(out + 16, _mm256_cvtph_ps(_mm256_extracti128_si256(w0, 1)));
    store(out + 24, _mm256_cvtph_ps(_mm256_extracti128_si256(w1, 1)));
  }
  /// `first` has columns 0-3 and 16-19 of out, `second` 4-7 and 20-23.
  static ANYPREC_INLINE void store_eights(Vec first, Vec second, float* out) {
    store(out, _mm256_castsi256_ps(_mm256_permute2x128_si256(first, second, 0x20)));
    store(out + 16, _mm256_castsi256_ps(_mm256_permute2x128_si256(first, second, 0x31)));
  }
  static ANYPREC_INLINE void store_floats(Vec h0, Vec h1, Vec l0, Vec l1, float* out) {
    store_eights(_mm256_unpacklo_epi16(l0, h0), _mm256_unpackhi_epi16(l0, h0), out);
    store_eights(_mm256_unpacklo_epi16(l1, h1), _mm256_unpackhi_epi16(l1, h1), out + 8);
  }
  static ANYPREC_INLINE Float zero() { return _mm256_setzero_ps(); }
  static ANYPREC_INLINE Float load(const float* p) { return _mm256_loadu_ps(p); }
  static ANYPREC_INLINE void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static ANYPREC_INLINE Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static ANYPREC_INLINE Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static ANYPREC_INLINE Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static ANYPREC_INLINE float sum(Float v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace

const KernelSet& avx2_kernels() { return kKernelSet<Avx2>; }

}  // namespace anyprec::cpu
