#include "src/quantize/split.h"

namespace anyprec::quantize {

std::int64_t best_split(std::span<const double> value, std::span<const double> mass,
                        std::int64_t begin, std::int64_t end) {
  if (end - begin <= 1) return end;
  if (end - begin == 2) return begin + 1;

  // Sums over the points about the first one, so that a tight cluster far from zero loses nothing.
  const double origin = value[begin];
  double total_mass = 0.0;
  double total_moment = 0.0;
  for (std::int64_t i = begin; i < end; ++i) {
    total_mass += mass[i];
    total_moment += mass[i] * (value[i] - origin);
  }
  const double centroid = total_moment / total_mass;

  // With moments t about the centroid (left t, right -t) the sum of squares falls by
  // t^2 / w + t^2 / (W - w) = t^2 W / (w (W - w)), whose maximum is found by cross-multiplying.
  double left_mass = 0.0;
  double moment = 0.0;
  double best_numerator = -1.0;
  double best_denominator = 1.0;
  std::int64_t best = begin + 1;
  for (std::int64_t i = begin; i + 1 < end; ++i) {
    left_mass += mass[i];
    moment += mass[i] * ((value[i] - origin) - centroid);
    const double numerator = moment * moment;
    const double denominator = left_mass * (total_mass - left_mass);
    if (numerator * best_denominator > best_numerator * denominator) {
      best_numerator = numerator;
      best_denominator = denominator;
      best = i + 1;
    }
  }
  return best;
}

}  // namespace anyprec::quantize
