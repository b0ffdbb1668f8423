#pragma once

#include <cstdint>
#include <vector>

#include "anyprec/codebook.h"

/// What every kernel must compute, in double precision, straight from the definition: no tables are
/// expanded, no planes repacked, nothing is shared with the fast kernels.
namespace anyprec::reference {

/// One quantized matrix as a checkpoint stores it. All pointers are borrowed.
struct Weights {
  std::int64_t out_features = 0;  ///< N
  std::int64_t in_features = 0;   ///< K
  CodebookForm form;
  int precision = 0;                     ///< b
  const std::uint8_t* planes = nullptr;  ///< canonical (anyprec/planes.h): at least b planes
  const std::uint16_t* lut = nullptr;    ///< fp16 [N, G, 2^min(b, L)]
  const std::uint16_t* alpha = nullptr;  ///< fp16 [N, G, b - L, C]; unused where b <= L
};

/// The number that an IEEE half precision bit pattern stands for.
double half_value(std::uint16_t bits);

/// W_b [N, K].
std::vector<double> dequantize(const Weights& weights);

/// y [M, N] = x [M, K] W_b^T + bias [N] (or null).
std::vector<double> linear(const Weights& weights, const std::vector<double>& x, std::int64_t m,
                           const double* bias);

}  // namespace anyprec::reference
