#pragma once

#include <cstring>

#include "tests/cpp/kernels/emulated/block.h"

/// kernels/cuda/ptx.cuh as the emulated block has it: what a kernel under test uses of it.
namespace anyprec::cuda::ptx {

inline void launch_dependents() {}
inline void wait_for_predecessors() {}

inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(static_cast<const char*>(pointer) - cuda::shared);
}

inline void barrier_init(std::uint32_t barrier, int arrivals) {
  emulated::block().init_barrier(barrier, arrivals);
}
inline void barrier_arrive_after_copies(std::uint32_t barrier) {
  emulated::block().arrive_after_copies(barrier);
}
inline void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  emulated::block().wait_barrier(barrier, parity);
}

inline void copy_16(std::uint32_t shared, const void* global) {
  emulated::block().copy(shared, global, 16, 16);
}
inline void copy_4(std::uint32_t shared, const void* global) {
  emulated::block().copy(shared, global, 4, 4);
}
inline void copy_8(std::uint32_t shared, const void* global) {
  emulated::block().copy(shared, global, 8, 8);
}
inline void store_shared(std::uint32_t shared, std::uint32_t value) {
  std::memcpy(cuda::shared + shared, &value, sizeof(value));
}
inline void commit_copies() { emulated::block().commit_copies(); }
template <int kPending>
void wait_for_copies() {
  emulated::block().wait_for_copies(kPending);
}

inline void binary_mma_half(std::int32_t (&c)[4], std::uint32_t a0, std::uint32_t a1,
                            std::uint32_t b) {
  emulated::Block& block = emulated::block();
  block.publish({a0, a1, b});
  const int g = block.lane() / 4, t = block.lane() % 4;
  for (int row = 0; row < 2; ++row) {
    for (int column = 0; column < 2; ++column) {
      for (int word = 0; word < 4; ++word) {
        c[2 * row + column] += std::popcount(block.published(4 * g + word)[row] &
                                             block.published(4 * (2 * t + column) + word)[2]);
      }
    }
  }
  block.meet_warp();
}

template <int kTruth>
std::uint32_t boolean(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t result = 0;
  for (int i = 0; i < 8; ++i) {
    if (kTruth >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return result;
}
template <std::uint32_t kMask>
std::uint32_t choose(std::uint32_t a, std::uint32_t b) {
  return (a & kMask) | (b & ~kMask);
}

}  // namespace anyprec::cuda::ptx
