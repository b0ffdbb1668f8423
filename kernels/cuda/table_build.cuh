#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/code_bytes.cuh"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/table_mma_args.h"

/// Codebooks of a tile to a table in shared memory, in two steps: a copy of the tile's rows of lut
/// and alpha (`stage_codebooks`, asynchronous), and their expansion (`build_table`).
///
/// Table: [entry][row / 8][lane] words. The four lanes 4 (row % 8) + t have the same word, so that
/// a lane of the mma, row g = lane / 4, reads its own bank only. A word is a pair of fp16 values,
/// of the even column in its low half, or one value in its low half (kPairs, code_bytes.cuh).
namespace anyprec::cuda {

inline constexpr int kEntryBytes = 256;
template <int kBits>
inline constexpr int kTableBytes = kEntries<kBits> * kEntryBytes;

// Staged codebooks: rows of lut, padded by 16 bytes where they are longer (then eight rows at the
// same offset lie in different banks), then alpha as it is in memory.
inline constexpr int kStagePadding = 16;
template <int kBits>
inline constexpr int kStageBytes = kTileRows * ((2 << kBits) + kStagePadding);

__device__ __forceinline__ int staged_row_bytes(const TableForm& form) {
  return (2 << form.table_bits) + (form.table_bits >= 3 ? kStagePadding : 0);
}

/// 16 bytes from global to shared memory, of which only the first `valid` exist; the others become
/// zeros, and nothing past the end is addressed. Asynchronous where all exist.
__device__ __forceinline__ void copy_up_to_16(char* to, const char* from, int valid) {
  if (valid >= 16) {
    ptx::copy_16(ptx::shared_address(to), from);
    return;
  }
  std::uint16_t* const halves = reinterpret_cast<std::uint16_t*>(to);
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    halves[i] = 2 * i < valid ? reinterpret_cast<const std::uint16_t*>(from)[i] : std::uint16_t{0};
  }
}

/// A tile's codebooks: rows of lut and alpha, of which the first `rows` exist; the others become
/// zeros.
template <int kThreads>
__device__ __forceinline__ void stage_codebooks(const TableForm& form, const char* lut,
                                                const char* alpha, int rows, char* stage) {
  const int row_bytes = 2 << form.table_bits;
  const int padding = form.table_bits >= 3 ? kStagePadding : 0;
  for (int at = threadIdx.x * 16; at < kTileRows * row_bytes; at += kThreads * 16) {
    const int row = at >> (form.table_bits + 1);
    copy_up_to_16(stage + at + row * padding, lut + at, rows * row_bytes - at);
  }
  if (form.signs == 0) return;
  const int alpha_row_bytes = form.signs * form.classes * 2;
  char* const alpha_stage = stage + kTileRows * (row_bytes + padding);
  for (int at = threadIdx.x * 16; at < kTileRows * alpha_row_bytes; at += kThreads * 16) {
    copy_up_to_16(alpha_stage + at, alpha + at, rows * alpha_row_bytes - at);
  }
}

/// The next level of a tree of sums: each of the first 2^level becomes two, less and plus `a`.
template <int kCount>
__device__ __forceinline__ void split_by_sign(float (&sums)[kCount], int level, float a) {
#pragma unroll
  for (int i = (1 << level) - 1; i >= 0; --i) {
    const float sum = sums[i];
    sums[2 * i] = sum - a;
    sums[2 * i + 1] = sum + a;
  }
}

/// lut and alpha of one row.
struct CodebookRow {
  const __half* lut;
  const __half* alpha;

  /// The value of a code without its last `left_out` signed planes, in the order of
  /// expand_codebook.
  __device__ __forceinline__ float value(const TableForm& form, int code, int left_out) const {
    const int cell = code >> form.signs;
    const __half* coefficient = alpha + form.codebook.class_of(cell);
    float sum = __half2float(lut[cell]);
#pragma unroll 1
    for (int bit = form.signs - 1; bit >= left_out; --bit) {
      const float a = __half2float(*coefficient);
      sum += (code >> bit) & 1 ? a : -a;
      coefficient += form.classes;
    }
    return sum;
  }

