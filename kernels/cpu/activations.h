#pragma once

#include <cstdint>

#include "anyprec/parallel.h"
#include "kernels/cpu/float_types.h"
#include "kernels/cpu/kernel_set.h"
#include "kernels/cpu/scratch.h"

namespace anyprec::cpu {

/// Rows of activations as the caller gave them. Borrowed.
struct Activations {
  const void* data;
  std::int64_t stride;   ///< elements between rows
  std::int64_t rows;     ///< M
  std::int64_t columns;  ///< K
  ScalarType type;

  Activations slice(std::int64_t first, std::int64_t count) const {
    const char* from = static_cast<const char*>(data) + first * stride * scalar_bytes(type);
    return {from, stride, count, columns, type};
  }
};

/// Activations in 15-bit fixed point, in the form of a KernelSet. Columns are padded with zeros to
/// whole steps.
class FixedActivations {
 public:
  FixedActivations(const KernelSet& kernels, const Activations& x);
  FixedRows rows() const { return {records_.data(), stride_}; }

 private:
  std::int64_t stride_;
  Scratch<std::uint8_t> records_;
};

/// Activations in fp32, cut into steps of columns: [steps, M, step columns], padded with zeros, so
/// that what a GEMM reads together lies together.
class SteppedActivations {
 public:
  SteppedActivations(const KernelSet& kernels, const Activations& x, const Executor& executor);
  const float* step(std::int64_t step) const {
    return values_.data() + step * rows_ * step_columns_;
  }

 private:
  std::int64_t rows_;
  std::int64_t step_columns_;
  Scratch<float> values_;
};

/// Steps of columns that cover `columns`.
inline std::int64_t step_count(const KernelSet& kernels, std::int64_t columns) {
  const std::int64_t width = kernels.step_units * kUnitColumns;
  return (columns + width - 1) / width;
}

}  // namespace anyprec::cpu
