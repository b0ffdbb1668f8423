#pragma once

#include <cstdint>

/// Inner loops of fitting codes to a Hessian (src/fit), by raw pointers.
///
/// Codes are bit-reversed: bit i is plane i, so that the code at precision b is the low b bits, and
/// the 2^b values of a table are in that order.
namespace anyprec::cpu {

inline constexpr int kSweepColumns = 64;  ///< the most columns of a block
inline constexpr int kSweepWidths = 7;    ///< the most precisions at once
inline constexpr int kTableLanes = 16;    ///< a shorter table is repeated up to so many values
constexpr int padded_entries(int precision) { return precision < 4 ? kTableLanes : 1 << precision; }

/// One block of columns of a sweep over rows: see SweepKernel.
struct SweepBlock {
  int widths;                         ///< W, 1..7
  int precisions[kSweepWidths];       ///< rising; the codes have precisions[W - 1] bits
  const float* tables[kSweepWidths];  ///< each [rows, G, padded_entries(b)]
  const float* weights;               ///< [W, rows] of the precisions in the cost
  const float* state;                 ///< [W, rows, stride], at the first column; only read
  float* steps;                       ///< [W, rows, step_stride], written
  std::uint8_t* codes;                ///< [rows, stride], at the first column
  const float*
      coupling;  ///< [columns, coupling_stride], by which steps spread, at the block's first
  const float* inverse_diagonal;  ///< [columns], or null: the state is the target itself
  const std::int32_t* groups;     ///< [columns], the codebook of each column
  std::int64_t rows;
  std::int64_t stride;  ///< K
  std::int64_t step_stride;
  std::int64_t coupling_stride;
  int codebooks;         ///< G
  int columns;           ///< 1..64
  bool newest_bit_only;  ///< W = 1: only the last bit of a code may change
};

/// For each column j in turn chooses the code c that minimizes sum over widths of
/// weight (u - value(c))^2. u is state[j], or value(old code) + state[j] * inverse_diagonal[j].
/// The step, u (or the old value) - the new value, times coupling[j] is added to the state of the
/// columns after j. The smallest of equal codes wins. Takes O(columns * (sum of 2^b + 64 W)) a row.
using SweepKernel = void (*)(const SweepBlock& block);

/// normal: [slots, slots], the sum of hessian[i, j] over columns i of slot a and j of slot b.
/// hessian: [columns, columns]; slots: [columns]; scratch: [slots * 64 + columns + slots + 1].
struct SegmentSums {
  const float* hessian;
  const std::int32_t* slot_of;  ///< [rows, columns]
  float* normal;                ///< [rows, slots, slots]
  std::int64_t rows;
  std::int64_t columns;
  int slots;
};
using SegmentKernel = void (*)(const SegmentSums& sums);

struct FitKernels {
  SweepKernel sweep;
  SegmentKernel segment_sums;
};

/// Those of the instruction set in use (selected_isa). Bytes may differ between instruction sets.
const FitKernels& fit_kernels();

const FitKernels& fit_kernels_scalar();
#ifdef ANYPREC_CPU_X86
const FitKernels& fit_kernels_avx2();
const FitKernels& fit_kernels_avx512();
#endif

}  // namespace anyprec::cpu
