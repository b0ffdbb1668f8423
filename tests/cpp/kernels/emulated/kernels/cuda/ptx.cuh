#pragma once

#include "tests/cpp/kernels/emulated/block.h"

/// kernels/cuda/ptx.cuh as the emulated block has it: what a kernel under test uses of it.
namespace anyprec::cuda::ptx {

inline void launch_dependents() {}
inline void wait_for_predecessors() {}

inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(static_cast<const char*>(pointer) - cuda::shared);
}

inline void copy_16(std::uint32_t shared, const void* global) {
  emulated::block().copy(shared, global, 16, 16);
}
inline void copy_4(std::uint32_t shared, const void* global) {
  emulated::block().copy(shared, global, 4, 4);
}
inline void copy_4_of(std::uint32_t shared, const void* global, int bytes) {
  emulated::block().copy(shared, global, 4, bytes);
}
inline void commit_copies() { emulated::block().commit_copies(); }
template <int kPending>
void wait_for_copies() {
  emulated::block().wait_for_copies(kPending);
}

}  // namespace anyprec::cuda::ptx
