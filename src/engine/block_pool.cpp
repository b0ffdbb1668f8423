#include "src/engine/block_pool.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace anyprec::engine {

BlockPool::BlockPool(std::int64_t blocks) : free_(static_cast<std::size_t>(blocks)) {
  std::iota(free_.begin(), free_.end(), 0);
  std::make_heap(free_.begin(), free_.end(), std::greater<>());
}

std::vector<std::int32_t> BlockPool::take(std::int64_t count) {
  std::vector<std::int32_t> blocks;
  for (std::int64_t i = 0; i < count; ++i) {
    std::pop_heap(free_.begin(), free_.end(), std::greater<>());
    blocks.push_back(free_.back());
    free_.pop_back();
  }
  return blocks;
}

void BlockPool::give_back(const std::vector<std::int32_t>& blocks) {
  for (const std::int32_t block : blocks) {
    free_.push_back(block);
    std::push_heap(free_.begin(), free_.end(), std::greater<>());
  }
}

}  // namespace anyprec::engine
