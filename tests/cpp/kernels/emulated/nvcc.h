#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <bit>
#include <cmath>
#include <cstdint>

#include "tests/cpp/kernels/emulated/block.h"

/// What nvcc gives a kernel, for the thread of an emulated block.

#undef __noinline__
#define __noinline__
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __maxnreg__
#define __maxnreg__(...)
#undef __grid_constant__
#define __grid_constant__
#define threadIdx (::anyprec::testing::emulated::thread().index)
#define blockIdx (::anyprec::testing::emulated::block().index)
inline const uint3& gridDim = anyprec::testing::emulated::cluster().grid;

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
inline void __syncwarp() { anyprec::testing::emulated::block().meet_warp(); }
inline void __syncthreads() { anyprec::testing::emulated::block().meet_block(); }
inline unsigned __shfl_sync(unsigned /*mask*/, unsigned value, int lane) {
  return anyprec::testing::emulated::block().exchange(value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned /*mask*/, T value, int mask) {
  anyprec::testing::emulated::Block& block = anyprec::testing::emulated::block();
  return std::bit_cast<T>(block.exchange(std::bit_cast<std::uint32_t>(value), block.lane() ^ mask));
}
inline bool __any_sync(unsigned /*mask*/, bool value) {
  anyprec::testing::emulated::Block& block = anyprec::testing::emulated::block();
  block.publish({value});
  bool any = false;
  for (int lane = 0; lane < anyprec::testing::emulated::kWarpLanes; ++lane) {
    any = any || block.published(lane)[0] != 0;
  }
  block.meet_warp();
  return any;
}
template <class T, class Join>
T reduce_warp(T value, const Join& join) {
  anyprec::testing::emulated::Block& block = anyprec::testing::emulated::block();
  block.publish({std::bit_cast<std::uint32_t>(value)});
  T result = std::bit_cast<T>(block.published(0)[0]);
  for (int lane = 1; lane < anyprec::testing::emulated::kWarpLanes; ++lane) {
    result = join(result, std::bit_cast<T>(block.published(lane)[0]));
  }
  block.meet_warp();
  return result;
}
inline std::uint32_t __reduce_max_sync(unsigned /*mask*/, std::uint32_t value) {
  return reduce_warp(value, max<std::uint32_t>);
}
inline int __reduce_add_sync(unsigned /*mask*/, int value) {
  return reduce_warp(value, [](int a, int b) { return a + b; });
}
inline int __float2int_rn(float value) {
  return value == value ? static_cast<int>(std::nearbyint(value)) : 0;
}
inline std::uint32_t __vmaxu2(std::uint32_t a, std::uint32_t b) {
  return max(a & 0xffffu, b & 0xffffu) | max(a >> 16, b >> 16) << 16;
}
inline std::uint32_t __byte_perm(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
  const std::uint64_t bytes = low | std::uint64_t{high} << 32;
  std::uint32_t result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned from = selector >> 4 * i & 7;
    result |= static_cast<std::uint32_t>(bytes >> 8 * from & 0xff) << 8 * i;
  }
  return result;
}
inline unsigned __brev(unsigned value) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (value >> i & 1u) << (31 - i);
  return result;
}
template <class T>
T __ldg(const T* from) {
  anyprec::testing::emulated::require(reinterpret_cast<std::uintptr_t>(from) % sizeof(T) == 0,
                                      "a load is not aligned");
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return __ldg(from);
}
inline std::uint32_t __float_as_uint(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float __uint_as_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
