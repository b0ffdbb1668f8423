#pragma once

#include <cstdint>

#include "kernels/cuda/table_wgmma_build.cuh"
#include "kernels/cuda/table_wgmma_shape.cuh"
#include "kernels/cuda/warp.cuh"

namespace anyprec::cuda {

/// The tables of pairs of columns of four tiles, by all threads that multiply. A warp has one tile:
/// lane 8 i + g has the values of the i-th quarter of the codes of rows g and g + 8. It joins them,
/// as those of the even column, with the others' of its rows, as those of the odd column, which the
/// warps of a tile, one of each group, take in turn.
template <class Shape>
class PairTableBuilder {
  static constexpr int kBits = Shape::kBits;
  static constexpr int kCodes = 1 << kBits;
  static constexpr int kQuarter = kCodes / 4;  // codes of a lane
  static constexpr int kWords = (kQuarter + 1) / 2;

 public:
  __device__ __forceinline__ explicit PairTableBuilder(const TableForm& form)
      : form_(form),
        index_(warp_number() % 4),
        group_(warp_number() / 4),
        row_(threadIdx.x % 8),
        first_(static_cast<int>(threadIdx.x) / 8 % 4 * kQuarter) {}

  /// Has the thread's values of full tables loaded.
  __device__ __forceinline__ void load(const Tile* tiles) {
    if (form_.signs > 0) return;
    const Tile& tile = tiles[index_];
    const char* const lut = tile.lut + row_ * lut_row_bytes(form_) + 2 * first_;
    clear();
    if (row_ < tile.rows) load_halves<kQuarter>(lut, top_);
    if (row_ + 8 < tile.rows) load_halves<kQuarter>(lut + 8 * lut_row_bytes(form_), low_);
  }

  /// Writes the tables of the tiles that were loaded last.
  __device__ __forceinline__ void build(const Tile* tiles, char* tables) {
    if (form_.signs > 0) expand_hybrid(tiles[index_]);
    std::uint32_t top[4][kWords], low[4][kWords];
#pragma unroll
    for (int part = 0; part < 4; ++part) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        top[part][i] = __shfl_sync(~0u, top_[i], part * 8 + row_);
        low[part][i] = __shfl_sync(~0u, low_[i], part * 8 + row_);
      }
    }
    char* const words = tables + Shape::tile_place(index_) + row_ * (Shape::kEightRowsBytes / 8);
    // At two words a row, half of the lanes write low rows first, so that a store meets few banks.
    const bool low_first = Shape::kWordCopies < 4 && first_ >= 2 * kQuarter;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      exchange_if(low_first, top_[i], low_[i]);
#pragma unroll
      for (int part = 0; part < 4; ++part) exchange_if(low_first, top[part][i], low[part][i]);
    }
    write_row(words + (low_first ? Shape::kEightRowsBytes : 0), top_, top);
    write_row(words + (low_first ? 0 : Shape::kEightRowsBytes), low_, low);
  }

 private:
  static __device__ __forceinline__ void exchange_if(bool condition, std::uint32_t& a,
                                                     std::uint32_t& b) {
    const std::uint32_t before = a;
    a = condition ? b : a;
    b = condition ? before : b;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kWords; ++i) top_[i] = low_[i] = 0;
  }

  __device__ __forceinline__ void expand_hybrid(const Tile& tile) {
    constexpr int kDepth = bits_of(kQuarter);
    const char* const lut = tile.lut + row_ * lut_row_bytes(form_);
    const char* const alpha = tile.alpha + row_ * alpha_row_bytes(form_);
    clear();
    if (row_ < tile.rows) expand<kDepth>(lut, alpha, top_);
    if (row_ + 8 < tile.rows) {
      expand<kDepth>(lut + 8 * lut_row_bytes(form_), alpha + 8 * alpha_row_bytes(form_), low_);
    }
  }

  /// By trees of depth kDepth, or less where the form has fewer signed planes.
  template <int kDepth>
  __device__ __forceinline__ void expand(const char* lut, const char* alpha,
                                         std::uint32_t (&words)[kWords]) const {
    if constexpr (kDepth > 0) {
      if (form_.signs < kDepth) return expand<kDepth - 1>(lut, alpha, words);
    }
    constexpr int kLeaves = 1 << kDepth;
#pragma unroll
    for (int code = 0; code < kQuarter; code += kLeaves) {
      std::uint32_t values[kLeaves];
      hybrid_values<kBits, kDepth>(form_, lut, alpha, first_ + code, values);
#pragma unroll
      for (int i = 0; i < kLeaves; ++i) {
        words[(code + i) / 2] |= values[i] << 16 * ((code + i) % 2);
      }
    }
  }

  __device__ __forceinline__ void write_row(char* words, const std::uint32_t (&evens)[kWords],
                                            const std::uint32_t (&odds)[4][kWords]) const {
    const int entry = spread_bits(reversed<kBits>(first_));
#pragma unroll
    for (int odd = 0; odd < kCodes; ++odd) {
      if (odd % Shape::kGroups != group_) continue;
      const int in_quarter = odd % kQuarter;
      const std::uint32_t odd_word = odds[odd / kQuarter][in_quarter / 2];
#pragma unroll
      for (int i = 0; i < kQuarter; ++i) {
        const int further = spread_bits(reversed_constant(i, kBits)) +
                            2 * spread_bits(reversed_constant(odd, kBits));
        const unsigned selector =
            (in_quarter % 2 == 0 ? 0x5400 : 0x7600) | (i % 2 == 0 ? 0x10 : 0x32);
        store_pair(words, entry + further, __byte_perm(evens[i / 2], odd_word, selector));
      }
    }
  }

  static __device__ __forceinline__ void store_pair(char* words, int entry, std::uint32_t pair) {
    if constexpr (Shape::kWordCopies == 4) {
      store_word(words, entry, pair);
    } else {
      *reinterpret_cast<uint2*>(words + entry * kEntryBytes) = make_uint2(pair, pair);
    }
  }

  const TableForm& form_;
  int index_, group_, row_, first_;
  std::uint32_t top_[kWords], low_[kWords];  // values of rows g and g + 8
};

}  // namespace anyprec::cuda
