#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <vector>

namespace anyprec::testing::emulated {

/// The value of an fp16, from a table: emulated products read millions.
inline float half_value(std::uint16_t bits) {
  static const std::vector<float> values = [] {
    std::vector<float> all(1 << 16);
    for (unsigned i = 0; i < all.size(); ++i)
      all[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(i)));
    return all;
  }();
  return values[bits];
}

}  // namespace anyprec::testing::emulated
