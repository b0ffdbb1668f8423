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
/// Most of that is saved by bounding first where each border can lie: points are gathered into
/// bins, and a relaxed dynamic program, in which the bin that a border cuts costs nothing, bounds
/// from below the cost of every partition whose j-th border lies in a given bin. Bins whose bound
/// exceeds the cost of a known partition (Lloyd's, from the relaxed optimum) are out; finer bins
/// repeat this inside what is left, and the exact program runs over the rest alone.
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
  /// Narrows windows_, with bins of `stride` pairs of neighbouring edges each.
  void narrow(std::int64_t stride, std::span<const double> value);
  /// For each border j and bin of its window, the least that the clusters left of it can cost.
  void bound(const Prefix& bins, const std::vector<Window>& windows,
             std::vector<std::int64_t>& offsets, std::vector<double>& costs) const;
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
  std::vector<std::int64_t> edges_;        ///< positions of the finest bins' edges
  std::vector<std::int64_t> level_edges_;  ///< of the bins at hand
  Prefix bins_;                            ///< at level_edges_
  Prefix mirror_;                          ///< the same, read from the right
  std::vector<Window> bin_windows_;
  std::vector<Window> mirror_windows_;
  std::vector<std::int64_t> left_offsets_;  ///< where border j's window begins in left_costs_
  std::vector<std::int64_t> right_offsets_;
  std::vector<double> left_costs_;
  std::vector<double> right_costs_;
  std::vector<std::uint32_t> parents_;
};

}  // namespace anyprec::quantize
