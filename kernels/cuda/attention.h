#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/cuda/decoder.h"
#include "kernels/cuda/device.h"

/// The two kernels of attention, which cuda::attention chooses between.
namespace anyprec::cuda {

/// Any rows, one at a time: split over keys (attention_decode.cu).
std::size_t attention_decode_bytes(const decoder::Attention& attention);
cudaError_t attention_decode(const decoder::Attention& attention, const PlanesOut& planes,
                             void* workspace, const Device& device, cudaStream_t stream);

/// Tiles of a sequence's rows on tensor cores; fp16 and bf16 (attention_prefill.cu).
cudaError_t attention_prefill(const decoder::Attention& attention, const Device& device,
                              cudaStream_t stream);

/// Whether rows are so few that each is taken by itself.
inline bool is_decoding(const decoder::Attention& attention) {
  return attention.rows <= 4 * static_cast<std::int64_t>(attention.sequences);
}

}  // namespace anyprec::cuda
