#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace anyprec::cuda {

/// anyprec::codes_to_planes on a GPU: codes [N, K] to canonical planes [planes, N, ceil(K/8)],
/// plane 0 the most significant of `planes` bits.
cudaError_t codes_to_planes(const std::uint8_t* codes, std::int64_t rows, std::int64_t columns,
                            int planes, std::uint8_t* out, cudaStream_t stream);

}  // namespace anyprec::cuda
