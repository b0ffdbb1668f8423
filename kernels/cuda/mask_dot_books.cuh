#pragma once

#include <cstdint>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.cuh"

/// How codebooks of binary coding by groups of 128 columns reach shared memory, for
/// mask_dot_groups.cuh.
///
/// In global memory a row has kPrecision words (two fp16 numbers) of alphas for every unit of 256
/// columns, and elsewhere one word of offsets. Both are contiguous along K, so they are copied for
/// a *span* of 1, 2 or 4 units at a time: kPrecision pieces of alphas and one of offsets, pieces of
/// 4, 8 or 16 bytes. What requests of 4 bytes cost is their number.
namespace anyprec::cuda::mask_dot_device {

/// A span's codebooks in shared memory: [row][piece].
template <int kPrecision>
struct SpanBooks {
  /// kPrecision of alphas, one of offsets; an odd number, so that eight rows lie in different
  /// banks.
  static constexpr int kRowPieces = (kPrecision + 1) | 1;

  static constexpr __host__ __device__ int row_bytes(int span_units) {
    return kRowPieces * 4 * span_units;
  }
  static constexpr __host__ __device__ int bytes(int span_units) {
    return kTileRows * row_bytes(span_units);
  }

  /// A whole warp enqueues the copies of a span of kUnits; lanes r and r + 16 take the even and the
  /// odd pieces of row r. alpha, lut: of the span's first unit in row 0 of the tile, of which
  /// `rows` exist.
  template <int kUnits>
  static __device__ __forceinline__ void copy(std::uint32_t to, const std::uint32_t* alpha,
                                              const std::uint32_t* lut, int units, int rows) {
    const int row = static_cast<int>(threadIdx.x) % kTileRows;
    const bool odd = (threadIdx.x & kTileRows) != 0;
    if (row >= rows) return;
    to += row * row_bytes(kUnits) + (odd ? 4 * kUnits : 0);
    alpha += row * units * kPrecision + (odd ? kUnits : 0);
    lut += row * units;
#pragma unroll
    for (int piece = 0; piece + 1 < kPrecision; piece += 2) {
      copy_piece<kUnits>(to + piece * 4 * kUnits, alpha + piece * kUnits);
    }
    if constexpr (kPrecision % 2 == 0) {
      if (!odd) copy_piece<kUnits>(to + kPrecision * 4 * kUnits, lut);
    } else {
      copy_piece<kUnits>(to + (kPrecision - 1) * 4 * kUnits,
                         odd ? lut : alpha + (kPrecision - 1) * kUnits);
    }
  }

 private:
  template <int kUnits>
  static __device__ __forceinline__ void copy_piece(std::uint32_t to, const void* from) {
    if constexpr (kUnits == 4) {
      ptx::copy_16(to, from);
    } else if constexpr (kUnits == 2) {
      ptx::copy_8(to, from);
    } else {
      ptx::copy_4(to, from);
    }
  }
};

/// How a team's share of the rings' memory is divided: `stages` steps of planes, and the codebooks
/// of as many spans as these can meet.
struct BookRing {
  int span_units = 1;
  int stages;
  int spans;

  /// The longest spans of up to kMostUnits that divide a row's units and leave three stages, or as
  /// many as short spans would.
  template <int kPrecision, int kMostUnits>
  static __device__ __forceinline__ BookRing of(int room, int units, int most_stages) {
    BookRing ring;
    ring.stages = stages_of<kPrecision>(room, 1);
    ring.spans = ring.stages;
#pragma unroll
    for (int span_units = 2; span_units <= kMostUnits; span_units *= 2) {
      const int stages = stages_of<kPrecision>(room, span_units);
      if (units % span_units != 0 || stages < min(ring.stages, 3)) break;
      ring = {span_units, stages, 0};
    }
    ring.stages = min(ring.stages, most_stages);
    ring.spans = spans_of(ring.stages, ring.span_units);
    return ring;
  }

 private:
  /// Spans that `stages` steps in a row can touch.
  static __device__ __forceinline__ int spans_of(int stages, int span_units) {
    const int shift = span_units == 4 ? 2 : span_units - 1;
    return ((stages + span_units - 2) >> shift) + 1;
  }
  /// Such that stages and spans_of(stages) fit: that is at most (stages + 2 span_units - 2) /
  /// span_units.
  template <int kPrecision>
  static __device__ __forceinline__ int stages_of(int room, int span_units) {
    constexpr int kUnitBytes = SpanBooks<kPrecision>::bytes(1);
    return (room - (2 * span_units - 2) * kUnitBytes) / (kPrecision * kRecordBytes + kUnitBytes);
  }
};

}  // namespace anyprec::cuda::mask_dot_device
