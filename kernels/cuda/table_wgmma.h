#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>

#include "anyprec/cuda.h"
#include "kernels/cuda/device.h"

namespace anyprec::cuda {

/// Whether table_wgmma.cuh computes these products: on compute capability 9.0, 1 to 128 rows of
/// fp16 or bf16 x, any codebook form without groups along K. `products` agree in K, form and
/// precision.
bool table_wgmma_serves(const Input& input, std::span<const Product> products,
                        const Device& device);

/// Workspace that the products need.
std::size_t table_wgmma_bytes(const Input& input, std::span<const Product> products);

/// The products, in two launches: x to tiles, and the multiplication. Values of a hybrid are summed
/// in fp32 and rounded to fp16 once; products are summed in fp32. bf16 x becomes fp16 times a power
/// of two a row, exact but for values 2^-29 below the row's largest, whose error is under 2^-39 of
/// it. workspace: table_wgmma_bytes(), 16-byte aligned.
cudaError_t table_wgmma(const Input& input, std::span<const Product> products, void* workspace,
                        const Device& device, cudaStream_t stream);

}  // namespace anyprec::cuda
