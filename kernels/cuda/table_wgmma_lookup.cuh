#pragma once

#include <cstdint>

#include "kernels/cuda/table_lookup.cuh"
#include "kernels/cuda/table_wgmma_shape.cuh"
#include "kernels/cuda/warp.cuh"

/// Tables of the wgmma kernel, and the operands that look-ups in them give.
namespace anyprec::cuda {

/// Values of codes first .. first + kCount - 1 of a row of a hybrid, as fp16.
template <int kCount>
__device__ __forceinline__ void hybrid_values(const TableForm& form, const Tile& tile, int row,
                                              int first, std::uint32_t (&values)[kCount]) {
  const CodebookRow codebook{
      reinterpret_cast<const __half*>(tile.lut + row * lut_row_bytes(form)),
      reinterpret_cast<const __half*>(tile.alpha + row * alpha_row_bytes(form))};
  constexpr int kDepth = bits_of(kCount);
  if (form.signs >= kDepth) {
    codebook.expand<kDepth>(form, first, values);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = __half_as_ushort(__float2half_rn(codebook.value(form, first + i, 0)));
    }
  }
}

/// kCount fp16 from global memory, aligned to their size, two to a word.
template <int kCount>
__device__ __forceinline__ void load_halves(const void* from,
                                            std::uint32_t (&words)[(kCount + 1) / 2]) {
  if constexpr (kCount == 8) {
    const uint4 eight = __ldg(static_cast<const uint4*>(from));
    words[0] = eight.x;
    words[1] = eight.y;
    words[2] = eight.z;
    words[3] = eight.w;
  } else if constexpr (kCount == 2) {
    words[0] = __ldg(static_cast<const std::uint32_t*>(from));
  } else {
    static_assert(kCount == 1);
    words[0] = __ldg(static_cast<const std::uint16_t*>(from));
  }
}

/// The tables of four tiles, by all threads that multiply: thread i has rows i % 8 and i % 8 + 8 of
/// tile i / 8 % 4, warps take groups of codes in turn.
template <class Shape>
__device__ __forceinline__ void build_tables(const TableForm& form, const Tile* tiles,
                                             char* tables) {
  constexpr int kEntriesOfTile = 1 << Shape::kBits;
  constexpr int kWarps = Shape::kThreads / 32;
  constexpr int kCount = kEntriesOfTile >= 8 * kWarps ? 8 : (kEntriesOfTile >= 2 * kWarps ? 2 : 1);
  constexpr int kTurns = (kEntriesOfTile + kWarps * kCount - 1) / (kWarps * kCount);
  constexpr int kWords = (kCount + 1) / 2;
  const int g = threadIdx.x % 8, index = threadIdx.x / 8 % 4;
  const Tile& tile = tiles[index];
  const bool has_top = g < tile.rows, has_low = g + 8 < tile.rows;
  char* const words = tables + index / 2 * Shape::kPairStride + index % 2 * 128 + g * 16;
  const int first = warp_number() * kCount;
  const auto store = [&](int entry, std::uint32_t top, std::uint32_t low) {
    const std::uint32_t word = top | low << 16;
    *reinterpret_cast<uint4*>(words + entry * 256) = make_uint4(word, word, word, word);
  };
  if (form.signs == 0) {  // all loads first
    const char* const top_row = tile.lut + g * lut_row_bytes(form);
    const char* const low_row = top_row + 8 * lut_row_bytes(form);
    std::uint32_t top[kTurns][kWords] = {}, low[kTurns][kWords] = {};
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int code = first + turn * kWarps * kCount;
      if (code >= kEntriesOfTile) continue;
      if (has_top) load_halves<kCount>(top_row + 2 * code, top[turn]);
      if (has_low) load_halves<kCount>(low_row + 2 * code, low[turn]);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int code = first + turn * kWarps * kCount;
      if (code >= kEntriesOfTile) continue;
      const int entry = reversed<Shape::kBits>(code);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const std::uint32_t word =
            __byte_perm(top[turn][i / 2], low[turn][i / 2], i % 2 == 0 ? 0x5410 : 0x7632);
        store(entry + reversed_constant(i, Shape::kBits), word & 0xffffu, word >> 16);
      }
    }
    return;
  }
#pragma unroll 1
  for (int code = first; code < kEntriesOfTile; code += kWarps * kCount) {
    std::uint32_t top[kCount] = {}, low[kCount] = {};
    if (has_top) hybrid_values(form, tile, g, code, top);
    if (has_low) hybrid_values(form, tile, g + 8, code, low);
    const int entry = reversed<Shape::kBits>(code);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      store(entry + reversed_constant(i, Shape::kBits), top[i], low[i]);
    }
  }
}

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
