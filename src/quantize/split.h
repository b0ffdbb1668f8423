#pragma once

#include <cstdint>
#include <span>

namespace anyprec::quantize {

/// Where to cut the points [begin, end) in two so that the weighted sum of squared errors of both
/// halves is least: the first point of the right half, the leftmost where several are best.
/// value: rising; mass: positive. A single point goes left (returns end), as does nothing
/// (returns begin). One linear scan.
std::int64_t best_split(std::span<const double> value, std::span<const double> mass,
                        std::int64_t begin, std::int64_t end);

}  // namespace anyprec::quantize
