#pragma once

#include <cstddef>
#include <span>

#include "anyprec/cuda.h"
#include "kernels/cuda/device.h"

namespace anyprec::cuda {

/// Products by tiles: some rows of W_b are written in floating point to the workspace and
/// multiplied by cuBLAS, then the next ones, so that a whole matrix is never there.
std::size_t dequantize_matmul_bytes(const Input& input, std::span<const Product> products,
                                    const Device& device);
cudaError_t dequantize_matmul(const Input& input, std::span<const Product> products,
                              const Workspace& workspace, const Device& device,
                              cudaStream_t stream);

}  // namespace anyprec::cuda
