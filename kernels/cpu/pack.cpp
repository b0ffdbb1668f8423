#include <cstring>

#include "anyprec/linear.h"
#include "anyprec/planes.h"
#include "kernels/cpu/kernel_set.h"

namespace anyprec::cpu {
namespace {

/// Transposes an 8 x 8 bit matrix whose rows are the bytes of v (Hacker's Delight, 7-3).
std::uint64_t transpose8x8(std::uint64_t v) {
  std::uint64_t t = (v ^ (v >> 7)) & 0x00AA00AA00AA00AAull;
  v ^= t ^ (t << 7);
  t = (v ^ (v >> 14)) & 0x0000CCCC0000CCCCull;
  v ^= t ^ (t << 14);
  t = (v ^ (v >> 28)) & 0x00000000F0F0F0F0ull;
  return v ^ t ^ (t << 28);
}

/// Moves bit j of every byte to block_bit(j, plane), or back: the move is its own inverse.
std::uint64_t turn_bits(std::uint64_t v, std::int64_t plane) {
  if (plane & 1) v = (v >> 1 & 0x5555555555555555ull) | (v & 0x5555555555555555ull) << 1;
  if (plane & 2) v = (v >> 2 & 0x3333333333333333ull) | (v & 0x3333333333333333ull) << 2;
  return v;
}

/// Between the 32 bytes of 256 canonical columns and one packed unit. Canonical byte 4 j + q holds
/// columns 32 j + 8 q .. + 7, so the eight bytes q, q + 4, .. become packed bytes 8 q .. 8 q + 7 by
/// a transposition; the inverse is the same with the roles of the addresses swapped.
void pack_unit(const std::uint8_t* canonical, std::int64_t plane, std::uint8_t* packed) {
  for (int q = 0; q < 4; ++q) {
    std::uint64_t rows = 0;
    for (int j = 0; j < 8; ++j) rows |= std::uint64_t{canonical[4 * j + q]} << (8 * j);
    rows = turn_bits(transpose8x8(rows), plane);
    for (int i = 0; i < 8; ++i) packed[8 * q + i] = static_cast<std::uint8_t>(rows >> (8 * i));
  }
}

void unpack_unit(const std::uint8_t* packed, std::int64_t plane, std::uint8_t* canonical) {
  for (int q = 0; q < 4; ++q) {
    std::uint64_t rows = 0;
    for (int i = 0; i < 8; ++i) rows |= std::uint64_t{packed[8 * q + i]} << (8 * i);
    rows = transpose8x8(turn_bits(rows, plane));
    for (int j = 0; j < 8; ++j) canonical[4 * j + q] = static_cast<std::uint8_t>(rows >> (8 * j));
  }
}

/// Bytes of unit u that a canonical row of row_bytes really has.
std::int64_t unit_bytes(std::int64_t row_bytes, std::int64_t u) {
  const std::int64_t left = row_bytes - u * kUnitBytes;
  return left < kUnitBytes ? left : kUnitBytes;
}

}  // namespace

void pack_planes(const std::uint8_t* canonical, std::int64_t planes, std::int64_t out_features,
                 std::int64_t in_features, std::uint8_t* packed) {
  const std::int64_t from = plane_row_bytes(in_features);
  const std::int64_t to = packed_row_bytes(in_features);
  const std::int64_t rows_bytes = out_features * to;
  const std::int64_t plane_bytes = packed_plane_bytes(out_features, in_features);
  for (std::int64_t plane = 0; plane < planes; ++plane) {
    std::uint8_t* out = packed + plane * plane_bytes;
    for (std::int64_t row = 0; row < out_features; ++row) {
      const std::uint8_t* in = canonical + (plane * out_features + row) * from;
      for (std::int64_t u = 0; u < to / kUnitBytes; ++u) {
        std::uint8_t unit[kUnitBytes] = {};
        std::memcpy(unit, in + u * kUnitBytes, unit_bytes(from, u));
        pack_unit(unit, plane, out + row * to + u * kUnitBytes);
      }
    }
    if (plane_bytes > rows_bytes) std::memset(out + rows_bytes, 0, plane_bytes - rows_bytes);
  }
}

void unpack_planes(const std::uint8_t* packed, std::int64_t planes, std::int64_t out_features,
                   std::int64_t in_features, std::uint8_t* canonical) {
  const std::int64_t from = packed_row_bytes(in_features);
  const std::int64_t to = plane_row_bytes(in_features);
  const std::int64_t plane_bytes = packed_plane_bytes(out_features, in_features);
  for (std::int64_t plane = 0; plane < planes; ++plane) {
    const std::uint8_t* in = packed + plane * plane_bytes;
    for (std::int64_t row = 0; row < out_features; ++row) {
      std::uint8_t* out = canonical + (plane * out_features + row) * to;
      for (std::int64_t u = 0; u < from / kUnitBytes; ++u) {
        std::uint8_t unit[kUnitBytes];
        unpack_unit(in + row * from + u * kUnitBytes, plane, unit);
        std::memcpy(out + u * kUnitBytes, unit, unit_bytes(to, u));
      }
    }
  }
}

}  // namespace anyprec::cpu
