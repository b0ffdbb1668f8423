#include "kernels/cpu/activations.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/cpu/float_types.h"

namespace anyprec::cpu {
namespace {

constexpr std::int64_t kMaxStepColumns = 2 * kUnitColumns;
constexpr float kSmallestMagnitude = 0x1p-90f;  // below, a block counts as zero

/// Loads columns [first, first + count) of row i; what lies past K is zero.
void load_padded(const Activations& x, std::int64_t i, std::int64_t first, std::int64_t count,
                 float* out) {
  const std::int64_t real = std::clamp<std::int64_t>(x.columns - first, 0, count);
  load_floats(x.data, i * x.stride + first, real, x.type, out);
  std::fill(out + real, out + count, 0.0f);
}

/// Quantizes one block and returns the value of one step, over kTableSteps: the other factor's
/// steps are folded in here so that sums stay in the range of the result.
float fix_block(const float* x, std::int16_t* q) {
  std::uint32_t largest_bits = 0;  // of magnitudes, whose bits order as the numbers do, NaN last
  for (int i = 0; i < kBlockColumns; ++i)
    largest_bits = std::max(largest_bits, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
  const float largest = std::bit_cast<float>(largest_bits);
  if (!(largest >= kSmallestMagnitude && largest <= std::numeric_limits<float>::max())) {
    std::fill(q, q + kBlockColumns, std::int16_t{0});
    return largest < kSmallestMagnitude ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const float inverse = kActivationSteps / largest;
  constexpr float kRound = 0x1.8p23f;  // adding and subtracting it rounds to an integer
  for (int i = 0; i < kBlockColumns; ++i)
    q[i] = static_cast<std::int16_t>(static_cast<std::int32_t>((x[i] * inverse + kRound) - kRound));
  return largest / kActivationSteps / kTableSteps;
}

}  // namespace

FixedActivations::FixedActivations(const KernelSet& kernels, const Activations& x)
    : value_stride_(step_count(kernels, x.columns) * kernels.step_units * kUnitColumns),
      scale_stride_(value_stride_ / kBlockColumns * kernels.scale_copies),
      values_(x.rows * value_stride_),
      scales_(x.rows * scale_stride_) {
  const int step_columns = kernels.step_units * kUnitColumns;
  float natural[kMaxStepColumns];
  std::int16_t fixed[kMaxStepColumns];
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t s = 0; s < value_stride_ / step_columns; ++s) {
      load_padded(x, i, s * step_columns, step_columns, natural);
      std::int16_t* values = values_.data() + i * value_stride_ + s * step_columns;
      float* scales = scales_.data() + i * scale_stride_ +
                      s * kernels.step_units * kUnitBlocks * kernels.scale_copies;
      for (int u = 0; u < kernels.step_units; ++u) {
        for (int j = 0; j < kUnitBlocks; ++j) {
          const int column = u * kUnitColumns + j * kBlockColumns;
          const float scale = fix_block(natural + column, fixed + column);
          float* copies = scales + (j * kernels.step_units + u) * kernels.scale_copies;
          std::fill(copies, copies + kernels.scale_copies, scale);
        }
      }
      for (int c = 0; c < step_columns; ++c) values[kernels.order[c]] = fixed[c];
    }
  }
}

FixedRows FixedActivations::rows() const {
  return {values_.data(), value_stride_, scales_.data(), scale_stride_};
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
