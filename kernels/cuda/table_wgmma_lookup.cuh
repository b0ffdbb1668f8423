#pragma once

#include <cstdint>

#include "kernels/cuda/table_lookup.cuh"
#include "kernels/cuda/table_wgmma_shape.cuh"
#include "kernels/cuda/warp.cuh"

/// Tables of the wgmma kernel, and the operands that look-ups in them give.
namespace anyprec::cuda {

/// Has a tile's codebooks brought from memory to the L2 cache, by one warp of every group.
template <class Shape>
__device__ __forceinline__ void prefetch_codebooks(const TableForm& form, const Tile& tile,
                                                   int group) {
  const int from = (group * 32 + static_cast<int>(threadIdx.x) % 32) * ptx::kLineBytes;
  constexpr int kStep = Shape::kGroups * 32 * ptx::kLineBytes;
  const int lut_bytes = tile.rows * lut_row_bytes(form);
  const int alpha_bytes = tile.rows * alpha_row_bytes(form);
  for (int i = from; i < lut_bytes; i += kStep) ptx::prefetch_line(tile.lut + i);
  for (int i = from; i < alpha_bytes; i += kStep) ptx::prefetch_line(tile.alpha + i);
}

/// fp16 values of the 2^kDepth codes from `first` of a row of a hybrid, which differ in their last
/// signed planes only: the leaves of a tree. In the order of expand_codebook; all loads first, so
/// that they are under way together. kBits: at least form.signs.
template <int kBits, int kDepth>
__device__ __forceinline__ void hybrid_values(const TableForm& form, const char* lut,
                                              const char* alpha, int first,
                                              std::uint32_t (&values)[1 << kDepth]) {
  const int cell = first >> form.signs;
  const __half* const coefficients =
      reinterpret_cast<const __half*>(alpha) + form.codebook.class_of(cell);
  const __half table_value = __ldg(reinterpret_cast<const __half*>(lut) + cell);
  __half of_bit[kBits];
#pragma unroll
  for (int bit = 0; bit < kBits; ++bit) {
    if (bit < form.signs) {
      of_bit[bit] = __ldg(coefficients + (form.signs - 1 - bit) * form.classes);
    }
  }
  float sums[1 << kDepth];
  sums[0] = __half2float(table_value);
#pragma unroll
  for (int bit = kBits - 1; bit >= kDepth; --bit) {
    if (bit >= form.signs) continue;
    const float a = __half2float(of_bit[bit]);
    sums[0] += (first >> bit) & 1 ? a : -a;
  }
#pragma unroll
  for (int level = 0; level < kDepth; ++level) {
    const float a = __half2float(of_bit[kDepth - 1 - level]);
#pragma unroll
    for (int i = (1 << level) - 1; i >= 0; --i) {
      const float sum = sums[i];
      sums[2 * i] = sum - a;
      sums[2 * i + 1] = sum + a;
    }
  }
#pragma unroll
  for (int i = 0; i < 1 << kDepth; ++i) {
    values[i] = __half_as_ushort(__float2half_rn(sums[i]));
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
  } else if constexpr (kCount == 4) {
    const uint2 four = __ldg(static_cast<const uint2*>(from));
    words[0] = four.x;
    words[1] = four.y;
  } else if constexpr (kCount == 2) {
    words[0] = __ldg(static_cast<const std::uint32_t*>(from));
  } else {
    static_assert(kCount == 1);
    words[0] = __ldg(static_cast<const std::uint16_t*>(from));
  }
}

/// The tables of four tiles, by all threads that multiply. A warp has one tile: lane 8 i + g has
/// rows g and g + 8, of the warp's codes the i-th run of kCount, so that lanes read neighbouring
/// pieces of a row's codebook. The warps of a tile, one of each group, take codes in turn.
template <class Shape>
__device__ __forceinline__ void build_tables(const TableForm& form, const Tile* tiles,
                                             char* tables) {
  constexpr int kEntriesOfTile = 1 << Shape::kBits;
  constexpr int kCount = kEntriesOfTile >= 64 ? 8 : (kEntriesOfTile + 7) / 8;
  constexpr int kCodes = 4 * kCount;  // of a warp at a time
  constexpr int kStep = Shape::kGroups * kCodes;
  constexpr int kTurns = (kEntriesOfTile + kStep - 1) / kStep;
  constexpr int kWords = (kCount + 1) / 2;
  const int g = threadIdx.x % 8, index = warp_number() % 4;
  const Tile& tile = tiles[index];
  const bool has_top = g < tile.rows, has_low = g + 8 < tile.rows;
  char* const words = tables + index / 2 * Shape::kPairStride + index % 2 * 128 + g * 16;
  const int first = warp_number() / 4 * kCodes;
  const int lane_code = static_cast<int>(threadIdx.x) / 8 % 4 * kCount;
  const auto store = [&](int entry, std::uint32_t word) {
    *reinterpret_cast<uint4*>(words + entry * 256) = make_uint4(word, word, word, word);
  };
  const char* const top_lut = tile.lut + g * lut_row_bytes(form);
  const char* const low_lut = top_lut + 8 * lut_row_bytes(form);
  if (form.signs == 0) {  // all loads first
    std::uint32_t top[kTurns][kWords] = {}, low[kTurns][kWords] = {};
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int code = first + turn * kStep;
      if (code >= kEntriesOfTile) continue;
      if (has_top) load_halves<kCount>(top_lut + 2 * (code + lane_code), top[turn]);
      if (has_low) load_halves<kCount>(low_lut + 2 * (code + lane_code), low[turn]);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int code = first + turn * kStep;
      if (code >= kEntriesOfTile) continue;
      const int entry = reversed<Shape::kBits>(code + lane_code);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        store(entry + reversed_constant(i, Shape::kBits),
              __byte_perm(top[turn][i / 2], low[turn][i / 2], i % 2 == 0 ? 0x5410 : 0x7632));
      }
    }
    return;
  }
  const char* const top_alpha = tile.alpha + g * alpha_row_bytes(form);
  const char* const low_alpha = top_alpha + 8 * alpha_row_bytes(form);
  const auto expand = [&]<int kDepth>(int code) {
    std::uint32_t top[1 << kDepth] = {}, low[1 << kDepth] = {};
    if (has_top) hybrid_values<Shape::kBits, kDepth>(form, top_lut, top_alpha, code, top);
    if (has_low) hybrid_values<Shape::kBits, kDepth>(form, low_lut, low_alpha, code, low);
    const int entry = reversed<Shape::kBits>(code);
#pragma unroll
    for (int i = 0; i < 1 << kDepth; ++i) {
      store(entry + reversed_constant(i, Shape::kBits), top[i] | low[i] << 16);
    }
  };
#pragma unroll 1
  for (int code = first; code < kEntriesOfTile; code += kStep) {
    if (form.signs >= bits_of(kCount)) {
      expand.template operator()<bits_of(kCount)>(code + lane_code);
    } else {  // several cells a run
#pragma unroll 1
      for (int i = 0; i < kCount; ++i) expand.template operator()<0>(code + lane_code + i);
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
