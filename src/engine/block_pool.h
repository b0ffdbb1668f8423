#pragma once

#include <cstdint>
#include <vector>

namespace anyprec::engine {

/// Which blocks of the cache are free. The lowest free block is handed out first, so that the same
/// requests always use the same blocks.
class BlockPool {
 public:
  explicit BlockPool(std::int64_t blocks);

  std::int64_t free() const { return static_cast<std::int64_t>(free_.size()); }
  /// `count` blocks; call only where as many are free.
  std::vector<std::int32_t> take(std::int64_t count);
  void give_back(const std::vector<std::int32_t>& blocks);

 private:
  std::vector<std::int32_t> free_;  // a heap, the lowest on top
};

}  // namespace anyprec::engine
