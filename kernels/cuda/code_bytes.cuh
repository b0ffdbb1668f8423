#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"

/// Bit planes to the bytes that address a table.
///
/// A lane holds a word a plane: 32 consecutive columns of one row. `code_bytes` turns kBits of them
/// into words of bytes, by butterflies (exchange of bit fields between two words):
///   pairs (kBits <= 4): byte i of word v has the codes of columns 8 i + 2 rev(v) and the next one,
///     rev = {0, 2, 1, 3}; bit 2 p + c is plane p of column c of the pair;
///   singles: byte i of word v has the code of column 8 i + v; bit p is plane p.
/// Plane 0 is a code's most significant bit, so an index is the code with its bits reversed.
namespace anyprec::cuda {

template <int kBits>
inline constexpr bool kPairs = kBits <= 4;
template <int kBits>
inline constexpr int kCodeWords = kPairs<kBits> ? 4 : 8;
/// Entries of the table that the bytes address.
template <int kBits>
inline constexpr int kEntries = kPairs<kBits> ? 1 << (2 * kBits) : 1 << kBits;

/// Bits of a where kMask has ones, of b where it has zeros. In one instruction: written as an
/// expression, the compiler takes two.
template <std::uint32_t kMask>
__device__ __forceinline__ std::uint32_t choose(std::uint32_t a, std::uint32_t b) {
  constexpr int kTruth = 0xe4;  // (a & mask) | (b & ~mask)
  return ptx::boolean<kTruth>(a, b, kMask);
}

/// The low fields of a and b, and their high fields: fields of kShift bits.
template <int kShift, std::uint32_t kLow>
__device__ __forceinline__ void butterfly(std::uint32_t a, std::uint32_t b, std::uint32_t& low,
                                          std::uint32_t& high) {
  low = choose<kLow>(a, b << kShift);
  high = choose<kLow>(a >> kShift, b);
}

/// Singles of any kBits.
template <int kBits>
__device__ __forceinline__ void single_code_bytes(const std::uint32_t (&planes)[kBits],
                                                  std::uint32_t (&bytes)[8]) {
  constexpr std::uint32_t kBit = 0x55555555u, kPair = 0x33333333u, kNibble = 0x0f0f0f0fu;
  const auto plane = [&](int p) { return p < kBits ? planes[p < kBits ? p : 0] : 0u; };
  // Nibble i of top[c] has planes 0 to 3 of column 4 i + c; rest[c] the others.
  std::uint32_t top[4], rest[4] = {};
  std::uint32_t even, odd, even2, odd2;
  butterfly<1, kBit>(plane(0), plane(1), even, odd);
  butterfly<1, kBit>(plane(2), plane(3), even2, odd2);
  butterfly<2, kPair>(even, even2, top[0], top[2]);
  butterfly<2, kPair>(odd, odd2, top[1], top[3]);
  if constexpr (kBits <= 4) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      bytes[c] = top[c] & kNibble;
      bytes[c + 4] = (top[c] >> 4) & kNibble;
    }
  } else if constexpr (kBits == 5) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      bytes[c] = (top[c] & kNibble) | ((planes[4] << (4 - c)) & 0x10101010u);
      bytes[c + 4] = ((top[c] >> 4) & kNibble) | ((planes[4] >> c) & 0x10101010u);
    }
  } else {
    butterfly<1, kBit>(plane(4), plane(5), even, odd);
    if constexpr (kBits == 6) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const std::uint32_t both = c % 2 == 0 ? even : odd;
        const std::uint32_t up = c < 2 ? both << 4 : both << 2;
        const std::uint32_t down = c < 2 ? both : both >> 2;
        bytes[c] = (top[c] & kNibble) | (up & 0x30303030u);
        bytes[c + 4] = ((top[c] >> 4) & kNibble) | (down & 0x30303030u);
      }
    } else {
      butterfly<1, kBit>(plane(6), plane(7), even2, odd2);
      butterfly<2, kPair>(even, even2, rest[0], rest[2]);
      butterfly<2, kPair>(odd, odd2, rest[1], rest[3]);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        butterfly<4, kNibble>(top[c], rest[c], bytes[c], bytes[c + 4]);
      }
    }
  }
}

template <int kBits>
__device__ __forceinline__ void code_bytes(const std::uint32_t (&planes)[kBits],
                                           std::uint32_t (&bytes)[kCodeWords<kBits>]) {
  constexpr std::uint32_t kPair = 0x33333333u, kNibble = 0x0f0f0f0fu;
  if constexpr (kPairs<kBits>) {
    std::uint32_t low, high;  // nibbles of planes 0 and 1: columns 4 i, 4 i + 1 and the next two
    butterfly<2, kPair>(planes[0], planes[1], low, high);
    if constexpr (kBits == 2) {
      bytes[0] = low & kNibble;
      bytes[1] = (low >> 4) & kNibble;
      bytes[2] = high & kNibble;
      bytes[3] = (high >> 4) & kNibble;
    } else if constexpr (kBits == 3) {
      bytes[0] = (low & kNibble) | ((planes[2] << 4) & 0x30303030u);
      bytes[1] = ((low >> 4) & kNibble) | (planes[2] & 0x30303030u);
      bytes[2] = (high & kNibble) | ((planes[2] << 2) & 0x30303030u);
      bytes[3] = ((high >> 4) & kNibble) | ((planes[2] >> 2) & 0x30303030u);
    } else {
      std::uint32_t low2, high2;
      butterfly<2, kPair>(planes[2], planes[3], low2, high2);
      butterfly<4, kNibble>(low, low2, bytes[0], bytes[1]);
      butterfly<4, kNibble>(high, high2, bytes[2], bytes[3]);
    }
  } else {
    single_code_bytes<kBits>(planes, bytes);
  }
}

}  // namespace anyprec::cuda
