#include "src/quantize/candidate_scan.h"

#include <bit>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)
#define ANYPREC_SCAN_AVX2 1
#include <immintrin.h>
#endif

namespace anyprec::quantize {
namespace {

Candidate scan_scalar(const double* base, const PrefixView& begins, const PrefixPoint& end,
                      std::int64_t count) {
  Candidate best{std::numeric_limits<double>::infinity(), 0};
  for (std::int64_t i = 0; i < count; ++i) {
    const double cost = base[i] + segment_cost(begins[i], end);
    if (cost < best.cost) best = {cost, i};
  }
  return best;
}

void block_scalar(const double* base, const PrefixView& begins, std::int64_t candidates,
                  const PrefixView& ends, std::int64_t targets, std::int64_t distance,
                  std::int64_t gap, std::int64_t free, double* costs, std::int64_t* indices) {
  for (std::int64_t t = 0; t < targets; ++t) {
    Candidate best{std::numeric_limits<double>::infinity(), 0};
    const std::int64_t allowed = std::min(candidates, distance + t - gap + 1);
    for (std::int64_t i = 0; i < allowed; ++i) {
      const double segment = distance + t - i <= free ? 0.0 : segment_cost(begins[i], ends[t]);
      const double cost = base[i] + segment;
      if (cost < best.cost) best = {cost, i};
    }
    costs[t] = best.cost;
    indices[t] = best.index;
  }
}

#ifdef ANYPREC_SCAN_AVX2
// Four candidates at a time, in the operations and order of scan_scalar (and no fused
// multiply-add), so that the result is the same to the bit.
__attribute__((target("avx2"))) Candidate scan_avx2(const double* base, const PrefixView& begins,
                                                    const PrefixPoint& end, std::int64_t count) {
  if (count < 4) return scan_scalar(base, begins, end, count);
  const __m256d mass_end = _mm256_set1_pd(end.mass);
  const __m256d moment_end = _mm256_set1_pd(end.moment);
  const __m256d square_end = _mm256_set1_pd(end.square);
  const auto cost_of = [&](std::int64_t i) __attribute__((target("avx2"), always_inline)) {
    const __m256d mass = _mm256_sub_pd(mass_end, _mm256_loadu_pd(begins.mass + i));
    const __m256d moment = _mm256_sub_pd(moment_end, _mm256_loadu_pd(begins.moment + i));
    const __m256d square = _mm256_sub_pd(square_end, _mm256_loadu_pd(begins.square + i));
    const __m256d mean_part = _mm256_div_pd(_mm256_mul_pd(moment, moment), mass);
    const __m256d cost = _mm256_max_pd(_mm256_sub_pd(square, mean_part), _mm256_setzero_pd());
    return _mm256_add_pd(_mm256_loadu_pd(base + i), cost);
  };

  // Lane l holds the best of the candidates l, l + 4, ... The last block overlaps the one before
  // it rather than leaving a tail: a candidate seen twice never beats itself.
  const __m256d lanes = _mm256_set_pd(3.0, 2.0, 1.0, 0.0);
  __m256d best_cost = cost_of(0);
  __m256d best_index = lanes;
  for (std::int64_t next = 4; next < count; next += 4) {
    const std::int64_t i = std::min(next, count - 4);
    const __m256d cost = cost_of(i);
    const __m256d less = _mm256_cmp_pd(cost, best_cost, _CMP_LT_OQ);
    const __m256d index = _mm256_add_pd(_mm256_set1_pd(static_cast<double>(i)), lanes);
    best_cost = _mm256_blendv_pd(best_cost, cost, less);
    best_index = _mm256_blendv_pd(best_index, index, less);
  }
  const __m128d half =
      _mm_min_pd(_mm256_castpd256_pd128(best_cost), _mm256_extractf128_pd(best_cost, 1));
  const double least = _mm_cvtsd_f64(_mm_min_sd(half, _mm_unpackhi_pd(half, half)));
  alignas(32) double indices[4];
  _mm256_store_pd(indices, best_index);
  auto winners = static_cast<unsigned>(
      _mm256_movemask_pd(_mm256_cmp_pd(best_cost, _mm256_set1_pd(least), _CMP_EQ_OQ)));
  double index = indices[std::countr_zero(winners | 8u)];
  while ((winners &= winners - 1) != 0) {
    index = std::min(index, indices[std::countr_zero(winners)]);
  }
  return {least, static_cast<std::int64_t>(index)};
}

// One target in each lane.
__attribute__((target("avx2"))) void block_avx2(const double* base, const PrefixView& begins,
                                                std::int64_t candidates, const PrefixView& ends,
                                                std::int64_t targets, std::int64_t distance,
                                                std::int64_t gap, std::int64_t free, double* costs,
                                                std::int64_t* indices) {
  const __m256d mass_end = _mm256_loadu_pd(ends.mass);
  const __m256d moment_end = _mm256_loadu_pd(ends.moment);
  const __m256d square_end = _mm256_loadu_pd(ends.square);
  __m256d best_cost = _mm256_set1_pd(std::numeric_limits<double>::infinity());
  __m256d best_index = _mm256_setzero_pd();
  const auto segment_of = [&](std::int64_t i) __attribute__((target("avx2"), always_inline)) {
    const __m256d mass = _mm256_sub_pd(mass_end, _mm256_broadcast_sd(begins.mass + i));
    const __m256d moment = _mm256_sub_pd(moment_end, _mm256_broadcast_sd(begins.moment + i));
    const __m256d square = _mm256_sub_pd(square_end, _mm256_broadcast_sd(begins.square + i));
    const __m256d mean_part = _mm256_div_pd(_mm256_mul_pd(moment, moment), mass);
    return _mm256_max_pd(_mm256_sub_pd(square, mean_part), _mm256_setzero_pd());
  };
  const auto offer = [&](std::int64_t i,
                         __m256d segment) __attribute__((target("avx2"), always_inline)) {
    const __m256d cost = _mm256_add_pd(_mm256_broadcast_sd(base + i), segment);
    const __m256d less = _mm256_cmp_pd(cost, best_cost, _CMP_LT_OQ);
    best_cost = _mm256_blendv_pd(best_cost, cost, less);
    best_index = _mm256_blendv_pd(best_index, _mm256_set1_pd(static_cast<double>(i)), less);
  };
  // Up to `whole` every lane's segment is at least 2 long; beyond, lanes are masked.
  const std::int64_t whole = std::clamp<std::int64_t>(distance - free, 0, candidates);
  for (std::int64_t i = 0; i < whole; ++i) offer(i, segment_of(i));
  const __m256d lanes = _mm256_set_pd(3.0, 2.0, 1.0, 0.0);
  const __m256d infinity = _mm256_set1_pd(std::numeric_limits<double>::infinity());
  const std::int64_t allowed = std::min(candidates, distance + targets - gap);
  for (std::int64_t i = whole; i < allowed; ++i) {
    const __m256d length = _mm256_add_pd(lanes, _mm256_set1_pd(static_cast<double>(distance - i)));
    const __m256d costly =
        _mm256_cmp_pd(length, _mm256_set1_pd(static_cast<double>(free)), _CMP_GT_OQ);
    const __m256d banned =
        _mm256_cmp_pd(length, _mm256_set1_pd(static_cast<double>(gap)), _CMP_LT_OQ);
    const __m256d segment = _mm256_and_pd(segment_of(i), costly);
    offer(i, _mm256_blendv_pd(segment, infinity, banned));
  }
  alignas(32) double lane_costs[4];
  alignas(32) double lane_indices[4];
  _mm256_store_pd(lane_costs, best_cost);
  _mm256_store_pd(lane_indices, best_index);
  for (std::int64_t t = 0; t < targets; ++t) {
    costs[t] = lane_costs[t];
    indices[t] = static_cast<std::int64_t>(lane_indices[t]);
  }
}
#endif

}  // namespace

ScanKernels portable_scan_kernels() { return {scan_scalar, block_scalar}; }

ScanKernels select_scan_kernels() {
#ifdef ANYPREC_SCAN_AVX2
  if (__builtin_cpu_supports("avx2")) return {scan_avx2, block_avx2};
#endif
  return portable_scan_kernels();
}

}  // namespace anyprec::quantize
