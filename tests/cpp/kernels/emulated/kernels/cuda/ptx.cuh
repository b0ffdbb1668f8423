#pragma once

#include <array>
#include <bit>
#include <cstring>

#include "tests/cpp/kernels/emulated/block.h"
#include "tests/cpp/kernels/emulated/half_value.h"

/// kernels/cuda/ptx.cuh as the emulated block has it: what a kernel under test uses of it.
namespace anyprec::cuda::ptx {

inline void launch_dependents() {}
inline void wait_for_predecessors() {}

inline std::uint32_t shared_address(const void* pointer) {
  return emulated::block().address(pointer);
}

template <int kBarrier, int kThreads>
void meet() {
  emulated::block().meet_some(kBarrier, kThreads);
}

// ---- barriers in shared memory ----

inline void barrier_init(std::uint32_t barrier, int arrivals) {
  emulated::block().init_barrier(barrier, arrivals);
}
inline void barrier_arrive(std::uint32_t barrier) { emulated::block().arrive(barrier); }
inline void barrier_arrive_after_copies(std::uint32_t barrier) {
  emulated::block().arrive_after_copies(barrier);
}
inline void barrier_arrive_and_expect(std::uint32_t barrier, int bytes) {
  emulated::block().arrive(barrier, bytes);
}
inline void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  emulated::block().wait_barrier(barrier, parity);
}

// ---- copies ----

inline void copy_16(std::uint32_t shared, const void* global) {
  emulated::block().copy(shared, global, 16);
}
inline void copy_4(std::uint32_t shared, const void* global) {
  emulated::block().copy(shared, global, 4);
}
inline void copy_8(std::uint32_t shared, const void* global) {
  emulated::block().copy(shared, global, 8);
}
inline void store_shared(std::uint32_t shared, std::uint32_t value) {
  std::memcpy(emulated::block().memory + shared, &value, sizeof(value));
}
inline void commit_copies() { emulated::block().commit_copies(); }
template <int kPending>
void wait_for_copies() {
  emulated::block().wait_for_copies(kPending);
}
inline void copy_bulk(std::uint32_t shared, const void* global, int bytes, std::uint32_t barrier) {
  emulated::block().copy_bulk(shared, global, static_cast<std::uint32_t>(bytes), barrier);
}
inline void prefetch_bulk(const void* global, int bytes) {
  emulated::require(
      bytes > 0 && bytes % 16 == 0 && reinterpret_cast<std::uintptr_t>(global) % 16 == 0,
      "a prefetch is not aligned");
}

// ---- blocks of a cluster ----

inline void arrive_at_cluster() { emulated::cluster().arrive(); }
inline void arrive_at_cluster_relaxed() { emulated::cluster().arrive(); }
inline void wait_for_cluster() { emulated::cluster().wait(); }
inline void fence_barrier_inits() {}
inline void store_remote_four(std::uint32_t shared, int rank, const float (&four)[4],
                              std::uint32_t barrier) {
  emulated::cluster().other_block(rank).receive(shared, std::to_array(four), barrier);
}
inline void barrier_arrive_remote(std::uint32_t barrier, int rank) {
  emulated::cluster().other_block(rank).arrive(barrier);
}
inline void barrier_wait_cluster(std::uint32_t barrier, std::uint32_t parity) {
  emulated::block().wait_barrier(barrier, parity);
}

// ---- tensor cores ----

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

inline void mma_16816(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                      std::uint32_t b1) {
  const auto half_of = [](std::uint32_t pair, int i) {
    return emulated::half_value(static_cast<std::uint16_t>(pair >> 16 * i));
  };
  emulated::Block& block = emulated::block();
  block.publish({a[0], a[1], a[2], a[3], b0, b1});
  const int g = block.lane() / 4, t = block.lane() % 4;
  for (int row = 0; row < 2; ++row) {
    for (int column = 0; column < 2; ++column) {
      double sum = c[2 * row + column];
      for (int k = 0; k < 16; ++k) {
        const auto& of_a = block.published(4 * g + k % 8 / 2);
        const auto& of_b = block.published(4 * (2 * t + column) + k % 8 / 2);
        sum += static_cast<double>(half_of(of_a[k / 8 * 2 + row], k % 2)) *
               half_of(of_b[4 + k / 8], k % 2);
      }
      c[2 * row + column] = static_cast<float>(sum);
    }
  }
  block.meet_warp();
}

// ---- bits ----

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
