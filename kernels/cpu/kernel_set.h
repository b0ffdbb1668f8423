#pragma once

#include <cstdint>

#include "anyprec/linear.h"

/// What one instruction set provides, as plain functions on raw pointers. The loops over rows,
/// tiles and threads are shared (matvec.cpp, gemm.cpp, dequantize.cpp) and compiled for the
/// baseline.
///
/// Words used here: a *unit* is 256 columns of one plane (32 bytes, pack_planes); a *step* is the
/// number of units that a kernel decodes at once (1, or 2 with AVX-512); a *block* is 32 columns:
/// bit block_bit(j, p) of a byte of plane p belongs to block j.
namespace anyprec::cpu {

inline constexpr int kUnitBytes = 32;
inline constexpr int kUnitColumns = 256;
inline constexpr int kBlockColumns = 32;
inline constexpr int kUnitBlocks = 8;
/// Where a byte of plane p has the bit of block j. The planes' lowest two bits turn the positions,
/// so that codes come together by choosing bits among planes, without shifts (kernels_avx2.cpp).
constexpr int block_bit(int block, int plane) { return block ^ (plane & 3); }
/// The block of fixed-point activations that column c of a unit belongs to (linear.h): four columns
/// of each of the eight blocks of codes, those that SIMD kernels add up in one lane.
constexpr int fixed_block(int column) { return column % 32 / 16 * 4 + column % 8 / 2; }
/// Bytes of the look-up table of one codebook: 2^b 16-bit entries, but at least 64.
constexpr int table_bytes(int precision) { return precision < 5 ? 128 : 2 << precision; }
inline constexpr int kMaxTableBytes = 512;
/// Activations are multiples of (largest magnitude in the block) / kActivationSteps, weights of
/// (largest magnitude in the table) / kTableSteps: four products still fit in 32 bits.
inline constexpr int kActivationSteps = 16383;
inline constexpr int kTableSteps = 32767;
inline constexpr float kSmallestMagnitude = 0x1p-90f;
/// The most rows of activations that a matvec kernel takes; from there on, decoding to fp32 costs
/// no more than fixed point does and is more exact.
inline constexpr int kMatvecRows = 4;
/// Rows of W that a GEMM tile holds.
inline constexpr int kTileRows = 12;
/// The most rows of W that a matvec kernel takes: their tables are made together, since each waits
/// for itself.
inline constexpr int kRowBatch = 16;

/// The b planes of a row of W, its units one after the other, and of the rows after it.
struct PlaneRow {
  const std::uint8_t* data;   ///< plane 0, the most significant
  std::int64_t plane_stride;  ///< bytes from one plane to the next
  std::int64_t units;
  std::int64_t blocks;  ///< that have columns: the last unit may have fewer than kUnitBlocks
};

/// The tables of a row of W, one a group, table_bytes(b) apart, and of the rows after it.
struct Tables {
  const std::uint8_t* data;
  const float* scales;            ///< [G] largest magnitude, for fixed-point tables
  std::int64_t groups;            ///< G
  std::int64_t blocks_per_group;  ///< not read by kernels for a single group
};

/// Rows of activations in a KernelSet's own fixed-point form: a record of fixed_step_bytes for each
/// step of columns, on a cache line's boundary.
struct FixedRows {
  const std::uint8_t* data;
  std::int64_t stride;  ///< bytes between rows
};

/// out[i][n] = sum over k of w[n][k] x[i][k], for the kernel's fixed number of rows of x and
/// `count` rows of W. out: [rows of x, kRowBatch].
using MatvecKernel = void (*)(const PlaneRow& planes, const Tables& tables, const FixedRows& x,
                              int count, float* out);

/// One step of a row as fp32, in the order of the columns: all its columns are written, padding
/// too. `unit` is the first unit of the step. `low` is only read by kernels for fp32 tables.
using DecodeKernel = void (*)(const PlaneRow& planes, std::int64_t unit, const Tables& high,
                              const Tables& low, float* out);

struct KernelSet {
  int step_units;        ///< units in a step
  int lanes;             ///< floats in an accumulator of `multiply`
  int fixed_step_bytes;  ///< bytes of a step in FixedRows, a multiple of 64

  /// Makes the record of one step of activations: each block of 32 columns (linear.h) is multiples
  /// of its largest magnitude / kActivationSteps. A block whose largest magnitude is below
  /// kSmallestMagnitude becomes zero; one with a NaN or an infinity gets a NaN for its scale.
  void (*fix_step)(const float* x, std::uint8_t* record);
  void (*half_to_float)(const std::uint16_t* in, int count, float* out);
  /// Makes the fixed-point table of 2^precision values and returns the largest magnitude, or NaN
  /// where a value is not finite (the table is then undefined).
  float (*fixed_table)(const float* values, int precision, std::uint8_t* table);
  /// The same of `count` tables, table_bytes(b) apart, whose values are in fp16, and their
  /// magnitudes.
  void (*fixed_half_tables)(const std::uint16_t* halves, int precision, std::int64_t count,
                            std::uint8_t* tables, float* magnitudes);
  /// A table of 2^precision 16-bit patterns.
  void (*bit_table)(const std::uint16_t* values, int precision, std::uint8_t* table);

  MatvecKernel (*matvec)(int precision, int rows, bool grouped);
  /// halves: the tables hold fp16 bits in `high`; else the two halves of fp32 bits.
  DecodeKernel (*decode)(int precision, bool halves, bool grouped);

  /// acc[i][n] += w[n] * x[i], lane by lane, over the first `columns` of a step, a multiple of the
  /// lanes.
  ///   w: [w_rows, step columns], x: [x_rows, step columns], acc: [x_rows, kTileRows, lanes].
  void (*multiply)(const float* w, int w_rows, const float* x, std::int64_t x_rows, int columns,
                   float* acc);
  /// out[i] = the sum of the lanes of acc[i], for `count` accumulators.
  void (*reduce)(const float* acc, std::int64_t count, float* out);
};

const KernelSet& scalar_kernels();
const KernelSet& avx2_kernels();
const KernelSet& avx512_kernels();
const KernelSet& avx512vbmi_kernels();

/// The kernels for `isa`. Throws InvalidArgument where the machine lacks it.
const KernelSet& kernels_for(Isa isa);

}  // namespace anyprec::cpu
