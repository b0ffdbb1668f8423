#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "src/engine/config.h"
#include "src/engine/key_value_cache.h"
#include "src/engine/rope.h"
#include "src/engine/step_buffers.h"
#include "src/engine/weights.h"

namespace anyprec::engine {

/// The decoder itself: one pass over its layers. The same path for CPU and CUDA.
class Decoder {
 public:
  /// positions: of the rotary tables, the longest sequence.
  Decoder(ModelConfig config, DecoderWeights weights, std::int64_t positions);

  /// Logits of the rows that are wanted, in the activations' dtype [R, vocabulary]; writes the
  /// rows' keys and values into the cache.
  at::Tensor forward(const StepBatch& batch, KeyValueCache& cache,
                     const Assignment& assignment) const;

  /// Bytes of weights that a pass with few rows reads (the embedding's rows apart).
  std::int64_t weight_bytes(const Assignment& assignment) const;

  const ModelConfig& config() const { return config_; }
  const DecoderWeights& weights() const { return weights_; }
  /// Device and dtype of activations.
  at::TensorOptions options() const { return weights_.norm.options(); }

 private:
  ModelConfig config_;
  DecoderWeights weights_;
  std::vector<RotaryTable> rotary_;
};

}  // namespace anyprec::engine
