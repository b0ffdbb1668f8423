#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "anyprec/cuda.h"

/// Linear layers with what a decoder computes just before and just after them, in one launch: an
/// operator of its own between two layers takes longer to begin and to end than it works.
namespace anyprec::cuda {

/// Root mean square normalization (decoder::RmsNorm) of the rows of x.
struct InputNorm {
  const void* weight = nullptr;  ///< [K] of the input's type; null: x is taken as it is
  float eps = 0.0f;
  float offset = 0.0f;
  float per_column = 0.0f;  ///< 1 / K
};

struct Fused {
  InputNorm norm;
  bool add = false;  ///< x W^T + bias, rounded, is added to what y holds
};

/// Whether the kernel that `linear` would choose computes these products so: kMaskDot, and
/// kTableMma of one row at up to 7 bits. Norms are of one row, of up to 4096 elements; by kTableMma
/// in runs of 8 that are aligned to 16 bytes.
bool linear_fuses(const Input& input, const Fused& fused, std::span<const Product> products);

/// The products, as norm, product and sum after another would give them, but for the order in which
/// squares are summed. Throws InvalidArgument where linear_fuses says no. planes: of the
/// input's rows, or null pointers; read where there is no norm and the path is kMaskDot.
cudaError_t linear_fused(const Input& input, const ActivationPlanes& planes, const Fused& fused,
                         std::span<const Product> products, cudaStream_t stream);

}  // namespace anyprec::cuda
