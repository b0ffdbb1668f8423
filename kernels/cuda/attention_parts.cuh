#pragma once

#include <cstdint>

#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/device.h"

/// How the keys of a row are divided among blocks that attend to them (attention_decode.cuh).
namespace anyprec::cuda {

/// The least keys of a part.
inline constexpr int kPartKeys = 64;
/// Blocks of a cluster, each with a part.
inline constexpr int kClusterParts = 8;

/// Keys of each part of `count`, of which there are `parts` at most.
__device__ __forceinline__ int part_keys(int count, int parts) {
  const int each = (count + parts - 1) / parts;
  return max(kPartKeys, (each + kPartKeys - 1) / kPartKeys * kPartKeys);
}

/// Sums of a part, unnormalized: [M, Hq, parts, head_size], and after them the largest score and
/// the sum of powers of each, [M, Hq, parts].
struct Parts {
  float* sums;
  float2* totals;
  int count;
};

/// The parts of all rows, or with a null pointer those of clusters, which add them up to y.
template <ScalarType kType>
cudaError_t decode_parts(const decoder::Attention& attention, const Parts* parts,
                         const Device& device, cudaStream_t stream);
extern template cudaError_t decode_parts<ScalarType::kFloat32>(const decoder::Attention&,
                                                               const Parts*, const Device&,
                                                               cudaStream_t);
extern template cudaError_t decode_parts<ScalarType::kBFloat16>(const decoder::Attention&,
                                                                const Parts*, const Device&,
                                                                cudaStream_t);
extern template cudaError_t decode_parts<ScalarType::kFloat16>(const decoder::Attention&,
                                                               const Parts*, const Device&,
                                                               cudaStream_t);

}  // namespace anyprec::cuda
