#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/decoder.h"

/// The kernels of a tensor's device. Errors of kernels become c10 errors.
namespace anyprec::engine {

struct BitPlanes;

/// `like`: a tensor whose device and current stream are meant. planes: null, or where the planes
/// of the result go.
void launch(const decoder::RmsNorm& norm, const at::Tensor& like, BitPlanes* planes);
void launch(const decoder::Gated& gated, const at::Tensor& like, BitPlanes* planes);
void launch(const decoder::RotaryToCache& rotary, const at::Tensor& like);
void launch(const decoder::Attention& attention, const at::Tensor& like, BitPlanes* planes);
void launch(const decoder::Sampling& sampling, const at::Tensor& like);

/// The CUDA side, in a source of its own that is only there with CUDA.
struct CudaLaunchers {
  void (*rms_norm)(const decoder::RmsNorm&, const at::Tensor&, BitPlanes*);
  void (*gated)(const decoder::Gated&, const at::Tensor&, BitPlanes*);
  void (*rotary_to_cache)(const decoder::RotaryToCache&, const at::Tensor&);
  void (*attention)(const decoder::Attention&, const at::Tensor&, BitPlanes*);
  void (*sample)(const decoder::Sampling&, const at::Tensor&);
};
/// Called once, when the library is loaded.
bool register_cuda(const CudaLaunchers& launchers);

}  // namespace anyprec::engine
