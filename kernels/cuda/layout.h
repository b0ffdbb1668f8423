#pragma once

#include <cstdint>

#include "anyprec/planes.h"

/// The CUDA backend's layout of bit planes, shared by all its kernels.
///
/// A *record* is 16 rows x 256 columns of one plane, 512 bytes in the order in which a warp holds
/// the A operand of mma.m16n8k256 (binary): lane 4 g + t (g < 8, t < 4) has four words, those of
///   {row g, half 0}, {row g + 8, half 0}, {row g, half 1}, {row g + 8, half 1},
/// and bit i of a word of half h is column 128 h + 32 t + i. So a lane holds 32 consecutive columns
/// of a row in a word, which serves every kernel: binary products take the words as they are, look-
/// ups take runs of a lane's columns as the A operand of mma.m16n8k16 (then column 4 s + {0, 1, 2,
/// 3} of the word are the lane's four columns of step s), and x keeps its natural order.
///
/// A plane is [tiles of rows][units of columns] records; planes follow one another. Rows and
/// columns past N and K are zero bits: packed_plane_bytes(N, K) bytes a plane.
namespace anyprec::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kUnitColumns = 256;
inline constexpr int kHalfColumns = kUnitColumns / 2;
inline constexpr int kRecordBytes = 512;
inline constexpr int kLaneBytes = 16;

constexpr std::int64_t tile_count(std::int64_t out_features) {
  return (out_features + kTileRows - 1) / kTileRows;
}
constexpr std::int64_t unit_count(std::int64_t in_features) {
  return (in_features + kUnitColumns - 1) / kUnitColumns;
}
/// Which 32-bit word of its record has row `row` (< 16) and column `column` (< 256); the bit is
/// column % 32.
constexpr int word_of(int row, int column) {
  const int lane = (row % 8) * 4 + column / 32 % 4;
  return lane * 4 + column / 128 * 2 + row / 8;
}

}  // namespace anyprec::cuda
