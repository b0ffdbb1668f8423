#pragma once

#include <cstdint>

#include "src/quantize/lanes.h"

/// The kernels of shortest paths.
namespace anyprec::quantize {
namespace {

constexpr double kNoWay = __builtin_inf();

template <class S>
struct PrefixLanes {
  typename S::Vec mass, moment, square;

  static ANYPREC_LANES_INLINE PrefixLanes load(const PrefixView& at, std::int64_t i) {
    return {S::load(at.mass + i), S::load(at.moment + i), S::load(at.square + i)};
  }
  static ANYPREC_LANES_INLINE PrefixLanes set(const PrefixView& at, std::int64_t i) {
    return {S::set(at.mass[i]), S::set(at.moment[i]), S::set(at.square[i])};
  }
};

/// segment_cost
template <class S>
ANYPREC_LANES_INLINE typename S::Vec segment_costs(const PrefixLanes<S>& begin,
                                                   const PrefixLanes<S>& end) {
  const auto moment = S::sub(end.moment, begin.moment);
  const auto mean_part = S::div(S::mul(moment, moment), S::sub(end.mass, begin.mass));
  return S::abs(S::sub(S::sub(end.square, begin.square), mean_part));
}

template <class S>
Candidate best(const double* base, const PrefixView& begins, const PrefixPoint& end,
               std::int64_t count) {
  const PrefixLanes<S> to{S::set(end.mass), S::set(end.moment), S::set(end.square)};
  const auto costs_at = [&](std::int64_t i) __attribute__((always_inline)) {
    return S::add(S::load(base + i), segment_costs<S>(PrefixLanes<S>::load(begins, i), to));
  };
  // Lane l holds the best of the candidates l, l + kLanes, ...
  auto least = S::set(kNoWay);
  auto index = S::set(0.0);
  auto at = S::lanes();
  const auto step = S::set(static_cast<double>(kLanes));
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const auto costs = costs_at(i);
    const auto less = S::less(costs, least);
    least = S::select(less, costs, least);
    index = S::select(less, at, index);
    at = S::add(at, step);
  }
  if (i < count) {
    const auto within = S::less(at, S::set(static_cast<double>(count)));
    const auto costs = S::select(within, costs_at(i), S::set(kNoWay));
    const auto less = S::less(costs, least);
    least = S::select(less, costs, least);
    index = S::select(less, at, index);
  }
  const double cost = S::reduce_min(least);
  if (!(cost < kNoWay)) return {kNoWay, 0};
  // The smallest index of the lanes that have it.
  const auto others = S::less(S::set(cost), least);
  return {cost, static_cast<std::int64_t>(S::reduce_min(S::select(others, S::set(kNoWay), index)))};
}

template <class S>
void block(const double* base, const PrefixView& begins, std::int64_t candidates,
           const PrefixView& ends, std::int64_t targets, std::int64_t distance, std::int64_t gap,
           std::int64_t free, double* costs) {
  for (std::int64_t t = 0; t < targets; t += kLanes) {
    const PrefixLanes<S> to = PrefixLanes<S>::load(ends, t);
    auto least = S::set(kNoWay);
    // Up to `whole` every lane's segment is long enough to cost something; later ones are masked.
    std::int64_t whole = distance + t - free;
    whole = whole < 0 ? 0 : whole < candidates ? whole : candidates;
    for (std::int64_t i = 0; i < whole; ++i) {
      const auto segment = segment_costs<S>(PrefixLanes<S>::set(begins, i), to);
      least = S::min(S::add(S::set(base[i]), segment), least);
    }
    const std::int64_t last = distance + t + kLanes - gap;
    const std::int64_t allowed = last < candidates ? last : candidates;
    for (std::int64_t i = whole; i < allowed; ++i) {
      const auto length = S::add(S::lanes(), S::set(static_cast<double>(distance + t - i)));
      const auto costly = S::less(S::set(static_cast<double>(free)), length);
      const auto banned = S::less(length, S::set(static_cast<double>(gap)));
      const auto segment =
          S::zero_unless(costly, segment_costs<S>(PrefixLanes<S>::set(begins, i), to));
      const auto cost = S::add(S::set(base[i]), segment);
      least = S::min(S::select(banned, S::set(kNoWay), cost), least);
    }
    if (targets - t >= kLanes) {
      S::store(costs + t, least);
    } else {
      S::store_first(costs + t, least, targets - t);
    }
  }
}

template <class S>
void pairs(const PrefixView& sums, std::int64_t count, double* costs) {
  for (std::int64_t a = 0; a < count; ++a) {
    const PrefixLanes<S> from = PrefixLanes<S>::set(sums, a);
    for (std::int64_t b = 0; b < count; b += kLanes) {
      const PrefixLanes<S> to = PrefixLanes<S>::load(sums, b);
      const auto some = S::not_equal(from.mass, to.mass);
      S::store(costs + a * count + b, S::zero_unless(some, segment_costs<S>(from, to)));
    }
  }
}

template <class S>
void relax(const double* base, const double* costs, std::int64_t count, bool rightwards,
           double* to) {
  for (std::int64_t run = 0; run < count; run += kPairRun) {
    const std::int64_t first = rightwards ? 0 : run;
    const std::int64_t last = rightwards ? run + kPairRun : count;
    auto low = S::set(kNoWay);
    auto high = low;
    auto next_low = low;
    auto next_high = low;
    const double* row = costs + first * count + run;
    // Two candidates at a time, so that steps do not wait for each other.
    for (std::int64_t a = first; a < last; a += 2, row += 2 * count) {
      const auto from = S::set(base[a]);
      const auto next = S::set(base[a + 1]);
      low = S::min(S::add(from, S::load(row)), low);
      high = S::min(S::add(from, S::load(row + kLanes)), high);
      next_low = S::min(S::add(next, S::load(row + count)), next_low);
      next_high = S::min(S::add(next, S::load(row + count + kLanes)), next_high);
    }
    S::store(to + run, S::min(low, next_low));
    S::store(to + run + kLanes, S::min(high, next_high));
  }
}

template <class S>
void spread(const double* value, const double* mass, double centre, const std::int64_t* edges,
            const PrefixView& sums, std::int64_t bins, double* out) {
  for (std::int64_t i = 0; i < bins; ++i) {
    const double moment = sums.moment[i + 1] - sums.moment[i];
    const auto mean = S::set(centre + moment / (sums.mass[i + 1] - sums.mass[i]));
    const auto spread_of =
        [&](const typename S::Vec& x, const typename S::Vec& w)
            __attribute__((always_inline)) { return S::mul(w, S::abs(S::sub(x, mean))); };
    const std::int64_t end = edges[i + 1];
    auto sum = S::set(0.0);
    std::int64_t p = edges[i];
    for (; p + kLanes <= end; p += kLanes) {
      sum = S::add(sum, spread_of(S::load(value + p), S::load(mass + p)));
    }
    if (p < end) {
      sum = S::add(sum,
                   spread_of(S::load_first(value + p, end - p), S::load_first(mass + p, end - p)));
    }
    out[i] = S::reduce_add(sum);
  }
}

}  // namespace
}  // namespace anyprec::quantize
