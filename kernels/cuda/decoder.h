#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/decoder.h"

/// What a decoder computes between its linear layers, on the current device and `stream`. As in
/// anyprec/cuda.h: none allocates, all can be captured, the same input gives the same bytes, and a
/// call returns the status of its launches. Kernels may start before their predecessor has ended,
/// and read nothing but weights of norms then.
namespace anyprec::cuda {

/// Where the bit planes of a result go (ActivationPlanes in anyprec/cuda.h), or null pointers.
struct PlanesOut {
  void* planes = nullptr;
  float* scales = nullptr;
};

cudaError_t rms_norm(const decoder::RmsNorm& norm, const PlanesOut& planes, cudaStream_t stream);
cudaError_t gated(const decoder::Gated& gated, const PlanesOut& planes, cudaStream_t stream);
cudaError_t rotary_to_cache(const decoder::RotaryToCache& rotary, cudaStream_t stream);

/// Working memory of attention, which depends on shapes alone; 16-byte aligned.
std::size_t attention_workspace_bytes(const decoder::Attention& attention);
/// Throws InvalidArgument unless heads have 64, 96, 128 or 256 elements. The launches do not depend
/// on the sequences' lengths.
cudaError_t attention(const decoder::Attention& attention, const PlanesOut& planes, void* workspace,
                      cudaStream_t stream);

cudaError_t sample(const decoder::Sampling& sampling, cudaStream_t stream);

}  // namespace anyprec::cuda
