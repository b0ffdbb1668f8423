#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "anyprec/parallel.h"
#include "anyprec/planes.h"
#include "anyprec/weights.h"

namespace anyprec::cpu {

/// Instruction sets that a CPU kernel exists for, in rising order of preference.
enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Vbmi };

/// The best instruction set of this machine, or the one that the environment variable
/// ANYPREC_CPU_ISA (scalar, avx2, avx512, avx512vbmi) names. Throws InvalidArgument where that
/// name is unknown or the machine lacks it.
Isa selected_isa();
std::string to_string(Isa isa);
/// Whether this machine can run kernels for `isa`.
bool isa_supported(Isa isa);

/// Repacks canonical planes (anyprec/planes.h) into the CPU backend's layout: within each unit of
/// 256 columns, bit j ^ (p % 4) of byte i of plane p belongs to column 32 * j + i of the unit; rows
/// and columns are padded with zero bits. canonical: [P, N, ceil(K/8)], packed: [P, packed_rows(N),
/// packed_row_bytes(K)].
void pack_planes(const std::uint8_t* canonical, std::int64_t planes, std::int64_t out_features,
                 std::int64_t in_features, std::uint8_t* packed);
/// The inverse of pack_planes.
void unpack_planes(const std::uint8_t* packed, std::int64_t planes, std::int64_t out_features,
                   std::int64_t in_features, std::uint8_t* canonical);

/// y = x W_b^T + bias, for any M, N, K.
///   x: [M, K] with `x_stride` elements between rows; y: [M, N] with `y_stride`, at least N;
///   bias: [N] or null; all of `type`. W_b is never held in floating point.
///
/// Accuracy, before rounding to `type`. M > 4: products of fp32 values, summed in fp32 in 8 or 16
/// interleaved parts. M <= 4: activations become 15-bit fixed point in each block of 32 columns (of
/// 256 columns, those c with equal c % 32 / 16 and c % 8 / 2), and table values 16-bit in each
/// table, so that beside the fp32 summation of the blocks
///   |error| <= sum over blocks (max|x| sum|w| / 32766 + max|table| sum|x| / 65200);
/// blocks whose max|x| is below 2^-90 count as zero, and sum|x| must be in the range of fp32.
///
/// A NaN or an infinity in a row of x makes all of that row of y NaN or infinite (for M <= 4: NaN),
/// and no other row. A table with a NaN or an infinity gives what fp32 arithmetic gives.
/// Deterministic: for one M and `isa`, the same input gives the same bytes on any number of
/// threads.
///
/// Throws InvalidArgument where a size, stride, precision or pointer is outside the above, or the
/// machine lacks `isa`.
void linear(const Weights& weights, const void* x, std::int64_t x_stride, std::int64_t m,
            const void* bias, void* y, std::int64_t y_stride, ScalarType type,
            const Executor& executor, Isa isa = selected_isa());

/// One matrix and where its product goes.
struct Product {
  Weights weights;
  const void* bias = nullptr;  ///< [N] of the input's type, or null
  void* y = nullptr;           ///< [M, N] of the input's type
  std::int64_t y_stride = 0;   ///< elements between rows
};

/// linear() of several matrices with one x, as of Q, K and V: the same results, for less than one
/// call each where M is small. All have the same K; forms and precisions may differ.
void linear(std::span<const Product> products, const void* x, std::int64_t x_stride, std::int64_t m,
            ScalarType type, const Executor& executor, Isa isa = selected_isa());

/// Rows [row_begin, row_end) of W_b as `type`: out is [row_end - row_begin, K], contiguous. Full
/// tables come out exactly in fp32 and fp16; sums of a hybrid are made in fp32 and rounded once.
/// Throws InvalidArgument for rows that are not there.
void dequantize(const Weights& weights, std::int64_t row_begin, std::int64_t row_end, void* out,
                ScalarType type, Isa isa = selected_isa());

}  // namespace anyprec::cpu
