#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "tests/cpp/kernels/emulated/block.h"

namespace anyprec::testing::emulated {

struct Launch {
  uint3 grid;
  int threads;
  std::size_t shared_bytes;
  int cluster = 1;  ///< blocks
  Landing landing = Landing::kLate;
  unsigned order = 0;  ///< of threads (Fibers)
};

/// Runs `body` as the blocks of a grid, one cluster after the other, each block in shared memory
/// full of NaN of which it may write the first `shared_bytes`.
template <class Body>
void launch(const Launch& of, const Body& body) {
  Cluster& cluster = emulated::cluster();
  cluster.grid = of.grid;
  cluster.landing = of.landing;
  const auto blocks = static_cast<unsigned>(of.cluster);
  ASSERT_EQ(of.grid.x % blocks, 0u);
  for (unsigned y = 0; y < of.grid.y; ++y) {
    for (unsigned x = 0; x < of.grid.x; x += blocks) {
      std::memset(cuda::shared, 0xff, blocks * kSharedBytes);
      const unsigned order = of.order == 0 ? 0 : of.order + x;
      cluster.run({x, y, 0}, of.cluster, of.threads, order, body);
      for (unsigned rank = 0; rank < blocks; ++rank) {
        const char* const memory = cuda::shared + rank * kSharedBytes;
        ASSERT_TRUE(std::all_of(memory + of.shared_bytes, memory + kSharedBytes,
                                [](char byte) { return byte == static_cast<char>(0xff); }))
            << "block " << x + rank << " wrote past its shared memory";
      }
    }
  }
}

}  // namespace anyprec::testing::emulated
