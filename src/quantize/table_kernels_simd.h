#pragma once

#include <cstdint>

#include "src/quantize/lanes.h"

/// From the clusters of the parent precision to the tables of all precisions.
namespace anyprec::quantize {
namespace {

template <class S>
ANYPREC_LANES_INLINE typename S::Vec clamp(typename S::Vec v, typename S::Vec low,
                                           typename S::Vec high) {
  v = S::select(S::less(v, low), low, v);
  return S::select(S::less(high, v), high, v);
}

/// Sums are about the first point and the mean is kept between the first and the last, so that
/// means never fall from one cluster to the next.
template <class S>
void leaves(const double* value, const double* mass, const double* sensitivity,
            const std::int64_t* borders, std::int64_t clusters, const ClusterMoments& out) {
  for (std::int64_t c = 0; c < clusters; ++c) {
    const std::int64_t begin = borders[c];
    const std::int64_t end = borders[c + 1];
    if (begin == end) {
      // An empty cluster descends from the right child of a single point (or from a row of fewer
      // points than seed clusters) and keeps that point's value. The first is never empty.
      out.mass[c] = out.sensitivity[c] = out.moment[c] = out.square[c] = 0.0;
      out.mean[c] = out.mean[c - 1];
      continue;
    }
    const double origin = value[begin];
    auto masses = S::set(0.0);
    auto moments = masses;
    for (std::int64_t i = begin; i < end; i += kLanes) {
      const auto w = S::load_first(mass + i, end - i);
      const auto x = S::load_first(value + i, end - i);
      masses = S::add(masses, w);
      moments = S::add(moments, S::mul(w, S::sub(x, S::set(origin))));
    }
    const double total = S::reduce_add(masses);
    double mean = origin + S::reduce_add(moments) / total;
    mean = mean < origin ? origin : value[end - 1] < mean ? value[end - 1] : mean;
    auto sensitivities = S::set(0.0);
    auto firsts = sensitivities;
    auto seconds = sensitivities;
    for (std::int64_t i = begin; i < end; i += kLanes) {
      const auto s = S::load_first(sensitivity + i, end - i);
      const auto distance = S::sub(S::load_first(value + i, end - i), S::set(mean));
      const auto weighted = S::mul(s, distance);
      sensitivities = S::add(sensitivities, s);
      firsts = S::add(firsts, weighted);
      seconds = S::add(seconds, S::mul(weighted, distance));
    }
    out.mass[c] = total;
    out.mean[c] = mean;
    out.sensitivity[c] = S::reduce_add(sensitivities);
    out.moment[c] = S::reduce_add(firsts);
    out.square[c] = S::reduce_add(seconds);
  }
}

template <class S>
void merge(const ClusterMoments& clusters, std::int64_t pairs) {
  using Vec = typename S::Vec;
  for (std::int64_t c = 0; c < pairs; c += kLanes) {
    const auto left_of = [&](const double* array)
                             __attribute__((always_inline)) { return S::load_even(array + 2 * c); };
    const auto right_of = [&](const double* array)
                              __attribute__((always_inline)) { return S::load_odd(array + 2 * c); };
    const Vec left_mass = left_of(clusters.mass);
    const Vec right_mass = right_of(clusters.mass);
    const Vec left_mean = left_of(clusters.mean);
    const Vec right_mean = right_of(clusters.mean);
    const Vec left_sensitivity = left_of(clusters.sensitivity);
    const Vec right_sensitivity = right_of(clusters.sensitivity);
    const Vec left_moment = left_of(clusters.moment);
    const Vec right_moment = right_of(clusters.moment);
    const Vec left_square = left_of(clusters.square);
    const Vec right_square = right_of(clusters.square);

    const Vec mass = S::add(left_mass, right_mass);
    const Vec step = S::mul(S::sub(right_mean, left_mean), S::div(right_mass, mass));
    const Vec mean = clamp<S>(S::add(left_mean, step), left_mean, right_mean);
    const Vec from_left = S::sub(left_mean, mean);
    const Vec from_right = S::sub(right_mean, mean);
    const Vec left_shift = S::mul(from_left, left_sensitivity);
    const Vec right_shift = S::mul(from_right, right_sensitivity);
    const auto moved = [](Vec square, Vec from, Vec moment,
                          Vec shift) __attribute__((always_inline)) {
      return S::add(square, S::mul(from, S::add(S::add(moment, moment), shift)));
    };
    const Vec moment = S::add(S::add(left_moment, left_shift), S::add(right_moment, right_shift));
    const Vec square = S::add(moved(left_square, from_left, left_moment, left_shift),
                              moved(right_square, from_right, right_moment, right_shift));

    // Where the right one is empty the left one is all there is.
    const auto both = S::less(S::set(0.0), right_mass);
    S::store(clusters.mass + c, mass);
    S::store(clusters.mean + c, S::select(both, mean, left_mean));
    S::store(clusters.sensitivity + c, S::add(left_sensitivity, right_sensitivity));
    S::store(clusters.moment + c, S::select(both, moment, left_moment));
    S::store(clusters.square + c, S::select(both, square, left_square));
  }
}

template <class S>
double table(const ClusterMoments& clusters, std::int64_t count, float* entries) {
  auto errors = S::set(0.0);
  for (std::int64_t c = 0; c < count; c += kLanes) {
    const std::int64_t n = count - c < kLanes ? count - c : kLanes;
    const auto mean = S::load_first(clusters.mean + c, n);
    const auto shift = S::sub(mean, S::store_floats(entries + c, mean, n));
    const auto moment = S::load_first(clusters.moment + c, n);
    const auto linear =
        S::add(S::add(moment, moment), S::mul(shift, S::load_first(clusters.sensitivity + c, n)));
    errors = S::add(errors, S::add(S::load_first(clusters.square + c, n), S::mul(shift, linear)));
  }
  const double error = S::reduce_add(errors);
  return error < 0.0 ? 0.0 : error;
}

}  // namespace
}  // namespace anyprec::quantize
