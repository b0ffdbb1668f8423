#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/fit_sweep.h"

/// The loops of fit_sweep.h, written once with vectors of 16 floats and compiled for each set.
namespace anyprec::cpu {
namespace {

typedef float Vec __attribute__((vector_size(64), aligned(4)));
typedef std::int32_t Mask __attribute__((vector_size(64)));
inline constexpr int kVecs = 256 / kTableLanes;
inline constexpr int kColumnVecs = kSweepColumns / kTableLanes;

inline Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
inline void store(float* to, const Vec& v) { std::memcpy(to, &v, sizeof(v)); }

/// The first of the smallest of 16 * vecs numbers.
inline int argmin(const Vec* cost, int vecs) {
  Vec least = cost[0];
  Mask from = {};
  for (int v = 1; v < vecs; ++v) {
    const Mask less = cost[v] < least;
    least = less ? cost[v] : least;
    from = less ? Mask{} + v : from;
  }
  int best = from[0] * kTableLanes;
  float value = least[0];
  for (int lane = 1; lane < kTableLanes; ++lane) {
    const int index = from[lane] * kTableLanes + lane;
    const bool better = least[lane] < value || (least[lane] == value && index < best);
    value = better ? least[lane] : value;
    best = better ? index : best;
  }
  return best;
}

/// coupling: [64, 64], padded by zeros.
void sweep_row(const SweepBlock& block, const float* coupling_rows, std::int64_t row) {
  const int widths = block.widths;
  const int parent = block.precisions[widths - 1];
  alignas(64) float state[kSweepWidths][kSweepColumns] = {};
  alignas(64) float steps[kSweepWidths][kSweepColumns] = {};
  const float* tables[kSweepWidths];
  float weights[kSweepWidths];
  float target[kSweepWidths];
  float reference[kSweepWidths];
  for (int w = 0; w < widths; ++w) {
    const float* from = block.state + (w * block.rows + row) * block.stride;
    std::copy(from, from + block.columns, state[w]);
    tables[w] = block.tables[w] + row * block.codebooks * padded_entries(block.precisions[w]);
    weights[w] = block.weights[w * block.rows + row];
  }
  std::uint8_t* codes = block.codes + row * block.stride;

  for (int j = 0; j < block.columns; ++j) {
    const int old = codes[j];
    const std::int64_t group = block.groups[j];
    const auto table_of = [&](int w) {
      return tables[w] + group * padded_entries(block.precisions[w]);
    };
    const auto value_of = [&](int w, int code) {
      return table_of(w)[code & ((1 << block.precisions[w]) - 1)];
    };
    for (int w = 0; w < widths; ++w) {
      if (block.inverse_diagonal == nullptr) {
        reference[w] = target[w] = state[w][j];
      } else {
        reference[w] = value_of(w, old);
        target[w] = reference[w] + state[w][j] * block.inverse_diagonal[j];
      }
    }
    int code;
    if (block.newest_bit_only) {
      const int half = 1 << (parent - 1);
      const int low = old & (half - 1);
      const float to_low = target[0] - value_of(0, low);
      const float to_high = target[0] - value_of(0, low + half);
      code = to_high * to_high < to_low * to_low ? low + half : low;
    } else {
      Vec cost[kVecs];
      cost[0] = Vec{};
      int had = 1;
      for (int w = 0; w < widths; ++w) {
        const int vecs = padded_entries(block.precisions[w]) / kTableLanes;
        const float* table = table_of(w);
        for (int v = vecs - 1; v >= 0; --v) {
          const Vec distance = target[w] - load(table + v * kTableLanes);
          cost[v] = cost[v & (had - 1)] + weights[w] * distance * distance;
        }
        had = vecs;
      }
      code = argmin(cost, had);
    }
    codes[j] = static_cast<std::uint8_t>(code);
    const float* coupling = coupling_rows + j * kSweepColumns;
    for (int w = 0; w < widths; ++w) {
      const float step = reference[w] - value_of(w, code);
      steps[w][j] = step;
      for (int v = j / kTableLanes; v < kColumnVecs; ++v) {
        float* at = state[w] + v * kTableLanes;
        store(at, load(at) + step * load(coupling + v * kTableLanes));
      }
    }
  }
  for (int w = 0; w < widths; ++w) {
    std::copy(steps[w], steps[w] + block.columns,
              block.steps + (w * block.rows + row) * block.step_stride);
  }
}

void sweep(const SweepBlock& block) {
  alignas(64) float coupling[kSweepColumns * kSweepColumns] = {};
  for (int j = 0; j < block.columns; ++j) {
    const float* from = block.coupling + j * block.coupling_stride;
    std::copy(from, from + block.columns, coupling + j * kSweepColumns);
  }
  for (std::int64_t row = 0; row < block.rows; ++row) sweep_row(block, coupling, row);
}

/// Columns of one slot lie side by side in `order`: their rows of the Hessian are summed in
/// registers, 64 columns at a time, for all rows, so that this part of it stays in the cache.
void segment_sums(const SegmentSums& sums) {
  const std::int64_t columns = sums.columns;
  const int slots = sums.slots;
  std::vector<std::int32_t> order(sums.rows * columns);
  std::vector<std::int32_t> begin(sums.rows * (slots + 1), 0);
  for (std::int64_t row = 0; row < sums.rows; ++row) {
    const std::int32_t* slot_of = sums.slot_of + row * columns;
    std::int32_t* first = begin.data() + row * (slots + 1);
    for (std::int64_t k = 0; k < columns; ++k) ++first[slot_of[k] + 1];
    for (int slot = 0; slot < slots; ++slot) first[slot + 1] += first[slot];
    std::vector<std::int32_t> next(first, first + slots);
    std::int32_t* to = order.data() + row * columns;
    for (std::int64_t k = 0; k < columns; ++k)
      to[next[slot_of[k]]++] = static_cast<std::int32_t>(k);
  }
  std::fill(sums.normal, sums.normal + sums.rows * slots * slots, 0.0f);
  std::vector<float> padded(columns * kSweepColumns);
  for (std::int64_t at = 0; at < columns; at += kSweepColumns) {
    const auto width = std::min<std::int64_t>(kSweepColumns, columns - at);
    for (std::int64_t k = 0; k < columns; ++k) {
      std::copy_n(sums.hessian + k * columns + at, width, padded.data() + k * kSweepColumns);
    }
    for (std::int64_t row = 0; row < sums.rows; ++row) {
      const std::int32_t* slot_of = sums.slot_of + row * columns + at;
      const std::int32_t* first = begin.data() + row * (slots + 1);
      const std::int32_t* members = order.data() + row * columns;
      float* normal = sums.normal + row * slots * slots;
      for (int slot = 0; slot < slots; ++slot) {
        if (first[slot] == first[slot + 1]) continue;
        Vec total[kColumnVecs] = {};
        for (std::int32_t i = first[slot]; i < first[slot + 1]; ++i) {
          const float* from = padded.data() + std::int64_t{members[i]} * kSweepColumns;
          for (int v = 0; v < kColumnVecs; ++v) total[v] += load(from + v * kTableLanes);
        }
        float row_sums[kSweepColumns];
        for (int v = 0; v < kColumnVecs; ++v) store(row_sums + v * kTableLanes, total[v]);
        float* to = normal + std::int64_t{slot} * slots;
        for (std::int64_t k = 0; k < width; ++k) to[slot_of[k]] += row_sums[k];
      }
    }
  }
}

constexpr FitKernels kFitKernels{sweep, segment_sums};

}  // namespace
}  // namespace anyprec::cpu
