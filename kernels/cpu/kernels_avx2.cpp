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

  static void arrange_table(const std::uint16_t* values, int precision, std::uint8_t* table) {
    const int entries = 1 << precision;
    const int high = precision < 4 ? 16 : entries;
    for (int i = 0; i < entries; ++i) {
      table[i] = static_cast<std::uint8_t>(values[i]);
      table[high + i] = static_cast<std::uint8_t>(values[i] >> 8);
    }
    for (int i = entries; i < high; ++i) table[i] = table[high + i] = 0;
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
  /// Eight columns, four in each 128-bit half of `first` and `second`.
  static ANYPREC_INLINE void store_halves_joined(Vec first, Vec second, float* out) {
    store(out, _mm256_castsi256_ps(_mm256_permute2x128_si256(first, second, 0x20)));
    store(out + 16, _mm256_castsi256_ps(_mm256_permute2x128_si256(first, second, 0x31)));
  }
  static ANYPREC_INLINE void store_floats(Vec h0, Vec h1, Vec l0, Vec l1, float* out) {
    store_halves_joined(_mm256_unpacklo_epi16(l0, h0), _mm256_unpackhi_epi16(l0, h0), out);
    store_halves_joined(_mm256_unpacklo_epi16(l1, h1), _mm256_unpackhi_epi16(l1, h1), out + 8);
  }
  static ANYPREC_INLINE void convert_halves(const std::uint16_t* in, float* out) {
    store(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))));
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
