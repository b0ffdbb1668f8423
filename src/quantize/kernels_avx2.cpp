#include <immintrin.h>

#include "src/quantize/path_kernels_simd.h"
#include "src/quantize/split_kernel_simd.h"
#include "src/quantize/table_kernels_simd.h"

namespace anyprec::quantize {
namespace {

/// Two vectors of four.
struct Avx2 {
  struct Vec {
    __m256d low, high;
  };
  using Mask = Vec;

  static ANYPREC_LANES_INLINE Vec load(const double* from) {
    return {_mm256_loadu_pd(from), _mm256_loadu_pd(from + 4)};
  }
  static ANYPREC_LANES_INLINE Vec load_even(const double* from) {
    return {evens(load(from)), evens(load(from + kLanes))};
  }
  static ANYPREC_LANES_INLINE Vec load_odd(const double* from) {
    return {odds(load(from)), odds(load(from + kLanes))};
  }
  static ANYPREC_LANES_INLINE __m256d evens(Vec v) {
    return _mm256_permute4x64_pd(_mm256_unpacklo_pd(v.low, v.high), 0xd8);
  }
  static ANYPREC_LANES_INLINE __m256d odds(Vec v) {
    return _mm256_permute4x64_pd(_mm256_unpackhi_pd(v.low, v.high), 0xd8);
  }
  static ANYPREC_LANES_INLINE Vec load_first(const double* from, std::int64_t count) {
    const __m256i many = _mm256_set1_epi64x(count);
    const __m256i low = _mm256_cmpgt_epi64(many, _mm256_setr_epi64x(0, 1, 2, 3));
    const __m256i high = _mm256_cmpgt_epi64(many, _mm256_setr_epi64x(4, 5, 6, 7));
    return {_mm256_maskload_pd(from, low), _mm256_maskload_pd(from + 4, high)};
  }
  static ANYPREC_LANES_INLINE void store(double* to, Vec v) {
    _mm256_storeu_pd(to, v.low);
    _mm256_storeu_pd(to + 4, v.high);
  }
  static ANYPREC_LANES_INLINE void store_first(double* to, Vec v, std::int64_t count) {
    alignas(32) double all[kLanes];
    store(all, v);
    for (std::int64_t l = 0; l < count; ++l) to[l] = all[l];
  }
  static ANYPREC_LANES_INLINE Vec store_floats(float* to, Vec v, std::int64_t count) {
    const __m128 low = _mm256_cvtpd_ps(v.low);
    const __m128 high = _mm256_cvtpd_ps(v.high);
    alignas(16) float all[kLanes];
    _mm_store_ps(all, low);
    _mm_store_ps(all + 4, high);
    if (count == kLanes) {
      _mm256_storeu_ps(to, _mm256_set_m128(high, low));
    } else {
      for (std::int64_t l = 0; l < count; ++l) to[l] = all[l];
    }
    return {_mm256_cvtps_pd(low), _mm256_cvtps_pd(high)};
  }
  static ANYPREC_LANES_INLINE Vec set(double value) {
    return {_mm256_set1_pd(value), _mm256_set1_pd(value)};
  }
  static ANYPREC_LANES_INLINE Vec lanes() {
    return {_mm256_setr_pd(0.0, 1.0, 2.0, 3.0), _mm256_setr_pd(4.0, 5.0, 6.0, 7.0)};
  }
  static ANYPREC_LANES_INLINE Vec add(Vec a, Vec b) {
    return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)};
  }
  static ANYPREC_LANES_INLINE Vec sub(Vec a, Vec b) {
    return {_mm256_sub_pd(a.low, b.low), _mm256_sub_pd(a.high, b.high)};
  }
  static ANYPREC_LANES_INLINE Vec mul(Vec a, Vec b) {
    return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)};
  }
  static ANYPREC_LANES_INLINE Vec div(Vec a, Vec b) {
    return {_mm256_div_pd(a.low, b.low), _mm256_div_pd(a.high, b.high)};
  }
  static ANYPREC_LANES_INLINE Vec abs(Vec a) {
    const __m256d sign = _mm256_set1_pd(-0.0);
    return {_mm256_andnot_pd(sign, a.low), _mm256_andnot_pd(sign, a.high)};
  }
  static ANYPREC_LANES_INLINE Vec min(Vec a, Vec b) {
    return {_mm256_min_pd(a.low, b.low), _mm256_min_pd(a.high, b.high)};
  }
  static ANYPREC_LANES_INLINE Mask less(Vec a, Vec b) {
    return {_mm256_cmp_pd(a.low, b.low, _CMP_LT_OQ), _mm256_cmp_pd(a.high, b.high, _CMP_LT_OQ)};
  }
  static ANYPREC_LANES_INLINE Mask not_equal(Vec a, Vec b) {
    return {_mm256_cmp_pd(a.low, b.low, _CMP_NEQ_UQ), _mm256_cmp_pd(a.high, b.high, _CMP_NEQ_UQ)};
  }
  static ANYPREC_LANES_INLINE Mask both(Mask a, Mask b) {
    return {_mm256_and_pd(a.low, b.low), _mm256_and_pd(a.high, b.high)};
  }
  static ANYPREC_LANES_INLINE Vec select(Mask mask, Vec yes, Vec no) {
    return {_mm256_blendv_pd(no.low, yes.low, mask.low),
            _mm256_blendv_pd(no.high, yes.high, mask.high)};
  }
  static ANYPREC_LANES_INLINE Vec zero_unless(Mask mask, Vec v) {
    return {_mm256_and_pd(mask.low, v.low), _mm256_and_pd(mask.high, v.high)};
  }
  static ANYPREC_LANES_INLINE double reduce_max(Vec v) {
    const __m256d quarter = _mm256_max_pd(v.low, v.high);
    const __m128d half =
        _mm_max_pd(_mm256_castpd256_pd128(quarter), _mm256_extractf128_pd(quarter, 1));
    return _mm_cvtsd_f64(_mm_max_sd(half, _mm_unpackhi_pd(half, half)));
  }
  static ANYPREC_LANES_INLINE double reduce_add(Vec v) {
    const __m256d quarter = _mm256_add_pd(v.low, v.high);
    const __m128d half =
        _mm_add_pd(_mm256_castpd256_pd128(quarter), _mm256_extractf128_pd(quarter, 1));
    return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
  }
  static ANYPREC_LANES_INLINE Vec running_sum(Vec v) {
    const __m256d zero = _mm256_setzero_pd();
    // The lower half of v.low goes up (zeros follow), its upper half to v.high.
    __m256d low = _mm256_permute2f128_pd(v.low, v.low, 0x08);
    __m256d high = _mm256_permute2f128_pd(v.low, v.high, 0x21);
    v = {_mm256_add_pd(v.low, _mm256_shuffle_pd(low, v.low, 0x5)),
         _mm256_add_pd(v.high, _mm256_shuffle_pd(high, v.high, 0x5))};
    low = _mm256_permute2f128_pd(v.low, v.low, 0x08);
    high = _mm256_permute2f128_pd(v.low, v.high, 0x21);
    v = {_mm256_add_pd(v.low, low), _mm256_add_pd(v.high, high)};
    return {_mm256_add_pd(v.low, zero), _mm256_add_pd(v.high, v.low)};
  }
  static ANYPREC_LANES_INLINE double last(Vec v) {
    const __m128d half = _mm256_extractf128_pd(v.high, 1);
    return _mm_cvtsd_f64(_mm_unpackhi_pd(half, half));
  }
  static ANYPREC_LANES_INLINE double reduce_min(Vec v) {
    const __m256d quarter = _mm256_min_pd(v.low, v.high);
    const __m128d half =
        _mm_min_pd(_mm256_castpd256_pd128(quarter), _mm256_extractf128_pd(quarter, 1));
    return _mm_cvtsd_f64(_mm_min_sd(half, _mm_unpackhi_pd(half, half)));
  }
};

}  // namespace

const Kernels& avx2_kernels();
const Kernels& avx2_kernels() {
  static constexpr Kernels kKernels{best<Avx2>,   block<Avx2>,  pairs<Avx2>,
                                    relax<Avx2>,  spread<Avx2>, split<Avx2>,
                                    leaves<Avx2>, merge<Avx2>,  table<Avx2>};
  return kKernels;
}

}  // namespace anyprec::quantize
