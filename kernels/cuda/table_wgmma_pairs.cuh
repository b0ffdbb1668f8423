#pragma once

#include <cstdint>

#include "kernels/cuda/table_wgmma_build.cuh"
#include "kernels/cuda/table_wgmma_shape.cuh"
#include "kernels/cuda/warp.cuh"

namespace anyprec::cuda {

/// The tables of pairs of columns of four tiles, by all threads that multiply. A warp has one tile:
/// lane 8 i + g has rows g and g + 8, and joins the i-th quarter of the codes, as those of the even
/// column, with codes of the odd column that the warps of a tile, one of each group, take in turn.
template <class Shape>
class PairTableBuilder {
  static constexpr int kBits = Shape::kBits;
  static constexpr int kCodes = 1 << kBits;
  static constexpr int kEvens = kCodes / 4;  // of a lane
  static constexpr int kWords = kCodes / 2;  // of a row's values
  static_assert(kEvens == 1 || kEvens == 2);

 public:
  __device__ __forceinline__ explicit PairTableBuilder(const TableForm& form)
      : form_(form),
        index_(warp_number() % 4),
        group_(warp_number() / 4),
        row_(threadIdx.x % 8),
        part_(threadIdx.x / 8 % 4) {}

  /// Has the thread's rows of full tables loaded.
  __device__ __forceinline__ void load(const Tile* tiles) {
    if (form_.signs > 0) return;
    const Tile& tile = tiles[index_];
    const char* const lut = tile.lut + row_ * lut_row_bytes(form_);
#pragma unroll
    for (int i = 0; i < kWords; ++i) top_[i] = low_[i] = 0;
    if (row_ < tile.rows) load_halves<kCodes>(lut, top_);
    if (row_ + 8 < tile.rows) load_halves<kCodes>(lut + 8 * lut_row_bytes(form_), low_);
  }

  /// Writes the tables of the tiles that were loaded last.
  __device__ __forceinline__ void build(const Tile* tiles, char* tables) {
    if (form_.signs > 0) expand_hybrid(tiles[index_]);
    char* const words = tables + index_ * Shape::kPairTableBytes + row_ * 16;
    write_row(words, top_);
    write_row(words + kEntryBytes / 2, low_);
  }

 private:
  __device__ __forceinline__ void expand_hybrid(const Tile& tile) {
    const char* const lut = tile.lut + row_ * lut_row_bytes(form_);
    const char* const alpha = tile.alpha + row_ * alpha_row_bytes(form_);
#pragma unroll
    for (int i = 0; i < kWords; ++i) top_[i] = low_[i] = 0;
    if (row_ < tile.rows) expand_row(lut, alpha, top_);
    if (row_ + 8 < tile.rows) {
      expand_row(lut + 8 * lut_row_bytes(form_), alpha + 8 * alpha_row_bytes(form_), low_);
    }
  }

  __device__ __forceinline__ void expand_row(const char* lut, const char* alpha,
                                             std::uint32_t (&words)[kWords]) const {
    std::uint32_t values[kCodes];
    if (form_.signs == kBits) {
      hybrid_values<kBits, kBits>(form_, lut, alpha, 0, values);
    } else {
#pragma unroll
      for (int code = 0; code < kCodes; ++code) {
        std::uint32_t value[1];
        hybrid_values<kBits, 0>(form_, lut, alpha, code, value);
        values[code] = value[0];
      }
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = values[2 * i] | values[2 * i + 1] << 16;
  }

  __device__ __forceinline__ void write_row(char* words,
                                            const std::uint32_t (&values)[kWords]) const {
    std::uint32_t evens = 0;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const std::uint32_t word = values[part * kEvens / 2];
      if (part_ == part) evens = kEvens == 1 && part % 2 == 1 ? word >> 16 : word;
    }
    const int entry = spread_bits(reversed<kBits>(part_ * kEvens));
#pragma unroll
    for (int odd = 0; odd < kCodes; ++odd) {
      if (odd % Shape::kGroups != group_) continue;
#pragma unroll
      for (int i = 0; i < kEvens; ++i) {
        const int further = spread_bits(reversed_constant(i, kBits)) +
                            2 * spread_bits(reversed_constant(odd, kBits));
        const unsigned selector = (odd % 2 == 0 ? 0x5400 : 0x7600) | (i == 0 ? 0x10 : 0x32);
        store_word(words, entry + further, __byte_perm(evens, values[odd / 2], selector));
      }
    }
  }

  const TableForm& form_;
  int index_, group_, row_, part_;
  std::uint32_t top_[kWords], low_[kWords];  // values of rows g and g + 8
};

}  // namespace anyprec::cuda
