#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "anyprec/codebook.h"
#include "src/engine/weights.h"

namespace anyprec::engine {

/// What random weights a model of some shape gets, to measure its speed.
struct RandomWeights {
  CodebookForm form;
  std::vector<int> precisions;  ///< rising; empty: every linear is dense
  bool quantize_head = false;
};

/// Tensors of the shapes that config asks for, made on the device when they are asked for: values
/// of a normal distribution, norms of one. Throws UnsupportedModel for a K that is no multiple
/// of 8.
std::unique_ptr<WeightSource> random_source(const ModelConfig& config, RandomWeights what,
                                            at::Device device, at::ScalarType dtype);

}  // namespace anyprec::engine
