#include "src/engine/key_value_cache.h"

#include <ATen/ops/zeros.h>

namespace anyprec::engine {

KeyValueCache make_cache(const ModelConfig& config, std::int64_t blocks, std::int64_t block_size,
                         at::TensorOptions options) {
  const auto layers = static_cast<std::int64_t>(config.layers.size());
  const at::Tensor all =
      at::zeros({layers, 2, blocks, block_size, config.kv_heads, config.head_dim}, options);
  KeyValueCache cache;
  cache.blocks = blocks;
  cache.block_size = block_size;
  for (std::int64_t i = 0; i < layers; ++i) {
    cache.keys.push_back(all[i][0]);
    cache.values.push_back(all[i][1]);
  }
  return cache;
}

}  // namespace anyprec::engine
