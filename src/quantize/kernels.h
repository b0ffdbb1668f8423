#pragma once

#include <cstdint>

#include "anyprec/linear.h"

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

/// Weighted sum of squared errors about the mean, of the points between two positions, whichever
/// comes first. There must be some.
inline double segment_cost(const PrefixPoint& begin, const PrefixPoint& end) {
  const double moment = end.moment - begin.moment;
  const double mean_part = moment * moment / (end.mass - begin.mass);
  const double cost = (end.square - begin.square) - mean_part;
  return cost < 0.0 ? -cost : cost;  // negative by rounding, or where `end` comes first
}

struct Candidate {
  double cost;
  std::int64_t index;
};

/// What is known of clusters, an array of each: [clusters].
struct ClusterMoments {
  double* mass;  ///< of its points; 0 where it is empty
  double* mean;  ///< their weighted mean; where it is empty, what its table entries say
  // Moments of the sensitivities as given, about the mean.
  double* sensitivity;
  double* moment;
  double* square;
};

/// Kernels take this many doubles at a time, in every instruction set: kLanes - 1 entries past the
/// end of every array that they read must be readable.
inline constexpr std::int64_t kLanes = 8;
/// Positions of a table of pairs come in runs of so many.
inline constexpr std::int64_t kPairRun = 2 * kLanes;

/// The inner loops of clustering. Most are steps of shortest paths over positions of sorted points,
/// where the way from position a to b costs what the points between them cost as one cluster. Every
/// instruction set gives the same bits.
struct Kernels {
  /// The least base[i] + cost of the segment from begins[i] to `end` over i in [0, count), and the
  /// smallest such i; {infinity, 0} where there is none. All pointers are at the first candidate.
  /// Each segment must hold some points.
  Candidate (*best)(const double* base, const PrefixView& begins, const PrefixPoint& end,
                    std::int64_t count);

  /// Writes, for each of the targets t, the least base[i] + cost of the segment from begins[i] to
  /// ends[t] over the candidates i. The segment has length distance + t - i: where that is below
  /// `gap` it is not allowed (infinity where none is), up to `free` it costs nothing.
  void (*block)(const double* base, const PrefixView& begins, std::int64_t candidates,
                const PrefixView& ends, std::int64_t targets, std::int64_t distance,
                std::int64_t gap, std::int64_t free, double* costs);

  /// costs: [count, count], the cost between any two of `count` positions, 0 where there are no
  /// points between them. count: a multiple of kPairRun.
  void (*pairs)(const PrefixView& sums, std::int64_t count, double* costs);

  /// One step through such a table: to[b] is the least base[a] + costs[a, b] over a <= b
  /// rightwards, over a >= b otherwise, and over all a of b's run of kPairRun.
  void (*relax)(const double* base, const double* costs, std::int64_t count, bool rightwards,
                double* to);

  /// out: [bins], the sum of mass * |value - mean| over the points [edges[i], edges[i + 1]) of each
  /// bin. sums: at the edges, with values about `centre`. Reads nothing past the last edge.
  void (*spread)(const double* value, const double* mass, double centre, const std::int64_t* edges,
                 const PrefixView& sums, std::int64_t bins, double* out);

  /// Cuts each cluster, the points [borders[c], borders[c + 1]), in two so that the weighted sum of
  /// squared errors of both halves is least; the leftmost cut where several are best. A single
  /// point goes left. value: rising; mass: positive. children: [2 * clusters + 1], the borders of
  /// the halves. Reads nothing outside the clusters.
  void (*split)(const double* value, const double* mass, const std::int64_t* borders,
                std::int64_t clusters, std::int64_t* children);

  /// The clusters of points [borders[c], borders[c + 1]). An empty one, which must not be the
  /// first, has its predecessor's mean. Reads nothing outside the clusters.
  void (*leaves)(const double* value, const double* mass, const double* sensitivity,
                 const std::int64_t* borders, std::int64_t clusters, const ClusterMoments& out);
  /// Merges 2 * pairs clusters in pairs, in place, weighing means by mass. Arrays have room for a
  /// multiple of 2 * kLanes.
  void (*merge)(const ClusterMoments& clusters, std::int64_t pairs);
  /// Writes the means, and returns the sum of sensitivity * (weight - entry)^2.
  double (*table)(const ClusterMoments& clusters, std::int64_t count, float* entries);
};

/// isa: one that this machine supports.
const Kernels& kernels_for(cpu::Isa isa);

}  // namespace anyprec::quantize
