#pragma once

#include <algorithm>
#include <cstdint>

namespace anyprec::quantize {

/// Prefix sums at one position: mass, mass * x and mass * x^2 of the points before it.
struct PrefixPoint {
  double mass;
  double moment;
  double square;
};

/// Borrowed prefix sums at a run of positions.
struct PrefixView {
  const double* mass;
  const double* moment;
  const double* square;

  PrefixPoint operator[](std::int64_t position) const {
    return {mass[position], moment[position], square[position]};
  }
  PrefixView operator+(std::int64_t positions) const {
    return {mass + positions, moment + positions, square + positions};
  }
};

/// Weighted sum of squared errors about the mean, of the points from position `begin` to `end`.
/// There must be some.
inline double segment_cost(const PrefixPoint& begin, const PrefixPoint& end) {
  const double moment = end.moment - begin.moment;
  const double mean_part = moment * moment / (end.mass - begin.mass);
  return std::max((end.square - begin.square) - mean_part, 0.0);
}

struct Candidate {
  double cost;
  std::int64_t index;
};

/// The least base[i] + cost of the segment from begins[i] to `end` over i in [0, count), the
/// smallest i where several are; {infinity, 0} where there is none. All pointers are at the first
/// candidate. Each segment must hold some points.
using CandidateScan = Candidate (*)(const double* base, const PrefixView& begins,
                                    const PrefixPoint& end, std::int64_t count);

/// A few targets at once, each with all of a few candidates. The segment from begins[i] to ends[t]
/// has length distance + t - i: where that is below `gap` it is not allowed, up to `free` it costs
/// nothing. Writes, for each of up to kBlockTargets targets t, the least base[i] + cost and the
/// smallest such i (infinity and 0 where none is allowed). kBlockTargets entries of `ends` must be
/// readable whatever `targets` is.
inline constexpr std::int64_t kBlockTargets = 4;
using BlockScan = void (*)(const double* base, const PrefixView& begins, std::int64_t candidates,
                           const PrefixView& ends, std::int64_t targets, std::int64_t distance,
                           std::int64_t gap, std::int64_t free, double* costs,
                           std::int64_t* indices);

/// The two scans in one instruction set. All sets give the same bits.
struct ScanKernels {
  CandidateScan candidates;
  BlockScan block;
};
ScanKernels portable_scan_kernels();
/// The fastest on this machine.
ScanKernels select_scan_kernels();

}  // namespace anyprec::quantize
