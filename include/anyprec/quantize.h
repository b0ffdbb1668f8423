#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "anyprec/parallel.h"

namespace anyprec {

/// What the quantizer makes of one weight matrix.
struct QuantizeOptions {
  int lowest_precision = 2;     ///< narrowest precision with a table, 2..seed
  int seed_precision = 3;       ///< the one that clustering fits directly, 2..8
  int parent_precision = 8;     ///< widest precision, seed..8
  std::int64_t group_size = 0;  ///< columns that share a table (a multiple of 32); 0: the whole row
};

/// A weight matrix as nested codes with a full table for each precision.
struct QuantizedMatrix {
  std::int64_t out_features = 0;    ///< N
  std::int64_t in_features = 0;     ///< K
  std::int64_t groups = 1;          ///< G
  std::vector<std::uint8_t> codes;  ///< [N, K], parent precision; the b-bit code is the top b bits
  /// One table per precision, luts[b - lowest_precision]: [N, G, 2^b]. Each entry is the weighted
  /// mean of its cluster; both children of an empty cluster equal the parent's entry.
  std::vector<std::vector<float>> luts;
  /// errors[b - lowest_precision]: sum over the matrix of s * (w - value_b)^2, with the
  /// sensitivities s as given (all ones where none were), accumulated in double.
  std::vector<double> errors;
};

/// Optimal sensitivity-weighted 1-D k-means of every (row, group) at the seed precision, by dynamic
/// programming, then incremental upscaling to the parent precision, every cluster split in two
/// optimally; precisions below the seed merge clusters (Any-Precision LLM, arXiv 2402.10517, with
/// both steps exact).
///
/// weights: [N, K] row-major; sensitivities: [N, K] (non-negative) or null for all ones. A weight's
/// mass is its sensitivity over the mean of its (row, group), plus 1e-6; a row whose sensitivities
/// are all zero weighs its columns equally. The result does not depend on the executor.
///
/// Throws InvalidArgument naming `name` and the index for NaN or infinity in weights or
/// sensitivities, a negative sensitivity, and options outside the ranges above.
QuantizedMatrix quantize_matrix(const std::string& name, const float* weights,
                                const float* sensitivities, std::int64_t out_features,
                                std::int64_t in_features, const QuantizeOptions& options,
                                const Executor& executor);

}  // namespace anyprec
