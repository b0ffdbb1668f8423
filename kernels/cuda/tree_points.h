#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/tree_block.h"

/// From a sorted row to its points: distinct values with their masses, as in
/// src/quantize/sorted_points.h.
namespace anyprec::cuda::tree {

/// As src/quantize/sorted_points.h has it.
inline constexpr double kMassFloor = 1e-6;

/// Unsigned integers in the order of the floats (no NaN). Both zeros become one.
ANYPREC_TREE std::uint32_t key_of(float value) {
#ifdef __CUDACC__
  const std::uint32_t bits = __float_as_uint(value + 0.0f);
#else
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);
#endif
  return bits ^ ((bits >> 31 != 0 ? 0xffffffffu : 0u) | 0x80000000u);
}

ANYPREC_TREE float value_of(std::uint32_t key) {
  const std::uint32_t bits = key ^ (key >> 31 != 0 ? 0x80000000u : 0xffffffffu);
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

/// One (row, group): `size` weights in the order of (value, column).
struct SortedRow {
  const std::uint32_t* keys;     ///< [size]
  const std::uint32_t* columns;  ///< [size]
  const float* sensitivities;    ///< by column, or null for all ones
  int size;
};

/// m <= size points with strictly rising values.
struct Points {
  float* value;         ///< [size]
  double* sensitivity;  ///< [size] sums over the columns of a point
  int* first;           ///< [size + 1] where in the sorted row each point's columns begin
  double scale;         ///< what makes the mean sensitivity of a column 1
  double floor;
  int count;  ///< m

  ANYPREC_TREE double mass(int i) const {
    return sensitivity[i] * scale + static_cast<double>(first[i + 1] - first[i]) * floor;
  }
};

/// Fills points.value, sensitivity and first, which have room for row.size points, and the numbers.
template <class Block>
ANYPREC_TREE void make_points(const Block& block, Exchange& exchange, const SortedRow& row,
                              Points& points) {
  const int share = (row.size + block.threads() - 1) / block.threads();
  const auto begin_of = [&](int thread) { return thread * share; };
  const auto end_of = [&](int thread) {
    const int end = (thread + 1) * share;
    return end < row.size ? end : row.size;
  };
  const auto begins_point = [&](int i) { return i == 0 || row.keys[i] != row.keys[i - 1]; };
  const auto sensitivity = [&](int i) {
    return row.sensitivities == nullptr ? 1.0
                                        : static_cast<double>(row.sensitivities[row.columns[i]]);
  };
  int* const begun = exchange.run;         // points that begin with a thread
  double* const open = exchange.sums[0];   // of the last point with a thread
  double* const whole = exchange.sums[1];  // of all that a thread has
  block.each([&](int thread) {
    int count = 0;
    double last = 0.0;
    double all = 0.0;
    for (int i = begin_of(thread); i < end_of(thread); ++i) {
      const double s = sensitivity(i);
      all += s;
      if (begins_point(i)) {
        ++count;
        last = 0.0;
      }
      last += s;
    }
    begun[thread] = count;
    open[thread] = last;
    whole[thread] = all;
  });
  sum_groups(block, begun, exchange.group_count);
  sum_groups(block, whole, exchange.group_sum[0]);

  points.count = sum_before(begun, exchange.group_count, 0, block.threads());
  const double total = sum_before(whole, exchange.group_sum[0], 0, block.threads());
  points.scale = total > 0.0 ? static_cast<double>(row.size) / total : 0.0;
  points.floor = total > 0.0 ? kMassFloor : 1.0;
  block.each([&](int thread) {
    const int begin = begin_of(thread);
    const int end = end_of(thread);
    if (begin >= end) return;
    int point = sum_before(begun, exchange.group_count, 0, thread) - 1;
    double sum = 0.0;
    if (!begins_point(begin)) {
      for (int t = thread - 1; t >= 0; --t) {
        sum += open[t];
        if (begun[t] > 0) break;
      }
    }
    for (int i = begin; i < end; ++i) {
      if (begins_point(i)) {
        ++point;
        points.value[point] = value_of(row.keys[i]);
        points.first[point] = i;
        sum = 0.0;
      }
      sum += sensitivity(i);
      if (i + 1 == row.size || begins_point(i + 1)) points.sensitivity[point] = sum;
    }
    if (end == row.size) points.first[point + 1] = row.size;
  });
}

/// Prefix sums at positions 0 .. m: of mass, and of mass * (value - that of the middle point). They
/// run outwards from the middle, so that a huge outlier spoils only the sums beyond it.
template <class Block>
ANYPREC_TREE void sum_outwards(const Block& block, Exchange& exchange, const Points& points,
                               double* mass, double* moment) {
  const int middle = points.count / 2;
  const int half = block.threads() / 2;
  const double centre = points.value[middle];
  // Threads below `half` walk leftwards, the others rightwards; `at` counts from the middle.
  const auto walk = [&](int thread, double masses, double moments, const auto& visit) {
    const bool left = thread < half;
    const int size = left ? middle : points.count - middle;
    const int share = (size + half - 1) / half;
    const int begin = (left ? thread : thread - half) * share;
    const int end = begin + share < size ? begin + share : size;
    for (int at = begin; at < end; ++at) {
      const int i = left ? middle - 1 - at : middle + at;
      const double w = points.mass(i);
      masses += w;
      moments += w * (points.value[i] - centre);
      visit(left, i, masses, moments);
    }
    exchange.sums[0][thread] = masses;
    exchange.sums[1][thread] = moments;
  };
  block.each([&](int thread) { walk(thread, 0.0, 0.0, [](bool, int, double, double) {}); });
  sum_groups(block, exchange.sums[0], exchange.group_sum[0]);
  sum_groups(block, exchange.sums[1], exchange.group_sum[1]);
  // Each thread's sums so far take the place of its own only when all have read.
  block.each([&](int thread) {
    const int first = thread < half ? 0 : half;
    exchange.head[thread].cost = sum_before(exchange.sums[0], exchange.group_sum[0], first, thread);
    exchange.tail[thread].cost = sum_before(exchange.sums[1], exchange.group_sum[1], first, thread);
  });
  block.each([&](int thread) {
    if (thread == 0) mass[middle] = moment[middle] = 0.0;
    walk(thread, exchange.head[thread].cost, exchange.tail[thread].cost,
         [&](bool left, int i, double masses, double moments) {
           mass[left ? i : i + 1] = left ? -masses : masses;
           moment[left ? i : i + 1] = left ? -moments : moments;
         });
  });
}

}  // namespace anyprec::cuda::tree
