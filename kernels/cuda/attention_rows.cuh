#pragma once

#include <cstdint>

#include "kernels/decoder.h"

/// Which keys a row of queries sees, from the tables in device memory.
namespace anyprec::cuda {

/// The sequence of a row, or -1.
__device__ __forceinline__ int sequence_of(const decoder::Attention& attention, std::int64_t row) {
  const std::int32_t* const start = attention.sequence_start;
  int low = 0, high = attention.sequences;  // start[low] <= row < start[high]
  if (row < start[0] || row >= start[high]) return -1;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (start[middle] <= row ? low : high) = middle;
  }
  return low;
}

/// Positions [begin, end) of a sequence. Those from `fresh` on are of the rows of this call.
struct KeyRange {
  int sequence;
  int begin;
  int end;
  int fresh;

  __device__ __forceinline__ KeyRange(const decoder::Attention& attention, std::int64_t row) {
    // Most often each sequence has one row. The three loads do not wait for each other.
    if (row < attention.sequences) {
      sequence = static_cast<int>(row);
      const int first = attention.sequence_start[sequence];
      const int next = attention.sequence_start[sequence + 1];
      end = attention.lengths[sequence];
      fresh = end - 1;
      if (first != row || next != row + 1) *this = {attention, row, sequence_of(attention, row)};
    } else {
      *this = {attention, row, sequence_of(attention, row)};
    }
    begin = attention.window > 0 ? max(0, end - attention.window) : 0;
  }

 private:
  /// Without the window.
  __device__ __forceinline__ KeyRange(const decoder::Attention& attention, std::int64_t row,
                                      int of_row)
      : sequence(max(0, of_row)), begin(0), end(0), fresh(0) {
    if (of_row < 0) return;
    const int next = attention.sequence_start[of_row + 1];
    const int length = attention.lengths[of_row];
    end = max(0, length - (next - 1 - static_cast<int>(row)));
    fresh = max(0, length - (next - attention.sequence_start[of_row]));
  }
};

/// The first element of a position's head in a cache.
__device__ __forceinline__ std::int64_t cache_offset(const decoder::Attention& attention,
                                                     int sequence, int position, int head) {
  const int block_size = attention.cache.block_size;
  const int block =
      attention.block_table[static_cast<std::int64_t>(sequence) * attention.max_blocks +
                            position / block_size];
  const std::int64_t slot = static_cast<std::int64_t>(block) * block_size + position % block_size;
  return (slot * attention.cache.heads + head) * attention.cache.head_size;
}

inline constexpr float kLog2E = 1.44269504f;

/// Scores in powers of two.
__device__ __forceinline__ float scored(const decoder::Attention& attention, float product) {
  float score = product * attention.scale;
  if (attention.softcap > 0.0f) score = attention.softcap * tanhf(score / attention.softcap);
  return score * kLog2E;
}

}  // namespace anyprec::cuda
