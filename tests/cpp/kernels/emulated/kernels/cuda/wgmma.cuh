#pragma once

#include <cstring>

#include "tests/cpp/kernels/emulated/block.h"
#include "tests/cpp/kernels/emulated/half_value.h"

/// kernels/cuda/wgmma.cuh as the emulated block has it. Products read their operands, A as well as
/// B, and add to their sums, when they are waited for or when they are started (Landing).
namespace anyprec::testing::emulated {

/// The lane's part of product `index` of the warp's group `group`.
inline void multiply(Block& block, std::size_t group, std::size_t index) {
  const auto product_of = [&](int lane) -> const WarpProduct& {
    return block.thread_of_lane(lane).product_groups[group][index];
  };
  const WarpProduct& product = product_of(block.lane());
  const int g = block.lane() / 4, t = block.lane() % 4;
  float a[2][16];
  for (int k = 0; k < 16; ++k) {
    const std::uint32_t* const words = product_of(4 * g + k % 8 / 2).a;
    for (int high = 0; high < 2; ++high)
      a[high][k] = half_value(static_cast<std::uint16_t>(words[high + k / 8 * 2] >> 16 * (k % 2)));
  }
  const std::uint32_t rows = product.b & ~1023u, first_piece = product.b % 128 / 16;
  for (int i = 0; i < product.rows / 4; ++i) {
    const auto n = static_cast<unsigned>(i / 2 * 8 + 2 * t + i % 2);
    double sums[2] = {};
    for (unsigned piece = 0; piece < 2; ++piece) {
      std::uint16_t eight[8];
      std::memcpy(eight, block.memory + rows + n * 128 + ((first_piece + piece) ^ n % 8) * 16, 16);
      for (unsigned k = 0; k < 8; ++k) {
        const double b = half_value(eight[k]);
        sums[0] += a[0][8 * piece + k] * b;
        sums[1] += a[1][8 * piece + k] * b;
      }
    }
    for (int high = 0; high < 2; ++high) {
      float& sum = product.sums[i / 2 * 4 + 2 * high + i % 2];
      sum = static_cast<float>(sum + sums[high]);
    }
  }
}

/// The warp's groups of products, but for the latest `pending`.
inline void finish_products(Block& block, std::size_t pending) {
  block.meet_warp();
  auto& groups = block.thread().product_groups;
  const std::size_t done = groups.size() > pending ? groups.size() - pending : 0;
  for (std::size_t group = 0; group < done; ++group) {
    for (std::size_t i = 0; i < groups[group].size(); ++i) multiply(block, group, i);
  }
  block.meet_warp();
  groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace anyprec::testing::emulated

namespace anyprec::cuda::ptx {

inline void wgmma_fence() { emulated::thread().products_fenced = true; }
inline void wgmma_commit() {
  emulated::Thread& thread = emulated::thread();
  thread.product_groups.push_back(std::move(thread.products));
  thread.products.clear();
  thread.products_fenced = false;
  if (emulated::cluster().landing == emulated::Landing::kEarly)
    emulated::finish_products(emulated::block(), 0);
}
template <int kPending>
void wgmma_wait() {
  emulated::finish_products(emulated::block(), kPending);
}

inline std::uint64_t wgmma_rows(std::uint32_t address) {
  emulated::require(address % 1024 == 0, "B is not aligned");
  return address >> 4;
}

template <int kSums>
void wgmma(float (&d)[kSums], const std::uint32_t (&a)[4], std::uint64_t b) {
  emulated::Thread& thread = emulated::thread();
  emulated::require(thread.products_fenced, "products of new operands without a fence");
  thread.products.push_back({d, 2 * kSums, a, static_cast<std::uint32_t>(b << 4)});
}

template <int kCount>
void fewer_registers() {}
template <int kCount>
void more_registers() {}

}  // namespace anyprec::cuda::ptx
