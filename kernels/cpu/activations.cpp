#include "kernels/cpu/activations.h"

#include <algorithm>

#include "kernels/cpu/float_types.h"

namespace anyprec::cpu {
namespace {

constexpr std::int64_t kMaxStepColumns = 2 * kUnitColumns;

/// Loads columns [first, first + count) of row i; what lies past K is zero.
void load_padded(const Activations& x, std::int64_t i, std::int64_t first, std::int64_t count,
                 float* out) {
  const std::int64_t real = std::clamp<std::int64_t>(x.columns - first, 0, count);
  load_floats(x.data, i * x.stride + first, real, x.type, out);
  std::fill(out + real, out + count, 0.0f);
}

}  // namespace

FixedActivations::FixedActivations(const KernelSet& kernels, const Activations& x)
    : stride_(step_count(kernels, x.columns) * kernels.fixed_step_bytes),
      records_(x.rows * stride_) {
  const int step_columns = kernels.step_units * kUnitColumns;
  float columns[kMaxStepColumns];
  for (std::int64_t i = 0; i < x.rows; ++i) {
    std::uint8_t* record = records_.data() + i * stride_;
    for (std::int64_t first = 0; first < x.columns; first += step_columns) {
      load_padded(x, i, first, step_columns, columns);
      kernels.fix_step(columns, record);
      record += kernels.fixed_step_bytes;
    }
  }
}

SteppedActivations::SteppedActivations(const KernelSet& kernels, const Activations& x,
                                       const Executor& executor)
    : rows_(x.rows),
      step_columns_(kernels.step_units * kUnitColumns),
      values_(step_count(kernels, x.columns) * x.rows * step_columns_) {
  const std::int64_t steps = step_count(kernels, x.columns);
  const std::int64_t grain =
      std::max<std::int64_t>(1, 65536 / std::max<std::int64_t>(1, x.columns));
  executor.parallel_for(x.rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = 0; s < steps; ++s)
      for (std::int64_t i = begin; i < end; ++i)
        load_padded(x, i, s * step_columns_, step_columns_,
                    values_.data() + (s * rows_ + i) * step_columns_);
  });
}

}  // namespace anyprec::cpu
