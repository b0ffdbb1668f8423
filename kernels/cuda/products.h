#pragma once

#include <cstdint>
#include <span>

#include "anyprec/cuda.h"
#include "kernels/cuda/layout.h"

namespace anyprec::cuda {

inline int divide_up(std::int64_t a, std::int64_t b) { return static_cast<int>((a + b - 1) / b); }

inline std::int64_t total_tiles(std::span<const Product> products) {
  std::int64_t tiles = 0;
  for (const Product& product : products) tiles += tile_count(product.weights.out_features);
  return tiles;
}

}  // namespace anyprec::cuda
