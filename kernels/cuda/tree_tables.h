#pragma once

#include <cstdint>

#include "kernels/cuda/tree_block.h"
#include "kernels/cuda/tree_points.h"

/// From the clusters of the parent precision to codes and the tables of all precisions, as the
/// leaves, merge and table of src/quantize/kernels.h.
namespace anyprec::cuda::tree {

inline constexpr int kMaxClusters = 256;
inline constexpr int kPrecisions = 7;  // 2 to 8

/// What is known of clusters; those of precision b are entries [2^b, 2^(b + 1)).
struct ClusterMoments {
  double mass[2 * kMaxClusters];  ///< of its points; 0 where it is empty
  double mean[2 * kMaxClusters];  ///< weighted; where it is empty, what its table entries say
  // Moments of the sensitivities as given, about the mean.
  double sensitivity[2 * kMaxClusters];
  double moment[2 * kMaxClusters];
  double square[2 * kMaxClusters];
  double error[2 * kMaxClusters];  ///< sum of sensitivity * (value - entry)^2
};

/// Where one (row, group)'s results go.
struct RowResult {
  std::uint8_t* codes;       ///< [size], by column
  float* luts[kPrecisions];  ///< [2^b] at b - 2; null where b is not asked for
  double* errors;            ///< [parent - lowest + 1]
};

/// Sums are about the first point and the mean is kept between the first and the last, so that
/// means never fall from one cluster to the next.
ANYPREC_TREE void set_leaf(const Points& points, int begin, int end, ClusterMoments& out, int at) {
  const double first = points.value[begin];
  const double last = points.value[end - 1];
  double mass = 0.0;
  double moment = 0.0;
  for (int i = begin; i < end; ++i) {
    const double w = points.mass(i);
    mass += w;
    moment += w * (points.value[i] - first);
  }
  double mean = first + moment / mass;
  mean = mean < first ? first : last < mean ? last : mean;
  double sensitivity = 0.0;
  double linear = 0.0;
  double square = 0.0;
  for (int i = begin; i < end; ++i) {
    const double distance = points.value[i] - mean;
    const double weighted = points.sensitivity[i] * distance;
    sensitivity += points.sensitivity[i];
    linear += weighted;
    square += weighted * distance;
  }
  out.mass[at] = mass;
  out.mean[at] = mean;
  out.sensitivity[at] = sensitivity;
  out.moment[at] = linear;
  out.square[at] = square;
}

/// The halves at 2 * at and 2 * at + 1 become the cluster `at`; means are weighed by mass. Where
/// the right half is empty the left one is all there is.
ANYPREC_TREE void merge_halves(ClusterMoments& clusters, int at) {
  const int left = 2 * at;
  const int right = left + 1;
  clusters.mass[at] = clusters.mass[left] + clusters.mass[right];
  clusters.sensitivity[at] = clusters.sensitivity[left] + clusters.sensitivity[right];
  if (!(clusters.mass[right] > 0.0)) {
    clusters.mean[at] = clusters.mean[left];
    clusters.moment[at] = clusters.moment[left];
    clusters.square[at] = clusters.square[left];
    return;
  }
  const double low = clusters.mean[left];
  const double high = clusters.mean[right];
  double mean = low + (high - low) * (clusters.mass[right] / clusters.mass[at]);
  mean = mean < low ? low : high < mean ? high : mean;
  double moment = 0.0;
  double square = 0.0;
  for (int half = left; half <= right; ++half) {
    const double from = clusters.mean[half] - mean;
    const double shift = from * clusters.sensitivity[half];
    moment += clusters.moment[half] + shift;
    square += clusters.square[half] + from * (2.0 * clusters.moment[half] + shift);
  }
  clusters.mean[at] = mean;
  clusters.moment[at] = moment;
  clusters.square[at] = square;
}

/// borders: [2^parent + 1].
template <class Block>
ANYPREC_TREE void write_tables(const Block& block, const Points& points, const int* borders,
                               int lowest, int parent, ClusterMoments& clusters,
                               const RowResult& result) {
  const int leaves = 1 << parent;
  block.each([&](int thread) {
    for (int c = thread; c < leaves; c += block.threads()) {
      if (borders[c] < borders[c + 1]) {
        set_leaf(points, borders[c], borders[c + 1], clusters, leaves + c);
      }
    }
  });
  block.each([&](int thread) {
    for (int c = thread; c < leaves; c += block.threads()) {
      if (borders[c] < borders[c + 1]) continue;
      // Descends from the right half of a single point (or from a row of fewer points than seed
      // clusters) and keeps that point's value. The first is never empty.
      int full = c - 1;
      while (borders[full] == borders[full + 1]) --full;
      clusters.mean[leaves + c] = clusters.mean[leaves + full];
      clusters.mass[leaves + c] = clusters.sensitivity[leaves + c] = 0.0;
      clusters.moment[leaves + c] = clusters.square[leaves + c] = 0.0;
    }
  });
  for (int b = parent; b >= lowest; --b) {
    const int count = 1 << b;
    block.each([&](int thread) {
      for (int c = thread; c < count; c += block.threads()) {
        const int at = count + c;
        if (b < parent) merge_halves(clusters, at);
        const auto entry = static_cast<float>(clusters.mean[at]);
        result.luts[b - 2][c] = entry;
        const double shift = clusters.mean[at] - static_cast<double>(entry);
        clusters.error[at] = clusters.square[at] +
                             shift * (2.0 * clusters.moment[at] + shift * clusters.sensitivity[at]);
      }
    });
  }
  block.each([&](int thread) {
    for (int b = lowest + thread; b <= parent; b += block.threads()) {
      double sum = 0.0;
      for (int at = 1 << b; at < 2 << b; ++at) sum += clusters.error[at];
      result.errors[b - lowest] = sum < 0.0 ? 0.0 : sum;
    }
  });
}

template <class Block>
ANYPREC_TREE void write_codes(const Block& block, const SortedRow& row, const Points& points,
                              const int* borders, int parent, std::uint8_t* codes) {
  const int share = (row.size + block.threads() - 1) / block.threads();
  block.each([&](int thread) {
    const int begin = thread * share;
    const int end = begin + share < row.size ? begin + share : row.size;
    if (begin >= end) return;
    const auto border = [&](int c) { return borders[c]; };
    int point = run_of([&](int p) { return points.first[p]; }, points.count, begin);
    int code = run_of(border, 1 << parent, point);
    for (int i = begin; i < end; ++i) {
      if (i == points.first[point + 1]) {
        ++point;
        if (point == borders[code + 1]) code = run_of(border, 1 << parent, point);
      }
      codes[row.columns[i]] = static_cast<std::uint8_t>(code);
    }
  });
}

}  // namespace anyprec::cuda::tree
