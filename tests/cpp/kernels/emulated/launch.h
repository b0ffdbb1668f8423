#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>

#include "tests/cpp/kernels/emulated/block.h"

namespace anyprec::testing::emulated {

/// Runs `body` as the blocks of a grid, one after the other, each in shared memory full of NaN of
/// which it may write the first `shared_bytes`.
template <class Body>
void launch(uint3 grid, int threads, std::size_t shared_bytes, const Body& body) {
  Block& block = emulated::block();
  block.grid = grid;
  for (block.index.y = 0; block.index.y < grid.y; ++block.index.y) {
    for (block.index.x = 0; block.index.x < grid.x; ++block.index.x) {
      std::memset(cuda::shared, 0xff, sizeof(cuda::shared));
      block.run(threads, body);
      for (std::size_t i = shared_bytes; i < sizeof(cuda::shared); ++i)
        ASSERT_EQ(cuda::shared[i], static_cast<char>(0xff)) << "wrote past its shared memory";
    }
  }
  block.index = {};
}

}  // namespace anyprec::testing::emulated
