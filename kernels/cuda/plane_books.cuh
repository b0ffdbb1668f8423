#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/plane_mma_shape.cuh"
#include "kernels/cuda/ptx.cuh"

/// Codebooks of binary coding on their way through the plane kernel's ring: of a unit of 256
/// columns, the alphas and offsets of its groups for the 16 rows of a tile.
///
/// A row's alphas are [G][b] and its offsets [G] fp16 numbers, so a unit's may begin in the middle
/// of a 32-bit word: whole words are copied, and the reader skips half a word.
namespace anyprec::cuda {

/// The groups of a unit: the first, and how many.
struct UnitGroups {
  int first;
  int count;
  __device__ __forceinline__ UnitGroups(const PlaneMmaArgs& args, int unit) {
    constexpr int kSegments = kUnitColumns / kSegmentColumns;
    first = args.group_of(unit * kSegments);
    count = min(args.groups, args.group_of(unit * kSegments + kSegments - 1) + 1) - first;
  }
};

/// What a lane copies of one kind of numbers of a unit, whichever the tile: every second word of a
/// row, lanes 2 r and 2 r + 1 of row r.
struct LaneCopies {
  std::uint32_t packed;  ///< bytes from the tile's first number << 6 | words

  /// The words of numbers [begin, begin + count).
  static __device__ __forceinline__ LaneCopies of(int begin, int count) {
    const int odd = threadIdx.x % 2;
    const int words = (begin + count + 1) / 2 - begin / 2;
    return {static_cast<std::uint32_t>((begin / 2 + odd) * 4) << 6 |
            static_cast<std::uint32_t>((words - odd + 1) / 2)};
  }
  template <int kWords>
  __device__ __forceinline__ void start(std::uint32_t to, const std::uint16_t* numbers) const {
    const char* const from = reinterpret_cast<const char*>(numbers) + (packed >> 6);
    const int count = packed & 63;
#pragma unroll
    for (int i = 0; i < (kWords + 1) / 2; ++i) {
      if (i < count) ptx::copy_4(to + 8 * i, from + 8 * i);
    }
  }
  /// The same where only `bytes` of the tile's numbers exist.
  __device__ __forceinline__ void start_up_to(std::uint32_t to, const std::uint16_t* numbers,
                                              int bytes) const {
    const int first = packed >> 6, count = packed & 63;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const int at = first + 8 * i;
      if (at + 4 <= bytes) {
        ptx::copy_4(to + 8 * i, reinterpret_cast<const char*>(numbers) + at);
      } else if (at < bytes) {
        ptx::store_shared(to + 8 * i, numbers[at / 2]);  // no word, but half of one
      }
    }
  }
};

struct BookCopies {
  LaneCopies alpha, lut;

  template <class Shape>
  static __device__ __forceinline__ BookCopies of(const PlaneMmaArgs& args, int unit) {
    const UnitGroups groups(args, unit);
    const int first = static_cast<int>(threadIdx.x % 32 / 2) * args.groups + groups.first;
    return {LaneCopies::of(first * Shape::kBits, groups.count * Shape::kBits),
            LaneCopies::of(first, groups.count)};
  }
  /// to: the unit's codebooks in the ring, plus lane_offset().
  template <class Shape>
  __device__ __forceinline__ void start(const PlaneMmaArgs& args, const PlaneTile& tile,
                                        std::uint32_t to) const {
    const std::uint32_t lut_to = to + Shape::kAlphaWords * 4;
    if (tile.rows == kTileRows) {
      alpha.start<Shape::kAlphaWords>(to, tile.alpha);
      lut.start<Shape::kLutWords>(lut_to, tile.lut);
    } else {
      const int bytes = tile.rows * args.groups * 2;
      alpha.start_up_to(to, tile.alpha, bytes * Shape::kBits);
      lut.start_up_to(lut_to, tile.lut, bytes);
    }
  }
  template <class Shape>
  static __device__ __forceinline__ int lane_offset() {
    const int lane = threadIdx.x % 32;
    return lane / 2 * (Shape::kBookWords * 4) + lane % 2 * 4;
  }
};

/// A lane's view of a unit's codebooks: those of rows g and g + 8 (row 0 and 1 here), and of the
/// parts that its sums belong to.
template <class Shape>
struct LaneBooks {
  const __half* alpha;
  const __half* lut;
  int group[2][Shape::kLaneParts];  ///< of a half-unit, counted from the unit's first

  __device__ __forceinline__ LaneBooks(const PlaneMmaArgs& args, int unit, const char* books) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    constexpr int kSegments = kUnitColumns / kSegmentColumns;
    constexpr int kPartSegments = kSegments / 2 / Shape::kParts;
    const int first_group = args.group_of(unit * kSegments);
    // Rows are an even number of halves from row g + 8: both begin alike.
    const int first = g * args.groups + first_group;
    const char* const row = books + g * Shape::kBookWords * 4;
    alpha = reinterpret_cast<const __half*>(row) + ((first * Shape::kBits) & 1);
    lut = reinterpret_cast<const __half*>(row + Shape::kAlphaWords * 4) + (first & 1);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int c = 0; c < Shape::kLaneParts; ++c) {
        const int part = Shape::kParts == 4 ? 2 * (t % 2) + c : c;
        const int segment = unit * kSegments + h * (kSegments / 2) + part * kPartSegments;
        // Columns past K have zeros of x and take the last group.
        group[h][c] = Shape::kParts < 4 && h == 0 && c == 0
                          ? 0
                          : min(args.group_of(segment), args.groups - 1) - first_group;
      }
    }
  }

  static constexpr int kRowHalves = 8 * Shape::kBookWords * 2;  ///< from row g to row g + 8

  __device__ __forceinline__ float alpha_of(int row, int h, int part, int plane) const {
    return __half2float(alpha[row * kRowHalves + group[h][part] * Shape::kBits + plane]);
  }
  __device__ __forceinline__ float lut_of(int row, int h, int part) const {
    return __half2float(lut[row * kRowHalves + group[h][part]]);
  }
};

}  // namespace anyprec::cuda