  /// Values of the 2^kDepth codes from `first`, which differ in their last signed planes only: the
  /// leaves of a tree.
  template <int kDepth>
  __device__ __forceinline__ void expand(const TableForm& form, int first,
                                         float (&sums)[1 << kDepth]) const {
    sums[0] = value(form, first, kDepth);
    const __half* const coefficients = alpha + form.codebook.class_of(first >> form.signs);
#pragma unroll
    for (int level = 0; level < kDepth; ++level) {
      const __half a = coefficients[(form.signs - kDepth + level) * form.classes];
      split_by_sign(sums, level, __half2float(a));
    }
  }
};

__device__ __forceinline__ CodebookRow staged_row(const TableForm& form, const char* stage,
                                                  int row) {
  return {reinterpret_cast<const __half*>(stage + row * staged_row_bytes(form)),
          reinterpret_cast<const __half*>(stage + kTileRows * staged_row_bytes(form)) +
              row * form.signs * form.classes};
}

/// kCount values, aligned to their size.
template <int kCount>
__device__ __forceinline__ void read_values(const void* from, std::uint32_t (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = *static_cast<const std::uint16_t*>(from);
  } else {
    constexpr int kWords = kCount / 2;
    std::uint32_t words[kWords];
    if constexpr (kWords >= 4) {
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i) {
        const uint4 four = static_cast<const uint4*>(from)[i];
        words[4 * i] = four.x;
        words[4 * i + 1] = four.y;
        words[4 * i + 2] = four.z;
        words[4 * i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[i] = static_cast<const std::uint32_t*>(from)[i];
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      values[2 * i] = words[i] & 0xffffu;
      values[2 * i + 1] = words[i] >> 16;
    }
  }
}

__host__ __device__ constexpr int bits_of(int power_of_two) {
  int bits = 0;
  while (power_of_two >> (bits + 1) != 0) ++bits;
  return bits;
}

/// The index of a code: its bits reversed, and where pairs are looked up, with room between them.
template <int kBits>
__device__ __forceinline__ int reversed(int code) {
  return static_cast<int>(__brev(static_cast<unsigned>(code)) >> (32 - kBits));
}
__host__ __device__ constexpr int spread_bits(int index) {
  return (index & 1) | (index & 2) << 1 | (index & 4) << 2 | (index & 8) << 3;
}
__host__ __device__ constexpr int reversed_constant(int code, int bits) {
  int result = 0;
  for (int i = 0; i < bits; ++i) result |= ((code >> i) & 1) << (bits - 1 - i);
  return result;
}

/// A value as the low bits of a word: fp16, bf16 or fp32.
template <typename T>
__device__ __forceinline__ std::uint32_t value_word(float value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half_as_ushort(__float2half_rn(value));
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  } else {
    return __float_as_uint(value);
  }
}
template <typename T>
__device__ __forceinline__ std::uint32_t value_word(__half value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half_as_ushort(value);
  } else {
    return value_word<T>(__half2float(value));
  }
}

/// Where the 16 bytes of a row lie in an entry.
__device__ __forceinline__ char* row_words(char* table, int row) {
  return table + (row / 8) * (kEntryBytes / 2) + (row % 8) * 16;
}
__device__ __forceinline__ void store_word(char* words, int entry, std::uint32_t word) {
  *reinterpret_cast<uint4*>(words + entry * kEntryBytes) = make_uint4(word, word, word, word);
}

