#include <immintrin.h>

#include "kernels/cpu/fixed_words.h"
#include "kernels/cpu/split_tables.h"

/// AVX2 with FMA and F16C: `pshufb` looks up bytes of split tables (split_tables.h).
namespace anyprec::cpu {
namespace {

/// a where mask is clear, b where it is set; then the other way round.
ANYPREC_INLINE void choose(__m256i a, __m256i b, __m256i mask, __m256i& first, __m256i& second) {
  const __m256i t = _mm256_and_si256(_mm256_xor_si256(a, b), mask);
  first = _mm256_xor_si256(a, t);
  second = _mm256_xor_si256(b, t);
}

struct Avx2 {
  static constexpr int kUnits = 1;
  static constexpr int kLanes = 8;
  static constexpr bool kPairs = true;
  static constexpr bool kHalfTables = false;
  static constexpr int kTileW = 3;
  static constexpr int kTileX = 4;
  using Vec = __m256i;
  using Float = __m256;

  /// low[m] has a nibble of block m's codes in the lower half of every byte and of block (m + 4)'s
  /// in the upper: see NibbleCodes. high[i] is the plane of bit 4 + i of the codes as it is.
  template <int B>
  struct Codes {
    Vec low[4];
    Vec high[4];
  };

  template <int B>
  static ANYPREC_INLINE Codes<B> load_codes(const PlaneRow& planes, std::int64_t unit) {
    constexpr int kPrefetchBytes = 1024;
    const std::uint8_t* data = planes.data + unit * kUnitBytes;
    Codes<B> codes;
    Vec plane_of[4];  // by p % 4
    for (int p = 0; p < B; ++p) {
      const std::uint8_t* bytes = data + p * planes.plane_stride;
      const Vec plane = _mm256_loadu_si256(reinterpret_cast<const Vec*>(bytes));
      _mm_prefetch(reinterpret_cast<const char*>(bytes) + kPrefetchBytes, _MM_HINT_T0);
      const int bit = B - 1 - p;
      if (bit < 4) {
        plane_of[p & 3] = plane;
      } else {
        codes.high[bit - 4] = plane;
      }
    }
    const Vec odd = _mm256_set1_epi8(static_cast<char>(0xaa));
    const Vec upper = _mm256_set1_epi8(static_cast<char>(0xcc));
    Vec even_first, odd_first;
    choose(plane_of[0], plane_of[1], odd, even_first, odd_first);
    if constexpr (B == 2) {
      codes.low[0] = codes.low[2] = even_first;
      codes.low[1] = codes.low[3] = odd_first;
    } else {
      Vec even_second = plane_of[2], odd_second = plane_of[2];
      if constexpr (B > 3) choose(plane_of[2], plane_of[3], odd, even_second, odd_second);
      choose(even_first, even_second, upper, codes.low[0], codes.low[2]);
      choose(odd_first, odd_second, upper, codes.low[1], codes.low[3]);
    }
    return codes;
  }

  /// Block J's nibbles, as bytes.
  template <int B, int J>
  static ANYPREC_INLINE Vec nibbles(const Codes<B>& codes) {
    const Vec mask = _mm256_set1_epi8(0x0f);
    if constexpr (J < 4) return _mm256_and_si256(codes.low[J], mask);
    return _mm256_and_si256(_mm256_srli_epi16(codes.low[J & 3], 4), mask);
  }

  /// Up to 4 bits there is a table for each j % 4, indexed by nibbles; from 5 bits up, nibbles
  /// become the low bits of codes.
  template <int B, int J>
  static ANYPREC_INLINE Vec low_bits(const Codes<B>& codes) {
    const Vec codes_of = repeat16(kNibbleCodes<B>.bytes[J & 3]);
    return _mm256_shuffle_epi8(codes_of, nibbles<B, J>(codes));
  }

  /// The masks that choose rows of 16 entries for block J: bit i of the row in every byte's top
  /// bit.
  template <int B, int J>
  static ANYPREC_INLINE void row_masks(const Codes<B>& codes, Vec (&masks)[4]) {
    row_mask<B, J, 0>(codes, masks);
    row_mask<B, J, 1>(codes, masks);
    row_mask<B, J, 2>(codes, masks);
    row_mask<B, J, 3>(codes, masks);
  }
  template <int B, int J, int kBit>
  static ANYPREC_INLINE void row_mask(const Codes<B>& codes, Vec (&masks)[4]) {
    if constexpr (kBit < B - 4)
      masks[kBit] = _mm256_slli_epi16(codes.high[kBit], 7 - block_bit(J, B - 5 - kBit));
  }

  /// With many rows of 16 entries, the lowest bit of a row chooses by what `pshufb` does not look
  /// up: an index whose top bit is set gives zero, and or-ing is cheaper than blending. (Two bits
  /// would take more registers for indices than there are.)
  template <int B>
  static constexpr int kOrBits = B > 6 ? 1 : 0;

  /// at[i]: the nibbles, with the top bit set unless the lowest kOrBits bits of the row are i.
  template <int kBits>
  static ANYPREC_INLINE void row_indices(Vec nibbles, const Vec* masks, Vec* at) {
    if constexpr (kBits == 0) {
      at[0] = nibbles;
    } else {
      const Vec top = _mm256_set1_epi8(static_cast<char>(0x80));
      const Vec set = _mm256_and_si256(masks[kBits - 1], top);
      constexpr int kHalf = 1 << (kBits - 1);
      row_indices<kBits - 1>(_mm256_or_si256(nibbles, set), masks, at);
      row_indices<kBits - 1>(_mm256_or_si256(nibbles, _mm256_xor_si256(set, top)), masks,
                             at + kHalf);
    }
  }

