#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "kernels/cuda/divergence.h"
#include "src/ops/checks.h"
#include "src/ops/divergence.h"

namespace anyprec::ops {
namespace {

at::Tensor kl_gradient(const at::Tensor& wanted, at::Tensor& found, double scale) {
  check_logits(wanted, found);
  const c10::cuda::CUDAGuard guard(found.device());
  at::Tensor divergences = at::empty({found.size(0)}, found.options().dtype(at::kFloat));
  const cuda::Logits logits{.wanted = wanted.const_data_ptr(),
                            .found = found.mutable_data_ptr(),
                            .rows = found.size(0),
                            .wanted_columns = wanted.size(1),
                            .found_columns = found.size(1),
                            .type = to_scalar_type(found.scalar_type())};
  C10_CUDA_CHECK(cuda::kl_gradient(logits, static_cast<float>(scale),
                                   divergences.mutable_data_ptr<float>(),
                                   at::cuda::getCurrentCUDAStream()));
  return divergences;
}

}  // namespace
}  // namespace anyprec::ops

TORCH_LIBRARY_IMPL(anyprec, CUDA, m) { m.impl("kl_gradient_", &anyprec::ops::kl_gradient); }
