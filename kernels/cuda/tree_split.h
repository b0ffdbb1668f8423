#pragma once

#include "kernels/cuda/tree_block.h"
#include "kernels/cuda/tree_points.h"

/// One more bit: every cluster cut in two so that the weighted sum of squared errors of both halves
/// is least, exactly, as Kernels::split of src/quantize.
namespace anyprec::cuda::tree {

/// What a split writes for m points.
struct SplitBuffers {
  double* mass;    ///< [m] of its cluster's points up to and with this one
  double* moment;  ///< [m] the same of mass * (value - that of the cluster's first point)
};

/// Prefix sums within each of the clusters [borders[c], borders[c + 1]): about their own first
/// points, since a small cluster would drown in sums over the row.
template <class Block>
ANYPREC_TREE void sum_clusters(const Block& block, Exchange& exchange, const Points& points,
                               const int* borders, int clusters, const SplitBuffers& sums) {
  const int share = (points.count + block.threads() - 1) / block.threads();
  const auto border = [&](int c) { return borders[c]; };
  // From `masses` and `moments` before the first point; returns whether a cluster begins here.
  const auto walk = [&](int thread, double masses, double moments, const auto& visit) {
    const int begin = thread * share;
    const int end = begin + share < points.count ? begin + share : points.count;
    bool begins = false;
    if (begin < end) {
      int cluster = run_of(border, clusters, begin);
      double origin = points.value[borders[cluster]];
      for (int i = begin; i < end; ++i) {
        if (i == borders[cluster + 1]) {
          cluster = run_of(border, clusters, i);
          origin = points.value[i];
        }
        if (i == borders[cluster]) {
          masses = moments = 0.0;
          begins = true;
        }
        const double w = points.mass(i);
        masses += w;
        moments += w * (points.value[i] - origin);
        visit(i, masses, moments);
      }
    }
    exchange.sums[0][thread] = masses;
    exchange.sums[1][thread] = moments;
    return begins;
  };
  block.each([&](int thread) {
    exchange.run[thread] = walk(thread, 0.0, 0.0, [](int, double, double) {}) ? 1 : 0;
  });
  block.each([&](int thread) {
    double masses = 0.0;
    double moments = 0.0;
    for (int t = thread - 1; t >= 0; --t) {
      masses += exchange.sums[0][t];
      moments += exchange.sums[1][t];
      if (exchange.run[t] != 0) break;
    }
    exchange.head[thread].cost = masses;
    exchange.tail[thread].cost = moments;
  });
  block.each([&](int thread) {
    walk(thread, exchange.head[thread].cost, exchange.tail[thread].cost,
         [&](int i, double masses, double moments) {
           sums.mass[i] = masses;
           sums.moment[i] = moments;
         });
  });
}

/// children: [2 * clusters + 1], the borders of the halves. A single point goes left, and an empty
/// cluster has two empty halves. Of several best cuts the leftmost.
template <class Block>
ANYPREC_TREE void split(const Block& block, Exchange& exchange, const Points& points,
                        const SplitBuffers& sums, const int* borders, int clusters, int* children) {
  sum_clusters(block, exchange, points, borders, clusters, sums);
  block.each([&](int thread) {
    for (int c = thread; c <= clusters; c += block.threads()) {
      children[2 * c] = borders[c];
      if (c < clusters) children[2 * c + 1] = borders[c + 1];
    }
  });
  best_of_runs(
      block, exchange, clusters, [&](int c) { return borders[c]; },
      [&](int c) {
        // With the moment t of the left half about the centroid (the right half's is -t), its mass
        // w and the mass W of both, a cut lowers the sum of squares by t^2 W / (w (W - w)).
        const int last = borders[c + 1] - 1;
        const double total = sums.mass[last];
        const double centroid = sums.moment[last] / total;
        return [&sums, last, total, centroid](int i) {
          if (i == last) return __builtin_huge_val();
          const double w = sums.mass[i];
          const double t = sums.moment[i] - centroid * w;
          return -Block::ratio(t * t, w * (total - w));
        };
      },
      [&](int c, const Candidate& found) { children[2 * c + 1] = found.index + 1; });
}

}  // namespace anyprec::cuda::tree
