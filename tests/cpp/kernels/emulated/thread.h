#pragma once

#include <vector_types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

/// What an emulated thread has under way.
namespace anyprec::testing::emulated {

/// A copy to shared memory, where it is followed by zeros up to `size`.
struct Copy {
  char* to;
  const void* from;
  std::size_t size, bytes;

  void land() const {
    std::memset(to, 0, size);
    std::memcpy(to, from, bytes);
  }
};

/// Of a wgmma: a lane's sums of 16 of W's rows with `rows` of B's, and its part of A.
struct WarpProduct {
  float* sums;
  int rows;
  const std::uint32_t* a;
  std::uint32_t b;  ///< in shared memory
};

struct Thread {
  uint3 index{};
  std::array<std::uint32_t, 6> words{};  ///< what the lanes of a warp show one another
  std::vector<Copy> copies;              ///< that no group or barrier has yet
  std::deque<std::vector<Copy>> copy_groups;
  std::vector<WarpProduct> products;  ///< that no group has yet
  std::deque<std::vector<WarpProduct>> product_groups;
  bool products_fenced = false;
  bool at_cluster = false;  ///< has arrived, and not waited
  long cluster_generation = 0;
};

}  // namespace anyprec::testing::emulated
