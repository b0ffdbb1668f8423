#pragma once

#include <cstdint>

#include "kernels/cuda/table_lookup.cuh"
#include "kernels/cuda/table_wgmma_shape.cuh"
#include "kernels/cuda/warp.cuh"

/// The operands that look-ups in the wgmma kernel's tables (table_wgmma_shape.cuh) give.
namespace anyprec::cuda {

/// A half-unit's codes of a lane, of rows g and g + 8 of its warp's tile (`index` of the block's),
/// as the bytes that address the tables.
template <class Shape>
class Codes {
  static constexpr int kBits = Shape::kBits;
  static constexpr int kWords = kCodeWords<kBits>;

 public:
  __device__ __forceinline__ Codes(const std::uint32_t (&top)[kBits],
                                   const std::uint32_t (&low)[kBits], int index) {
    code_bytes<kBits>(top, top_);
    code_bytes<kBits>(low, low_);
    if constexpr (Shape::kTilesApart) {
      const std::uint32_t tile = static_cast<std::uint32_t>(index) * (0x01010101u << 2 * kBits);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        top_[i] |= tile;
        low_[i] |= tile;
      }
    }
  }

  /// Where the lane's words are in entry 0.
  static __device__ __forceinline__ std::uint32_t place(int index) {
    const std::uint32_t lane = threadIdx.x % 32;
    if constexpr (Shape::kTilesApart) return 4 * lane;  // the tile is in the bytes
    return Shape::tile_place(index) + (Shape::kPairsOfColumns ? lane / 2 : lane) * 4;
  }

  /// The A operands of a quarter's steps.
  template <int kQuarter>
  __device__ __forceinline__ void look_up(const char* tables, std::uint32_t place,
                                          std::uint32_t (&a)[4][4]) const {
    look_up_step<2 * kQuarter, 0>(tables, place, a[0]);
    look_up_step<2 * kQuarter, 1>(tables, place, a[1]);
    look_up_step<2 * kQuarter + 1, 0>(tables, place, a[2]);
    look_up_step<2 * kQuarter + 1, 1>(tables, place, a[3]);
  }

 private:
  /// Columns 8 kByte + 4 kStep + {0 .. 3} of the lane's 32.
  template <int kByte, int kStep>
  __device__ __forceinline__ void look_up_step(const char* tables, std::uint32_t place,
                                               std::uint32_t (&a)[4]) const {
    const auto at = [&](std::uint32_t bytes) {
      return tables + __byte_perm(bytes, place, 0x7604 | kByte << 4);
    };
    const auto word_at = [](const char* address) {
      return *reinterpret_cast<const std::uint32_t*>(address);
    };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (Shape::kPairsOfColumns) {
        const int word = kStep + 2 * i;
        a[2 * i] = word_at(at(top_[word]));
        a[2 * i + 1] = word_at(at(low_[word]) + Shape::kEightRowsBytes);
      } else {
        const int word = 4 * kStep + 2 * i;
        a[2 * i] = __byte_perm(word_at(at(top_[word])), word_at(at(top_[word + 1])), 0x5410);
        a[2 * i + 1] = __byte_perm(word_at(at(low_[word])), word_at(at(low_[word + 1])), 0x7632);
      }
    }
  }

  std::uint32_t top_[kWords], low_[kWords];
};

/// What a lane reads of its warp's tile.
struct LanePlanes {
  const std::uint8_t* first;  ///< the lane's part of the tile's first record; or null
  std::int64_t stride;

  __device__ __forceinline__ explicit LanePlanes(const Tile& tile)
      : first(tile.rows > 0 ? tile.planes + threadIdx.x % 32 * kLaneBytes : nullptr),
        stride(tile.plane_stride) {}

  /// Words of rows g and g + 8 in a half-unit.
  template <int kBits>
  __device__ __forceinline__ void load(int half, uint2 (&words)[kBits]) const {
    if (first == nullptr) return;
    const std::uint8_t* from =
        first + static_cast<std::int64_t>(half / 2) * kRecordBytes + half % 2 * (kLaneBytes / 2);
#pragma unroll
    for (int p = 0; p < kBits; ++p) {
      words[p] = __ldg(reinterpret_cast<const uint2*>(from));
      from += stride;
    }
  }
};

}  // namespace anyprec::cuda
