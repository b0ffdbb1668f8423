#pragma once

#include "tests/cpp/kernels/emulated/block.h"

/// What nvcc gives a kernel and block.h has not. Included before a source, as block.h is.
namespace anyprec::cuda {

inline unsigned __brev(unsigned value) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (value >> i & 1u) << (31 - i);
  return result;
}

}  // namespace anyprec::cuda
