#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/quantize/kernels.h"

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
/// (the worst case is a border at the bin's mean). So a program over bin edges alone, with this
/// much taken off for each border, bounds from below the cost of every partition whose j-th border
/// is near a given edge. Edges whose bound exceeds the cost of a known partition (Lloyd's, from the
/// best edges) are out. The slack falls with the square of the width of the bins, so a few finer
/// grids inside what is left narrow it further, and the exact program runs over what they leave.
///
/// Keeps its buffers from call to call: at worst (every border may lie anywhere) 8 bytes for each
/// point and cluster, in practice a few dozen bytes a point.
class KMeans1D {
 public:
  explicit KMeans1D(const Kernels& kernels = kernels_for(cpu::selected_isa()));

  /// value: [m] strictly rising; mass: [m] positive. Writes borders: [clusters + 1], cluster j
  /// being the points [borders[j], borders[j + 1]), borders[0] = 0, borders[clusters] = m. With
  /// fewer points than clusters every point is its own and the last clusters are empty.
  void fit(std::span<const double> value, std::span<const double> mass,
           std::span<std::int64_t> borders);

 private:
  /// Where border j may lie: positions or edges [low, high].
  struct Window {
    std::int64_t low;
    std::int64_t high;
  };
  struct Prefix {
    std::vector<double> mass;
    std::vector<double> moment;
    std::vector<double> square;
    void resize(std::size_t size) {
      mass.resize(size + kLanes - 1);
      moment.resize(size + kLanes - 1);
      square.resize(size + kLanes - 1);
    }
    void put(std::int64_t at, const PrefixPoint& point) {
      mass[at] = point.mass;
      moment[at] = point.moment;
      square[at] = point.square;
    }
    PrefixView view() const { return {mass.data(), moment.data(), square.data()}; }
  };

  std::int64_t clusters() const { return static_cast<std::int64_t>(windows_.size()) - 1; }
  std::int64_t total_width() const;
  std::int64_t widest_window() const;
  /// Narrows windows_ as far as it pays.
  void narrow_by_grids(std::span<const double> value, std::span<const double> mass);
  void build_prefix(std::span<const double> value, std::span<const double> mass);
  /// Cuts the points into about `bins` bins, finer where centroids are dense.
  void choose_edges(std::span<const double> value, std::int64_t bins);
  /// Edges inside windows_.
  void refine_edges();

  /// Sums at edges_ and what find the slack.
  void gather_edges(std::span<const double> value, std::span<const double> mass);
  /// What the optimum loses at most when a border moves from inside bin i to one of its edges,
  /// where no cluster beside the border goes beyond the positions given.
  double bin_slack(std::span<const double> value, std::int64_t i, std::int64_t leftmost,
                   std::int64_t rightmost) const;
  /// For the first grid, where windows say little: how far clusters can reach from each edge, and
  /// edge_slack_ and windows_ from that.
  void limit_reach(std::span<const double> value);
  /// Both set ranges_ and bounds_. The first takes all edges for every border and computes the
  /// costs between any two once, for all of them; slack is edge_slack_, as in the second on a first
  /// grid.
  void bound_on_all_edges();
  void bound_in_windows(std::span<const double> value, bool first);
  /// For each border and edge of its range, the least that the clusters left of it can cost, less
  /// the slack of the borders up to this one. sums: at the edges, or those of the mirror.
  void bound_side(const Prefix& sums, const PrefixPoint& origin, bool mirrored,
                  std::vector<double>& costs);
  /// Narrows windows_ by bounds_.
  void narrow(std::span<const double> value);
  /// Lloyd's iterations on borders_; returns the cost reached.
  double improve(std::span<const double> value);
  void solve_exactly(std::span<std::int64_t> borders);

  const Kernels& kernels_;
  Prefix points_;                      ///< [m + 1]
  std::vector<Window> windows_;        ///< [clusters + 1] positions of border j
  std::vector<std::int64_t> borders_;  ///< [clusters + 1] of the best known partition
  double known_cost_ = 0.0;

  std::vector<double> block_;
  std::vector<double> centroids_;
  std::vector<std::int64_t> edges_;        ///< [E] rising positions
  Prefix edge_sums_;                       ///< [E] at edges_
  Prefix mirror_sums_;                     ///< [E] the same, read from the right
  std::vector<double> spread_;             ///< [E - 1] sum of mass * |x - mean| of each bin
  std::vector<std::int64_t> left_reach_;   ///< [E] edges
  std::vector<std::int64_t> right_reach_;  ///< [E]
  std::vector<double> edge_slack_;         ///< [E] the same for every border
  std::vector<double> pair_costs_;         ///< [E, E]
  std::vector<Window> ranges_;             ///< [clusters + 1] edges around border j's window
  std::vector<Window> mirror_ranges_;
  std::vector<std::int64_t> offsets_;  ///< where border j's entries begin in the next four
  std::vector<double> slack_;
  std::vector<double> left_costs_;
  std::vector<double> right_costs_;
  std::vector<double>
      bounds_;  ///< of the cost of any partition whose border j is next to that edge
};

}  // namespace anyprec::quantize
