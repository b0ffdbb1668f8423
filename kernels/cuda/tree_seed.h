#pragma once

#include "kernels/cuda/tree_block.h"
#include "kernels/cuda/tree_points.h"

/// The seed: optimal weighted k-means of a row's points, exactly.
///
/// Clusters of an optimum are runs of the sorted points, and least sum of squares about the means
/// is greatest sum of (moment^2 / mass) over clusters. D_j(b), the best of the first b points in j
/// clusters, is the best over a of D_{j-1}(a) and the term of the points a .. b; the best a rises
/// with b (Wu 1991; Groenlund et al., arXiv 1701.07204). So a layer takes the best a of every
/// 2^i-th b first, and those between two of them look only between their a: m log m terms, which
/// threads share equally. src/quantize narrows beforehand where borders can lie; with a block a row
/// the whole layer is as fast. Sums of squares are told apart to 1e-15 of the one about the middle
/// point.
namespace anyprec::cuda::tree {

/// What the program writes for m points and C clusters, n = m - C + 1.
struct SeedBuffers {
  double* mass;      ///< [m + 1] prefix sums
  double* moment;    ///< [m + 1]
  double* costs[2];  ///< [n] each: of two layers in turn
  int* best;         ///< [n] of the layer at hand
  int* trail;        ///< [(C - 2) * n] the best a of every layer between the first and the last
};

/// Bytes of the arrays of SeedBuffers but for the trail, for m points.
inline constexpr int kSeedBytesPerPoint = 4 * sizeof(double) + sizeof(int);

/// The terms of clusters that end at one position.
struct ClusterCost {
  const double* from;    ///< of the first candidate
  const double* mass;    ///< at the first candidate
  const double* moment;  ///< at the first candidate
  double end_mass;
  double end_moment;
  int candidates;  ///< those from here on would be empty

  template <class Block>
  ANYPREC_TREE double of(int candidate) const {
    if (candidate >= candidates) return __builtin_huge_val();
    const double m = end_moment - moment[candidate];
    return from[candidate] - Block::ratio(m * m, end_mass - mass[candidate]);
  }
};

/// Layer j, 2 <= j < C: for every i in [0, n) the best c in [0, i], where i is the position j + i
/// and c the position j - 1 + c. Writes best and to.
template <class Block>
ANYPREC_TREE void solve_layer(const Block& block, Exchange& exchange, const SeedBuffers& buffers,
                              int j, int n, const double* from, double* to) {
  int* const best = buffers.best;
  const auto cost_of = [&](int i) {
    return ClusterCost{.from = from,
                       .mass = buffers.mass + (j - 1),
                       .moment = buffers.moment + (j - 1),
                       .end_mass = buffers.mass[j + i],
                       .end_moment = buffers.moment[j + i],
                       .candidates = i + 1};
  };
  const auto write = [&](int i, const Candidate& found, int candidate) {
    best[i] = candidate;
    to[i] = found.cost;
  };

  int stride = 1;
  while ((n + stride - 1) / stride > block.threads() / kGroup) stride *= 2;
  best_of_few(
      block, exchange, (n + stride - 1) / stride, [&](int target) { return target * stride + 1; },
      [&](int target) {
        return [cost = cost_of(target * stride)](int c) { return cost.template of<Block>(c); };
      },
      [&](int target, const Candidate& found) { write(target * stride, found, found.index); });
  block.each([&](int thread) {
    // They rise but for rounding, and all below relies on it.
    if (thread > 0) return;
    for (int i = stride; i < n; i += stride) {
      best[i] = best[i] < best[i - stride] ? best[i - stride] : best[i];
    }
  });

  for (stride /= 2; stride > 0; stride /= 2) {
    // The odd multiples i = stride (2 t + 1). The last candidate of one is the first of the next,
    // so that candidate c of target t is at c + t.
    const int targets = n > stride ? (n - 1 - stride) / (2 * stride) + 1 : 0;
    if (targets == 0) continue;
    const auto begins = [&](int t) {
      const int even = 2 * stride * t;
      // Beyond the last position: one past the last candidate of the last target.
      return t + (even < n ? best[even] : even - stride);
    };
    best_of_runs(
        block, exchange, targets, begins,
        [&](int t) {
          return [cost = cost_of(stride * (2 * t + 1)), t](int at) {
            return cost.template of<Block>(at - t);
          };
        },
        [&](int t, const Candidate& found) {
          write(stride * (2 * t + 1), found, found.index - t);
        });
  }
}

/// Writes borders: [clusters + 1], as KMeans1D::fit of src/quantize. buffers.mass and moment hold
/// the points' sums (sum_outwards).
template <class Block>
ANYPREC_TREE void fit_seed(const Block& block, Exchange& exchange, const Points& points,
                           const SeedBuffers& buffers, int clusters, int* borders) {
  const int m = points.count;
  if (m <= clusters) {
    block.each([&](int thread) {
      for (int j = thread; j <= clusters; j += block.threads()) {
        borders[j] = j == clusters || j > m ? m : j;
      }
    });
    return;
  }
  const int n = m - clusters + 1;
  block.each([&](int thread) {
    for (int i = thread; i < n; i += block.threads()) {
      const double moment = buffers.moment[1 + i] - buffers.moment[0];
      const double mass = buffers.mass[1 + i] - buffers.mass[0];
      buffers.costs[1][i] = -Block::ratio(moment * moment, mass);
    }
  });
  for (int j = 2; j < clusters; ++j) {
    solve_layer(block, exchange, buffers, j, n, buffers.costs[(j - 1) % 2], buffers.costs[j % 2]);
    block.each([&](int thread) {
      int* const trail = buffers.trail + static_cast<std::int64_t>(j - 2) * n;
      for (int i = thread; i < n; i += block.threads()) trail[i] = buffers.best[i];
    });
  }

  // The last cluster ends with the last point.
  const ClusterCost last{.from = buffers.costs[(clusters - 1) % 2],
                         .mass = buffers.mass + (clusters - 1),
                         .moment = buffers.moment + (clusters - 1),
                         .end_mass = buffers.mass[m],
                         .end_moment = buffers.moment[m],
                         .candidates = n};
  block.each([&](int thread) {
    Candidate found{__builtin_huge_val(), n - 1};
    for (int c = thread; c < n; c += block.threads()) {
      const Candidate here{last.template of<Block>(c), c};
      if (better(here, found)) found = here;
    }
    exchange.head[thread] = found;
  });
  block.each([&](int thread) {
    if (thread >= block.threads() / kGroup) return;
    Candidate found = exchange.head[thread * kGroup];
    for (int t = 1; t < kGroup; ++t) {
      if (better(exchange.head[thread * kGroup + t], found)) {
        found = exchange.head[thread * kGroup + t];
      }
    }
    exchange.tail[thread] = found;
  });
  block.each([&](int thread) {
    if (thread > 0) return;
    Candidate found = exchange.tail[0];
    for (int t = 1; t < block.threads() / kGroup; ++t) {
      if (better(exchange.tail[t], found)) found = exchange.tail[t];
    }
    borders[0] = 0;
    borders[clusters] = m;
    int position = clusters - 1 + found.index;
    for (int j = clusters - 1; j > 1; --j) {
      borders[j] = position;
      position = j - 1 + buffers.trail[static_cast<std::int64_t>(j - 2) * n + position - j];
    }
    borders[1] = position;
  });
}

}  // namespace anyprec::cuda::tree
