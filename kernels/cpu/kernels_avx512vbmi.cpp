#include "kernels/cpu/avx512.h"

/// AVX-512 with VBMI and VNNI: `vpermi2b` looks up 64 bytes among 128 at once, which beats trees of
/// `vpermi2w` from 7 bits up. Such tables have the low bytes first, then the high ones. Products
/// are added by `vpdpwssd`.
namespace anyprec::cpu {
namespace {

struct Avx512Vbmi : Avx512 {
  template <int B>
  static ANYPREC_INLINE Vec look_up_bytes(const std::uint8_t* bytes, Vec index) {
    if constexpr (B == 7) {
      return _mm512_permutex2var_epi8(_mm512_loadu_si512(bytes), index,
                                      _mm512_loadu_si512(bytes + 64));
    } else {
      return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), look_up_bytes<7>(bytes, index),
                                    look_up_bytes<7>(bytes + 128, index));
    }
  }

  template <int B, int J, bool kGrouped>
  static ANYPREC_INLINE void look_up(const Codes<B>& codes, const std::uint8_t* table,
                                     const std::uint8_t* other, Vec& w0, Vec& w1) {
    if constexpr (B < 7) {
      Avx512::look_up<B, J, kGrouped>(codes, table, other, w0, w1);
    } else {
      const Vec index = codes.bytes[J];
      Vec low = look_up_bytes<B>(table, index);
      Vec high = look_up_bytes<B>(table + (1 << B), index);
      if constexpr (kGrouped) {
        if (other != table) {
          low = second_from(low, look_up_bytes<B>(other, index));
          high = second_from(high, look_up_bytes<B>(other + (1 << B), index));
        }
      }
      constexpr __mmask64 kOddBytes = 0xaaaaaaaaaaaaaaaaull;
      w0 = _mm512_mask_blend_epi8(kOddBytes, low, _mm512_slli_epi16(high, 8));
      w1 = _mm512_mask_blend_epi8(kOddBytes, _mm512_srli_epi16(low, 8), high);
    }
  }

  static void arrange_table(const std::uint16_t* values, int precision, std::uint8_t* table) {
    if (precision < 7) return Avx512::arrange_table(values, precision, table);
    const int entries = 1 << precision;
    for (int i = 0; i < entries; ++i) {
      table[i] = static_cast<std::uint8_t>(values[i]);
      table[entries + i] = static_cast<std::uint8_t>(values[i] >> 8);
    }
  }

  static ANYPREC_INLINE Float dot(Vec w0, Vec w1, const std::int16_t* x) {
    const Vec first = _mm512_madd_epi16(w0, _mm512_load_si512(x));
    return _mm512_cvtepi32_ps(_mm512_dpwssd_epi32(first, w1, _mm512_load_si512(x + kBlockColumns)));
  }
};

}  // namespace

const KernelSet& avx512vbmi_kernels() { return kKernelSet<Avx512Vbmi>; }

}  // namespace anyprec::cpu
