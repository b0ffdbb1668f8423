#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "src/engine/config.h"

namespace anyprec::engine {

/// Cosines and sines of positions 0 .. P - 1, fp32 [P, dims / 2] each. The angle of pair i at
/// position p is p times its inverse frequency, both as fp32, as transformers computes them.
struct RotaryTable {
  at::Tensor cos;
  at::Tensor sin;
};
RotaryTable make_rotary_table(const RopeConfig& rope, std::int64_t positions, at::Device device);

}  // namespace anyprec::engine
