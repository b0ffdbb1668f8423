#pragma once

#include "tests/cpp/kernels/emulated/block.h"

/// kernels/cuda/table_lookup.cuh as the emulated block has it: the tensor core alone.
namespace anyprec::cuda {

inline void mma_16816(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                      std::uint32_t b1) {
  const auto half_of = [](std::uint32_t pair, int i) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16 * i)));
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

}  // namespace anyprec::cuda
