#pragma once

#include <cstddef>
#include <span>

#include "anyprec/cuda.h"

namespace anyprec::cuda {

/// Products by tiles: some rows of W_b are written in floating point to the workspace and
/// multiplied by cuBLAS, then the next ones, so that a whole matrix is never there.
std::size_t dequantize_matmul_bytes(const Input& input, std::span<const Product> products);
cudaError_t dequantize_matmul(const Input& input, std::span<const Product> products,
                              const Workspace& workspace, cudaStream_t stream);

}  // namespace anyprec::cuda