/// A table of 2^kBits single values. By all threads of the block; the row of thread i is i % 16,
/// and a run of codes its own. Hybrids are summed in fp32 and rounded to T once.
template <int kBits, int kThreads, typename T>
__device__ __forceinline__ void build_singles(const TableForm& form, const char* stage,
                                              char* table) {
  constexpr int kThreadsOfRow = kThreads / kTileRows;
  constexpr int kRun = std::max(1, (1 << kBits) / kThreadsOfRow);
  constexpr int kGroup = std::min(8, kRun);  // codes at a time: registers are scarce
  constexpr int kDepth = bits_of(kGroup);
  static_assert(kThreadsOfRow >= 1 && (kRun & (kRun - 1)) == 0);
  const int row = threadIdx.x % kTileRows;
  const int begin = threadIdx.x / kTileRows * kRun;
  if (kThreadsOfRow > 1 << kBits && begin >= 1 << kBits) return;
  char* const words = row_words(table, row);
  const CodebookRow codebook = staged_row(form, stage, row);
#pragma unroll 1
  for (int first = begin; first < begin + kRun; first += kGroup) {
    std::uint32_t values[kGroup];
    if (form.signs == 0) {
      read_values(codebook.lut + first, values);
#pragma unroll
      for (std::uint32_t& value : values) {
        value = value_word<T>(__ushort_as_half(static_cast<unsigned short>(value)));
      }
    } else if (form.signs >= kDepth) {
      float sums[kGroup];
      codebook.expand<kDepth>(form, first, sums);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) values[i] = value_word<T>(sums[i]);
    } else {  // several cells a group: L of 6 or 7
#pragma unroll 1
      for (int code = first; code < first + kGroup; ++code) {
        store_word(words, reversed<kBits>(code), value_word<T>(codebook.value(form, code, 0)));
      }
      continue;
    }
    const int entry = reversed<kBits>(first);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      store_word(words, entry + reversed_constant(i, kBits), values[i]);
    }
  }
}

// A builder of pairs needs all values of a row, so hybrids are expanded first, into rows of 2^kBits
// values at a stride that keeps them aligned and in different banks.
template <int kBits>
inline constexpr int kExpandedRowBytes = (2 << kBits) + 16;
template <int kBits>
inline constexpr int kExpandedBytes = kPairs<kBits> ? kTileRows * kExpandedRowBytes<kBits> : 0;

/// By all threads of the block, followed by a barrier; thread i has row i % 16 and code i / 16.
template <int kBits, int kThreads>
__device__ __forceinline__ void expand_pairs(const TableForm& form, const char* stage,
                                             char* expanded) {
  static_assert(kThreads >= kTileRows << kBits);
  const int row = threadIdx.x % kTileRows, code = threadIdx.x / kTileRows;
  if (code >= 1 << kBits) return;
  const float value = staged_row(form, stage, row).value(form, code, 0);
  reinterpret_cast<__half*>(expanded + row * kExpandedRowBytes<kBits>)[code] =
      __float2half_rn(value);
}

/// By all threads of the block; the row of thread i is i % 16. Hybrids are summed in fp32 and
/// rounded once. expanded: from expand_pairs, where pairs of a hybrid are built.
template <int kBits, int kThreads>
__device__ __forceinline__ void build_table(const TableForm& form, const char* stage,
                                            const char* expanded, char* table) {
  if constexpr (kPairs<kBits>) {
    // A thread joins the code of an even column with kOdd codes of odd columns.
    constexpr int kThreadsOfRow = kThreads / kTileRows;
    constexpr int kOdd = kEntries<kBits> > kThreadsOfRow ? kEntries<kBits> / kThreadsOfRow : 1;
    constexpr int kParts = (1 << kBits) / kOdd;
    const int row = threadIdx.x % kTileRows;
    const int part = threadIdx.x / kTileRows;
    if (part >= (kParts << kBits)) return;
    const int even = part / kParts;
    const int odd = part % kParts * kOdd;
    const char* const values = form.signs == 0 ? stage + row * staged_row_bytes(form)
                                               : expanded + row * kExpandedRowBytes<kBits>;
    std::uint32_t even_value[1], odd_values[kOdd];
    read_values(values + 2 * even, even_value);
    read_values(values + 2 * odd, odd_values);
    char* const words = row_words(table, row);
    const int entry = spread_bits(reversed<kBits>(even)) + 2 * spread_bits(reversed<kBits>(odd));
#pragma unroll
    for (int i = 0; i < kOdd; ++i) {
      store_word(words, entry + 2 * spread_bits(reversed_constant(i, kBits)),
                 even_value[0] | odd_values[i] << 16);
    }
  } else {
    build_singles<kBits, kThreads, __half>(form, stage, table);
  }
}

}  // namespace anyprec::cuda
