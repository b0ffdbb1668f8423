#include "src/ops/divergence.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/log_softmax.h>
#include <torch/library.h>

#include <algorithm>

#include "src/ops/checks.h"

namespace anyprec::ops {

void check_logits(const at::Tensor& wanted, const at::Tensor& found) {
  to_scalar_type(found.scalar_type());
  TORCH_CHECK_TYPE(wanted.scalar_type() == found.scalar_type(), "wanted: found dtype ",
                   wanted.scalar_type(), " beside ", found.scalar_type(), ", wanted the same");
  TORCH_CHECK_VALUE(wanted.device() == found.device(), "wanted: found on ", wanted.device(),
                    ", the other logits on ", found.device());
  for (const at::Tensor& logits : {wanted, found}) {
    TORCH_CHECK_VALUE(logits.dim() == 2 && logits.is_contiguous() && logits.size(1) > 0,
                      "logits: wanted a contiguous matrix [R, V], found shape ", logits.sizes());
  }
  TORCH_CHECK_VALUE(wanted.size(0) == found.size(0), "wanted: found ", wanted.size(0),
                    " rows beside ", found.size(0), ", wanted as many");
}

namespace {

at::Tensor kl_gradient(const at::Tensor& wanted, at::Tensor& found, double scale) {
  check_logits(wanted, found);
  const std::int64_t vocabulary = std::min(wanted.size(1), found.size(1));
  const auto log_probabilities = [&](const at::Tensor& logits) {
    return at::log_softmax(logits.narrow(1, 0, vocabulary), 1, at::kFloat);
  };
  const at::Tensor log_p = log_probabilities(wanted);
  at::Tensor log_q = log_probabilities(found);
  const at::Tensor p = log_p.exp();
  // A token that has no probability adds nothing.
  at::Tensor divergences = (log_p - log_q).mul_(p).masked_fill_(p.eq(0), 0).sum(1);
  found.narrow(1, 0, vocabulary).copy_(log_q.exp_().sub_(p).mul_(scale));
  found.narrow(1, vocabulary, found.size(1) - vocabulary).zero_();
  return divergences;
}

}  // namespace
}  // namespace anyprec::ops

TORCH_LIBRARY_IMPL(anyprec, CPU, m) { m.impl("kl_gradient_", &anyprec::ops::kl_gradient); }
