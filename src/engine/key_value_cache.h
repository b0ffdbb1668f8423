#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "src/engine/config.h"

namespace anyprec::engine {

/// The paged cache: token t of a sequence lies in slot t % block_size of its block t / block_size.
struct KeyValueCache {
  std::vector<at::Tensor> keys;  ///< of each layer: [blocks, block_size, kv_heads, head_dim]
  std::vector<at::Tensor> values;
  std::int64_t blocks = 0;
  std::int64_t block_size = 0;
};

/// Zeros, so that blocks that were never written hold no NaN.
KeyValueCache make_cache(const ModelConfig& config, std::int64_t blocks, std::int64_t block_size,
                         at::TensorOptions options);

}  // namespace anyprec::engine
