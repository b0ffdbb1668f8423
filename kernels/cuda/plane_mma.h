#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "anyprec/cuda.h"
#include "kernels/cuda/device.h"

namespace anyprec::cuda {

/// The most rows of x, whose planes are read again for every 16 columns of the mma.
inline constexpr std::int64_t kMostPlaneRows = 64;

/// How many parts of 128 columns may have codebooks of their own in this form: 1, 2 or 4. What the
/// tensor cores have to do grows with it.
int plane_mma_parts(const Weights& weights);

/// Whether the plane kernel (plane_mma.cuh) computes these products: binary coding (L = 0), one
/// codebook a row or groups of any size along a K of up to 2^20, 1 to 64 rows of fp16 or bf16 x.
/// `products` agree in K, form and precision.
bool plane_mma_serves(const Input& input, std::span<const Product> products, const Device& device);

/// The products, in one launch. Values are never rounded, products are summed in fp32. x becomes
/// fp16 times a power of two, per row, group and part of K: exact but for values 2^-22 below the
/// largest there, whose error is under 2^-32 of it (fp16 x below 2^-16: under 2^-24).
cudaError_t plane_mma(const Input& input, std::span<const Product> products, const Device& device,
                      cudaStream_t stream);

/// The same with a given number of blocks on a multiprocessor, for choosing it: one leaves room for
/// the next launch's, two share the work of this one where they fit.
cudaError_t launch_plane_mma(const Input& input, std::span<const Product> products, int blocks,
                             const Device& device, cudaStream_t stream);

}  // namespace anyprec::cuda
