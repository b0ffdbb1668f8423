#include <immintrin.h>

#include "src/quantize/path_kernels_simd.h"
#include "src/quantize/split_kernel_simd.h"
#include "src/quantize/table_kernels_simd.h"

namespace anyprec::quantize {
namespace {

struct Avx512 {
  using Vec = __m512d;
  using Mask = __mmask8;

  static ANYPREC_LANES_INLINE Mask first(std::int64_t count) {
    return static_cast<Mask>(0xffu >> (count < kLanes ? kLanes - count : 0));
  }
  static ANYPREC_LANES_INLINE Vec load(const double* from) { return _mm512_loadu_pd(from); }
  static ANYPREC_LANES_INLINE Vec load_even(const double* from) {
    return _mm512_permutex2var_pd(load(from), _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14),
                                  load(from + kLanes));
  }
  static ANYPREC_LANES_INLINE Vec load_odd(const double* from) {
    return _mm512_permutex2var_pd(load(from), _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15),
                                  load(from + kLanes));
  }
  static ANYPREC_LANES_INLINE Vec load_first(const double* from, std::int64_t count) {
    return _mm512_maskz_loadu_pd(first(count), from);
  }
  static ANYPREC_LANES_INLINE void store(double* to, Vec v) { _mm512_storeu_pd(to, v); }
  static ANYPREC_LANES_INLINE void store_first(double* to, Vec v, std::int64_t count) {
    _mm512_mask_storeu_pd(to, first(count), v);
  }
  static ANYPREC_LANES_INLINE Vec store_floats(float* to, Vec v, std::int64_t count) {
    const __m256 floats = _mm512_cvtpd_ps(v);
    _mm256_mask_storeu_ps(to, first(count), floats);
    return _mm512_cvtps_pd(floats);
  }
  static ANYPREC_LANES_INLINE Vec set(double value) { return _mm512_set1_pd(value); }
  static ANYPREC_LANES_INLINE Vec lanes() {
    return _mm512_setr_pd(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
  }
  static ANYPREC_LANES_INLINE Vec add(Vec a, Vec b) { return _mm512_add_pd(a, b); }
  static ANYPREC_LANES_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_pd(a, b); }
  static ANYPREC_LANES_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_pd(a, b); }
  static ANYPREC_LANES_INLINE Vec div(Vec a, Vec b) { return _mm512_div_pd(a, b); }
  static ANYPREC_LANES_INLINE Vec abs(Vec a) { return _mm512_abs_pd(a); }
  static ANYPREC_LANES_INLINE Vec min(Vec a, Vec b) { return _mm512_min_pd(a, b); }
  static ANYPREC_LANES_INLINE Mask less(Vec a, Vec b) {
    return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ);
  }
  static ANYPREC_LANES_INLINE Mask not_equal(Vec a, Vec b) {
    return _mm512_cmp_pd_mask(a, b, _CMP_NEQ_UQ);
  }
  static ANYPREC_LANES_INLINE Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
  static ANYPREC_LANES_INLINE Vec select(Mask mask, Vec yes, Vec no) {
    return _mm512_mask_blend_pd(mask, no, yes);
  }
  static ANYPREC_LANES_INLINE Vec zero_unless(Mask mask, Vec v) {
    return _mm512_maskz_mov_pd(mask, v);
  }
  static ANYPREC_LANES_INLINE double reduce_max(Vec v) { return _mm512_reduce_max_pd(v); }
  static ANYPREC_LANES_INLINE double reduce_add(Vec v) {
    const __m256d quarter = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
    const __m128d half =
        _mm_add_pd(_mm256_castpd256_pd128(quarter), _mm256_extractf128_pd(quarter, 1));
    return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
  }
  template <int kCount>
  static ANYPREC_LANES_INLINE Vec above(Vec v) {
    const __m512i moved =
        _mm512_alignr_epi64(_mm512_castpd_si512(v), _mm512_setzero_si512(), kLanes - kCount);
    return _mm512_add_pd(v, _mm512_castsi512_pd(moved));
  }
  static ANYPREC_LANES_INLINE Vec running_sum(Vec v) { return above<4>(above<2>(above<1>(v))); }
  static ANYPREC_LANES_INLINE double last(Vec v) {
    const __m128d half = _mm512_extractf64x2_pd(v, 3);
    return _mm_cvtsd_f64(_mm_unpackhi_pd(half, half));
  }
  static ANYPREC_LANES_INLINE double reduce_min(Vec v) { return _mm512_reduce_min_pd(v); }
};

}  // namespace

const Kernels& avx512_kernels();
const Kernels& avx512_kernels() {
  static constexpr Kernels kKernels{best<Avx512>,   block<Avx512>,  pairs<Avx512>,
                                    relax<Avx512>,  spread<Avx512>, split<Avx512>,
                                    leaves<Avx512>, merge<Avx512>,  table<Avx512>};
  return kKernels;
}

}  // namespace anyprec::quantize
