#pragma once

#include <cstdint>

#include "kernels/cuda/activation_planes.cuh"
#include "kernels/cuda/decoder.h"

/// How a kernel that has a whole row of its result in a block leaves the row's bit planes.
namespace anyprec::cuda {

/// row: `columns` elements in shared memory, 16-byte aligned and visible to the block. Every thread
/// calls it.
template <int kThreads>
__device__ __forceinline__ void put_planes(const PlanesOut& out, std::int64_t row_index,
                                           const void* row, ScalarType type, std::int64_t columns,
                                           std::uint32_t (&scratch)[2 * kThreads / 32]) {
  std::uint8_t* const planes =
      static_cast<std::uint8_t*>(out.planes) + row_index * unit_count(columns) * kUnitPlaneBytes;
  const PlaneScale scale = activations_to_planes<kThreads>(row, type, columns, planes, scratch);
  if (threadIdx.x == 0) {
    out.scales[2 * row_index] = scale.step;
    out.scales[2 * row_index + 1] = scale.sum;
  }
}

}  // namespace anyprec::cuda
