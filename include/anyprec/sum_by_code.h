#pragma once

#include <cstdint>

#include "anyprec/codebook.h"
#include "anyprec/weights.h"

namespace anyprec {

/// The sums of a matrix's elements over the columns that have one code: what the gradient with
/// respect to a weight gives to the values of its codebook.
///
///   out[n][g][c] = sum of values[n][k] over the columns k of group g with codes[n][k] = c
struct CodeSums {
  const void* values = nullptr;  ///< [N, K] of `type`, contiguous
  ScalarType type = ScalarType::kFloat32;
  const std::uint8_t* codes = nullptr;  ///< [N, K]; the lowest `precision` bits count
  std::int64_t rows = 0;                ///< N
  std::int64_t columns = 0;             ///< K
  int precision = 0;                    ///< 2 to 8
  std::int64_t group_size = 0;          ///< columns that share a codebook; 0: the whole row

  /// Throws InvalidArgument unless the precision is 2 to 8 and the group size 0 or a positive
  /// multiple of 32.
  void validate() const;
  /// G
  std::int64_t groups() const {
    return group_size == 0 ? 1 : (columns + group_size - 1) / group_size;
  }
};

namespace cpu {

/// Rows [row_begin, row_end): out is fp32 [row_end - row_begin, G, 2^precision]. Summed in double
/// precision, in the order of the columns.
void sum_by_code(const CodeSums& sums, std::int64_t row_begin, std::int64_t row_end, float* out);

}  // namespace cpu
}  // namespace anyprec
