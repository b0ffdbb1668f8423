#pragma once

#include "kernels/cuda/tree_points.h"
#include "kernels/cuda/tree_seed.h"
#include "kernels/cuda/tree_split.h"
#include "kernels/cuda/tree_tables.h"

/// One (row, group) by one block: what anyprec::quantize_matrix does with it on a CPU.
namespace anyprec::cuda::tree {

struct Precisions {
  int lowest;
  int seed;
  int parent;
};

/// What a block keeps in shared memory beside a row's arrays.
struct BlockState {
  union {
    Exchange exchange;
    ClusterMoments clusters;  // when all searches are done
  };
  int borders[2][kMaxClusters + 1];
};

/// Memory for a row of up to `size` weights.
struct RowMemory {
  Points points;  ///< arrays of `size` (first: of one more)
  void* fast;     ///< fast_bytes(m) for rows of up to fast_points points
  int fast_points;
  void* slow;  ///< fast_bytes(size), for other rows
  int* trail;  ///< trail_entries(size, seed)
};

/// For m points: 4 arrays of m + 1 doubles and one of integers.
ANYPREC_TREE constexpr std::int64_t fast_bytes(std::int64_t m) {
  return (m + 1) * kSeedBytesPerPoint;
}

ANYPREC_TREE constexpr std::int64_t trail_entries(std::int64_t size, int seed) {
  return size * ((std::int64_t{1} << seed) - 2);
}

template <class Block>
ANYPREC_TREE void quantize_row(const Block& block, BlockState& state, const RowMemory& memory,
                               const SortedRow& row, const Precisions& precisions,
                               const RowResult& result) {
  Exchange& exchange = state.exchange;
  Points points = memory.points;
  make_points(block, exchange, row, points);

  auto* const arrays =
      static_cast<double*>(points.count <= memory.fast_points ? memory.fast : memory.slow);
  const std::int64_t length = points.count + 1;
  const SeedBuffers seed{.mass = arrays,
                         .moment = arrays + length,
                         .costs = {arrays + 2 * length, arrays + 3 * length},
                         .best = reinterpret_cast<int*>(arrays + 4 * length),
                         .trail = memory.trail};
  sum_outwards(block, exchange, points, seed.mass, seed.moment);
  fit_seed(block, exchange, points, seed, 1 << precisions.seed, state.borders[precisions.seed % 2]);
  for (int b = precisions.seed; b < precisions.parent; ++b) {
    split(block, exchange, points, {seed.mass, seed.moment}, state.borders[b % 2], 1 << b,
          state.borders[(b + 1) % 2]);
  }
  const int* const borders = state.borders[precisions.parent % 2];
  write_codes(block, row, points, borders, precisions.parent, result.codes);
  write_tables(block, points, borders, precisions.lowest, precisions.parent, state.clusters,
               result);
}

}  // namespace anyprec::cuda::tree
