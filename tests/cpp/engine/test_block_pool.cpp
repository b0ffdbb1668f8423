#include <gtest/gtest.h>

#include "src/engine/block_pool.h"

namespace anyprec::engine {
namespace {

TEST(BlockPool, HandsOutTheLowestFreeBlocks) {
  BlockPool pool(6);
  const auto first = pool.take(2);
  const auto second = pool.take(3);
  EXPECT_EQ(first, (std::vector<std::int32_t>{0, 1}));
  EXPECT_EQ(second, (std::vector<std::int32_t>{2, 3, 4}));
  EXPECT_EQ(pool.free(), 1);
  pool.give_back(first);
  EXPECT_EQ(pool.take(3), (std::vector<std::int32_t>{0, 1, 5}));
  EXPECT_EQ(pool.free(), 0);
}

}  // namespace
}  // namespace anyprec::engine
