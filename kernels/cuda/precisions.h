#pragma once

#include <type_traits>

#include "anyprec/codebook.h"

namespace anyprec::cuda {

/// Calls f(std::integral_constant<int, precision>()): kernels are compiled for each precision.
/// precision: 2 to 8.
template <class F, int kPrecision = kMinPrecision>
auto at_precision(int precision, const F& f) {
  if constexpr (kPrecision == kMaxPrecision) {
    return f(std::integral_constant<int, kPrecision>());
  } else {
    if (precision == kPrecision) return f(std::integral_constant<int, kPrecision>());
    return at_precision<F, kPrecision + 1>(precision, f);
  }
}

}  // namespace anyprec::cuda
