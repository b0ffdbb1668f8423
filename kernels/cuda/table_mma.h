#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "anyprec/cuda.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/table_mma_args.h"

namespace anyprec::cuda {

/// Whether the table kernel (table_mma.cuh) computes these products: 1 to 64 rows of fp16 or bf16
/// x, any codebook form without groups along K. `products` agree in K, form and precision.
bool table_mma_serves(const Input& input, const Fused& fused, std::span<const Product> products,
                      const Device& device);

/// Whether every run of 8 elements of x is aligned to 16 bytes and whole.
bool x_is_vector(const Input& input, std::int64_t columns);

/// What the kernels by tables and by planes take of the products; x and how K is cut are left out.
TableMmaArgs describe_products(const Input& input, std::span<const Product> products);

/// The products, in one launch. Values of a hybrid are summed in fp32 and rounded to fp16 once;
/// products are summed in fp32. bf16 x becomes fp16 times a power of two, per row and per part of
/// K: exact but for values 2^-32 below the largest there, whose error is under 2^-39 of it.
cudaError_t table_mma(const Input& input, const Fused& fused, std::span<const Product> products,
                      const Device& device, cudaStream_t stream);

/// The same by a given kernel, for choosing among them.
cudaError_t launch_table_mma(const TableMmaKernel& kernel, const Input& input, const Fused& fused,
                             std::span<const Product> products, const Device& device,
                             cudaStream_t stream);

}  // namespace anyprec::cuda
