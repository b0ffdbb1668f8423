#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/quantize/candidate_scan.h"

namespace anyprec::quantize {

/// Optimal weighted k-means in one dimension, to a relative 1e-9 of the least cost and 1e-15 of the
/// cost of a single cluster (rounding).
///
/// Clusters of an optimum are runs of the sorted points, so it is a shortest path: D_j(i), the
/// least cost of the first i points in j clusters, is the minimum over p of
/// D_{j-1}(p) + cost(p, i). The cost is concave Monge, hence the best p rises with i, and a layer
/// takes O(n log n) by divide and conquer (Wu 1991; Groenlund et al., arXiv 1701.07204).
///
/// Most of that is saved by finding first where each border can lie. At an optimum a border is
/// midway between two centroids. Moving it to an end of the bin (of sorted points) that it lies in
/// then costs at most d * sum mass * |x - mean| over the bin, with d the distance of the centroids
/// (the worst case is a border at the bin's mean), and that is at most d * sqrt(mass * squares),
/// squares being the bin's about its mean. So a program over bin edges alone, with this much taken
/// off for each border, bounds from below the cost of every partition whose j-th border is near a
/// given edge. Edges whose bound exceeds the cost of a known partition (Lloyd's, from the best
/// edges) are out. The slack falls with the square of the width of the bins, so a few finer grids
/// inside what is left narrow it to a few points, and the exact program runs over these.
///
/// Keeps its buffers from call to call: at worst (every border may lie anywhere) 4 bytes for each
/// point and cluster, in practice a few dozen bytes a point.
class KMeans1D {
 public:
  explicit KMeans1D(const ScanKernels& kernels = select_scan_kernels());

  /// value: [m] strictly rising; mass: [m] positive. Writes borders: [clusters + 1], cluster j
  /// being the points [borders[j], borders[j + 1]), borders[0] = 0, borders[clusters] = m. With
  /// fewer points than clusters every point is its own and the last clusters are empty.
  void fit(std::span<const double> value, std::span<const double> mass,
           std::span<std::int64_t> borders);

 private:
  /// Where border j may lie: positions or bins [low, high].
  struct Window {
    std::int64_t low;
    std::int64_t high;
  };
  struct Prefix {
    std::vector<double> mass;
    std::vector<double> moment;
    std::vector<double> square;
    void resize(std::size_t size);
    PrefixView view(std::int64_t shift = 0) const;
  };

  void build_prefix(std::span<const double> value, std::span<const double> mass);
  /// Cuts the points into about `bins` bins, finer where centroids are dense.
  void choose_edges(std::span<const double> value, std::int64_t bins);
  /// Edges inside windows_.
  void refine_edges();
  /// Narrows windows_ by a grid of edges_.
  void narrow(std::span<const double> value);
  void gather_edges(std::int64_t m);
  /// For each edge of ranges_[j]: what the optimum loses at most when border j moves there.
  void find_slack(std::span<const double> value, std::int64_t j);
  /// For each border and edge of its range, the least that the clusters left of it can cost, less
  /// the slack of the borders up to this one. sums: at the edges, or those of the mirror.
  void bound(const Prefix& sums, const PrefixPoint& origin, bool mirrored,
             std::vector<double>& costs);
  /// Lloyd's iterations on borders_; returns the cost reached.
  double improve(std::span<const double> value);
  void solve_exactly(std::span<std::int64_t> borders);

  ScanKernels scan_;
  Prefix points_;                      ///< [m + 1]
  std::vector<Window> windows_;        ///< [clusters + 1] positions of border j
  std::vector<std::int64_t> borders_;  ///< [clusters + 1] of the best known partition
  double known_cost_ = 0.0;

  std::vector<double> block_;
  std::vector<double> centroids_;
  std::vector<std::int64_t> edges_;  ///< [E] rising positions
  Prefix edge_sums_;                 ///< [E] at edges_
  Prefix mirror_sums_;               ///< [E] the same, read from the right
  std::vector<double> spread_;       ///< [E - 1] sqrt(mass * squares) of each bin
  std::vector<Window> ranges_;       ///< [clusters + 1] edges around border j's window
  std::vector<Window> mirror_ranges_;
  std::vector<std::int64_t> offsets_;  ///< where border j's entries begin in the next three
  std::vector<double> slack_;
  std::vector<double> left_costs_;
  std::vector<double> right_costs_;
  std::vector<std::uint32_t> parents_;
};

}  // namespace anyprec::quantize
