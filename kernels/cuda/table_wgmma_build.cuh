#pragma once

#include <cstdint>

#include "kernels/cuda/table_build.cuh"
#include "kernels/cuda/table_wgmma_shape.cuh"
#include "kernels/cuda/warp.cuh"

/// Tables of the wgmma kernel, from codebooks in global memory (of pairs: table_wgmma_pairs.cuh).
namespace anyprec::cuda {

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
    split_by_sign(sums, level, __half2float(of_bit[kDepth - 1 - level]));
  }
#pragma unroll
  for (int i = 0; i < 1 << kDepth; ++i) values[i] = value_word<__half>(sums[i]);
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

/// The tables of single values of four tiles, by all threads that multiply. A warp has one tile:
/// lane 8 i + g has rows g and g + 8, of the warp's codes the i-th run of kCount, so that lanes
/// read neighbouring pieces of a row's codebook. The warps of a tile, one of each group, take codes
/// in turn.
template <class Shape>
class TableBuilder {
  static constexpr int kBits = Shape::kBits;
  static constexpr int kEntriesOfTile = 1 << kBits;
  static constexpr int kCount = kEntriesOfTile >= 64 ? 8 : 4;
  static constexpr int kCodes = 4 * kCount;  // of a warp at a time
  static constexpr int kStep = Shape::kGroups * kCodes;
  static constexpr int kTurns = (kEntriesOfTile + kStep - 1) / kStep;
  static constexpr int kWords = kCount / 2;
  static_assert(!Shape::kPairsOfColumns);

 public:
  __device__ __forceinline__ explicit TableBuilder(const TableForm& form)
      : form_(form),
        index_(warp_number() % 4),
        row_(threadIdx.x % 8),
        first_(warp_number() / 4 * kCodes),
        lane_code_(static_cast<int>(threadIdx.x) / 8 % 4 * kCount) {}

  /// Has the thread's part of full tables loaded.
  __device__ __forceinline__ void load(const Tile* tiles) {
    if (form_.signs > 0) return;
    const Tile& tile = tiles[index_];
    const bool has_top = row_ < tile.rows, has_low = row_ + 8 < tile.rows;
    const char* const top_lut = tile.lut + row_ * lut_row_bytes(form_);
    const char* const low_lut = top_lut + 8 * lut_row_bytes(form_);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) top_[turn][i] = low_[turn][i] = 0;
      const int code = first_ + turn * kStep;
      if (code >= kEntriesOfTile) continue;
      if (has_top) load_halves<kCount>(top_lut + 2 * (code + lane_code_), top_[turn]);
      if (has_low) load_halves<kCount>(low_lut + 2 * (code + lane_code_), low_[turn]);
    }
  }

  /// Writes the tables of the tiles that were loaded last.
  __device__ __forceinline__ void build(const Tile* tiles, char* tables) const {
    char* const words = tables + Shape::tile_place(index_) + row_ * 16;
    if (form_.signs > 0) {
      build_hybrid(tiles[index_], words);
      return;
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int code = first_ + turn * kStep;
      if (code >= kEntriesOfTile) continue;
      const int entry = reversed<kBits>(code + lane_code_);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        store_word(words, entry + reversed_constant(i, kBits),
                   __byte_perm(top_[turn][i / 2], low_[turn][i / 2], i % 2 == 0 ? 0x5410 : 0x7632));
      }
    }
  }

 private:
  __device__ __forceinline__ void build_hybrid(const Tile& tile, char* words) const {
    const bool has_top = row_ < tile.rows, has_low = row_ + 8 < tile.rows;
    const char* const top_lut = tile.lut + row_ * lut_row_bytes(form_);
    const char* const low_lut = top_lut + 8 * lut_row_bytes(form_);
    const char* const top_alpha = tile.alpha + row_ * alpha_row_bytes(form_);
    const char* const low_alpha = top_alpha + 8 * alpha_row_bytes(form_);
    const auto expand = [&]<int kDepth>(int code) {
      std::uint32_t top[1 << kDepth] = {}, low[1 << kDepth] = {};
      if (has_top) hybrid_values<kBits, kDepth>(form_, top_lut, top_alpha, code, top);
      if (has_low) hybrid_values<kBits, kDepth>(form_, low_lut, low_alpha, code, low);
      const int entry = reversed<kBits>(code);
#pragma unroll
      for (int i = 0; i < 1 << kDepth; ++i) {
        store_word(words, entry + reversed_constant(i, kBits), top[i] | low[i] << 16);
      }
    };
#pragma unroll 1
    for (int code = first_; code < kEntriesOfTile; code += kStep) {
      if (form_.signs >= bits_of(kCount)) {
        expand.template operator()<bits_of(kCount)>(code + lane_code_);
      } else {  // several cells a run
#pragma unroll 1
        for (int i = 0; i < kCount; ++i) expand.template operator()<0>(code + lane_code_ + i);
      }
    }
  }

  const TableForm& form_;
  int index_, row_, first_, lane_code_;
  std::uint32_t top_[kTurns][kWords], low_[kTurns][kWords];
};

}  // namespace anyprec::cuda
