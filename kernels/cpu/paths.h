#pragma once

#include <cstdint>
#include <span>

#include "anyprec/linear.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/float_types.h"

/// The two ways to compute y = x W^T + bias; linear.cpp chooses by M.
namespace anyprec::cpu {

/// Where results go, and what is added to them on the way.
struct Output {
  void* data;
  std::int64_t stride;  ///< elements between rows
  const void* bias;     ///< [N] or null
  ScalarType type;

  /// The rows from `first` on.
  Output from(std::int64_t first) const {
    return {static_cast<char*>(data) + first * stride * scalar_bytes(type), stride, bias, type};
  }
  /// Columns n .. n + count - 1 of row i; `values` is used up.
  void store(std::int64_t i, std::int64_t n, float* values, int count) const {
    if (bias != nullptr) {
      for (int k = 0; k < count; ++k) {
        float b;
        load_floats(bias, n + k, 1, type, &b);
        values[k] += b;
      }
    }
    store_floats(values, count, type, data, i * stride + n);
  }
  void store(std::int64_t i, std::int64_t n, float value) const { store(i, n, &value, 1); }
};

/// Up to kMatvecRows rows: fixed-point activations against the codes as they stream by. The rows of
/// all products are divided among threads as one matrix's.
void multiply_few(std::span<const Product> products, const KernelSet& kernels, const Activations& x,
                  const Executor& executor);

/// Many rows: a tile of rows of W, one step of columns at a time, becomes fp32 in the nearest cache
/// and meets every row of x there.
void multiply_many(const Weights& weights, const KernelSet& kernels, const Activations& x,
                   const Output& y, const Executor& executor);

}  // namespace anyprec::cpu
