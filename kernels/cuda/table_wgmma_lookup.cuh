#pragma once

#include <cstdint>

#include "kernels/cuda/table_lookup.cuh"
#include "kernels/cuda/table_wgmma_shape.cuh"
#include "kernels/cuda/warp.cuh"

/// The operands that look-ups in the wgmma kernel's tables (table_wgmma_build.cuh) give.
namespace anyprec::cuda {

/// The A operand of one step from a half-unit's bytes (single_code_bytes). place: where the lane's
/// words are in entry 0.
template <int kByte, int kStep>
__device__ __forceinline__ void look_up_step(const char* tables, std::uint32_t place,
                                             const std::uint32_t (&top)[8],
                                             const std::uint32_t (&low)[8], std::uint32_t (&a)[4]) {
  const auto at = [&](std::uint32_t bytes) {
    const std::uint32_t offset = __byte_perm(bytes, place, 0x7604 | kByte << 4);
    return *reinterpret_cast<const std::uint32_t*>(tables + offset);
  };
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int word = 4 * kStep + 2 * i;
    a[2 * i] = __byte_perm(at(top[word]), at(top[word + 1]), 0x5410);
    a[2 * i + 1] = __byte_perm(at(low[word]), at(low[word + 1]), 0x7632);
  }
}

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
