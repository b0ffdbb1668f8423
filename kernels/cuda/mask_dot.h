#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "anyprec/cuda.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/fused.h"

namespace anyprec::cuda {

/// Whether the mask-dot kernel (mask_dot.cuh) computes these products: one or two rows of x; tables
/// of up to four bits, with signed planes by class below them; no groups along K, or binary coding
/// by groups of 128 columns; and a K whose planes of x fit in shared memory. `products` agree in K,
/// form and precision.
bool mask_dot_serves(const Input& input, const Fused& fused, std::span<const Product> products,
                     const Device& device);

/// The products, in one launch. planes: of the input's rows, or null pointers.
cudaError_t mask_dot(const Input& input, const ActivationPlanes& planes, const Fused& fused,
                     std::span<const Product> products, const Device& device, cudaStream_t stream);

/// The same for the form at every precision that all `codebooks` have, which *precision chooses.
bool mask_dot_serves_any(const Input& input, std::span<const Product> products,
                         std::span<const Codebooks> codebooks, const Device& device);
cudaError_t mask_dot_any(const Input& input, const int* precision,
                         std::span<const Product> products, std::span<const Codebooks> codebooks,
                         const Device& device, cudaStream_t stream);

}  // namespace anyprec::cuda
