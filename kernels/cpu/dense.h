#pragma once

#include <cstdint>

#include "anyprec/linear.h"
#include "anyprec/parallel.h"
#include "anyprec/weights.h"

namespace anyprec::cpu {

/// y = x W^T + bias with a dense W of half precision and everything else in fp32: a head that is
/// kept in half the bytes. Values of W are widened exactly, products summed in fp32.
struct DenseProduct {
  ScalarType weight_type = ScalarType::kFloat16;  ///< kFloat16 or kBFloat16
  std::int64_t rows = 0;                          ///< M
  std::int64_t out_features = 0;                  ///< N
  std::int64_t in_features = 0;                   ///< K
  const float* x = nullptr;                       ///< [M, K]
  const void* weight = nullptr;                   ///< [N, K]
  const float* bias = nullptr;                    ///< [N] or null
  float* y = nullptr;                             ///< [M, N]
};

/// Reads W once for every four rows of x: meant for few. The same bytes on any number of threads;
/// a row's result does not depend on the other rows. Throws InvalidArgument for another type.
void dense_product(const DenseProduct& product, const Executor& executor, Isa isa = selected_isa());

/// Output channels [begin, end), one for each instruction set (dense_simd.h).
using DenseKernel = void (*)(const DenseProduct& product, std::int64_t begin, std::int64_t end);
DenseKernel dense_kernel_scalar();
#ifdef ANYPREC_CPU_X86
DenseKernel dense_kernel_avx2();
DenseKernel dense_kernel_avx512();
#endif

}  // namespace anyprec::cpu
