#pragma once

#include <cstdint>

#include "kernels/cuda/code_bytes.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/table_build.cuh"

/// From the planes of a half-unit (128 columns, layout.h) to products: look-ups in the table of
/// table_build.cuh give the A operand of mma.m16n8k16.
namespace anyprec::cuda {

/// Looks up what byte kByte of `bytes` addresses. lane_offset: 4 * lane; kHalf: row / 8.
template <int kByte, int kHalf>
__device__ __forceinline__ std::uint32_t look_up(const char* table, std::uint32_t bytes,
                                                 std::uint32_t lane_offset) {
  // Byte 1 of the offset is the entry, byte 0 the lane: entries are 256 bytes.
  const std::uint32_t offset = __byte_perm(bytes, lane_offset, 0x7604 | kByte << 4);
  return *reinterpret_cast<const std::uint32_t*>(table + kHalf * (kEntryBytes / 2) + offset);
}

/// low | high << 16 of two values below 65536, on the multiplier: the other units are busier.
/// one_shl_16: 65536, in a way that the compiler does not know.
__device__ __forceinline__ std::uint32_t join(std::uint32_t low, std::uint32_t high,
                                              std::uint32_t one_shl_16) {
  std::uint32_t joined;
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(joined) : "r"(high), "r"(one_shl_16), "r"(low));
  return joined;
}

/// Two steps of the mma: the columns of byte kByte of the words `top` (row g) and `low` (row g +
/// 8), times x's fragments of the same columns. Steps take the chains of sums in turn.
template <int kBits, int kByte, int kChains, int kFragments>
__device__ __forceinline__ void multiply_eight(const char* table, std::uint32_t lane_offset,
                                               std::uint32_t one_shl_16,
                                               const std::uint32_t (&top)[kCodeWords<kBits>],
                                               const std::uint32_t (&low)[kCodeWords<kBits>],
                                               const std::uint32_t (&x)[kFragments][4],
                                               float (&sums)[kChains][kFragments][4]) {
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    std::uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // columns 4 step + 2 i and the next
      if constexpr (kPairs<kBits>) {
        a[2 * i] = look_up<kByte, 0>(table, top[step + 2 * i], lane_offset);
        a[2 * i + 1] = look_up<kByte, 1>(table, low[step + 2 * i], lane_offset);
      } else {
        const int word = 4 * step + 2 * i;
        a[2 * i] = join(look_up<kByte, 0>(table, top[word], lane_offset),
                        look_up<kByte, 0>(table, top[word + 1], lane_offset), one_shl_16);
        a[2 * i + 1] = join(look_up<kByte, 1>(table, low[word], lane_offset),
                            look_up<kByte, 1>(table, low[word + 1], lane_offset), one_shl_16);
      }
    }
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      ptx::mma_16816(sums[step % kChains][f], a, x[f][2 * step], x[f][2 * step + 1]);
    }
  }
}

/// Gives the columns past K, where planes are zero, the codes of the half-unit's first column:
/// their values meet zeros of x, and are now finite wherever the row's are. valid_columns: 1 to
/// 127.
template <int kBits>
__device__ __forceinline__ void fill_tail(std::uint32_t (&top)[kBits], std::uint32_t (&low)[kBits],
                                          int valid_columns) {
  const int lane = threadIdx.x % 32;
  const int columns = valid_columns - 32 * (lane % 4);
  const std::uint32_t valid =
      columns >= 32 ? 0xffffffffu : (columns <= 0 ? 0u : (1u << columns) - 1);
#pragma unroll
  for (int p = 0; p < kBits; ++p) {
    const std::uint32_t top_bit = __shfl_sync(0xffffffffu, top[p], lane & ~3) & 1u;
    const std::uint32_t low_bit = __shfl_sync(0xffffffffu, low[p], lane & ~3) & 1u;
    top[p] = (top[p] & valid) | ((0u - top_bit) & ~valid);
    low[p] = (low[p] & valid) | ((0u - low_bit) & ~valid);
  }
}

/// The planes' words of rows g and g + 8 in a half-unit.
template <int kBits>
struct HalfWords {
  std::uint32_t top[kBits], low[kBits];
};

/// fill_tail as a call, for a kernel that seldom meets such an end: code that is not run takes room
/// in the instruction cache all the same.
template <int kBits>
__device__ __noinline__ HalfWords<kBits> with_tail_filled(HalfWords<kBits> words,
                                                          int valid_columns) {
  fill_tail<kBits>(words.top, words.low, valid_columns);
  return words;
}

/// Reads 16 bytes of shared memory where `condition` holds, and leaves `to` alone elsewhere.
__device__ __forceinline__ void read_if(bool condition, const uint4* from, std::uint32_t (&to)[4]) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %5, 0;\n"
      "@p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "+r"(to[0]), "+r"(to[1]), "+r"(to[2]), "+r"(to[3])
      : "r"(ptx::shared_address(from)), "r"(static_cast<int>(condition)));
}

}  // namespace anyprec::cuda