  /// Looks up bytes of two blocks in 2^kBits rows of 16: `masks[i]` has bit i of the row in the top
  /// bit of a byte, and `at` is of the lowest kOr bits. A row that is loaded serves both blocks.
  template <int kBits, int kOr>
  static ANYPREC_INLINE void look_up_bytes(const std::uint8_t* rows, const Vec (&at)[2][4],
                                           const Vec (&masks)[2][4], Vec (&bytes)[2]) {
    if constexpr (kBits == kOr) {
      for (int i = 0; i < 1 << kOr; ++i) {
        const Vec row = repeat16(rows + 16 * i);
        for (int k = 0; k < 2; ++k) {
          const Vec found = _mm256_shuffle_epi8(row, at[k][i]);
          bytes[k] = i == 0 ? found : _mm256_or_si256(bytes[k], found);
        }
      }
    } else {
      Vec clear[2], set[2];
      look_up_bytes<kBits - 1, kOr>(rows, at, masks, clear);
      look_up_bytes<kBits - 1, kOr>(rows + (8 << kBits), at, masks, set);
      for (int k = 0; k < 2; ++k)
        bytes[k] = _mm256_blendv_epi8(clear[k], set[k], masks[k][kBits - 1]);
    }
  }

  template <int B>
  struct Table {
    const std::uint8_t* bytes;
  };

  template <int B, int J>
  static ANYPREC_INLINE void look_up(const Codes<B>& codes, const Table<B>& table, Vec& w0,
                                     Vec& w1) {
    if constexpr (B > 4) {
      // Tables of groups: the other block of the pair has another one.
      Vec w[2][2];
      look_up_both<B, J & 3>(codes, table, w);
      w0 = w[J / 4][0];
      w1 = w[J / 4][1];
    } else {
      const Vec index = nibbles<B, J>(codes);
      const std::uint8_t* rows = table.bytes + (J & 3) * 32;
      unpack(_mm256_shuffle_epi8(repeat16(rows), index),
             _mm256_shuffle_epi8(repeat16(rows + 16), index), w0, w1);
    }
  }
  static ANYPREC_INLINE void unpack(Vec low, Vec high, Vec& w0, Vec& w1) {
    w0 = _mm256_unpacklo_epi8(low, high);
    w1 = _mm256_unpackhi_epi8(low, high);
  }

  /// Blocks J and J + 4.
  template <int B, int J>
  static ANYPREC_INLINE void look_up_both(const Codes<B>& codes, const Table<B>& table,
                                          Vec (&w)[2][2]) {
    if constexpr (B > 4) {
      constexpr int kOr = kOrBits<B>;
      Vec masks[2][4];
      row_masks<B, J>(codes, masks[0]);
      row_masks<B, J + 4>(codes, masks[1]);
      Vec at[2][4];
      row_indices<kOr>(low_bits<B, J>(codes), masks[0], at[0]);
      row_indices<kOr>(low_bits<B, J + 4>(codes), masks[1], at[1]);
      Vec low[2], high[2];
      look_up_bytes<B - 4, kOr>(table.bytes, at, masks, low);
      look_up_bytes<B - 4, kOr>(table.bytes + (1 << B), at, masks, high);
      for (int k = 0; k < 2; ++k) unpack(low[k], high[k], w[k][0], w[k][1]);
    } else {
      look_up<B, J>(codes, table, w[0][0], w[0][1]);
      look_up<B, J + 4>(codes, table, w[1][0], w[1][1]);
    }
  }

  static void arrange_table(const std::uint16_t* values, int precision, std::uint8_t* table) {
    arrange_split_table(values, precision, table);
  }

  static ANYPREC_INLINE Vec dot(Vec w0, Vec w1, const std::int16_t* x0, const std::int16_t* x1) {
    return _mm256_add_epi32(
        _mm256_madd_epi16(w0, _mm256_load_si256(reinterpret_cast<const Vec*>(x0))),
        _mm256_madd_epi16(w1, _mm256_load_si256(reinterpret_cast<const Vec*>(x1))));
  }
  static ANYPREC_INLINE Vec set_words(int v) { return _mm256_set1_epi32(v); }
  static ANYPREC_INLINE Vec add_words(Vec a, Vec b) { return _mm256_add_epi32(a, b); }
  template <int kBits>
  static ANYPREC_INLINE Vec drop_bits(Vec v) {
    return _mm256_srai_epi32(v, kBits);
  }
  static ANYPREC_INLINE Float to_float(Vec v) { return _mm256_cvtepi32_ps(v); }
  static ANYPREC_INLINE Vec second_from(Vec a, Vec) { return a; }
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
  static ANYPREC_INLINE Float set(float v) { return _mm256_set1_ps(v); }
  static ANYPREC_INLINE Float sums_of(const Float* v) {
    Float pairs[4];  // the sums of two in the two halves
    for (int i = 0; i < 4; ++i) {
      pairs[i] = add(_mm256_permute2f128_ps(v[2 * i], v[2 * i + 1], 0x20),
                     _mm256_permute2f128_ps(v[2 * i], v[2 * i + 1], 0x31));
    }
    const Float sums =
        _mm256_hadd_ps(_mm256_hadd_ps(pairs[0], pairs[1]), _mm256_hadd_ps(pairs[2], pairs[3]));
    return _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  static ANYPREC_INLINE float sum(Float v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace

const KernelSet& avx2_kernels() { return kKernelSet<Avx2, FixedWords<Avx2>>; }

}  // namespace anyprec::cpu
