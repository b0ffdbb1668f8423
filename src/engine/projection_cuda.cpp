#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>

#include <array>

#include "anyprec/cuda.h"
#include "kernels/cuda/fused.h"
#include "src/engine/projection.h"
#include "src/ops/checks.h"
#include "src/ops/linear_cuda.h"

namespace anyprec::engine {
namespace {

cuda::Input input_of(const at::Tensor& x) {
  return {.x = x.const_data_ptr(),
          .x_stride = x.size(1),
          .rows = x.size(0),
          .type = ops::to_scalar_type(x.scalar_type())};
}

cuda::Product product_of(const Part& part, const at::Tensor& y) {
  const at::Tensor& bias = part.projection->bias;
  return {.weights = part.projection->weights(part.precision),
          .bias = bias.defined() ? bias.const_data_ptr() : nullptr,
          .y = static_cast<std::byte*>(y.mutable_data_ptr()) +
               part.offset * static_cast<std::int64_t>(y.element_size()),
          .y_stride = y.size(1)};
}

cuda::ActivationPlanes planes_of(const BitPlanes& planes) {
  return {.planes = planes.planes.const_data_ptr(),
          .scales = planes.scales.const_data_ptr<float>()};
}

cuda::Fused fused_of(const Fusion& fusion) {
  cuda::Fused fused;
  if (fusion.norm_weight.defined()) {
    fused.norm = {.weight = fusion.norm_weight.const_data_ptr(),
                  .eps = static_cast<float>(fusion.norm_eps),
                  .offset = static_cast<float>(fusion.norm_offset)};
  }
  fused.add = fusion.sum.defined();
  return fused;
}

void launch(const cuda::Input& input, std::span<const cuda::Product> products, const at::Tensor& x,
            const BitPlanes* planes) {
  if (planes != nullptr && cuda::linear_path(input, products) == cuda::LinearPath::kMaskDot) {
    C10_CUDA_CHECK(cuda::linear_from_planes(input, planes_of(*planes), products,
                                            at::cuda::getCurrentCUDAStream()));
    return;
  }
  ops::run_linear(input, products, x);
}

}  // namespace

void multiply_cuda(const at::Tensor& x, std::span<const Part> parts, const at::Tensor& y,
                   const BitPlanes* planes) {
  const cuda::Input input = input_of(x);
  std::array<bool, cuda::kMaxProducts> done{};
  for (std::size_t first = 0; first < parts.size(); ++first) {
    if (done[first]) continue;
    std::array<cuda::Product, cuda::kMaxProducts> products;
    std::size_t count = 0;
    for (std::size_t i = first; i < parts.size(); ++i) {
      const Part& part = parts[i];
      if (done[i] || part.precision != parts[first].precision ||
          part.projection->form != parts[first].projection->form) {
        continue;
      }
      done[i] = true;
      products[count++] = product_of(part, y);
    }
    launch(input, {products.data(), count}, x, planes);
  }
}

bool multiply_fused_cuda(const at::Tensor& x, std::span<const Part> parts, const at::Tensor& y,
                         const Fusion& fusion, const BitPlanes* planes) {
  std::array<cuda::Product, cuda::kMaxProducts> products;
  std::size_t count = 0;
  for (const Part& part : parts) {
    if (part.precision != parts[0].precision ||
        part.projection->form != parts[0].projection->form) {
      return false;
    }
    products[count++] = product_of(part, y);
  }
  const cuda::Input input = input_of(x);
  const cuda::Fused fused = fused_of(fusion);
  const std::span<const cuda::Product> all(products.data(), count);
  if (!cuda::linear_fuses(input, fused, all)) return false;
  C10_CUDA_CHECK(
      cuda::linear_fused(input, planes != nullptr ? planes_of(*planes) : cuda::ActivationPlanes{},
                         fused, all, at::cuda::getCurrentCUDAStream()));
  return true;
}

bool takes_planes_cuda(const Part& part, at::ScalarType type, std::int64_t rows) {
  const Projection& projection = *part.projection;
  // The question is asked before there are x and y. It wants addresses, and reads nothing there.
  void* const anywhere = projection.planes.data_ptr();
  const cuda::Input input{.x = anywhere,
                          .x_stride = projection.in_features,
                          .rows = rows,
                          .type = ops::to_scalar_type(type)};
  const cuda::Product product{.weights = projection.weights(part.precision),
                              .bias = nullptr,
                              .y = anywhere,
                              .y_stride = projection.out_features};
  return cuda::linear_path(input, {&product, 1}) == cuda::LinearPath::kMaskDot;
}

}  // namespace anyprec::engine
