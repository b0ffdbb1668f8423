#include "src/engine/ops/launch.h"

#include <c10/util/Exception.h>

#include "kernels/cpu/decoder.h"
#include "src/engine/ops/ops.h"
#include "src/ops/errors.h"
#include "src/ops/executor.h"

namespace anyprec::engine {
namespace {

const CudaLaunchers* cuda_launchers = nullptr;

const CudaLaunchers& cuda() {
  TORCH_CHECK_NOT_IMPLEMENTED(cuda_launchers != nullptr,
                              "this build of anyprec has no CUDA kernels");
  return *cuda_launchers;
}

void refuse_planes(const BitPlanes* planes) {
  TORCH_CHECK_VALUE(planes == nullptr, "bit planes of activations are for CUDA");
}

}  // namespace

bool register_cuda(const CudaLaunchers& launchers) {
  static CudaLaunchers kept;
  kept = launchers;
  cuda_launchers = &kept;
  return true;
}

bool can_write_planes(const at::Device& device, std::int64_t rows) {
  return device.is_cuda() && rows >= 1 && rows <= 2;
}

void launch(const decoder::RmsNorm& norm, const at::Tensor& like, BitPlanes* planes) {
  if (like.is_cuda()) return cuda().rms_norm(norm, like, planes);
  refuse_planes(planes);
  cpu::rms_norm(norm, ops::TorchExecutor());
}

void launch(const decoder::Gated& gated, const at::Tensor& like, BitPlanes* planes) {
  if (like.is_cuda()) return cuda().gated(gated, like, planes);
  refuse_planes(planes);
  cpu::gated(gated, ops::TorchExecutor());
}

void launch(const decoder::RotaryToCache& rotary, const at::Tensor& like) {
  if (like.is_cuda()) return cuda().rotary_to_cache(rotary, like);
  ops::as_value_error([&] { cpu::rotary_to_cache(rotary, ops::TorchExecutor()); });
}

void launch(const decoder::Attention& attention, const at::Tensor& like, BitPlanes* planes) {
  if (like.is_cuda()) return cuda().attention(attention, like, planes);
  refuse_planes(planes);
  ops::as_value_error([&] { cpu::attention(attention, ops::TorchExecutor()); });
}

void launch(const decoder::Sampling& sampling, const at::Tensor& like) {
  if (like.is_cuda()) return cuda().sample(sampling, like);
  cpu::sample(sampling, ops::TorchExecutor());
}

}  // namespace anyprec::engine
