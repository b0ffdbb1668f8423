// Under autocast, linear takes its activations and bias in the autocast dtype, as
// torch.nn.functional.linear does.
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "anyprec/torch.h"

namespace anyprec::ops {
namespace {

template <c10::DeviceType device>
at::Tensor linear(const at::Tensor& x, const at::Tensor& planes, const at::Tensor& lut,
                  const std::optional<at::Tensor>& alpha, const std::optional<at::Tensor>& bias,
                  std::int64_t precision, std::int64_t in_features, std::int64_t group_size,
                  std::string_view cell_groups) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const at::ScalarType type = at::autocast::get_autocast_dtype(device);
  std::optional<at::Tensor> cast_bias;
  if (bias.has_value()) cast_bias = at::autocast::cached_cast(type, *bias, device);
  return torch::linear(at::autocast::cached_cast(type, x, device), planes, lut, alpha, cast_bias,
                       precision, in_features, group_size, cell_groups);
}

}  // namespace
}  // namespace anyprec::ops

TORCH_LIBRARY_IMPL(anyprec, AutocastCPU, m) {
  m.impl("linear", &anyprec::ops::linear<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(anyprec, AutocastCUDA, m) {
  m.impl("linear", &anyprec::ops::linear<c10::DeviceType::CUDA>);
}
