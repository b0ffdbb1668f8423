#pragma once

#include <vector>

#include "kernels/decoder.h"

/// What the operations of kernels/decoder.h must compute, in double precision, straight from the
/// definition. Arrays are in host memory; results are returned, `y`, `q` and caches are not
/// written.
namespace anyprec::reference {

/// Element `index` of an array of `type`.
double element(const void* array, ScalarType type, std::int64_t index);

struct Norm {
  std::vector<double> residual;  ///< [M, D], the sum, before it is rounded
  std::vector<double> y;         ///< [M, D], of the rounded sum
};
Norm rms_norm(const decoder::RmsNorm& norm);

std::vector<double> gated(const decoder::Gated& gated);

struct Heads {
  std::vector<double> q;       ///< [M, Hq, head_size]
  std::vector<double> keys;    ///< [M, Hk, head_size]
  std::vector<double> values;  ///< likewise
};
Heads rotary_to_cache(const decoder::RotaryToCache& rotary);

std::vector<double> attention(const decoder::Attention& attention);

}  // namespace anyprec::reference
