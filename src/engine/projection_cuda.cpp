#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>

#include <array>

#include "anyprec/cuda.h"
#include "src/engine/projection.h"
#include "src/ops/checks.h"
#include "src/ops/linear_cuda.h"

namespace anyprec::engine {
namespace {

void launch(const cuda::Input& input, std::span<const cuda::Product> products, const at::Tensor& x,
            const BitPlanes* planes) {
  if (planes != nullptr && cuda::linear_path(input, products) == cuda::LinearPath::kMaskDot) {
    const cuda::ActivationPlanes given{.planes = planes->planes.const_data_ptr(),
                                       .scales = planes->scales.const_data_ptr<float>()};
    C10_CUDA_CHECK(
        cuda::linear_from_planes(input, given, products, at::cuda::getCurrentCUDAStream()));
    return;
  }
  ops::run_linear(input, products, x);
}

}  // namespace

void multiply_cuda(const at::Tensor& x, std::span<const Part> parts, const at::Tensor& y,
                   const BitPlanes* planes) {
  const cuda::Input input{.x = x.const_data_ptr(),
                          .x_stride = x.size(1),
                          .rows = x.size(0),
                          .type = ops::to_scalar_type(x.scalar_type())};
  auto* const result = static_cast<std::byte*>(y.mutable_data_ptr());
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
      const at::Tensor& bias = part.projection->bias;
      products[count++] = {.weights = part.projection->weights(part.precision),
                           .bias = bias.defined() ? bias.const_data_ptr() : nullptr,
                           .y = result + part.offset * static_cast<std::int64_t>(y.element_size()),
                           .y_stride = y.size(1)};
    }
    launch(input, {products.data(), count}, x, planes);
  }
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
