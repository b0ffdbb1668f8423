#include "kernels/cpu/avx512.h"
#include "kernels/cpu/fixed_words.h"

/// AVX-512 with VBMI, VNNI and GFNI: `vpermb` and `vpermi2b` look up bytes of split tables
/// (split_tables.h), and `vgf2p8affineqb` puts bits in order. A step is two units, as in Avx512.
namespace anyprec::cpu {
namespace {

/// For each block j, the matrix of `vgf2p8affineqb` that brings bits of a byte to where they belong
/// in a B-bit code: from the planes of the lowest (at most four) bits, or from those above them.
/// Other bits become zero.
template <int B>
struct BitMatrices {
  std::uint64_t low[kUnitBlocks];
  std::uint64_t high[kUnitBlocks];
  constexpr BitMatrices() : low{}, high{} {
    for (int j = 0; j < kUnitBlocks; ++j) {
      for (int bit = 0; bit < B; ++bit) {
        std::uint64_t& matrix = bit < 4 ? low[j] : high[j];
        // Row i of the matrix is its byte 7 - i; ours selects one bit.
        matrix |= std::uint64_t{1} << (8 * (7 - bit) + block_bit(j, B - 1 - bit));
      }
    }
  }
};
template <int B>
constexpr BitMatrices<B> kBitMatrices;

struct Avx512Vbmi : Avx512 {
  /// A table in registers: by block j % 4 up to 4 bits, else 64 entries each.
  template <int B>
  struct Table {
    static constexpr int kCount = B > 6 ? 1 << (B - 6) : B > 4 ? 1 : 4;
    Vec low[kCount];
    Vec high[kCount];

    explicit ANYPREC_INLINE Table(const std::uint8_t* bytes) {
      for (int i = 0; i < kCount; ++i) {
        if constexpr (B > 5) {
          low[i] = _mm512_loadu_si512(bytes + 64 * i);
          high[i] = _mm512_loadu_si512(bytes + (1 << B) + 64 * i);
        } else if constexpr (B == 5) {
          low[i] = _mm512_castsi256_si512(load256(bytes));
          high[i] = _mm512_castsi256_si512(load256(bytes + 32));
        } else {
          low[i] = by_nibble<B>(bytes, i);
          high[i] = by_nibble<B>(bytes + 16, i);
        }
      }
    }
    static ANYPREC_INLINE __m256i load256(const std::uint8_t* bytes) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
    }
  };

  /// Where a table has the entries of block J's codes.
  template <int B, int J>
  static ANYPREC_INLINE Vec index(const Codes<B>& codes) {
    if constexpr (B > 4) {
      const Vec low = _mm512_set1_epi64(static_cast<long long>(kBitMatrices<B>.low[J]));
      const Vec high = _mm512_set1_epi64(static_cast<long long>(kBitMatrices<B>.high[J]));
      return _mm512_xor_si512(_mm512_gf2p8affine_epi64_epi8(codes.low[J & 3], low, 0),
                              _mm512_gf2p8affine_epi64_epi8(codes.high[J & 3], high, 0));
    } else if constexpr (J < 4) {
      return codes.low[J];
    } else {
      return _mm512_srli_epi16(codes.low[J & 3], 4);
    }
  }

  template <int B, int J>
  static ANYPREC_INLINE Vec look_up_bytes(const Vec* table, Vec at) {
    if constexpr (B <= 4) {
      return _mm512_permutexvar_epi8(at, table[J & 3]);
    } else if constexpr (B <= 6) {
      return _mm512_permutexvar_epi8(at, table[0]);
    } else if constexpr (B == 7) {
      return _mm512_permutex2var_epi8(table[0], at, table[1]);
    } else {
      return _mm512_mask_blend_epi8(_mm512_movepi8_mask(at),
                                    _mm512_permutex2var_epi8(table[0], at, table[1]),
                                    _mm512_permutex2var_epi8(table[2], at, table[3]));
    }
  }

  template <int B, int J>
  static ANYPREC_INLINE void look_up(const Codes<B>& codes, const Table<B>& table, Vec& w0,
                                     Vec& w1) {
    const Vec at = index<B, J>(codes);
    const Vec low = look_up_bytes<B, J>(table.low, at);
    const Vec high = look_up_bytes<B, J>(table.high, at);
    w0 = _mm512_unpacklo_epi8(low, high);
    w1 = _mm512_unpackhi_epi8(low, high);
  }

  static void arrange_table(const std::uint16_t* values, int precision, std::uint8_t* table) {
    if (precision <= 4) return Avx512::arrange_table(values, precision, table);
    arrange_split_table(values, precision, table);
  }

  /// Bytes kByte of the words that packs_epi32(a, b) and packs_epi32(c, d) make of 64 numbers, in
  /// order. A pack puts numbers 4 L .. 4 L + 3 of a, then those of b, in 128-bit lane L.
  template <int kByte>
  struct BytesInOrder {
    alignas(64) std::uint8_t from[64];
    constexpr BytesInOrder() : from{} {
      for (int i = 0; i < 64; ++i) {
        const int lane = i % 16 / 4, word = 8 * lane + i % 32 / 16 * 4 + i % 4;
        from[i] = static_cast<std::uint8_t>(i / 32 * 64 + 2 * word + kByte);
      }
    }
  };
  template <int kByte>
  static constexpr BytesInOrder<kByte> kBytesInOrder{};

  static float fixed_large_table(const std::uint16_t* halves, int precision, std::uint8_t* table) {
    const int count = 1 << precision;
    const float largest = largest_half(halves, count);
    if (largest != largest) return largest;
    const __m512 factor = _mm512_set1_ps(largest > 0 ? kTableSteps / largest : 0.0f);
    const __mmask64 all = count < 64 ? 0xffffffffull : ~0ull;
    for (int i = 0; i < count; i += 64) {
      const Vec first = pack(halves + i, factor);
      const Vec second = count < 64 ? first : pack(halves + i + 32, factor);
      const Vec low =
          _mm512_permutex2var_epi8(first, _mm512_load_si512(kBytesInOrder<0>.from), second);
      const Vec high =
          _mm512_permutex2var_epi8(first, _mm512_load_si512(kBytesInOrder<1>.from), second);
      _mm512_mask_storeu_epi8(table + i, all, low);
      _mm512_mask_storeu_epi8(table + count + i, all, high);
    }
    return largest;
  }
  static ANYPREC_INLINE Vec pack(const std::uint16_t* halves, __m512 factor) {
    return _mm512_packs_epi32(fix_sixteen(halves, factor), fix_sixteen(halves + 16, factor));
  }
};

}  // namespace

const KernelSet& avx512vbmi_kernels() { return kKernelSet<Avx512Vbmi, FixedWords<Avx512Vbmi>>; }

}  // namespace anyprec::cpu
